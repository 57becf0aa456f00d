"""What the depth network is to predict: a distribution over the depth bins for every cell, from a dense label."""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dense_depth import InputError
from dense_depth.label import CERTAIN, Source
from training.depth.bins import DepthBins


@dataclass(frozen=True)
class DepthTargetConfig:
    """How the labelled pixels of a cell make its target.

    Attributes:
        mode: "min": the bin of the nearest labelled pixel; nothing if that is in no bin, also where others are.
            "histogram": all labelled pixels in the bins vote.
        linear: "histogram": a pixel's vote is divided between the bins with the two nearest middles, so that a target's
            expectation is the mean depth; else all goes to the pixel's bin.
        confidence: A pixel counts as much as its confidence.
        source_weight: What a pixel of each ``Source`` counts: none, key sweep, static, moving, completed.
        enough_px: "histogram": pixels of weight 1 that it takes for a cell of weight 1.
        min_weight: A cell of less weight has no target.

    Raises:
        InputError: A value is out of its range.
    """

    mode: Literal["min", "histogram"] = "histogram"
    linear: bool = False
    confidence: bool = True
    source_weight: tuple[float, float, float, float, float] = (0.0, 1.0, 1.0, 1.0, 1.0)
    enough_px: float = 1.0
    min_weight: float = 0.0

    def __post_init__(self) -> None:
        if self.mode not in ("min", "histogram"):
            raise InputError(f"depth target mode {self.mode!r}: give min or histogram")
        if len(self.source_weight) != len(Source) or not all(0 <= w < math.inf for w in self.source_weight):
            raise InputError(f"source_weight {self.source_weight}: give {len(Source)} numbers, none negative")
        if not 0 < self.enough_px < math.inf:
            raise InputError(f"enough_px {self.enough_px}: give a number above 0")
        if not 0 <= self.min_weight <= 1:
            raise InputError(f"min_weight {self.min_weight}: give a number from 0 to 1")


BEVDEPTH = DepthTargetConfig(mode="min", confidence=False, source_weight=(1.0,) * 5)
"""The targets of BEVDepth (get_downsampled_gt_depth): one-hot, every labelled pixel alike."""


class DepthTarget(NamedTuple):
    """Targets of a batch: B samples, N cameras, D bins, cells of the feature map.

    Attributes:
        probabilities: Sum to 1 over the bins; all 0 in cells of weight 0; (B, N, D, h, w).
        weight: How much evidence there is, from 0 to 1; (B, N, h, w).
    """

    probabilities: Float[Tensor, "b n bins rows columns"]
    weight: Float[Tensor, "b n rows columns"]


@torch.no_grad()
def depth_targets(
    depth_m: Float[Tensor, "b n height width"],
    stride: int,
    bins: DepthBins,
    config: DepthTargetConfig,
    confidence: UInt8[Tensor, "b n height width"] | None = None,
    source: UInt8[Tensor, "b n height width"] | None = None,
) -> DepthTarget:
    """Targets of the cells of ``stride`` x ``stride`` pixels, in fp32 on the labels' device.

    Sums of votes are exact in any order, so equal on every run and device, where source weights are whole numbers (or
    halves, quarters...) and votes are not divided.

    Args:
        depth_m: z-depths, 0 = no label.
        stride: Pixels of the image per cell of the feature map.
        bins: The depth bins.
        config: How pixels make targets.
        confidence: 255 = certain; all pixels are if it is not given.
        source: ``Source`` codes; without them no pixel has less weight for where it comes from. Another code makes the
            weight of its cell NaN, which ``depth_loss`` counts.

    Raises:
        InputError: Cells do not fill the image.
        ValueError: Shapes differ.
    """
    height, width = depth_m.shape[-2:]
    if stride < 1 or height % stride or width % stride:
        raise InputError(
            f"depth labels of {height} x {width} px: stride {stride} does not divide them; choose another input size"
        )
    for name, values in (("confidence", confidence), ("source", source)):
        if values is not None and values.shape != depth_m.shape:
            raise ValueError(f"{name} is {tuple(values.shape)}, the depth {tuple(depth_m.shape)}")

    depth_m = depth_m.float()
    weight = _weights(depth_m, config, confidence, source)
    if config.mode == "min":
        votes, evidence = _of_nearest(depth_m, weight, stride, bins)
    else:
        votes = _of_all(depth_m, weight, stride, bins, config.linear)
        evidence = votes.sum(2) / (CERTAIN * config.enough_px)
    evidence = evidence.clamp(max=1)
    evidence = torch.where(evidence < config.min_weight, 0, evidence)  # NaN stays
    votes = votes / votes.sum(2, keepdim=True).clamp(min=torch.finfo(votes.dtype).tiny)
    return DepthTarget(torch.where(evidence[:, :, None] == 0, 0, votes), evidence)


def _weights(
    depth_m: Float[Tensor, "b n height width"],
    config: DepthTargetConfig,
    confidence: UInt8[Tensor, "b n height width"] | None,
    source: UInt8[Tensor, "b n height width"] | None,
) -> Float[Tensor, "b n height width"]:
    """What each pixel counts, ``CERTAIN`` for all of a vote; 0 where there is no label."""
    weight = torch.full_like(depth_m, CERTAIN)
    if config.confidence and confidence is not None:
        weight = confidence.float()
    if source is not None:
        of_code = torch.full((256,), torch.nan)
        of_code[: len(Source)] = torch.tensor(config.source_weight)
        weight = weight * of_code.to(weight.device)[source.int()]
    return torch.where(depth_m > 0, weight, 0)


def _of_nearest(
    depth_m: Float[Tensor, "b n height width"], weight: Float[Tensor, "b n height width"], stride: int, bins: DepthBins
) -> tuple[Float[Tensor, "b n bins rows columns"], Float[Tensor, "b n rows columns"]]:
    """The vote of the nearest pixel of each cell that counts, and its weight, 1 for all of a vote."""
    b, n, height, width = depth_m.shape
    rows, columns = height // stride, width // stride
    depth_m, weight = (x.reshape(b, n, rows, stride, columns, stride) for x in (depth_m, weight))
    depth_m = torch.where(weight == 0, torch.inf, depth_m)
    nearest_m = depth_m.amin((3, 5), keepdim=True)
    evidence = torch.where(depth_m == nearest_m, weight, 0).amax((3, 5)) / CERTAIN
    index = bins.index(nearest_m[:, :, :, 0, :, 0])
    evidence = torch.where(index >= 0, evidence, 0)
    votes = evidence.new_zeros(b, n, bins.n, rows, columns)
    votes.scatter_(2, index.clamp(min=0)[:, :, None], evidence[:, :, None])
    return votes, evidence


def _of_all(
    depth_m: Float[Tensor, "b n height width"],
    weight: Float[Tensor, "b n height width"],
    stride: int,
    bins: DepthBins,
    linear: bool,
) -> Float[Tensor, "b n bins rows columns"]:
    """The votes of all pixels of each cell; with ``linear`` each is divided between two bins."""
    b, n, height, width = depth_m.shape
    rows, columns = height // stride, width // stride
    lower, share = bins.soft(depth_m) if linear else (bins.index(depth_m), None)
    weight = torch.where(lower >= 0, weight, 0)
    cell = torch.arange(rows * columns, device=depth_m.device).reshape(rows, 1, columns, 1)
    cell = cell.expand(rows, stride, columns, stride).reshape(height, width)
    image = torch.arange(b * n, device=depth_m.device).reshape(b, n, 1, 1)
    at = (image * bins.n + lower.clamp(min=0)) * (rows * columns) + cell
    votes = weight.new_zeros(b * n * bins.n * rows * columns)
    if share is None:
        votes.scatter_add_(0, at.flatten(), weight.flatten())
    else:
        votes.scatter_add_(0, at.flatten(), (weight * (1 - share)).flatten())
        votes.scatter_add_(0, (at + rows * columns).flatten(), (weight * share).flatten())
    return votes.reshape(b, n, bins.n, rows, columns)
