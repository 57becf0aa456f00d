"""What a training sample shows of a frame: resized, cut, mirrored and recoloured."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Float32, UInt8

from dense_depth import InputError
from dense_depth.label import Label
from dense_depth.quality.truth import footprints


@dataclass(frozen=True)
class ViewConfig:
    """How a frame becomes a training image.

    Attributes:
        height: Rows of a sample.
        width: Columns of a sample.
        scale: Range of the size of the image, cut afterwards, as a fraction of the label's.
        colour: Strength of random changes of colour; 0 for none.
        flip: Chance of a mirror image.
    """

    height: int = 256
    width: int = 512
    scale: tuple[float, float] = (0.65, 1.0)
    colour: float = 0.3
    flip: float = 0.5

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 32:
            raise InputError(f"--height {self.height} --width {self.width}: must be at least 32 pixels")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"--scale {self.scale}: must rise within (0, 1]")


LabelMaps = tuple[np.ndarray, np.ndarray, np.ndarray]  # depth_m, source, age


class Frame(NamedTuple):
    """A frame at the size of its label."""

    image: UInt8[np.ndarray, "h w 3"]
    label: Label
    single: Label | None  # of kind lidar
    truth_m: Float32[np.ndarray, "h w"] | None  # 0 = sky, NaN = not known


class Maps(NamedTuple):
    """What a view shows of a frame, all (H, W)."""

    image: UInt8[np.ndarray, "h w 3"]
    label: LabelMaps
    single: LabelMaps | None
    truth_m: Float32[np.ndarray, "h w"] | None
    K: Float[np.ndarray, "3 3"]


def augment(frame: Frame, view: ViewConfig, rng: np.random.Generator) -> Maps:
    """Resizes, cuts, mirrors and recolours a frame; a frame smaller than the view is padded with nothing."""
    height, width = frame.label.height, frame.label.width
    scale = rng.uniform(*view.scale)
    scale = min(1.0, max(scale, view.height / height, view.width / width))
    size = round(height * scale), round(width * scale)
    rows, columns = footprints(size[0], height)[:, 2], footprints(size[1], width)[:, 2]
    image = cv2.resize(frame.image, size[::-1], interpolation=cv2.INTER_AREA)
    label = frame.label.shrunk(*size)
    single = frame.single.shrunk(*size) if frame.single else None
    truth_m = frame.truth_m[np.ix_(rows, columns)] if frame.truth_m is not None else None

    top, left = (int(rng.integers(max(n - m, 0) + 1)) for n, m in zip(size, (view.height, view.width)))
    mirror = rng.uniform() < view.flip
    K = label.K.copy()
    K[:2, 2] -= [left, top]

    def cut(x: np.ndarray, beyond: float = 0) -> np.ndarray:
        x = x[top : top + view.height, left : left + view.width]
        padding = [(0, view.height - x.shape[0]), (0, view.width - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]
        x = np.pad(x, padding, constant_values=beyond)
        return x[:, ::-1] if mirror else x

    if mirror:
        K[0] = [-K[0, 0], -K[0, 1], view.width - 1 - K[0, 2]]
    image = _recoloured(cut(image), view.colour, rng)
    return Maps(
        image,
        _view_maps(label, top, left, mirror, view),
        _view_maps(single, top, left, mirror, view) if single else None,
        cut(truth_m, np.nan) if truth_m is not None else None,
        K,
    )


def _view_maps(label: Label, top: int, left: int, mirror: bool, view: ViewConfig) -> LabelMaps:
    """Depth, source and age of what a view shows of a label."""
    points = label.points()
    v, u = points.v.astype(int) - top, points.u.astype(int) - left
    inside = (v >= 0) & (v < view.height) & (u >= 0) & (u < view.width)
    v, u = v[inside], u[inside]
    at = v, view.width - 1 - u if mirror else u

    def in_view(values: np.ndarray) -> np.ndarray:
        out = np.zeros((view.height, view.width), values.dtype)
        out[at] = values[inside]
        return out

    return in_view(points.depth_m), in_view(points.source), in_view(points.age)


def _recoloured(
    image: UInt8[np.ndarray, "h w 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Another exposure, white balance, contrast, blur and noise: generated images are cleaner than recorded ones."""
    if not strength:
        return image
    gain = np.exp(strength * (rng.normal() + 0.3 * rng.normal(size=3)))
    gamma = np.exp(strength * rng.normal())
    table = np.clip(255 * (gain * np.linspace(0, 1, 256)[:, None] ** gamma), 0, 255).astype(np.uint8)
    image = np.stack([cv2.LUT(np.ascontiguousarray(image[..., i]), table[:, i]) for i in range(3)], -1)
    if rng.uniform() < strength:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        image = cv2.addWeighted(image, 0.3, np.repeat(grey, 3, -1), 0.7, 0)
    if rng.uniform() < strength:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))
    if rng.uniform() < strength:
        noise = rng.normal(0, rng.uniform(2, 12), image.shape).astype(np.int16)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image
