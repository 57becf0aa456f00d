"""The rig of a generated dataset: its sensors, the rays they cast and what those hit."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, UInt16

from dense_depth.datasets.synthetic.world import World
from dense_depth.geometry import SE3, invert, resize_K, se3

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
    """A mounted sensor and the rays it casts, whose directions are in the sensor frame.

    A camera's have z = 1, so that a hit's distance is its depth; the LiDAR's have length 1, so that it is the range.
    """

    channel: str
    delay_us: int  # time of exposure relative to the sweep's timestamp
    ego_SE3_sensor: SE3
    K: Float[np.ndarray, "3 3"] | None  # None for the LiDAR
    rays: Float[np.ndarray, "n 3"]

    @cached_property
    def ray_lengths(self) -> Float[np.ndarray, " n"]:
        """Lengths of the ray directions."""
        return np.linalg.norm(self.rays, axis=1)

    @cached_property
    def half_angle(self) -> float:
        """Half angle in radians of a cone around the z axis that holds all rays."""
        return float(np.arccos((self.rays[:, 2] / self.ray_lengths).min()))


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
    """What the rays of a sensor hit: surfaces and instances of the `World`."""

    distance: Float[np.ndarray, " n"]  # in units of the ray directions; inf for the sky
    surface: Int[np.ndarray, " n"]  # -1 for the sky
    instance: UInt16[np.ndarray, " n"]  # 0 for the background and the sky
    rays_on: Int[np.ndarray, " actors"]  # how many would hit each actor if it were alone


def cast(world: World, sensor: Sensor, time_s: float) -> Hits:
    """Casts all rays of a sensor into the world as it is at one time.

    Every object is meshed once, in its own frame: the rays that may hit it are taken there, and the nearest hit wins.
    """
    world_SE3_sensor = world.world_SE3_ego(time_s) @ sensor.ego_SE3_sensor
    distance, triangle = world.background.cast(world_SE3_sensor, sensor.rays)
    surface = np.where(np.isfinite(distance), triangle, -1)
    hit, rays_on = np.zeros(len(surface), np.uint16), np.zeros(len(world.actors), np.int64)
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
        own_distance, own_triangle = actor.mesh.cast(box_SE3_sensor, sensor.rays[near])
        rays_on[instance - 1] = np.isfinite(own_distance).sum()
        nearer = own_distance < distance[near]
        nearest = near[nearer]
        distance[nearest], hit[nearest] = own_distance[nearer], instance
        surface[nearest] = world.first_surface[instance] + own_triangle[nearer]
    return Hits(distance, surface, hit, rays_on)
