"""The center head: boxes from a bird's-eye-view map, as peaks of heat maps.

Yin et al., "Center-based 3D Object Detection and Tracking", CVPR 2021, with the layers, losses and decoding of BEVDepth
(Li et al., AAAI 2023), which takes them from mmdetection3d.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.data import default_collate

from ext import BevGrid
from training.detection.boxes import TASKS, Boxes, Detections
from training.loop import mean_over_processes
from training.models.center_targets import TargetConfig, Targets, TaskTargets, center_targets, strided


@dataclass(frozen=True)
class CenterHeadConfig:
    """Sizes, weights and limits; the defaults are those of BEVDepth.

    Attributes:
        channels: Channels between the layers.
        stride: Cells of the BEV grid per cell of the map that the head gets, along x and y.
        heat_bias: Initial bias of the heat maps' logits; -2.19 states 0.1 everywhere.
        code_weight: Weight of the L1 loss against the heat maps' loss.
        velocity_weight: Weight of velocities against the rest of the code; BEVDepth's experiments with two keyframes
            have 1.0.
        targets: How objects are drawn.
        candidates: Highest cells of a task's heat maps that are looked at.
        min_score: Candidates must score more.
        center_range_m: Low x, y, z and high x, y, z; centres beyond are dropped.
        suppression_m2: By task, squared distance up to which the better of two boxes suppresses the other. CenterPoint
            and BEVDepth call these numbers a radius, but their code compares them with squared distances: the radii are
            2, 3.5, 3.2, 1, 0.92 and 0.42 m.
        max_boxes: Most boxes of a task.
    """

    channels: int = 64
    stride: int = 1
    heat_bias: float = -2.19
    code_weight: float = 0.25
    velocity_weight: float = 0.5
    targets: TargetConfig = field(default_factory=TargetConfig)
    candidates: int = 500
    min_score: float = 0.1
    center_range_m: tuple[float, float, float, float, float, float] = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)
    suppression_m2: tuple[float, float, float, float, float, float] = (4.0, 12.0, 10.0, 1.0, 0.85, 0.175)
    max_boxes: int = 83


class TaskOutput(NamedTuple):
    """What the head says about one task.

    Attributes:
        heatmap: Logits by class of the task.
        code: At each cell the box that it would be the centre of, as in ``center_targets``.
    """

    heatmap: Float[Tensor, "b classes y x"]
    code: Float[Tensor, "b 10 y x"]


class CenterHead(nn.Module):
    """A shared convolution and, for each task, branches for heat map, offset, height, size, yaw and velocity.

    Attributes:
        grid: The grid of the map.
    """

    def __init__(self, in_channels: int, grid: BevGrid, config: CenterHeadConfig) -> None:
        """Builds the layers for a map of ``in_channels`` on ``grid``, strided by ``config.stride``."""
        super().__init__()
        self.config, self.grid = config, strided(grid, config.stride)
        self.shared = _convolution(in_channels, config.channels)
        self.tasks = nn.ModuleList(_TaskHead(config, len(task)) for task in TASKS)

    def forward(self, bev: Float[Tensor, "b channels y x"]) -> list[TaskOutput]:
        """The outputs of all tasks, computed in fp32."""
        with torch.autocast(bev.device.type, enabled=False):
            shared = self.shared(bev.float())
            return [task(shared) for task in self.tasks]

    def targets(self, frames: Sequence[Boxes]) -> Targets:
        """The targets of a batch, from boxes in the frame of the grid, on the head's device."""
        device = next(self.parameters()).device
        batch = default_collate([center_targets(frame, self.grid, self.config.targets) for frame in frames])
        return batch._replace(tasks=tuple(TaskTargets(*(x.to(device) for x in task)) for task in batch.tasks))

    def loss(self, outputs: Sequence[TaskOutput], targets: Targets) -> dict[str, Float[Tensor, ""]]:
        """The terms of the loss, weighted and summed over tasks, and their sum under "loss"; in fp32."""
        return center_loss(outputs, targets, self.config)

    def decode(self, outputs: Sequence[TaskOutput]) -> list[Detections]:
        """The boxes of each sample in the frame of the grid, task after task, best first within a task."""
        return decode(outputs, self.grid, self.config)


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class _TaskHead(nn.Module):
    """The branches of one task."""

    def __init__(self, config: CenterHeadConfig, n_classes: int) -> None:
        super().__init__()
        channels = config.channels
        self.heatmap, self.offset, self.height, self.size, self.yaw, self.velocity = (
            nn.Sequential(*_convolution(channels, channels), nn.Conv2d(channels, n, 3, padding=1))
            for n in (n_classes, 2, 1, 3, 2, 2)
        )
        bias = self.heatmap[-1].bias
        assert isinstance(bias, Tensor)
        nn.init.constant_(bias, config.heat_bias)

    def forward(self, shared: Float[Tensor, "b channels y x"]) -> TaskOutput:
        code = (branch(shared) for branch in (self.offset, self.height, self.size, self.yaw, self.velocity))
        return TaskOutput(self.heatmap(shared), torch.cat([*code], 1))


def center_loss(
    outputs: Sequence[TaskOutput], targets: Targets, config: CenterHeadConfig
) -> dict[str, Float[Tensor, ""]]:
    """Focal loss of the heat maps per peak, and L1 loss of the codes at the centres per object.

    Under ``torch.distributed`` peaks and objects are counted over all processes, so that averaged gradients are those
    of one process with the whole batch. Velocities that are not known have no part in it.

    Args:
        outputs: By task.
        targets: Of a batch.
        config: Weights.

    Returns:
        "heatmap", "code" and their sum "loss".
    """
    peaks = [(target.heatmap == 1).sum() for target in targets.tasks]
    counts = mean_over_processes(torch.stack([*peaks, *(target.mask.sum() for target in targets.tasks)]).float())
    weights = torch.tensor([1.0] * 8 + [config.velocity_weight] * 2, device=counts.device)
    heat = code = torch.zeros((), device=counts.device)
    with torch.autocast(counts.device.type, enabled=False):
        for output, target, n_peaks, n_objects in zip(outputs, targets.tasks, *counts.view(2, -1)):
            heat = heat + focal_loss(output.heatmap.float(), target.heatmap) / n_peaks
            index = target.cell[:, None].expand(-1, output.code.shape[1], -1)
            stated = output.code.float().flatten(2).gather(2, index).mT
            error = torch.where(target.mask[..., None] & ~target.code.isnan(), stated - target.code, 0.0)
            code = code + config.code_weight * (error.abs() * weights).sum() / n_objects
    return {"loss": heat + code, "heatmap": heat, "code": code}


def focal_loss(logits: Float[Tensor, "*cells"], target: Float[Tensor, "*cells"]) -> Float[Tensor, ""]:
    """The sum over cells of the focal loss for Gaussian targets (Law and Deng, CornerNet, 2018; alpha 2, beta 4).

    Chances are clipped to 1e-4 .. 1 - 1e-4, as in CenterPoint.
    """
    chance = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    peak = -chance.log() * (1 - chance) ** 2
    elsewhere = -(1 - chance).log() * chance**2 * (1 - target) ** 4
    return torch.where(target == 1, peak, elsewhere).sum()


@torch.no_grad()
def decode(outputs: Sequence[TaskOutput], grid: BevGrid, config: CenterHeadConfig) -> list[Detections]:
    """Boxes from the head's outputs.

    As in BEVDepth, candidates are the highest cells of a task, not its local maxima: the cells around a peak state the
    same box, and the suppression by distance leaves the best of them.

    Args:
        outputs: By task.
        grid: The grid of the map.
        config: Limits.

    Returns:
        For each sample its boxes in the frame of the grid, task after task, best first within a task.
    """
    found: list[list[Detections]] = [[] for _ in outputs[0].heatmap]
    low, high = np.split(np.array(config.center_range_m), 2)
    first = 0
    for output, radius2 in zip(outputs, config.suppression_m2):
        n_classes, ny, nx = output.heatmap.shape[1:]
        best = output.heatmap.float().sigmoid().flatten(1)
        scores, place = best.topk(min(config.candidates, best.shape[1]))
        index = place % (ny * nx)
        code = output.code.float().flatten(2).gather(2, index[:, None].expand(-1, output.code.shape[1], -1)).mT
        x, y = (
            (cells + code[..., axis]) * step + start
            for axis, (cells, (start, _, step)) in enumerate(((index % nx, grid.x_m), (index // nx, grid.y_m)))
        )
        yaw = torch.atan2(code[..., 6], code[..., 7])
        parts = [x[..., None], y[..., None], code[..., 2:3], code[..., 3:6].exp(), yaw[..., None], code[..., 8:]]
        arrays = torch.cat(parts, -1), place // (ny * nx) + first, scores
        for sample, (box, kind, score) in enumerate(zip(*(array.cpu().numpy() for array in arrays))):
            center = box[:, :3]
            usable = np.flatnonzero((score > config.min_score) & ((center >= low) & (center <= high)).all(1))
            kept = usable[circle_nms(center[usable, :2], score[usable], radius2)[: config.max_boxes]]
            found[sample].append(Detections(Boxes(box[kept], kind[kept]), score[kept]))
        first += n_classes
    return [
        Detections(
            Boxes(np.concatenate([d.boxes.boxes for d in tasks]), np.concatenate([d.boxes.classes for d in tasks])),
            np.concatenate([d.scores for d in tasks]),
        )
        for tasks in found
    ]


def circle_nms(
    centers_m: Float[np.ndarray, "n 2"], scores: Float[np.ndarray, " n"], radius2_m2: float
) -> Int64[np.ndarray, " kept"]:
    """Indices, best first, of the centres that have no better one left within a squared distance."""
    near: Bool[np.ndarray, "n n"] = ((centers_m[:, None] - centers_m) ** 2).sum(-1) <= radius2_m2
    suppressed = np.zeros(len(scores), dtype=bool)
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        if not suppressed[i]:
            kept.append(i)
            suppressed |= near[i]
    return np.array(kept, dtype=np.int64)
