"""A generated dataset in the exact nuScenes format, with the exact depth of every camera frame.

A street is meshed (`World`), rays are cast into it at each sensor's own time and pose (`cast`), and the results are
written as nuScenes tables and files (`generate`). The map frame is the world frame: metres, z up, the street along x.
All objects are rigid and known in closed form at any time, so a camera that fires 18 ms before the LiDAR sees the
moving ones where they are then. A sweep is a snapshot at its timestamp: there is no distortion within a sweep.

As in nuScenes, a sample_data row between keyframes belongs to the sample that follows it; images exist at keyframes.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from dense_depth import InputError
from dense_depth.geometry import SE3, invert, quaternion_from_rotation, resize_K, se3, transform


@dataclass(frozen=True)
class SynthConfig:
    """What to generate."""

    version: str = "v1.0-synth"
    """Name of the table folder."""
    scenes: int = 1
    """Number of scenes, each in its own street."""
    keyframes: int = 8
    """Annotated instants per scene, two a second."""
    seed: int = 0
    """The same seed and options give the same bytes."""
    image_width: int = 1600
    """Image width in pixels; the field of view stays."""
    image_height: int = 900
    """Image height in pixels."""
    lidar_azimuths: int = 1084
    """Firings of the 32 beams per revolution."""
    lidar_noise_m: float = 0.02
    """Standard deviation of a LiDAR range."""
    lidar_range_m: float = 70.0
    """Longest LiDAR range."""


# ---------------------------------------------------------------------------------------------------------------------
# World: meshes and trajectories

EGO_START_M, EGO_SPEED_MPS = 100.0, 8.0
LANE_M, PARKING_M, ROAD_M, FACADE_M, GROUND_M = 2.5, 5.2, 6.4, 9.0, 80.0  # lateral distances from the road's middle
BOX_MARGIN_M = 0.05  # an annotated box reaches this far beyond its object, so that range noise stays inside
TO_SUN = np.array([0.45, -0.35, 0.82])
ASPHALT, PAINT, PAVEMENT, GRASS = (84, 84, 88), (225, 225, 220), (148, 144, 138), (104, 122, 78)
SKY = (176, 206, 235)

Vector = Sequence[float] | Float[np.ndarray, "3"]
Colour = Sequence[int] | Int[np.ndarray, "3"]
Part = tuple[Vector, Vector, Colour | None]  # a cuboid: size, centre (z from the floor) in units of the object, colour
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


@dataclass(frozen=True)
class Mesh:
    """Triangles with an RGB albedo each; corners run counter-clockwise seen from outside."""

    vertices_m: Float[np.ndarray, "v 3"]
    triangles: Int[np.ndarray, "t 3"]
    colours: UInt8[np.ndarray, "t 3"]

    @cached_property
    def normals(self) -> Float[np.ndarray, "t 3"]:
        """Unit outward normals."""
        a, b, c = (self.vertices_m[self.triangles[:, corner]] for corner in range(3))
        normals = np.cross(b - a, c - a)
        return normals / np.linalg.norm(normals, axis=1, keepdims=True)

    @cached_property
    def raycaster(self) -> Any:
        """The mesh as an open3d RaycastingScene, built on first use."""
        from open3d.core import Tensor
        from open3d.t.geometry import RaycastingScene

        scene = RaycastingScene()
        vertices, triangles = self.vertices_m.astype(np.float32), self.triangles.astype(np.uint32)
        scene.add_triangles(Tensor.from_numpy(vertices), Tensor.from_numpy(triangles))
        return scene


def merge(meshes: Sequence[Mesh]) -> Mesh:
    """One mesh of many in the same frame; triangles keep their order."""
    offsets = np.cumsum([0, *(len(mesh.vertices_m) for mesh in meshes)])
    return Mesh(
        np.concatenate([mesh.vertices_m for mesh in meshes]),
        np.concatenate([mesh.triangles + offset for mesh, offset in zip(meshes, offsets)]),
        np.concatenate([mesh.colours for mesh in meshes]),
    )


def cuboid(size_m: Vector, centre_m: Vector, colour: Colour, dst_SE3_src: SE3 | None = None) -> Mesh:
    """A box that is axis-aligned in frame src, given in frame dst."""
    corners = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
    quads = np.array([[0, 1, 3, 2], [4, 6, 7, 5], [0, 4, 5, 1], [2, 3, 7, 6], [0, 2, 6, 4], [1, 5, 7, 3]])
    vertices_m = corners * np.asarray(size_m) + np.asarray(centre_m)
    if dst_SE3_src is not None:
        vertices_m = transform(dst_SE3_src, vertices_m)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return Mesh(vertices_m, triangles, np.tile(np.asarray(colour, np.uint8), (12, 1)))


def shape(size_lwh_m: Float[np.ndarray, "3"], parts: list[Part], colour: Colour) -> Mesh:
    """An object that fills its annotated box up to the margin; origin in the centre of the box, floor at its bottom."""
    size = size_lwh_m - BOX_MARGIN_M * np.array([2, 2, 1])
    floor = np.array([0, 0, -size_lwh_m[2] / 2])
    return merge([cuboid(size * a, floor + size * b, colour if own is None else own) for a, b, own in parts])


@dataclass(frozen=True)
class Street:
    """The shape of the ground and of the road on it.

    Attributes:
        length_m: Extent in x from 0.
        bend_m: Amplitude of the road's curve in y.
        slope: Rise per metre in (x, y).
        bump_m: Amplitude of the ground's waves.
    """

    length_m: float
    bend_m: float
    slope: tuple[float, float]
    bump_m: float

    def middle(self, x: Any) -> Any:
        """World y of the middle of the road."""
        return GROUND_M + self.bend_m * np.cos((x - EGO_START_M) / 32.0)

    def height(self, x: Any, y: Any) -> Any:
        """World z of the ground."""
        return self.slope[0] * x + self.slope[1] * y + self.bump_m * np.sin(x / 9.0) * np.cos(y / 13.0)

    def pose(self, x: float, lateral_m: float = 0.0, yaw: float = 0.0) -> SE3:
        """World pose of something that stands on the ground: x forward, y left, z along the ground's normal.

        Args:
            x: World x.
            lateral_m: Distance from the middle of the road in y, left positive.
            yaw: Heading in radians relative to the road's.
        """
        h, y = 0.5, self.middle(x) + lateral_m
        yaw += np.arctan2(self.middle(x + h) - self.middle(x - h), 2 * h)
        rise_x = (self.height(x + h, y) - self.height(x - h, y)) / (2 * h)
        rise_y = (self.height(x, y + h) - self.height(x, y - h)) / (2 * h)
        up = np.array([-rise_x, -rise_y, 1.0]) / np.linalg.norm([rise_x, rise_y, 1.0])
        left = np.cross(up, [np.cos(yaw), np.sin(yaw), 0.0])
        left /= np.linalg.norm(left)
        return se3(np.column_stack([np.cross(left, up), left, up]), np.array([x, y, self.height(x, y)]))

    def mesh(self) -> Mesh:
        """The ground. Grid lines follow the road, so that lane markings are triangles of their own."""
        half = np.concatenate([[0.08, 2.0, 4.0, ROAD_M - 0.2, ROAD_M, FACADE_M], np.arange(12.0, GROUND_M + 1, 4.0)])
        lateral = np.concatenate([-half[::-1], half])
        x, offset = np.meshgrid(np.arange(0.0, self.length_m + 1.0, 2.0), lateral, indexing="ij")
        y = self.middle(x) + offset
        row, column = (index.ravel() for index in np.indices((len(x) - 1, len(lateral) - 1)))
        a = row * len(lateral) + column
        b, c, d = a + len(lateral), a + len(lateral) + 1, a + 1
        distance = np.abs(lateral[column] + lateral[column + 1]) / 2
        colours = np.full((len(a), 3), GRASS, np.uint8)
        for nearer_than_m, colour in ((FACADE_M, PAVEMENT), (ROAD_M, PAINT), (ROAD_M - 0.2, ASPHALT)):
            colours[distance < nearer_than_m] = colour
        colours[(distance < 0.08) & (row % 4 < 2)] = PAINT
        triangles = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
        vertices_m = np.stack([x, y, self.height(x, y)], axis=-1).reshape(-1, 3)
        return Mesh(vertices_m, triangles, np.tile(colours, (2, 1)))


@dataclass(frozen=True)
class Actor:
    """An annotated rigid object.

    Attributes:
        name: Unique in the scene.
        category: nuScenes category.
        attribute: nuScenes attribute.
        size_lwh_m: Length, width and height of the annotated box.
        mesh: Shape in the box frame: x forward, y left, z up from the box centre.
        world_SE3_box: Pose at a time in seconds from the first keyframe.
    """

    name: str
    category: str
    attribute: str
    size_lwh_m: Float[np.ndarray, "3"]
    mesh: Mesh
    world_SE3_box: Callable[[float], SE3]

    @property
    def moving(self) -> bool:
        """Whether it moves at some time in the scene."""
        return self.attribute.endswith(".moving")


@dataclass(frozen=True)
class World:
    """Everything there is to see in a scene.

    Instance 0 is the background, instance i is ``actors[i - 1]``. Surfaces are the triangles of all instances in
    order; the last surface is the sky, so that index -1 finds it.
    """

    street: Street
    background: Mesh
    actors: tuple[Actor, ...]
    world_SE3_ego: Callable[[float], SE3]

    @property
    def meshes(self) -> list[Mesh]:
        """The mesh of every instance."""
        return [self.background, *(actor.mesh for actor in self.actors)]

    @cached_property
    def instance_of(self) -> Int[np.ndarray, " surfaces"]:
        """Instance of every surface."""
        counts = [len(mesh.triangles) for mesh in self.meshes]
        return np.append(np.repeat(np.arange(len(counts)), counts), 0).astype(np.uint16)

    @cached_property
    def reflectance(self) -> Float[np.ndarray, " surfaces"]:
        """LiDAR intensity, 0-255, of every surface."""
        colours = np.concatenate([*(mesh.colours for mesh in self.meshes), [SKY]])
        return np.round(colours.mean(axis=1) / 3)

    def shaded(self, time_s: float) -> UInt8[np.ndarray, "surfaces 3"]:
        """Colour of every surface in sunlight (Lambert, no shadows)."""
        lit = []
        for mesh, pose in zip(self.meshes, [np.eye(4), *(actor.world_SE3_box(time_s) for actor in self.actors)]):
            sunlight = np.maximum(mesh.normals @ (pose[:3, :3].T @ TO_SUN), 0)
            lit.append(mesh.colours * (0.5 + 0.5 * sunlight)[:, None])
        return np.concatenate([*lit, [SKY]]).astype(np.uint8)


def _still(pose: SE3, time_s: float) -> SE3:
    return pose


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
        pitch, roll, heave = np.array([0.009, 0.007, 0.02]) * np.sin(
            2 * np.pi * np.array([1.1, 0.8, 1.3]) * time_s + phase
        )
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

    car, pedestrian = np.array([4.5, 1.9, 1.6]), np.array([0.7, 0.7, 1.75])

    def standing(size_lwh_m: Float[np.ndarray, "3"], x: float, lateral_m: float, yaw: float = 0.0) -> SE3:
        return street.pose(x, lateral_m, yaw) @ se3(np.eye(3), np.array([0, 0, size_lwh_m[2] / 2]))

    def driving(time_s: float) -> SE3:
        return standing(car, EGO_START_M + 14.0 + 10.0 * time_s, -LANE_M)

    def walking(time_s: float) -> SE3:
        """Waits inside the building on the right and steps out of the doorway halfway through the scene."""
        walked_m = 1.4 * max(time_s - duration_s / 2, 0.0)
        return standing(pedestrian, doorway_m, -FACADE_M - 0.5 + walked_m, np.pi / 2)

    walker = shape(pedestrian, PEDESTRIAN_PARTS, (190, 60, 50))
    actors = [
        Actor("car", "vehicle.car", "vehicle.moving", car, shape(car, CAR_PARTS, (186, 40, 36)), driving),
        Actor("pedestrian", "human.pedestrian.adult", "pedestrian.moving", pedestrian, walker, walking),
    ]
    for x in row_m + 10.0:
        for side, yaw in ((-1, 0.0), (1, np.pi)):
            pose = standing(car, x + rng.uniform(-3, 3), side * PARKING_M, yaw)
            mesh = shape(car, CAR_PARTS, rng.integers(60, 200, 3))
            if rng.uniform() < 0.6:
                name = f"parked-{len(actors)}"
                actors.append(Actor(name, "vehicle.car", "vehicle.parked", car, mesh, partial(_still, pose)))
    return World(street, merge(background), tuple(actors), world_SE3_ego)


# ---------------------------------------------------------------------------------------------------------------------
# Sensors: rig, rays, times

SWEEP_US, SWEEPS_PER_KEYFRAME = 50_000, 10
ELEVATIONS_DEG = np.linspace(-30.67, 10.67, 32)  # ring 0 looks down
FIRST_AZIMUTH_DEG = 100.0  # in the ego frame: a revolution starts on the left and turns clockwise
LIDAR = "LIDAR_TOP"
CAMERAS = {  # yaw and horizontal field of view in degrees, position in the ego frame in metres
    "CAM_FRONT": (0, 70, (1.70, 0.0, 1.51)),
    "CAM_FRONT_RIGHT": (-55, 70, (1.55, -0.49, 1.50)),
    "CAM_BACK_RIGHT": (-110, 70, (1.02, -0.48, 1.56)),
    "CAM_BACK": (180, 110, (0.03, 0.0, 1.57)),
    "CAM_BACK_LEFT": (110, 70, (1.03, 0.48, 1.56)),
    "CAM_FRONT_LEFT": (55, 70, (1.52, 0.49, 1.51)),
}


@dataclass(frozen=True)
class Sensor:
    """A mounted sensor and the rays it casts.

    Attributes:
        channel: nuScenes channel name.
        delay_us: Time of exposure relative to the sweep's timestamp.
        ego_SE3_sensor: Mounting pose.
        K: Camera intrinsics; None for the LiDAR.
        rays: Directions in the sensor frame. A camera's have z = 1, so that a hit's distance is its depth; the
            LiDAR's are unit vectors, so that it is the range.
    """

    channel: str
    delay_us: int
    ego_SE3_sensor: SE3
    K: Float[np.ndarray, "3 3"] | None
    rays: Float[np.ndarray, "n 3"]

    @cached_property
    def ray_lengths(self) -> Float[np.ndarray, " n"]:
        """Lengths of the ray directions."""
        return np.linalg.norm(self.rays, axis=1)

    @cached_property
    def half_angle(self) -> float:
        """Half angle in radians of a cone around the z axis that holds all rays."""
        return np.pi if self.K is None else float(np.arccos(1 / self.ray_lengths.max()))


def lidar(azimuths: int) -> Sensor:
    """The roof LiDAR: x right, y forward, z up; rays in order of firing, the 32 rings of a firing together."""
    azimuth_deg = FIRST_AZIMUTH_DEG - 360.0 * np.arange(azimuths) / azimuths
    azimuth, elevation = np.meshgrid(np.radians(azimuth_deg), np.radians(ELEVATIONS_DEG), indexing="ij")
    across = np.cos(elevation)
    rays = np.stack([-across * np.sin(azimuth), across * np.cos(azimuth), np.sin(elevation)], axis=-1)
    ego_R_lidar = np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    ego_SE3_lidar = se3(ego_R_lidar, np.array([0.94, 0.0, 1.84]))
    return Sensor(LIDAR, 0, ego_SE3_lidar, None, rays.reshape(-1, 3).astype(np.float32))


def camera(channel: str, width: int, height: int) -> Sensor:
    """One camera of the rig: x right, y down, z forward; rays run through pixel centres, row by row."""
    yaw_deg, fov_deg, position_m = CAMERAS[channel]
    focal_px = 800 / np.tan(np.radians(fov_deg) / 2)
    K = resize_K(np.array([[focal_px, 0, 799.5], [0, focal_px, 449.5], [0, 0, 1]]), width / 1600, height / 900)
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones_like(u)], axis=-1)
    sine, cosine = np.sin(np.radians(yaw_deg)), np.cos(np.radians(yaw_deg))
    ego_SE3_cam = se3(np.array([[sine, 0, cosine], [-cosine, 0, sine], [0, -1, 0]]), np.array(position_m))
    # The sweep's timestamp is the middle of the revolution; the beam passes the camera's centre before or after.
    revolution = ((FIRST_AZIMUTH_DEG - yaw_deg) % 360) / 360
    delay_us = round((revolution - 0.5) * SWEEP_US)
    return Sensor(channel, delay_us, ego_SE3_cam, K, rays.reshape(-1, 3).astype(np.float32))


@dataclass(frozen=True)
class Hits:
    """What the rays of a sensor hit.

    Attributes:
        distance: In units of the ray directions; inf for the sky.
        surface: Surface of the `World`; -1 for the sky.
        rays_on: Number of rays that would hit each instance if it were alone (0 for the background).
    """

    distance: Float[np.ndarray, " n"]
    surface: Int[np.ndarray, " n"]
    rays_on: Int[np.ndarray, " instances"]


def cast(world: World, sensor: Sensor, time_s: float) -> Hits:
    """Casts all rays of a sensor into the world as it is at one time.

    Every object is meshed once, in its own frame: the rays that may hit it are taken there, and the nearest hit wins.
    """
    from open3d.core import Tensor

    def cast_into(mesh: Mesh, mesh_SE3_sensor: SE3, rays: Float[np.ndarray, "k 3"]) -> tuple[np.ndarray, np.ndarray]:
        origins_and_directions = np.empty((len(rays), 6), np.float32)
        origins_and_directions[:, :3] = mesh_SE3_sensor[:3, 3]
        origins_and_directions[:, 3:] = rays @ mesh_SE3_sensor[:3, :3].T.astype(np.float32)
        hits = mesh.raycaster.cast_rays(Tensor.from_numpy(origins_and_directions))
        return hits["t_hit"].numpy(), hits["primitive_ids"].numpy()

    world_SE3_sensor = world.world_SE3_ego(time_s) @ sensor.ego_SE3_sensor
    distance, triangle = cast_into(world.background, world_SE3_sensor, sensor.rays)
    surface = triangle.astype(np.int32)
    surface[~np.isfinite(distance)] = -1
    rays_on = np.zeros(len(world.actors) + 1, np.int64)
    for instance, actor in enumerate(world.actors, start=1):
        box_SE3_sensor = invert(actor.world_SE3_box(time_s)) @ world_SE3_sensor
        centre = invert(box_SE3_sensor)[:3, 3]
        away = float(np.linalg.norm(centre))
        # A cone around the object's bounding sphere holds every ray that may hit it.
        radius = float(np.linalg.norm(actor.size_lwh_m)) / 2
        opening = np.arcsin(radius / away) if away > radius else np.pi
        if np.arccos(np.clip(centre[2] / away, -1, 1)) > sensor.half_angle + opening:
            continue
        cosine_times_length = sensor.rays @ (centre / away).astype(np.float32)
        near = np.flatnonzero(cosine_times_length >= (np.cos(opening) - 1e-6) * sensor.ray_lengths)
        own_distance, own_triangle = cast_into(actor.mesh, box_SE3_sensor, sensor.rays[near])
        rays_on[instance] = np.isfinite(own_distance).sum()
        nearer = own_distance < distance[near]
        distance[near[nearer]] = own_distance[nearer]
        surface[near[nearer]] = np.searchsorted(world.instance_of[:-1], instance) + own_triangle[nearer]
    return Hits(distance, surface, rays_on)


# ---------------------------------------------------------------------------------------------------------------------
# Truth

TRUTH_ARRAYS = {"depth_m": ("float32", np.nan), "moving": ("uint8", 255), "instance": ("uint16", 65535)}


@dataclass(frozen=True)
class Truth:
    """Exact depth of one camera of one scene, as Zarr arrays (frames, height, width): indexing one reads it.

    Attributes:
        sample_tokens: The keyframe of each frame.
        instance_tokens: Token of instance i at [i - 1].
        depth_m: float32, z-depth through the pixel's centre at the camera's own time; 0 where there is only sky.
        moving: uint8, 1 on objects that move at some time in the scene.
        instance: uint16, 0 for the background.
    """

    sample_tokens: tuple[str, ...]
    instance_tokens: tuple[str, ...]
    depth_m: Any
    moving: Any
    instance: Any


def truth_path(dataroot: Path, scene_token: str, camera: str) -> Path:
    """Where the truth of one camera of one scene lies."""
    return dataroot / "truth" / scene_token / f"{camera}.zarr"


def read_truth(dataroot: str | Path, scene_token: str, camera: str) -> Truth:
    """Opens the truth of one camera of one scene.

    Raises:
        InputError: There is none, or a frame of it is lost.
    """
    import zarr

    path = truth_path(Path(dataroot), scene_token, camera)
    if not path.is_dir():
        raise InputError(f"{path}: no truth for this scene and camera; only generated datasets have it")
    group: Any = zarr.open_group(path, mode="r")
    arrays = [group[name] for name in TRUTH_ARRAYS]
    for array in arrays:  # Zarr would return its fill value for a lost chunk
        if array.nchunks_initialized != array.nchunks:
            raise InputError(f"{path}: {array.nchunks - array.nchunks_initialized} frames of {array.name} are lost")
    return Truth(tuple(group.attrs["sample_tokens"]), tuple(group.attrs["instance_tokens"]), *arrays)


def create_truth(path: Path, shape: tuple[int, int, int], attributes: dict[str, Any]) -> dict[str, Any]:
    """Creates what `read_truth` opens, one chunk per frame, without frames."""
    import zarr
    from zarr.codecs import BloscCodec

    group = zarr.open_group(path, mode="w", attributes=attributes)
    codec = BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle")
    options: dict[str, Any] = {"compressors": codec, "config": {"write_empty_chunks": True}}
    return {
        name: group.create_array(name, shape=shape, chunks=(1, *shape[1:]), dtype=dtype, fill_value=fill, **options)
        for name, (dtype, fill) in TRUTH_ARRAYS.items()
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tables and files

TABLES = ["category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log"]
TABLES += ["scene", "sample", "sample_data", "sample_annotation", "map"]
CATEGORIES = ("human.pedestrian.adult", "vehicle.car")
ATTRIBUTES = ("vehicle.moving", "vehicle.stopped", "vehicle.parked", "pedestrian.moving", "pedestrian.standing")
VISIBILITY = {"1": "v0-40", "2": "v40-60", "3": "v60-80", "4": "v80-100"}
START_US, SCENE_US = 1_600_000_000_000_000, 3_600_000_000
MARKER = "synthetic.json"  # in the root of a generated dataset: its config, and the permission to replace it
VERSION = re.compile(r"(?!(samples|sweeps|maps|truth)$)[\w.-]*\w")

Row = dict[str, Any]


class Tables:
    """The thirteen tables of a nuScenes database, as lists of rows."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rows: dict[str, list[Row]] = {name: [] for name in TABLES}

    def token(self, table: str, *key: object) -> str:
        """The token of a row: 32 hex digits that depend on the seed and on what the row is about, nothing else."""
        return hashlib.blake2b(repr((self.seed, table, *key)).encode(), digest_size=16).hexdigest()

    def add(self, table: str, *key: object, **fields: Any) -> Row:
        """Appends a row and returns it; ``key`` says what it is about."""
        self.rows[table].append({"token": self.token(table, *key), **fields})
        return self.rows[table][-1]


def chain(rows: list[Row]) -> None:
    """Links rows that follow each other in time by ``prev`` and ``next``."""
    tokens = ["", *(row["token"] for row in rows), ""]
    for row, before, after in zip(rows, tokens, tokens[2:]):
        row["prev"], row["next"] = before, after


def pose_fields(dst_SE3_src: SE3) -> Row:
    """A transform as the tables store it."""
    rotation = quaternion_from_rotation(dst_SE3_src[:3, :3])
    return {"translation": dst_SE3_src[:3, 3].tolist(), "rotation": rotation.tolist()}


def points_inside(points: Float[np.ndarray, "n 3"], box_SE3_points: SE3, size_lwh_m: Float[np.ndarray, "3"]) -> int:
    """How many points lie in a box."""
    return int((np.abs(transform(box_SE3_points, points.astype(np.float64))) <= size_lwh_m / 2).all(axis=1).sum())


def write_map(path: Path, street: Street) -> None:
    """A mask of the road from above, 0.1 m per pixel; the world's origin is the lower left corner."""
    import cv2

    x = np.arange(0.0, street.length_m, 1.0)
    y = street.middle(x)
    left, right = np.column_stack([x, y + ROAD_M]), np.column_stack([x, y - ROAD_M])
    mask = np.zeros((int(20 * GROUND_M), int(10 * street.length_m)), np.uint8)
    outline_px = np.array([0, len(mask)]) + np.concatenate([left, right[::-1]]) * [10, -10]
    cv2.imwrite(str(path), cv2.fillPoly(mask, [np.round(outline_px).astype(np.int32)], (255,)))


class SceneWriter:
    """Generates one scene, keyframe by keyframe: adds its rows to the tables and writes its files."""

    def __init__(self, out: Path, config: SynthConfig, index: int, tables: Tables, rig: list[Sensor]) -> None:
        self.out, self.config, self.index, self.tables, self.rig = out, config, index, tables, rig
        self.name = name = f"synth-{index:04d}"
        self.start_us = START_US + index * SCENE_US
        self.world = build_world((config.keyframes - 1) / 2, np.random.default_rng([config.seed, index]))
        self.chains: dict[str, list[Row]] = {sensor.channel: [] for sensor in rig}
        self.seen: list[list[tuple[int, str]]] = []  # per keyframe and actor: LiDAR points in its box, visibility

        log = tables.add("log", name, logfile=name, vehicle="synth", date_captured="2020-09-13", location=name)
        map_file = f"maps/{tables.token('map', name)}.png"
        tables.add("map", name, log_tokens=[log["token"]], category="semantic_prior", filename=map_file)
        write_map(out / map_file, self.world.street)
        scene_token = tables.token("scene", name)
        times_us = [self.start_us + key * SWEEPS_PER_KEYFRAME * SWEEP_US for key in range(config.keyframes)]
        self.samples = [
            tables.add("sample", name, key, timestamp=time_us, scene_token=scene_token)
            for key, time_us in enumerate(times_us)
        ]
        chain(self.samples)
        ends = {"first_sample_token": self.samples[0]["token"], "last_sample_token": self.samples[-1]["token"]}
        about = {"description": "Generated street", "log_token": log["token"], "nbr_samples": len(self.samples)}
        tables.add("scene", name, name=name, **about, **ends)
        for sensor in rig:
            intrinsics = {"camera_intrinsic": [] if sensor.K is None else sensor.K.tolist()}
            mount = {"sensor_token": tables.token("sensor", sensor.channel), **pose_fields(sensor.ego_SE3_sensor)}
            tables.add("calibrated_sensor", name, sensor.channel, **mount, **intrinsics)

        attributes = {
            "sample_tokens": [sample["token"] for sample in self.samples],
            "instance_tokens": [tables.token("instance", name, actor.name) for actor in self.world.actors],
        }
        shape = (config.keyframes, config.image_height, config.image_width)
        self.truth = {
            sensor.channel: create_truth(truth_path(out, scene_token, sensor.channel), shape, attributes)
            for sensor in rig[1:]
        }

    def keyframe(self, key: int) -> None:
        """The sweeps since the last keyframe, up to and with this one's, and its images and truth."""
        for sweep in range(max(0, (key - 1) * SWEEPS_PER_KEYFRAME + 1), key * SWEEPS_PER_KEYFRAME + 1):
            points, key_time_s = self.write_sweep(sweep)
        world_SE3_lidar = self.world.world_SE3_ego(key_time_s) @ self.rig[0].ego_SE3_sensor
        in_view, unoccluded = np.zeros((2, len(self.world.actors) + 1), np.int64)
        writing = []
        with ThreadPoolExecutor(2) as writers:  # open3d casts under the GIL on all cores; compression overlaps with it
            for sensor in self.rig[1:]:
                time_s, path = self.record(sensor, key * SWEEPS_PER_KEYFRAME)
                hits = cast(self.world, sensor, time_s)
                unoccluded += hits.rays_on
                in_view += np.bincount(self.world.instance_of[hits.surface], minlength=len(in_view))
                writing.append(writers.submit(self.write_frame, sensor, key, time_s, path, hits))
            for future in writing:
                future.result()
        row = []
        for actor, visible, total in zip(self.world.actors, in_view[1:], unoccluded[1:]):
            box_SE3_lidar = invert(actor.world_SE3_box(key_time_s)) @ world_SE3_lidar
            level = 1 + int(np.digitize(visible / max(total, 1), [0.4, 0.6, 0.8]))
            row.append((points_inside(points[:, :3], box_SE3_lidar, actor.size_lwh_m), str(level)))
        self.seen.append(row)

    def record(self, sensor: Sensor, sweep: int) -> tuple[float, Path]:
        """Adds the rows of one exposure; returns its time in the scene in seconds, and its file."""
        key, is_key = -(-sweep // SWEEPS_PER_KEYFRAME), sweep % SWEEPS_PER_KEYFRAME == 0
        since_start_us = sweep * SWEEP_US + sensor.delay_us
        times = {"timestamp": self.start_us + since_start_us}
        pose = pose_fields(self.world.world_SE3_ego(since_start_us * 1e-6))
        about = (self.name, sensor.channel, sweep)
        links = {
            "sample_token": self.samples[key]["token"],
            "ego_pose_token": self.tables.add("ego_pose", *about, **times, **pose)["token"],
            "calibrated_sensor_token": self.tables.token("calibrated_sensor", self.name, sensor.channel),
        }
        if sensor.K is None:
            suffix, width, height = "pcd.bin", 0, 0
        else:
            suffix, width, height = "jpg", self.config.image_width, self.config.image_height
        folder, stem = "samples" if is_key else "sweeps", f"{self.name}__{sensor.channel}__{times['timestamp']}"
        filename = f"{folder}/{sensor.channel}/{stem}.{suffix}"
        file = {"filename": filename, "fileformat": suffix[:3], "width": width, "height": height}
        self.chains[sensor.channel].append(
            self.tables.add("sample_data", *about, **links, **times, **file, is_key_frame=is_key)
        )
        return since_start_us * 1e-6, self.out / filename

    def write_sweep(self, sweep: int) -> tuple[Float[np.ndarray, "n 5"], float]:
        """One LiDAR revolution; returns its points (x, y, z in the sensor frame, intensity, ring) and its time."""
        sensor = self.rig[0]
        time_s, path = self.record(sensor, sweep)
        hits = cast(self.world, sensor, time_s)
        rng = np.random.default_rng([self.config.seed, self.index, sweep])
        range_m = hits.distance + self.config.lidar_noise_m * rng.standard_normal(len(hits.distance))
        range_m[range_m > self.config.lidar_range_m] = np.inf
        back = np.flatnonzero(np.isfinite(range_m))  # no point where there is no return
        xyz, intensity = sensor.rays[back] * range_m[back, None], self.world.reflectance[hits.surface[back]]
        points = np.column_stack([xyz, intensity, back % len(ELEVATIONS_DEG)]).astype(np.float32)
        points.tofile(path)
        return points, time_s

    def write_frame(self, sensor: Sensor, key: int, time_s: float, path: Path, hits: Hits) -> None:
        """The image and the truth of one camera at one keyframe."""
        import cv2

        shape = (self.config.image_height, self.config.image_width)
        instance = self.world.instance_of[hits.surface].reshape(shape)
        moving = np.array([0, *(actor.moving for actor in self.world.actors)], np.uint8)
        truth = self.truth[sensor.channel]
        truth["depth_m"][key] = np.where(np.isfinite(hits.distance), hits.distance, 0).reshape(shape)
        truth["moving"][key] = moving[instance]
        truth["instance"][key] = instance
        image = self.world.shaded(time_s)[hits.surface, ::-1].reshape(*shape, 3)
        if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90]):
            raise OSError(f"{path}: could not be written")

    def finish(self) -> None:
        """Links the rows of each sensor and adds what is known at the end: instances and their annotations.

        An object is annotated from the first to the last keyframe in which the LiDAR hits it.
        """
        for rows in self.chains.values():
            chain(rows)
        for index, actor in enumerate(self.world.actors):
            keys = [key for key, row in enumerate(self.seen) if row[index][0] > 0]
            if keys:
                annotations = [self.annotate(index, key) for key in range(keys[0], keys[-1] + 1)]
                chain(annotations)
                first, last = annotations[0]["token"], annotations[-1]["token"]
                ends = {"first_annotation_token": first, "last_annotation_token": last}
                category = {"category_token": self.tables.token("category", actor.category)}
                counted = {"nbr_annotations": len(annotations)}
                self.tables.add("instance", self.name, actor.name, **category, **counted, **ends)

    def annotate(self, index: int, key: int) -> Row:
        """Adds the annotation of one actor at one keyframe."""
        actor, sample, (points, visibility) = self.world.actors[index], self.samples[key], self.seen[key][index]
        length, width, height = actor.size_lwh_m.tolist()
        return self.tables.add(
            "sample_annotation",
            self.name,
            actor.name,
            key,
            sample_token=sample["token"],
            instance_token=self.tables.token("instance", self.name, actor.name),
            visibility_token=visibility,
            attribute_tokens=[self.tables.token("attribute", actor.attribute)],
            **pose_fields(actor.world_SE3_box((sample["timestamp"] - self.start_us) * 1e-6)),
            size=[width, length, height],
            num_lidar_pts=points,
            num_radar_pts=0,
        )


def check(config: SynthConfig) -> None:
    """Refuses options that cannot be generated."""
    least = {"scenes": 1, "keyframes": 1, "seed": 0, "image_width": 16, "image_height": 9, "lidar_azimuths": 1}
    for field, value in (least | {"lidar_noise_m": 0, "lidar_range_m": 1}).items():
        if not getattr(config, field) >= value:
            raise InputError(f"--{field.replace('_', '-')} {getattr(config, field)}: must be at least {value}")
    if not VERSION.fullmatch(config.version):
        raise InputError(f"--version {config.version!r}: must be a plain folder name, such as v1.0-synth")


def clear(out: Path) -> None:
    """Empties the dataset folder, if all that it holds is an earlier dataset of this generator."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; --out must be a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    try:
        version = str(json.loads((out / MARKER).read_text())["version"])
    except (OSError, ValueError, KeyError, TypeError):
        version = ""
    if not VERSION.fullmatch(version):
        raise InputError(f"{out}: is not empty and not a generated dataset; choose another --out")
    for folder in (version, "samples", "sweeps", "maps", "truth"):
        if (out / folder).is_dir():
            shutil.rmtree(out / folder)


def generate(out: Path, config: SynthConfig, on_keyframe: Callable[[], None] = lambda: None) -> None:
    """Generates a dataset; the tables are written last, so one that was cut short does not load.

    Args:
        out: Folder of the dataset: absent, empty, or an earlier dataset of this generator, which is replaced.
        config: What to generate.
        on_keyframe: Called after every finished keyframe.

    Raises:
        InputError: An option is out of range, or ``out`` holds something else or cannot be written.
    """
    out = Path(out)
    check(config)
    try:
        clear(out)
        for folder in (
            out,
            out / "maps",
            out / "sweeps" / LIDAR,
            *(out / "samples" / name for name in (LIDAR, *CAMERAS)),
        ):
            folder.mkdir(parents=True, exist_ok=True)
        (out / MARKER).write_text(json.dumps(dataclasses.asdict(config), indent=1))
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error

    tables = Tables(config.seed)
    for index, name in enumerate(CATEGORIES, start=1):
        tables.add("category", name, name=name, description="", index=index)
    for name in ATTRIBUTES:
        tables.add("attribute", name, name=name, description="")
    tables.rows["visibility"] = [{"token": key, "level": name, "description": ""} for key, name in VISIBILITY.items()]
    rig = [lidar(config.lidar_azimuths)]
    rig += [camera(channel, config.image_width, config.image_height) for channel in CAMERAS]
    for sensor in rig:
        modality = "lidar" if sensor.K is None else "camera"
        tables.add("sensor", sensor.channel, channel=sensor.channel, modality=modality)
    for index in range(config.scenes):
        scene = SceneWriter(out, config, index, tables, rig)
        for key in range(config.keyframes):
            scene.keyframe(key)
            on_keyframe()
        scene.finish()

    names = [row["name"] for row in tables.rows["scene"]]
    n_train = len(names) - max(1, len(names) // 4) if len(names) > 1 else 1
    train, val = names[:n_train], names[n_train:]
    # The devkit takes "train" and "val" for its own lists of scenes, so its evaluation needs other names.
    splits = {"train": train, "val": val, "synth_train": train, "synth_val": val}
    (out / config.version).mkdir()
    for name, rows in {**tables.rows, "splits": splits}.items():
        (out / config.version / f"{name}.json").write_text(json.dumps(rows, indent=0))
