"""What there is to see in a generated scene: a street, what stands along it, who moves on it, and the light."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, UInt16

from dense_depth.geometry import SE3, se3
from dense_depth.synthetic import cycles, diggers, houses, people, scenery, trees, vehicles
from dense_depth.synthetic.beams import Parts, Poses
from dense_depth.synthetic.body import Body
from dense_depth.synthetic.mesh import Mesh, merge
from dense_depth.synthetic.shading import Light, ShadowMap
from dense_depth.synthetic.street import (
    CORNER_M,
    CROSSING_ROAD_M,
    GROUND_M,
    LANE_EDGE_M,
    LANE_M,
    PARKING_M,
    PAVEMENT_M,
    ROAD_M,
    Path,
    Street,
    across,
    along,
    joined,
)
from dense_depth.synthetic.traffic import Actor, Profile, moving, standing, steady, varying

EGO_START_M, AHEAD_M = 90.0, 120.0  # where the ego vehicle starts, and how much street lies beyond where it ends
# Lateral, from the middle of the street; people walk towards its start in the first row and away in the second.
CYCLE_LANE_M, FURNITURE_M, TREES_M, SHELTER_M, CYCLES_M, WALK_M = 4.1, 7.3, 7.8, 7.95, 8.3, (8.95, 9.4)


@dataclass(frozen=True)
class World:
    """Everything there is to see in a scene. Instance 0 is the background, instance i is ``actors[i - 1]``.

    Attributes:
        street: The ground.
        background: Everything that is not annotated; world frame.
        actors: Annotated objects.
        world_SE3_ego: Pose of the ego vehicle at a time in seconds from the first keyframe.
        light: Sun and sky.
    """

    street: Street
    background: Mesh
    actors: tuple[Actor, ...]
    world_SE3_ego: Callable[[float], SE3]
    light: Light

    @cached_property
    def still(self) -> tuple[Mesh, UInt16[np.ndarray, " t"]]:
        """What never moves, as float32 in the world frame, and the instance of each triangle."""
        found = [(0, self.background)]
        found += [(i, actor.mesh(0.0)) for i, actor in enumerate(self.actors, start=1) if not actor.moves]
        return merge([mesh for _, mesh in found]).float32, _owners(found)

    def movers(self, time_s: float) -> tuple[Mesh, UInt16[np.ndarray, " t"]]:
        """What moves, where it is at a time; as ``still``."""
        world_SE3_part = self.part_poses(time_s, np.zeros(1)).world_SE3_frame[0]
        return self.parts.mesh.moved(world_SE3_part[self.parts.part]).float32, self.parts.instances

    @cached_property
    def parts(self) -> Parts:
        """The parts of all that moves."""
        moving = [(i, actor) for i, actor in enumerate(self.actors, start=1) if actor.moves]
        parts = [(i, part.mesh) for i, actor in moving for part in actor.body.parts]
        meshes = [mesh for _, mesh in parts]
        return Parts(merge(meshes), _owners(list(enumerate(meshes))), _owners(parts))

    def part_poses(self, time_s: float, after_s: Float[np.ndarray, " instants"]) -> Poses:
        """Poses world_SE3_part of the parts of all that moves, some instants after a time."""
        moving = [actor for actor in self.actors if actor.moves]
        poses = [[pose for actor in moving for pose in actor.world_SE3_parts(time_s + after)] for after in after_s]
        return Poses(after_s, np.array(poses).reshape(len(after_s), -1, 4, 4))

    @cached_property
    def shadows(self) -> ShadowMap:
        """The shadow map of what never moves, within the reach of the eye."""
        corners_m = self.still[0].corners_m
        middle = GROUND_M + np.array([-35.0, 35.0])
        heights = corners_m[..., 2]
        low = np.array([-20.0, middle[0], heights.min()])
        high = np.array([self.street.length_m + 20.0, middle[1], heights.max()])
        shadows = ShadowMap(self.light, low, high)
        shadows.draw(corners_m)
        return shadows


def _owners(meshes: list[tuple[int, Mesh]]) -> UInt16[np.ndarray, " t"]:
    """The number that goes with each mesh, for each of its triangles."""
    return np.repeat(np.array([i for i, _ in meshes], np.uint16), [len(mesh) for _, mesh in meshes])


def build_world(duration_s: float, rng: np.random.Generator, max_slope_deg: float | None = None) -> World:
    """A street scene in which the ego vehicle drives for a time, along the right lane and over a crossing.

    Args:
        duration_s: How long it drives.
        rng: Chooses everything.
        max_slope_deg: The steepest slope along the street; gentle ones if not given.
    """
    speed = rng.uniform(6.5, 9.0)
    times_s = np.array([0.0, 0.45, 0.6, 1.0]) * max(duration_s, 4.0)
    ego_travelled = varying(0.0, times_s, speed * np.array([1.0, 1.0, rng.uniform(0.5, 0.9), 1.0]))
    drive_m = ego_travelled(duration_s)
    crossing_m = EGO_START_M + rng.uniform(0.35, 0.55) * drive_m + 36.0
    street = Street(
        length_m=EGO_START_M + drive_m + AHEAD_M,
        crossings_m=(crossing_m, crossing_m + rng.uniform(85, 110)),
        bend_m=rng.uniform(3.0, 7.0),
        bend_x_m=crossing_m + rng.uniform(-20, 20),
        slope=(rng.uniform(-0.025, 0.025), rng.uniform(-0.01, 0.01)),
        hill_m=rng.uniform(0.3, 0.7),
        bump_m=rng.uniform(0.01, 0.03),
    )
    street = street if max_slope_deg is None else street.climbing(max_slope_deg)
    ego_lane = along(street, -LANE_M, 0.0, street.length_m)
    ego_start_m = ego_lane.at_x(EGO_START_M)
    phase = rng.uniform(0, 2 * np.pi, 3)

    world_SE3_ego = on_springs(ego_lane, lambda t: ego_start_m + ego_travelled(t), phase)

    row, things = rows_of_houses(street, rng), [*greenery(street, rng), *furniture(street, rng)]
    site_m, site_side = EGO_START_M + 0.2 * drive_m + rng.uniform(11, 15), int(rng.choice([-1, 1]))
    late_m = EGO_START_M + drive_m + rng.uniform(14, 18)  # where a pedestrian steps out from behind a van
    while street.near_crossing(late_m, 14.0) or abs(late_m - site_m) < 13.0:
        late_m += 3.0
    background = [street.mesh(), *row, *(thing for thing in things if not is_at_site(thing, street, site_m, site_side))]
    actors = [
        *through_traffic(street, ego_start_m, ego_travelled, ego_lane, rng),
        *turning_traffic(street, crossing_m, duration_s, ego_start_m, speed, rng),
        *building_site(street, site_m, site_side, rng),
        *walkers(street, drive_m, duration_s, site_side, late_m, rng),
        *parked(street, [(site_m, site_side)], late_m, rng),
    ]
    return World(street, merge(background), tuple(actors), world_SE3_ego, daylight(rng))


def on_springs(lane: Path, travelled: Profile, phase: Float[np.ndarray, "3"]) -> Callable[[float], SE3]:
    """Lane keeping, with the pitch, roll and heave of a car on its springs; ``phase`` is that of each."""

    def world_SE3_ego(time_s: float) -> SE3:
        waves = np.sin(2 * np.pi * np.array([1.1, 0.8, 1.3]) * time_s + phase)
        pitch, roll, heave = np.array([0.008, 0.006, 0.02]) * waves
        about_y = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
        about_x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]])
        return lane.pose(travelled(time_s)) @ se3(about_y @ about_x, np.array([0, 0, heave]))

    return world_SE3_ego


def daylight(rng: np.random.Generator) -> Light:
    """Some sun and sky."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(28, 60))
    to_sun = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    return Light(to_sun, sun=rng.uniform(0.45, 0.6), ambient=rng.uniform(0.58, 0.68), clouds=rng.uniform(0.1, 0.7))


def rows_of_houses(street: Street, rng: np.random.Generator) -> list[Mesh]:
    """Rows of houses on both sides, with gardens and fences in the gaps, along the crossing streets and behind."""
    found = []
    for side in (-1, 1):
        outward = 0.0 if side > 0 else np.pi  # houses are modelled with their street at y < 0
        x = -30.0 + rng.uniform(0, 8)
        while x < street.length_m + 30.0:
            width, setback = rng.uniform(10, 17), rng.choice([0.0, 0.0, rng.uniform(2.0, 4.0)])
            middle = x + width / 2
            if any(abs(middle - at) < width / 2 + CORNER_M for at in street.crossings_m):
                x += 2.0
                continue
            place = street.beside(middle, side * (PAVEMENT_M + 0.1 + setback), outward)
            found.append(houses.building(width, rng.uniform(8, 12), rng).moved(place))
            if setback:
                border = scenery.fence if rng.uniform() < 0.6 else trees.hedge
                found.append(border(width, rng).moved(street.beside(middle, side * (PAVEMENT_M + 0.3), outward)))
            x += width + (0.0 if rng.uniform() < 0.55 else rng.uniform(4, 11))
        for crossing_m in street.crossings_m:
            for corner in (-1, 1):
                lateral = PAVEMENT_M + rng.uniform(14, 17)
                while lateral < 62.0:
                    width = rng.uniform(10, 15)
                    x = crossing_m + corner * (CORNER_M + 0.2)
                    yaw = -np.pi / 2 if corner > 0 else np.pi / 2
                    place = street.beside(x, side * (lateral + width / 2), yaw)
                    found.append(houses.building(width, 9.0, rng).moved(place))
                    lateral += width + rng.choice([0.0, 5.0])
        for x in np.arange(-30.0, street.length_m + 60.0, 26.0):  # what closes the view between the houses
            if not street.near_crossing(x, 24.0):
                place = street.beside(x + rng.uniform(-4, 4), side * rng.uniform(46, 56), outward)
                found.append(houses.building(rng.uniform(16, 24), 10.0, rng).moved(place))
    return found


def greenery(street: Street, rng: np.random.Generator) -> list[Mesh]:
    """Trees along the pavement, and trees and bushes behind it."""
    found = []
    for side in (-1, 1):
        for x in np.arange(0.0, street.length_m, 11.0) + rng.uniform(0, 5):
            x = float(x + rng.uniform(-1.5, 1.5))
            if rng.uniform() < 0.5 and not street.near_crossing(x, 13.0):
                found.append(trees.tree(rng).moved(street.beside(x, side * TREES_M, rng.uniform(0, 6))))
        for x in np.arange(0.0, street.length_m + 40.0, 15.0):
            plant = trees.tree if rng.uniform() < 0.6 else trees.bush
            place = street.beside(float(x + rng.uniform(-5, 5)), side * rng.uniform(27, 42), rng.uniform(0, 6))
            if not street.near_crossing(float(place[0, 3]), CORNER_M + 3.0):
                found.append(plant(rng).moved(place))
        for x in (-45.0, street.length_m + 45.0):  # the ends of the street
            found += [trees.tree(rng).moved(street.beside(x, side * lateral)) for lateral in (3.0, 9.0, 15.0)]
    return found


def furniture(street: Street, rng: np.random.Generator) -> list[Mesh]:
    """What stands on the pavement: lamp posts, signs, traffic lights, bollards, benches, bins and a bus shelter."""
    found = []
    for side in (-1, 1):
        outward = 0.0 if side > 0 else np.pi  # furniture is modelled with the road at y < 0
        for x in np.arange(6.0 + 13.0 * (side > 0), street.length_m, 27.0):
            if not street.near_crossing(float(x)):
                found.append(scenery.lamp_post(rng).moved(street.beside(float(x), side * FURNITURE_M, outward)))
        for x in rng.uniform(20, street.length_m, 12):
            thing = [scenery.sign, scenery.sign, scenery.litter_bin, scenery.bench, scenery.bollard][rng.integers(5)]
            if not street.near_crossing(x):
                found.append(thing(rng).moved(street.beside(x, side * FURNITURE_M, outward)))
        shelter_m = rng.uniform(EGO_START_M + 15, street.length_m - 60)
        if not street.near_crossing(shelter_m, 14.0):
            found.append(scenery.bus_shelter(rng).moved(street.beside(shelter_m, side * SHELTER_M, outward)))
        for crossing_m in street.crossings_m:
            for corner in (-1, 1):
                x = crossing_m + corner * (CROSSING_ROAD_M + 0.7)
                found.append(scenery.traffic_light(rng).moved(street.beside(x, side * (ROAD_M + 0.7), outward)))
                for step in range(4):
                    x = crossing_m + corner * (CROSSING_ROAD_M + 1.2 + 1.2 * step)
                    found.append(scenery.bollard(rng).moved(street.beside(x, side * (ROAD_M + 0.35), outward)))
    return found


def is_at_site(thing: Mesh, street: Street, x: float, side: int) -> bool:
    """Whether something stands on the pavement, close to a place along the street."""
    at = thing.corners_m.mean(axis=(0, 1))
    return abs(at[0] - x) < 5.5 and ROAD_M < side * (at[1] - street.middle(at[0])) < PAVEMENT_M


def through_traffic(
    street: Street, ego_start_m: float, ego_travelled: Profile, ego_lane: Path, rng: np.random.Generator
) -> list[Actor]:
    """Who goes straight on: a truck with a trailer behind the ego vehicle, two-wheelers beside it, oncoming traffic."""
    far = street.length_m + 60.0
    truck, trailer = vehicles.truck(rng), vehicles.trailer(rng)
    behind_m = 13.0 + truck.size_lwh_m[0] / 2
    hitch_m = (truck.size_lwh_m[0] + trailer.size_lwh_m[0]) / 2 + 0.3
    found = [
        moving("truck", truck, ego_lane, lambda t: ego_start_m + ego_travelled(t) - behind_m),
        moving("trailer", trailer, ego_lane, lambda t: ego_start_m + ego_travelled(t) - behind_m - hitch_m),
    ]
    cycle_lane = along(street, -CYCLE_LANE_M, 0.0, far)
    start = cycle_lane.at_x(EGO_START_M)
    found.append(moving("bicycle", cycles.bicycle(rng, True), cycle_lane, steady(start + 20.0, rng.uniform(3.5, 5))))
    back = along(street, CYCLE_LANE_M, far, 0.0)
    found.append(
        moving("bicycle-back", cycles.bicycle(rng, True), back, steady(back.at_x(EGO_START_M + 45), rng.uniform(4, 6)))
    )
    oncoming = along(street, LANE_M, far, -40.0)
    place, speed = oncoming.at_x(EGO_START_M + 10), rng.uniform(7, 9)
    column = [
        vehicles.car(rng),
        cycles.motorcycle(rng, True),
        vehicles.bus(rng),
        vehicles.car(rng),
        vehicles.truck(rng),
    ]
    for i, body in enumerate([*column, vehicles.car(rng)]):
        place -= body.size_lwh_m[0] / 2
        found.append(moving(f"oncoming-{i}", body, oncoming, steady(place, speed)))
        place -= body.size_lwh_m[0] / 2 + rng.uniform(9, 16)
    return found


def turning_traffic(
    street: Street,
    crossing_m: float,
    duration_s: float,
    ego_start_m: float,
    speed_mps: float,
    rng: np.random.Generator,
) -> list[Actor]:
    """A car ahead that turns right at the crossing, one in the side street that waits and turns, one that waits."""
    turn_x, side_lane = crossing_m - 2.4, 2.4
    to_corner = along(street, -LANE_M, 0.0, turn_x)
    away = joined(to_corner, across(street, turn_x, -LANE_M, -88.0), 6.0)
    start = ego_start_m + 17.0
    slow = max((to_corner.length_m - 6.0 - start) / (speed_mps + 1.0), 0.1)  # when it gets there
    profile = varying(start, np.array([slow * 0.5, slow, slow + 2.5]), np.array([speed_mps + 1.5, 4.0, 8.0]))
    found = [moving("turning", vehicles.car(rng), away, profile)]

    wait_m = ROAD_M + 4.5 + 2.5  # behind the zebra crossing
    arrive = across(street, turn_x, 88.0, LANE_M)
    merging = joined(arrive, along(street, LANE_M, turn_x, -60.0), 5.0)
    start = 88.0 - wait_m - 9.0
    leave = 0.25 * duration_s
    profile = varying(start, np.array([0.0, 2.4, 2.5 + leave, 5.0 + leave]), np.array([7.5, 0.0, 0.0, 6.0]))
    found.append(moving("merging", vehicles.car(rng), merging, profile))

    crossing = across(street, crossing_m + side_lane, -88.0, 88.0)
    profile = varying(88.0 - wait_m - 16.4, np.array([0.3, 3.8]), np.array([8.0, 0.0]))
    found.append(moving("arriving", vehicles.car(rng), crossing, profile))
    return found


def building_site(street: Street, x: float, side: int, rng: np.random.Generator) -> list[Actor]:
    """A construction vehicle on the pavement, fenced off by barriers and cones."""
    lateral = side * PARKING_M
    found = [standing("digger", diggers.construction(rng), street.beside(x, side * 6.95, rng.uniform(-0.1, 0.1)))]
    for i, along_m in enumerate(np.arange(-6.0, 6.1, 2.4)):
        place = street.beside(x + along_m, lateral - side * 0.8, np.pi / 2 + rng.uniform(-0.05, 0.05))
        found.append(standing(f"barrier-{i}", scenery.barrier(rng), place))
    for i, (along_m, inward_m) in enumerate(
        ((-8, 0.9), (-9, 0.3), (-10, -0.3), (-11, -0.9), (8, 0.9), (9, 0), (10, -0.9))
    ):
        place = street.beside(x + along_m, lateral - side * inward_m, 0.0)
        found.append(standing(f"cone-{i}", scenery.traffic_cone(rng), place))
    return found


def walkers(
    street: Street, drive_m: float, duration_s: float, site_side: int, late_m: float, rng: np.random.Generator
) -> list[Actor]:
    """Pedestrians who walk, stand in groups, stop and go on, step out from behind a van and from a door."""
    found = []
    half_s = duration_s / 2
    door_m = EGO_START_M + drive_m / 2 + 16.0
    while street.near_crossing(door_m, 16.0):
        door_m += 3.0
    crossing_m, reach_m = street.crossings_m[0], 1.6 * duration_s + CROSSING_ROAD_M
    for i in range(9):
        side, forward, sway_m = int(rng.choice([-1, 1])), rng.uniform() < 0.5, rng.uniform(-0.05, 0.05)
        x = EGO_START_M - 15 + (i + rng.uniform(0.2, 0.8)) / 9 * (drive_m + 60)
        if abs(x - crossing_m) < reach_m:  # nobody walks in front of cars that turn
            forward = x > crossing_m
        if abs(x - door_m) < reach_m:  # nor where somebody comes out of a house
            side = site_side
        lateral = side * (WALK_M[int(forward)] + sway_m)
        path = along(street, lateral, *((0.0, street.length_m) if forward else (street.length_m, 0.0)))
        start, speed = path.at_x(x), rng.uniform(0.9, 1.6)
        profile = steady(start, speed)
        if i % 3 == 0:  # stops for a while
            stop = rng.uniform(0.2, 0.6) * max(duration_s, 2.0)
            profile = varying(
                start, np.array([stop, stop + 0.6, stop + 2.6, stop + 3.2]), speed * np.array([1.0, 0.0, 0.0, 1.0])
            )
        found.append(moving(f"walker-{i}", people.pedestrian(rng), path, profile))
    for i in range(3):
        x = EGO_START_M + 8 + (i + rng.uniform(0.0, 0.6)) / 3 * (drive_m + 32)
        side = -site_side
        if street.near_crossing(x):
            x += 2 * CORNER_M
        if -3.5 < x - door_m < 1.5:
            x += 5.0
        for j in range(int(rng.integers(1, 4))):
            along_m = j + rng.uniform(-0.1, 0.1)
            place = street.beside(x + along_m, side * (WALK_M[1] + 0.55 + 0.05 * j), rng.uniform(0, 6))
            found.append(standing(f"standing-{i}-{j}", people.pedestrian(rng), place))
    over = across(street, late_m, -ROAD_M - 1.5, ROAD_M + 3.0)
    profile = varying(0.0, np.array([half_s, half_s + 0.5]), np.array([0.0, 1.5]))
    found.append(moving("late", people.pedestrian(rng), over, profile))
    out = across(street, door_m, site_side * -(PAVEMENT_M + 3.0), site_side * -WALK_M[1])
    onward = along(street, site_side * -WALK_M[1], door_m, street.length_m)
    profile = varying(0.0, np.array([0.2 * duration_s, 0.2 * duration_s + 0.5]), np.array([0.0, 1.3]))
    found.append(moving("door", people.pedestrian(rng), joined(out, onward, 1.0), profile))
    return found


def parked(street: Street, kept_free: list[tuple[float, int]], late_m: float, rng: np.random.Generator) -> list[Actor]:
    """Parked vehicles on both sides, cycles on the pavement."""
    found: list[Actor] = []

    def park(body: Body, x: float, side: int, lateral_m: float) -> None:
        place = street.beside(x, side * lateral_m, (np.pi if side > 0 else 0.0) + rng.normal(0, 0.02))
        if abs(x - late_m) > body.size_lwh_m[0] / 2 + 0.5:  # not in the way of who steps out
            found.append(standing(f"parked-{len(found)}", body, place))

    for side in (-1, 1):
        x = 25.0 + rng.uniform(0, 5)
        trailer_m = EGO_START_M - rng.uniform(16, 24)  # in view when the scene starts
        while x < street.length_m - 20.0:
            kind = rng.uniform()
            body = vehicles.car(rng) if kind < 0.88 else vehicles.truck(rng)
            is_trailer = side > 0 and x >= trailer_m
            if is_trailer:
                body, trailer_m = vehicles.trailer(rng), np.inf
            if side < 0 and abs(x - late_m) < 5.5:
                x = late_m + 5.5  # a gap to step out of
            half = body.size_lwh_m[0] / 2
            middle = x + half
            free = any(abs(middle - at) < half + 12.5 for at, where in kept_free if where == side)
            if street.near_crossing(middle, half + CROSSING_ROAD_M + 7.0) or free:
                x += 2.0
                continue
            if is_trailer or rng.uniform() < 0.72 or abs(x - late_m) < 8:
                park(body, middle, side, max(PARKING_M, LANE_EDGE_M + body.size_lwh_m[1] / 2))
            x += 2 * half + rng.uniform(0.8, 2.0)
        for x in EGO_START_M - 10 + 17 * (np.arange(5) + rng.uniform(0, 0.8, 5)):
            if street.near_crossing(float(x)) or any(abs(x - at) < 12 and where == side for at, where in kept_free):
                continue
            body = cycles.bicycle(rng, False) if rng.uniform() < 0.6 else cycles.motorcycle(rng, False)
            park(body, float(x), side, CYCLES_M)
    return found
