"""What there is to see in a generated scene: a street, and objects with their trajectories."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dense_depth.datasets.synthetic.mesh import Colour, Mesh, Vector, cuboid, merge
from dense_depth.geometry import SE3, se3

EGO_START_M, EGO_SPEED_MPS = 100.0, 8.0
LANE_M, PARKING_M, ROAD_M, FACADE_M, GROUND_M = 2.5, 5.2, 6.4, 9.0, 80.0  # lateral distances from the road's middle
BOX_MARGIN_M = 0.05  # an annotated box reaches this far beyond its object, so that range noise stays inside
TO_SUN = np.array([0.45, -0.35, 0.82])
ASPHALT, PAINT, PAVEMENT, GRASS = (84, 84, 88), (225, 225, 220), (148, 144, 138), (104, 122, 78)
SKY = (176, 206, 235)

Trajectory = Callable[[float], SE3]  # of the time in seconds from the first keyframe
Part = tuple[Vector, Vector, Colour | None]  # a cuboid: size, centre (z from the floor) in units of the object, colour
CAR_LWH_M, PEDESTRIAN_LWH_M = np.array([4.5, 1.9, 1.6]), np.array([0.7, 0.7, 1.75])
CAR_PARTS: list[Part] = [
    ((1.0, 0.96, 0.5), (0, 0, 0.4), None),
    ((0.5, 0.82, 0.35), (-0.05, 0, 0.825), (58, 68, 80)),
    *(((0.14, 0.12, 0.4), (x, y, 0.2), (28, 28, 30)) for x in (-0.32, 0.32) for y in (-0.44, 0.44)),
]
PEDESTRIAN_PARTS: list[Part] = [
    ((0.6, 0.7, 0.48), (0, 0, 0.24), (46, 52, 84)),
    ((1.0, 1.0, 0.37), (0, 0, 0.665), None),
    ((0.45, 0.45, 0.15), (0, 0, 0.925), (206, 164, 138)),
]


def shape(size_lwh_m: Float[np.ndarray, "3"], parts: list[Part], colour: Colour) -> Mesh:
    """An object that fills its annotated box up to the margin; origin in the centre of the box, floor at its bottom."""
    size = size_lwh_m - BOX_MARGIN_M * np.array([2, 2, 1])
    floor = np.array([0, 0, -size_lwh_m[2] / 2])
    return merge([cuboid(size * a, floor + size * b, colour if own is None else own) for a, b, own in parts])


@dataclass(frozen=True)
class Street:
    """The shape of the ground and of the road on it."""

    length_m: float  # extent in x from 0
    bend_m: float  # amplitude of the road's curve in y
    slope: tuple[float, float]  # rise per metre in x and y
    bump_m: float  # amplitude of the ground's waves

    def middle(self, x: Any) -> Any:
        """World y of the middle of the road."""
        return GROUND_M + self.bend_m * np.cos((x - EGO_START_M) / 32.0)

    def height(self, x: Any, y: Any) -> Any:
        """World z of the ground."""
        return self.slope[0] * x + self.slope[1] * y + self.bump_m * np.sin(x / 9.0) * np.cos(y / 13.0)

    def pose(self, x: float, lateral_m: float = 0.0, yaw: float = 0.0, up_m: float = 0.0) -> SE3:
        """World pose of something that stands on the ground: x forward, y left, z along the ground's normal.

        Args:
            x: World x.
            lateral_m: Distance from the middle of the road in y, left positive.
            yaw: Heading in radians relative to the road's.
            up_m: Height of the origin above the ground.
        """
        h, y = 0.5, self.middle(x) + lateral_m
        yaw += np.arctan2(self.middle(x + h) - self.middle(x - h), 2 * h)
        rise_x = (self.height(x + h, y) - self.height(x - h, y)) / (2 * h)
        rise_y = (self.height(x, y + h) - self.height(x, y - h)) / (2 * h)
        up = np.array([-rise_x, -rise_y, 1.0]) / np.linalg.norm([rise_x, rise_y, 1.0])
        left = np.cross(up, [np.cos(yaw), np.sin(yaw), 0.0])
        left /= np.linalg.norm(left)
        world_SE3_ground = se3(np.column_stack([np.cross(left, up), left, up]), np.array([x, y, self.height(x, y)]))
        return world_SE3_ground @ se3(np.eye(3), np.array([0, 0, up_m]))

    def mesh(self) -> Mesh:
        """The ground. Grid lines follow the road, so that lane markings are triangles of their own."""
        half = np.concatenate([[0.08, 2.0, 4.0, ROAD_M - 0.2, ROAD_M, FACADE_M], np.arange(12.0, GROUND_M + 1, 4.0)])
        lateral = np.concatenate([-half[::-1], half])
        x, offset = np.meshgrid(np.arange(0.0, self.length_m + 1.0, 2.0), lateral, indexing="ij")
        y = self.middle(x) + offset
        vertices_m = np.stack([x, y, self.height(x, y)], axis=-1)
        a, b, c, d = vertices_m[:-1, :-1], vertices_m[1:, :-1], vertices_m[1:, 1:], vertices_m[:-1, 1:]
        corners_m = np.stack([[a, b, c], [a, c, d]]).transpose(0, 2, 3, 1, 4)

        distance = np.abs(lateral[:-1] + lateral[1:]) / 2
        colours = np.full((*a.shape[:2], 3), GRASS, np.uint8)
        for nearer_than_m, colour in ((FACADE_M, PAVEMENT), (ROAD_M, PAINT), (ROAD_M - 0.2, ASPHALT)):
            colours[:, distance < nearer_than_m] = colour
        for row in (0, 1):  # the middle line is dashed
            colours[row::4, distance < 0.08] = PAINT
        return Mesh(corners_m.reshape(-1, 3, 3), np.tile(colours.reshape(-1, 3), (2, 1)))


@dataclass(frozen=True)
class Actor:
    """An annotated rigid object. The box frame is x forward, y left, z up from the centre of the annotated box."""

    name: str  # unique in the scene
    category: str
    attribute: str
    size_lwh_m: Float[np.ndarray, "3"]  # of the annotated box
    mesh: Mesh  # in the box frame
    world_SE3_box: Trajectory


@dataclass(frozen=True)
class World:
    """Everything there is to see in a scene.

    Instance 0 is the background, instance i is ``actors[i - 1]``. Surfaces are the triangles of all instances in
    order; the last surface is the sky, so that index -1 finds it.
    """

    street: Street
    background: Mesh
    actors: tuple[Actor, ...]
    world_SE3_ego: Trajectory

    @property
    def meshes(self) -> list[Mesh]:
        """The mesh of every instance."""
        return [self.background, *(actor.mesh for actor in self.actors)]

    @cached_property
    def first_surface(self) -> Int[np.ndarray, " instances"]:
        """The first surface of every instance."""
        return np.cumsum([0, *(len(mesh.colours) for mesh in self.meshes[:-1])])

    @cached_property
    def albedo(self) -> UInt8[np.ndarray, "surfaces 3"]:
        """Colour of every surface in white light."""
        return np.concatenate([*(mesh.colours for mesh in self.meshes), np.array([SKY], np.uint8)])

    def shaded(self, time_s: float) -> UInt8[np.ndarray, "surfaces 3"]:
        """Colour of every surface in sunlight (Lambert, no shadows)."""
        poses = [np.eye(4), *(actor.world_SE3_box(time_s) for actor in self.actors)]
        facing = [mesh.normals @ (pose[:3, :3].T @ TO_SUN) for mesh, pose in zip(self.meshes, poses)]
        sunlight = np.maximum(np.concatenate([*facing, [1.0]]), 0)
        return (self.albedo * (0.5 + 0.5 * sunlight)[:, None]).astype(np.uint8)


def build_world(duration_s: float, rng: np.random.Generator) -> World:
    """A street with buildings, walls, poles and parked cars, a car that drives ahead and a late pedestrian."""
    end_m = EGO_START_M + EGO_SPEED_MPS * duration_s + 80.0
    slope = (rng.uniform(-0.02, 0.02), rng.uniform(-0.01, 0.01))
    street = Street(end_m + 20.0, rng.uniform(2.0, 4.0), slope, rng.uniform(0.1, 0.2))
    phase = rng.uniform(0, 2 * np.pi, 3)
    doorway_m = EGO_START_M + EGO_SPEED_MPS * duration_s / 2 + 18.0
    row_m = np.arange(50 + (doorway_m - 50) % 24, end_m, 24.0)  # the row on the right has a building at the doorway

    def world_SE3_ego(time_s: float) -> SE3:
        """Lane keeping, with the pitch, roll and heave of a car on its springs."""
        waves = np.sin(2 * np.pi * np.array([1.1, 0.8, 1.3]) * time_s + phase)
        pitch, roll, heave = np.array([0.009, 0.007, 0.02]) * waves
        about_y = np.array([[np.cos(pitch), 0, np.sin(pitch)], [0, 1, 0], [-np.sin(pitch), 0, np.cos(pitch)]])
        about_x = np.array([[1, 0, 0], [0, np.cos(roll), -np.sin(roll)], [0, np.sin(roll), np.cos(roll)]])
        pose = street.pose(EGO_START_M + EGO_SPEED_MPS * time_s, -LANE_M)
        return pose @ se3(about_y @ about_x, np.array([0, 0, heave]))

    background = [street.mesh()]
    for side, positions_m in ((-1, row_m), (1, row_m + 8.0)):
        for x in positions_m:
            pose, size = street.pose(x), np.array([rng.uniform(14, 20), 8.0, rng.uniform(5, 12)])
            tints = rng.integers(90, 200, (2, 3))
            background += [
                cuboid(size, (0, side * (FACADE_M + 4), size[2] / 2 - 1), tints[0], pose),  # building
                cuboid((5, 0.3, 2.2), (12, side * (FACADE_M + 1), 0.1), tints[1], pose),  # wall in the gap
                cuboid((0.2, 0.2, 6), (9, side * 7.2, 2.5), (92, 96, 98), pose),  # pole
            ]

    def standing(pose: SE3) -> Trajectory:
        return lambda time_s: pose

    def driving(time_s: float) -> SE3:
        return street.pose(EGO_START_M + 14.0 + 10.0 * time_s, -LANE_M, up_m=CAR_LWH_M[2] / 2)

    def walking(time_s: float) -> SE3:
        """Waits inside the building on the right and steps out of the doorway halfway through the scene."""
        walked_m = 1.4 * max(time_s - duration_s / 2, 0.0)
        return street.pose(doorway_m, -FACADE_M - 0.5 + walked_m, np.pi / 2, PEDESTRIAN_LWH_M[2] / 2)

    def car(name: str, attribute: str, colour: Colour, world_SE3_box: Trajectory) -> Actor:
        return Actor(name, "vehicle.car", attribute, CAR_LWH_M, shape(CAR_LWH_M, CAR_PARTS, colour), world_SE3_box)

    body = shape(PEDESTRIAN_LWH_M, PEDESTRIAN_PARTS, (190, 60, 50))
    actors = [
        car("car", "vehicle.moving", (186, 40, 36), driving),
        Actor("pedestrian", "human.pedestrian.adult", "pedestrian.moving", PEDESTRIAN_LWH_M, body, walking),
    ]
    for x in row_m + 10.0:
        for side, yaw in ((-1, 0.0), (1, np.pi)):
            pose = street.pose(x + rng.uniform(-3, 3), side * PARKING_M, yaw, CAR_LWH_M[2] / 2)
            colour = rng.integers(60, 200, 3)
            if rng.uniform() < 0.6:
                actors.append(car(f"parked-{len(actors)}", "vehicle.parked", colour, standing(pose)))
    return World(street, merge(background), tuple(actors), world_SE3_ego)
