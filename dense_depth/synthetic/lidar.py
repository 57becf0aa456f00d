"""The LiDAR of a generated dataset, and what it measures in a world."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from dense_depth.geometry import SE3, invert, se3, transform
from dense_depth.synthetic.beams import Firings, Poses, cast_at_still
from dense_depth.synthetic.materials import LOSS, REFLECTIVITY
from dense_depth.synthetic.world import World

SWEEP_US, SWEEPS_PER_KEYFRAME = 50_000, 10
ELEVATIONS_DEG = {  # by number of beams; ring 0 looks down
    32: np.linspace(-30.67, 10.67, 32),  # HDL-32E, of nuScenes
    64: np.concatenate([np.linspace(-24.33, -8.83, 32), np.linspace(-8.33, 2.0, 32)]),  # HDL-64E, of KITTI
}
FIRST_AZIMUTH_DEG = 100.0  # in the ego frame: a revolution starts on the left and turns clockwise
# How often in a revolution the poses of the vehicle and of the parts of all else are computed. In between they are
# interpolated, which is right to 0.1 mm at 70 m, and to about 1 mm for people; the legs of cyclists snap into full
# stretch, where it may be 16 mm.
EGO_INSTANTS, PART_INSTANTS = 9, 5
LIDAR = "LIDAR_TOP"
RANDOM_LOSS = 0.01  # of pulses, whatever they hit
RANGE_AT_HALF_M = 42.0  # from here half the pulses come back that meet a surface of reflectivity 0.1 head-on

Motion = Literal["compensated", "raw", "none"]


def beam_passes(azimuth_deg: float) -> float:
    """The share of a revolution after which the beam has a direction, counter-clockwise from the vehicle's x axis."""
    return ((FIRST_AZIMUTH_DEG - azimuth_deg) % 360) / 360


@dataclass(frozen=True)
class Lidar:
    """The roof LiDAR: x right, y forward, z up.

    Attributes:
        beams: A key of ELEVATIONS_DEG.
        azimuths: Firings of the beams per revolution.
        noise_m: Standard deviation of a range.
        range_m: Longest range.
        motion: The vehicle and all else move during a revolution, and points are brought to where the LiDAR would have
            seen them at its end ("compensated"), or left where it saw them ("raw"); or nothing moves ("none").
    """

    beams: int
    azimuths: int
    noise_m: float
    range_m: float
    motion: Motion = "compensated"

    @cached_property
    def ego_SE3_lidar(self) -> SE3:
        """Where it is mounted."""
        return se3(np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.array([0.94, 0.0, 1.84]))

    @cached_property
    def rays(self) -> Float[np.ndarray, "azimuths beams 3"]:
        """Unit directions in order of firing, the rings of a firing together."""
        azimuth_deg = FIRST_AZIMUTH_DEG - 360.0 * np.arange(self.azimuths) / self.azimuths
        azimuth, elevation = np.meshgrid(np.radians(azimuth_deg), np.radians(ELEVATIONS_DEG[self.beams]), indexing="ij")
        across = np.cos(elevation)
        return np.stack([-across * np.sin(azimuth), across * np.cos(azimuth), np.sin(elevation)], axis=-1)

    @cached_property
    def delays_s(self) -> Float[np.ndarray, " azimuths"]:
        """When each firing is, in seconds from the sweep's timestamp, which is the end of the revolution."""
        if self.motion == "none":
            return np.zeros(self.azimuths)
        return (np.arange(self.azimuths) / self.azimuths - 1) * SWEEP_US * 1e-6

    def delay_s(self, point_m: Float[np.ndarray, "3"]) -> float:
        """When the beam passes a point of the sensor frame, in seconds from the sweep's timestamp."""
        if self.motion == "none":
            return 0.0
        return (beam_passes(np.degrees(np.arctan2(-point_m[0], point_m[1]))) - 1) * SWEEP_US * 1e-6

    def instants_s(self, n: int) -> Float[np.ndarray, " instants"]:
        """Instants spread over the revolution, in seconds from the sweep's timestamp."""
        return np.zeros(1) if self.motion == "none" else np.linspace(-SWEEP_US * 1e-6, 0.0, n)


@dataclass(frozen=True)
class Revolution:
    """What a LiDAR measures in one revolution.

    Attributes:
        points: x, y, z in the sensor frame, intensity, ring; float32, in order of firing. Unless nothing moves, pulses
            that do not come back are among them, as in nuScenes: at range 0, which is where the sensor was.
        delays_s: Time of each point from the sweep's timestamp.
        instances: What each point lies on; 0 for the background.
    """

    points: Float[np.ndarray, "n 5"]
    delays_s: Float[np.ndarray, " n"]
    instances: Int[np.ndarray, " n"]


def scan(world: World, lidar: Lidar, time_s: float, rng: np.random.Generator) -> Revolution:
    """One revolution, up to a time.

    The share of pulses that come back falls with range and with the angle to the surface, and with how dark it is;
    most pulses that meet glass go through it unseen.
    """
    at_s = lidar.instants_s(EGO_INSTANTS)
    path = Poses(at_s, np.stack([world.world_SE3_ego(time_s + at) @ lidar.ego_SE3_lidar for at in at_s])[:, None])
    world_SE3_lidar = path.at(lidar.delays_s, np.zeros(lidar.azimuths, int))
    firings = Firings(lidar.delays_s, world_SE3_lidar, lidar.rays)
    at_still = cast_at_still(world.still[0], firings)
    at_parts = world.parts.cast(world.part_poses(time_s, lidar.instants_s(PART_INSTANTS)), firings)
    on_part = at_parts.distance_m < at_still.distance_m
    triangle = np.where(on_part, len(world.still[0]) + at_parts.triangle, at_still.triangle)
    distance_m, cosine = (np.where(on_part, a, b) for a, b in ((at_parts[0], at_still[0]), (at_parts[2], at_still[2])))
    material = np.concatenate([world.still[0].materials, world.parts.mesh.materials, [0]])[triangle]
    instance = np.concatenate([world.still[1], world.parts.instances, [0]])[triangle]

    n = len(distance_m)
    albedo = REFLECTIVITY[material]
    with np.errstate(divide="ignore"):
        signal = albedo * cosine / 0.1 * (RANGE_AT_HALF_M / distance_m) ** 2
    returns = (1 - RANDOM_LOSS) * (1 - LOSS[material]) * (1 - 0.5**signal)
    range_m = distance_m + lidar.noise_m * rng.standard_normal(n)
    back = (rng.uniform(size=n) < returns) & (range_m <= lidar.range_m)
    xyz = lidar.rays * np.where(back, range_m, 0.0).reshape(lidar.azimuths, lidar.beams, 1)
    if lidar.motion == "compensated":
        end = world.world_SE3_ego(time_s) @ lidar.ego_SE3_lidar
        xyz = transform(invert(end) @ world_SE3_lidar, xyz)
    intensity = np.where(back, np.round(255 * albedo * (0.3 + 0.7 * cosine)), 0.0)
    ring = np.tile(np.arange(lidar.beams), lidar.azimuths)
    points = np.column_stack([xyz.reshape(-1, 3), intensity, ring]).astype(np.float32)
    kept = back if lidar.motion == "none" else np.ones(n, bool)
    delays_s = np.repeat(lidar.delays_s, lidar.beams)
    return Revolution(points[kept], delays_s[kept], np.where(back, instance, 0)[kept])
