"""The rig of a generated dataset: its sensors, and what they measure in a world."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from dense_depth.datasets.truth import Surface
from dense_depth.geometry import SE3, invert, resize_K, se3
from dense_depth.synthetic.materials import LOSS, REFLECTIVITY, SURFACES
from dense_depth.synthetic.mesh import merge
from dense_depth.synthetic.raster import Canvas
from dense_depth.synthetic.shading import shade
from dense_depth.synthetic.world import World

SWEEP_US, SWEEPS_PER_KEYFRAME = 50_000, 10
ELEVATIONS_DEG = {  # by number of beams; ring 0 looks down
    32: np.linspace(-30.67, 10.67, 32),  # HDL-32E, of nuScenes
    64: np.concatenate([np.linspace(-24.33, -8.83, 32), np.linspace(-8.33, 2.0, 32)]),  # HDL-64E, of KITTI
}
FIRST_AZIMUTH_DEG = 100.0  # in the ego frame: a revolution starts on the left and turns clockwise
SLICES = 36  # of a revolution with distortion: 1.4 ms each
LIDAR = "LIDAR_TOP"
CAMERAS = {  # yaw and horizontal field of view in degrees, position in the ego frame in metres
    "CAM_FRONT": (0, 70, (1.70, 0.0, 1.51)),
    "CAM_FRONT_RIGHT": (-55, 70, (1.55, -0.49, 1.50)),
    "CAM_BACK_RIGHT": (-110, 70, (1.02, -0.48, 1.56)),
    "CAM_BACK": (180, 110, (0.03, 0.0, 1.57)),
    "CAM_BACK_LEFT": (110, 70, (1.03, 0.48, 1.56)),
    "CAM_FRONT_LEFT": (55, 70, (1.52, 0.49, 1.51)),
}
RANDOM_LOSS = 0.01  # of pulses, whatever they hit
RANGE_AT_HALF_M = 42.0  # from here half the pulses come back that meet a surface of reflectivity 0.1 head-on


@dataclass(frozen=True)
class Camera:
    """A camera: x right, y down, z forward; integer pixel coordinates are pixel centres."""

    channel: str
    delay_us: int  # time of exposure relative to the sweep's timestamp
    ego_SE3_cam: SE3
    K: Float[np.ndarray, "3 3"]
    height: int
    width: int


def camera(channel: str, width: int, height: int) -> Camera:
    """One camera of the rig."""
    yaw_deg, fov_deg, position_m = CAMERAS[channel]
    focal_px = 800 / np.tan(np.radians(fov_deg) / 2)
    K = resize_K(np.array([[focal_px, 0, 799.5], [0, focal_px, 449.5], [0, 0, 1]]), width / 1600, height / 900)
    sine, cosine = np.sin(np.radians(yaw_deg)), np.cos(np.radians(yaw_deg))
    ego_SE3_cam = se3(np.array([[sine, 0, cosine], [-cosine, 0, sine], [0, -1, 0]]), np.array(position_m))
    # The sweep's timestamp is the middle of the revolution; the beam passes the camera's centre before or after.
    revolution = ((FIRST_AZIMUTH_DEG - yaw_deg) % 360) / 360
    delay_us = round((revolution - 0.5) * SWEEP_US)
    return Camera(channel, delay_us, ego_SE3_cam, K, height, width)


@dataclass(frozen=True)
class Lidar:
    """The roof LiDAR: x right, y forward, z up."""

    beams: int  # a key of ELEVATIONS_DEG
    azimuths: int  # firings of the beams per revolution
    noise_m: float  # standard deviation of a range
    range_m: float  # longest range
    distortion: bool  # whether the vehicle and all else move during a revolution

    @cached_property
    def ego_SE3_lidar(self) -> SE3:
        """Where it is mounted."""
        return se3(np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.array([0.94, 0.0, 1.84]))

    @cached_property
    def rays(self) -> Float[np.ndarray, "n 3"]:
        """Unit directions in order of firing, the rings of a firing together."""
        azimuth_deg = FIRST_AZIMUTH_DEG - 360.0 * np.arange(self.azimuths) / self.azimuths
        azimuth, elevation = np.meshgrid(np.radians(azimuth_deg), np.radians(ELEVATIONS_DEG[self.beams]), indexing="ij")
        across = np.cos(elevation)
        rays = np.stack([-across * np.sin(azimuth), across * np.cos(azimuth), np.sin(elevation)], axis=-1)
        return rays.reshape(-1, 3)

    def slices(self) -> list[tuple[slice, float]]:
        """Rays that are fired together, and when, in seconds from the sweep's timestamp."""
        if not self.distortion:
            return [(slice(None), 0.0)]
        edges = np.linspace(0, self.azimuths, SLICES + 1).astype(int)
        middles_s = ((edges[:-1] + edges[1:]) / 2 / self.azimuths - 0.5) * SWEEP_US * 1e-6
        return [(slice(a * self.beams, b * self.beams), float(at)) for a, b, at in zip(edges, edges[1:], middles_s)]


def scan(world: World, lidar: Lidar, time_s: float, rng: np.random.Generator) -> Float[np.ndarray, "n 5"]:
    """One revolution around a time: x, y, z in the sensor frame at the moment of each pulse, intensity, ring; float32.

    The share of pulses that come back falls with range and with the angle to the surface, and with how dark it is;
    most pulses that meet glass go through it unseen.
    """
    n = len(lidar.rays)
    distance, cosine = np.full(n, np.inf, np.float32), np.zeros(n, np.float32)
    material = np.zeros(n, np.uint8)
    for part, delay_s in lidar.slices():
        world_SE3_lidar = world.world_SE3_ego(time_s + delay_s) @ lidar.ego_SE3_lidar
        directions = (lidar.rays[part] @ world_SE3_lidar[:3, :3].T).astype(np.float32)
        for mesh in (world.still[0], world.movers(time_s + delay_s)[0]):
            own_distance, triangle = mesh.cast(world_SE3_lidar[:3, 3], directions)
            nearer = np.flatnonzero(own_distance < distance[part])
            hit = triangle[nearer]
            distance[part][nearer] = own_distance[nearer]
            material[part][nearer] = mesh.materials[hit]
            cosine[part][nearer] = np.abs((mesh.normals[hit] * directions[nearer]).sum(1))
    albedo = REFLECTIVITY[material]
    with np.errstate(divide="ignore"):
        signal = albedo * cosine / 0.1 * (RANGE_AT_HALF_M / distance) ** 2
    returns = (1 - RANDOM_LOSS) * (1 - LOSS[material]) * (1 - 0.5**signal)
    range_m = distance + lidar.noise_m * rng.standard_normal(n)
    back = np.flatnonzero((rng.uniform(size=n) < returns) & (range_m <= lidar.range_m))
    xyz = lidar.rays[back] * range_m[back, None]
    intensity = np.round(255 * albedo[back] * (0.3 + 0.7 * cosine[back]))
    return np.column_stack([xyz, intensity, back % lidar.beams]).astype(np.float32)


@dataclass(frozen=True)
class Exposure:
    """What a camera sees, and what is true of it.

    Attributes:
        image: RGB.
        depth_m: Through the pixel's centre; 0 for the sky.
        instance: 0 for the background.
        surface: ``Surface`` codes.
        pixels_on: How many pixels would show each instance if it were alone; [0] means nothing.
    """

    image: UInt8[np.ndarray, "height width 3"]
    depth_m: Float[np.ndarray, "height width"]
    instance: UInt16[np.ndarray, "height width"]
    surface: UInt8[np.ndarray, "height width"]
    pixels_on: Int[np.ndarray, " instances"]


def expose(world: World, camera: Camera, time_s: float) -> Exposure:
    """Takes a picture."""
    world_SE3_cam = world.world_SE3_ego(time_s) @ camera.ego_SE3_cam
    (still, still_instances), (movers, mover_instances) = world.still, world.movers(time_s)
    mesh = merge([still, movers])
    instances = np.concatenate([still_instances, mover_instances])
    canvas = Canvas(camera.height, camera.width, len(world.actors) + 1)
    canvas.draw(mesh.corners_m, instances, invert(world_SE3_cam), camera.K)
    shadows = world.shadows.with_movers(movers.corners_m)
    image = shade(canvas, mesh, world_SE3_cam, camera.K, shadows, world.street.marks)
    empty = canvas.triangle < 0
    with np.errstate(divide="ignore"):
        depth_m = np.where(empty, np.float32(0), 1 / canvas.inverse_depth)
    instance = np.where(empty, np.uint16(0), instances[canvas.triangle])
    surfaces = np.where(instances > 0, np.uint8(Surface.OBJECT), SURFACES[mesh.materials])
    surface = np.where(empty, np.uint8(Surface.SKY), surfaces[canvas.triangle])
    return Exposure(image, depth_m, instance, surface, canvas.pixels_on)
