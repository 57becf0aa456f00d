"""What the center head is trained towards: a heat map per class, and one vector per object at its centre's cell.

Zhou et al., "Objects as Points", 2019; Yin et al., "Center-based 3D Object Detection and Tracking", CVPR 2021; numbers
as in BEVDepth. The vector is [dx, dy, z, log l, log w, log h, sin yaw, cos yaw, vx, vy]: dx and dy in cells from the
low corner of the centre's cell, z of the box's middle and sizes in metres, velocities in m/s.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ext import BevGrid
from ext.index import Rule
from training.detection.boxes import TASKS, Boxes

CODE_SIZE = 10


@dataclass(frozen=True)
class TargetConfig:
    """How objects are drawn.

    Attributes:
        min_overlap: IoU that a box moved by the Gaussian's radius keeps, in the sense of ``gaussian_radius``.
        min_radius: Least radius in cells.
        max_objects: Most objects of a task.
        rule: As in ``ext.build_index``: "trunc", as in the reference, puts objects up to one cell outside the low edges
            into the first cell.
    """

    min_overlap: float = 0.1
    min_radius: int = 2
    max_objects: int = 500
    rule: Rule = "floor"


class TaskTargets(NamedTuple):
    """The targets of one task; batches have another dimension in front.

    Attributes:
        heatmap: Per class the highest Gaussian, exactly 1 at the cell of a centre.
        code: The vectors; velocity is NaN where it is not known, unused rows are 0.
        cell: Cells of the centres, y * (cells along x) + x.
        mask: Rows that are used.
    """

    heatmap: Float[Tensor, "classes y x"]
    code: Float[Tensor, "objects 10"]
    cell: Int64[Tensor, " objects"]
    mask: Bool[Tensor, " objects"]


class Targets(NamedTuple):
    """The targets of a keyframe, or of a batch through ``torch.utils.data.default_collate``.

    Attributes:
        tasks: One for each of ``TASKS``.
        left_out: Objects outside the grid, or more than there may be.
    """

    tasks: tuple[TaskTargets, ...]
    left_out: Int64[Tensor, ""]


def strided(grid: BevGrid, stride: int) -> BevGrid:
    """The grid of a map with one cell for every ``stride`` x ``stride`` cells.

    BEVDepth's 0.2 m voxels and stride of 4 make the 0.8 m cells of the default grid.
    """
    (x0, x1, dx), (y0, y1, dy) = grid.x_m, grid.y_m
    return BevGrid((x0, x1, dx * stride), (y0, y1, dy * stride), grid.z_m)


def center_targets(frame: Boxes, grid: BevGrid, config: TargetConfig) -> Targets:
    """The targets of one keyframe.

    Args:
        frame: Boxes in the frame of the grid, all augmentation applied.
        grid: The grid of the head's map; its layer along z does not matter.
        config: How objects are drawn.
    """
    ny, nx = grid.shape
    boxes, classes = torch.from_numpy(frame.boxes).double(), torch.from_numpy(frame.classes)
    low, step = torch.tensor([[grid.x_m[0], grid.y_m[0]], [grid.x_m[2], grid.y_m[2]]], dtype=torch.float64)
    place = (boxes[:, :2] - low) / step
    cell = torch.floor(place) if config.rule == "floor" else torch.trunc(place)
    inside = ((cell >= 0) & (cell < torch.tensor([nx, ny]))).all(1)
    code = torch.cat(
        [place - cell, boxes[:, 2:3], boxes[:, 3:6].log(), boxes[:, 6:7].sin(), boxes[:, 6:7].cos(), boxes[:, 7:]], 1
    )
    radius = gaussian_radius(boxes[:, 3:5] / step, config.min_overlap).floor().clamp(min=config.min_radius)
    along_x, along_y = _bell(cell[:, 0], radius, nx), _bell(cell[:, 1], radius, ny)

    tasks, first, used = [], 0, 0
    for task in TASKS:
        members = torch.nonzero(inside & (classes >= first) & (classes < first + len(task)))[: config.max_objects, 0]
        target = TaskTargets(
            torch.zeros(len(task), ny, nx),
            torch.zeros(config.max_objects, CODE_SIZE),
            torch.zeros(config.max_objects, dtype=torch.int64),
            torch.arange(config.max_objects) < len(members),
        )
        for i in members:
            heat = target.heatmap[classes[i] - first]
            torch.maximum(heat, along_y[i, :, None] * along_x[i], out=heat)
        target.code[: len(members)] = code[members].float()
        target.cell[: len(members)] = (cell[members, 1] * nx + cell[members, 0]).long()
        tasks.append(target)
        first, used = first + len(task), used + len(members)
    return Targets(tuple(tasks), torch.tensor(len(boxes) - used))


def _bell(centre: Float[Tensor, " n"], radius: Float[Tensor, " n"], cells: int) -> Float[Tensor, "n cells"]:
    """Gaussians along one axis that end at three standard deviations, which is half a cell beyond the radius."""
    distance = torch.arange(cells) - centre[:, None]
    sigma = (2 * radius[:, None] + 1) / 6
    return torch.where(distance.abs() <= radius[:, None], torch.exp(-(distance**2) / (2 * sigma**2)), 0.0).float()


def gaussian_radius(size: Float[Tensor, "n 2"], min_overlap: float) -> Float[Tensor, " n"]:
    """Radius of the Gaussian of objects of this length and width, all in cells.

    The least of three quadratics' solutions: both corners of a box move outwards, both inwards, or one each way. As in
    CenterNet and mmdetection3d, solutions are divided by 2 where a quadratic formula divides by 2a, so that radii are
    larger than the overlap asks for; trained detectors rely on it.
    """
    total, area = size.sum(-1), size.prod(-1)
    quadratics = (
        (1.0, total, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, 2 * total, area * (1 - min_overlap)),
        (4 * min_overlap, -2 * min_overlap * total, area * (min_overlap - 1)),
    )
    return torch.stack([(b + (b**2 - 4 * a * c).sqrt()) / 2 for a, b, c in quadratics]).amin(0)
