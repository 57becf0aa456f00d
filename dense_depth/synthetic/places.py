"""Places to generate: the street with all that is in it, and two without structure, which test registration.

Between the walls of a highway nothing tells how far one has driven; on an open field there is little but the ground.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np

from dense_depth.synthetic import cycles, houses, people, trees, vehicles
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Mesh, loft, merge
from dense_depth.synthetic.shading import Marks
from dense_depth.synthetic.street import LANE_M, ROAD_M, Street, along
from dense_depth.synthetic.traffic import Actor, moving, steady, varying
from dense_depth.synthetic.world import AHEAD_M, EGO_START_M, World, build_world, daylight, on_springs

Place = Literal["street", "highway", "field"]

WALL_M, WALL_HEIGHT_M, WALL_WIDTH_M = ROAD_M + 1.5, 3.5, 0.3  # lateral


class Field(Street):
    """Open ground: grass without roads and kerbs."""

    def height(self, x: Any, y: Any) -> Any:
        """World z of the ground."""
        return self.terrain(x, y)

    @cached_property
    def marks(self) -> Marks:
        """Nothing is painted on it."""
        return Marks(0.0, 0.0, 0.0, np.empty(0), 0.0)


def build_highway(duration_s: float, rng: np.random.Generator, max_slope_deg: float | None = None) -> World:
    """A straight, smooth road between two even walls, with traffic at 22 to 27 m/s and nothing else."""
    speed = rng.uniform(22.0, 27.0)
    times_s = np.array([0.0, 0.4, 0.6, 1.0]) * max(duration_s, 4.0)
    travelled = varying(0.0, times_s, speed * np.array([1.0, 1.0, 0.92, 1.0]))
    drive_m = travelled(duration_s)
    street = Street(EGO_START_M + drive_m + AHEAD_M, (), 0.0, 0.0, (0.0, 0.0), 0.0, 0.0, wave_m=120.0)
    street = street if max_slope_deg is None else street.climbing(max_slope_deg)
    lane, far = along(street, -LANE_M, 0.0, street.length_m), street.length_m + 60.0
    start_m = lane.at_x(EGO_START_M)
    truck, lead_m, faster = vehicles.truck(rng), rng.uniform(25.0, 35.0), rng.uniform(0.0, 1.5)
    actors = [
        moving("truck", truck, lane, lambda t: start_m + travelled(t) - 22.0 - truck.size_lwh_m[0] / 2),
        moving("ahead", vehicles.car(rng), lane, lambda t: start_m + travelled(t) + lead_m + faster * t),
        *_oncoming(street, far, rng.uniform(22.0, 27.0), drive_m + AHEAD_M + 27.0 * duration_s, rng),
    ]
    phase = rng.uniform(0, 2 * np.pi, 3)
    background = merge([street.mesh(), *(_wall(street, side * WALL_M) for side in (-1, 1))])
    world_SE3_ego = on_springs(lane, lambda t: start_m + travelled(t), phase)
    return World(street, background, tuple(actors), world_SE3_ego, daylight(rng))


def build_field(duration_s: float, rng: np.random.Generator, max_slope_deg: float | None = None) -> World:
    """Gently uneven grass, a few trees and houses far away, a car, a bicycle and a pedestrian."""
    speed = rng.uniform(6.5, 9.0)
    travelled = steady(0.0, speed)
    length_m = EGO_START_M + travelled(duration_s) + AHEAD_M
    field = Field(length_m, (), rng.uniform(1.0, 3.0), rng.uniform(50, 150), (0.0, 0.0), rng.uniform(0.2, 0.4), 0.03)
    field = field if max_slope_deg is None else field.climbing(max_slope_deg)
    lane = along(field, -LANE_M, 0.0, length_m)
    start_m = lane.at_x(EGO_START_M)
    things = []
    for x in np.arange(20.0, length_m, 45.0):
        for side in (-1, 1):
            place = field.beside(float(x + rng.uniform(-15, 15)), side * rng.uniform(42, 62), rng.uniform(0, 6))
            things.append((houses.building(12.0, 9.0, rng) if rng.uniform() < 0.3 else trees.tree(rng)).moved(place))
    back, aside = along(field, LANE_M, length_m, -40.0), along(field, 11.0, 0.0, length_m)
    bicycle = cycles.bicycle(rng, True)
    actors = [
        moving("oncoming", vehicles.car(rng), back, steady(back.at_x(EGO_START_M + 45.0), rng.uniform(7, 9))),
        moving("bicycle", bicycle, lane, steady(start_m + 16.0, speed + rng.uniform(-1.0, 0.5))),
        moving("walker", people.pedestrian(rng), aside, steady(aside.at_x(EGO_START_M + 20.0), rng.uniform(1.0, 1.6))),
    ]
    world_SE3_ego = on_springs(lane, lambda t: start_m + travelled(t), rng.uniform(0, 2 * np.pi, 3))
    return World(field, merge([field.mesh(), *things]), tuple(actors), world_SE3_ego, daylight(rng))


def _oncoming(street: Street, far_m: float, speed_mps: float, reach_m: float, rng: np.random.Generator) -> list[Actor]:
    """A column of vehicles in the other direction, as long as needed to meet the ego vehicle all the time."""
    lane = along(street, LANE_M, far_m, -40.0)
    place_m, found = lane.at_x(EGO_START_M + 20.0), list[Actor]()
    while reach_m > 0:
        body = vehicles.car(rng) if rng.uniform() < 0.75 else vehicles.truck(rng)
        found.append(moving(f"oncoming-{len(found)}", body, lane, steady(place_m, speed_mps)))
        gap_m = rng.uniform(35.0, 60.0)
        place_m, reach_m = place_m - gap_m, reach_m - gap_m
    return found


def _wall(street: Street, lateral_m: float) -> Mesh:
    """An even concrete wall along the street."""
    x = np.arange(-60.0, street.length_m + 61.0, 4.0)
    y = street.middle(x) + lateral_m
    ground_m = street.terrain(x, y)
    corners = [(dy, dz) for dy, dz in ((-1, -0.3), (1, -0.3), (1, WALL_HEIGHT_M), (-1, WALL_HEIGHT_M))]
    sections_m = [np.stack([x, y + dy * WALL_WIDTH_M / 2, ground_m + dz], axis=1) for dy, dz in corners]
    return loft(np.stack(sections_m, axis=1), (150, 148, 142), Material.CONCRETE)


PLACES: dict[Place, Callable[[float, np.random.Generator, float | None], World]] = {
    "street": build_world,
    "highway": build_highway,
    "field": build_field,
}
