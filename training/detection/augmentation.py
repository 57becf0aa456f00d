"""Random changes of images and of the bird's-eye view, applied alike to all that belongs to them."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numba
import numpy as np
from jaxtyping import Float, Float32, UInt8

from dense_depth.label import CERTAIN, Points


@dataclass(frozen=True)
class AugmentationConfig:
    """As in BEVDepth.

    Attributes:
        height: Rows of the network's input.
        width: Its columns.
        resize: Range of the scale of images, 1 being the least that fills the input, as it is when nothing is random.
        rotate_deg: Images turn by up to this.
        flip: Chance of a mirror image.
        bev_rotate_deg: The bird's-eye view turns by up to this.
        bev_scale: Range of its scale.
        bev_flip: Chance that x, and apart from that y, is mirrored.
    """

    height: int = 256
    width: int = 704
    resize: tuple[float, float] = (0.877, 1.25)
    rotate_deg: float = 5.4
    flip: float = 0.5
    bev_rotate_deg: float = 22.5
    bev_scale: tuple[float, float] = (0.95, 1.05)
    bev_flip: float = 0.5


def image_transform(
    recorded_height: int, recorded_width: int, config: AugmentationConfig, rng: np.random.Generator | None
) -> Float[np.ndarray, "3 3"]:
    """Pixels of the input from pixels of the recorded image: resized, cut at the top and the sides, mirrored, turned.

    Args:
        recorded_height: Rows of the recorded image.
        recorded_width: Its columns.
        config: What may be changed.
        rng: Without one nothing is random: the smallest scale that fills the input, cut in the middle.
    """
    least = max(config.height / recorded_height, config.width / recorded_width)
    scale = least * (rng.uniform(*config.resize) if rng else 1.0)
    extra = round(recorded_width * scale) - config.width
    left = rng.uniform(min(extra, 0), max(extra, 0)) if rng else extra / 2
    top = round(recorded_height * scale) - config.height
    # Pixel borders scale, as in geometry.resize_K.
    resize = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2], [0, 0, 1]])
    cut = np.array([[1.0, 0, -round(left)], [0, 1, -top], [0, 0, 1]])
    image_T_recorded = cut @ resize
    if rng and rng.uniform() < config.flip:
        image_T_recorded = np.array([[-1.0, 0, config.width - 1], [0, 1, 0], [0, 0, 1]]) @ image_T_recorded
    if rng and config.rotate_deg:
        angle = np.radians(rng.uniform(-config.rotate_deg, config.rotate_deg))
        centre = np.array([(config.width - 1) / 2, (config.height - 1) / 2])
        turn = np.eye(3)
        turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turn[:2, 2] = centre - turn[:2, :2] @ centre
        image_T_recorded = turn @ image_T_recorded
    return image_T_recorded


def warp_image(
    image: UInt8[np.ndarray, "h w 3"], input_T_image: Float[np.ndarray, "3 3"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in the pixels of the input; black where it has none. It should not be much larger than the input."""
    return cv2.warpAffine(image, input_T_image[:2], (width, height), flags=cv2.INTER_LINEAR)


class WarpedLabel(NamedTuple):
    """A label in the pixels of the network's input, all (height, width); 0 where there is none.

    Attributes:
        depth_m: Depth z in metres.
        source: ``Source`` codes.
        confidence: 255 = certain.
    """

    depth_m: Float32[np.ndarray, "height width"]
    source: UInt8[np.ndarray, "height width"]
    confidence: UInt8[np.ndarray, "height width"]


def warp_label(points: Points, input_T_label: Float[np.ndarray, "3 3"], height: int, width: int) -> WarpedLabel:
    """A label in the pixels of the input: each of its points goes to the nearest one, and the nearest depth wins.

    Args:
        points: The label's; of equal depths the first wins. They are certain where they have no confidence.
        input_T_label: Pixels of the input from pixels of the label; affine.
        height: Rows of the input.
        width: Its columns.
    """
    confidence = np.full(len(points.u), CERTAIN, np.uint8) if points.confidence is None else points.confidence
    affine = np.ascontiguousarray(input_T_label[:2])
    out = WarpedLabel(np.zeros((height, width), np.float32), *np.zeros((2, height, width), np.uint8))
    _warp(points.u, points.v, points.depth_m, points.source, confidence, affine, *out)
    return out


@numba.njit(cache=True, nogil=True)
def _warp(u, v, depth_m, source, confidence, T, out_m, out_source, out_confidence):  # type: ignore[no-untyped-def]
    for i in range(len(u)):
        column = int(np.floor(T[0, 0] * u[i] + T[0, 1] * v[i] + T[0, 2] + 0.5))
        row = int(np.floor(T[1, 0] * u[i] + T[1, 1] * v[i] + T[1, 2] + 0.5))
        inside = 0 <= row < out_m.shape[0] and 0 <= column < out_m.shape[1]
        if inside and (out_m[row, column] == 0 or depth_m[i] < out_m[row, column]):
            out_m[row, column] = depth_m[i]
            out_source[row, column] = source[i]
            out_confidence[row, column] = confidence[i]


def bev_transform(config: AugmentationConfig, rng: np.random.Generator | None) -> Float[np.ndarray, "3 3"]:
    """The augmented ego frame from the ego frame: turned about z, scaled, mirrored; nothing without ``rng``."""
    if rng is None:
        return np.eye(3)
    angle = np.radians(rng.uniform(-config.bev_rotate_deg, config.bev_rotate_deg))
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    mirror = np.diag([*np.where(rng.uniform(size=2) < config.bev_flip, -1.0, 1.0), 1.0])
    return mirror @ turn * rng.uniform(*config.bev_scale)


def transform_boxes(
    boxes: Float32[np.ndarray, "n 9"], bev_T_ego: Float[np.ndarray, "3 3"]
) -> Float32[np.ndarray, "n 9"]:
    """Boxes (x, y, z, l, w, h, yaw, vx, vy) in the augmented ego frame."""
    out = boxes.astype(np.float64)
    scale = float(np.cbrt(abs(np.linalg.det(bev_T_ego))))
    out[:, :3] = boxes[:, :3] @ bev_T_ego.T
    out[:, 3:6] *= scale
    heading = np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])]) @ bev_T_ego[:2, :2].T
    out[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    out[:, 7:9] = boxes[:, 7:9] @ bev_T_ego[:2, :2].T
    return out.astype(np.float32)
