"""The cameras of a generated dataset, and what they see of a world."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8, UInt16

from dense_depth.datasets.truth import Surface
from dense_depth.geometry import SE3, invert, resize_K, se3
from dense_depth.synthetic.lidar import SWEEP_US, beam_passes
from dense_depth.synthetic.materials import SURFACES
from dense_depth.synthetic.mesh import merge
from dense_depth.synthetic.raster import Canvas
from dense_depth.synthetic.shading import shade
from dense_depth.synthetic.world import World

CAMERAS = {  # yaw and horizontal field of view in degrees, position in the ego frame in metres
    "CAM_FRONT": (0, 70, (1.70, 0.0, 1.51)),
    "CAM_FRONT_RIGHT": (-55, 70, (1.55, -0.49, 1.50)),
    "CAM_BACK_RIGHT": (-110, 70, (1.02, -0.48, 1.56)),
    "CAM_BACK": (180, 110, (0.03, 0.0, 1.57)),
    "CAM_BACK_LEFT": (110, 70, (1.03, 0.48, 1.56)),
    "CAM_FRONT_LEFT": (55, 70, (1.52, 0.49, 1.51)),
}


@dataclass(frozen=True)
class Camera:
    """A camera: x right, y down, z forward; integer pixel coordinates are pixel centres."""

    channel: str
    delay_us: int  # time of exposure relative to the sweep's timestamp
    ego_SE3_cam: SE3
    K: Float[np.ndarray, "3 3"]
    height: int
    width: int


def camera(channel: str, width: int, height: int, flash: bool = False) -> Camera:
    """One camera of the rig, which fires when the beam passes its centre.

    Args:
        channel: Its name.
        width: Image width in pixels.
        height: Image height in pixels.
        flash: Whether the sweep is stamped in the middle of its revolution, not at its end.
    """
    yaw_deg, fov_deg, position_m = CAMERAS[channel]
    focal_px = 800 / np.tan(np.radians(fov_deg) / 2)
    K = resize_K(np.array([[focal_px, 0, 799.5], [0, focal_px, 449.5], [0, 0, 1]]), width / 1600, height / 900)
    sine, cosine = np.sin(np.radians(yaw_deg)), np.cos(np.radians(yaw_deg))
    ego_SE3_cam = se3(np.array([[sine, 0, cosine], [-cosine, 0, sine], [0, -1, 0]]), np.array(position_m))
    stamp = 0.5 if flash else 1.0  # share of the revolution
    delay_us = round((beam_passes(yaw_deg) - stamp) * SWEEP_US)
    return Camera(channel, delay_us, ego_SE3_cam, K, height, width)


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
