"""Which part of a label the network is shown, and which it has to say."""

from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, UInt8
from torch import Tensor

from dense_depth import InputError
from dense_depth.geometry import SE3
from dense_depth.label import Source
from training.completion.view import Maps


@dataclass(frozen=True)
class HideConfig:
    """What the network sees of a label, and what it has to predict.

    Attributes:
        modes: Relative frequency of: the whole label; the label without its key sweep; the key sweep alone; the sweeps
            of some ages only.
        region: Chance that rectangles are cut out as well.
        thin: Chance that pixels are left out at random as well.
        lines: Chance that a key sweep alone loses lines: bands of elevation, down to an eighth of them.
        shown_weight: Weight in the loss of a pixel that the network was shown.
        max_age: Labels from sweeps older than this (0.1 s) are not learned from, on moving objects half of it.
    """

    modes: tuple[float, float, float, float] = (0.35, 0.15, 0.35, 0.15)
    region: float = 0.3
    thin: float = 0.3
    lines: float = 0.5
    shown_weight: float = 0.3
    max_age: int = 10

    def __post_init__(self) -> None:
        if min(self.modes) < 0 or not sum(self.modes) > 0:
            raise InputError(f"--modes {self.modes}: none may be negative, and one must be above 0")


class Sample(NamedTuple):
    """One training sample; H x W, or, in a batch, B x H x W."""

    image: Tensor  # (3, H, W) RGB, 0 to 1
    depth_m: Tensor  # what the network sees; 0 = none
    source: Tensor
    age: Tensor
    target_m: Tensor  # what it has to say; 0 = unknown, or sky
    weight: Tensor  # of the target; 0 where it is not known
    surface: Tensor  # 1 where there is a surface, 0 where there is sky, NaN where it is not known


def hide_part(maps: Maps, lidar_SE3_cam: SE3, config: HideConfig, rng: np.random.Generator) -> Sample:
    """Chooses what the network is shown of a label and what it has to say."""
    depth_m, source, age = maps.label
    labelled = depth_m > 0
    mode = rng.choice(4, p=np.array(config.modes) / sum(config.modes))
    shown_m, shown_source, shown_age = maps.label
    shown = labelled
    if mode == 1:
        shown = labelled & (source != Source.KEY_SWEEP)
    elif mode == 2:
        if maps.single is not None:
            shown_m, shown_source, shown_age = maps.single
            shown = shown_m > 0
        else:
            shown = source == Source.KEY_SWEEP
        if rng.uniform() < config.lines:
            shown = shown & _lines(shown_m, maps.K, lidar_SE3_cam, rng)
    elif mode == 3:
        shown = labelled & (rng.uniform(size=256) < rng.uniform(0.1, 0.7))[age]
    if rng.uniform() < config.region:
        shown = shown & ~_rectangles(shown.shape, rng)
    if rng.uniform() < config.thin:
        shown = shown & (rng.uniform(size=shown.shape) < rng.uniform(0.1, 1.0))

    if maps.truth_m is not None:
        target_m = np.nan_to_num(maps.truth_m)
        weight = (target_m > 0).astype(np.float32)
        surface = np.where(np.isnan(maps.truth_m), np.float32(np.nan), weight)
    else:
        target_m = depth_m
        weight = trusted(depth_m, source, age, config).astype(np.float32)
        weight[shown & (shown_m == depth_m)] *= config.shown_weight
        surface = np.where(labelled, np.float32(1), np.float32(np.nan))
    maps_out = (np.where(shown, x, 0) for x in (shown_m, shown_source, shown_age))
    image = torch.from_numpy(np.ascontiguousarray(maps.image)).permute(2, 0, 1).float() / 255
    arrays = (*maps_out, target_m, weight, surface)
    return Sample(image, *(torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in arrays))


def trusted(
    depth_m: Float32[np.ndarray, "h w"],
    source: UInt8[np.ndarray, "h w"],
    age: UInt8[np.ndarray, "h w"],
    config: HideConfig,
) -> Bool[np.ndarray, "h w"]:
    """Labels to learn from: of fresh sweeps, and not behind another label nearby.

    The visibility test of the labels keeps the background beside an edge, and with it the few points that are seen
    through one. Here the stricter window minimum is used, since nothing is lost by not learning from a pixel.
    """
    nearest = cv2.erode(np.where(depth_m > 0, depth_m, np.float32(1e6)), np.ones((5, 7), np.uint8))
    fresh = age <= np.where(source == Source.MOVING, config.max_age // 2, config.max_age)
    return (depth_m > 0) & fresh & (depth_m <= 1.05 * nearest + 0.3)


def _lines(depth_m: np.ndarray, K: np.ndarray, lidar_SE3_cam: SE3, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """Bands of elevation, as seen from the LiDAR: about one beam of 64 or 32 in each."""
    v, u = np.indices(depth_m.shape)
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(depth_m.shape)])
    x, y, z = np.tensordot(lidar_SE3_cam[:3, :3], rays * depth_m, 1) + lidar_SE3_cam[:3, 3, None, None]
    elevation_deg = np.degrees(np.arctan2(z, np.hypot(x, y)))
    band_deg = rng.uniform(0.3, 1.4)
    period_deg = band_deg * rng.uniform(1.2, 8.0)
    return (elevation_deg + rng.uniform(0, period_deg)) % period_deg < band_deg


def _rectangles(shape: tuple[int, ...], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A few rectangles of up to half the height and width."""
    inside = np.zeros(shape, bool)
    for _ in range(rng.integers(1, 5)):
        height, width = (int(n * rng.uniform(0.05, 0.5)) for n in shape)
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(shape, (height, width)))
        inside[top : top + height, left : left + width] = True
    return inside
