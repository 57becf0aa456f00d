"""The index of BEV pooling: which frustum point falls into which BEV cell, sorted both ways.

Built once per calibration and augmentation, and cached; cheap enough to build in every step of a training run.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32
from torch import Tensor

from ext import library

INT32_MAX = 2**31 - 1
PART_LENGTH, MAX_PARTS = 32, 16  # as in csrc/pool.h
Rule = Literal["floor", "trunc"]
BEYOND = "cells beyond the grid: must be -1, or less than the {} cells of all samples"


@dataclass(frozen=True)
class BevGrid:
    """The BEV grid in the frame of the points.

    Attributes:
        x_m: Low edge, high edge and cell size along x.
        y_m: The same along y.
        z_m: Low and high edge of the one layer of cells.
    """

    x_m: tuple[float, float, float] = (-51.2, 51.2, 0.8)
    y_m: tuple[float, float, float] = (-51.2, 51.2, 0.8)
    z_m: tuple[float, float] = (-5.0, 3.0)

    def __post_init__(self) -> None:
        for name, (low, high, step) in {"x_m": self.x_m, "y_m": self.y_m}.items():
            cells = (high - low) / step if step > 0 else 0
            if not (0.5 <= cells <= INT32_MAX and abs(cells - round(cells)) <= 1e-3):
                raise ValueError(f"{name} = {(low, high, step)}: the range must be a whole number of cells")
        if not self.z_m[0] < self.z_m[1]:
            raise ValueError(f"z_m = {self.z_m}: the low edge must be below the high edge")

    @property
    def shape(self) -> tuple[int, int]:
        """Cells along y and x."""
        return round((self.y_m[1] - self.y_m[0]) / self.y_m[2]), round((self.x_m[1] - self.x_m[0]) / self.x_m[2])

    def low_and_step(self, device: torch.device | None = None) -> tuple[Float[Tensor, "3"], Float[Tensor, "3"]]:
        """Low edges and cell sizes along x, y and z."""
        low = torch.tensor([self.x_m[0], self.y_m[0], self.z_m[0]], dtype=torch.float32, device=device)
        step = torch.tensor([self.x_m[2], self.y_m[2], self.z_m[1] - self.z_m[0]], dtype=torch.float32, device=device)
        return low, step


@dataclass(frozen=True)
class BevIndex:
    """Frustum points and BEV cells, for ``bev_pool``. Made in inference mode it serves training too.

    A point is one (sample, camera, bin, row, column) of the frustum and is numbered in that order; so are the pixels
    (sample, camera, row, column); a cell is (sample, y, x).

    Attributes:
        cell_of: Cell of each point, -1 outside the grid: the intervals of the backward pass, one per pixel.
        start: Where each cell's interval begins in ``point``, and the end of the last one.
        point: Points inside the grid, sorted by cell and then by number.
        pixel: Their pixels.
        slots: Order of work on a GPU: each cell once per part of its sum (1, 2, 4, 8 or 16), most parts first.
        shape: (samples, cameras, bins, rows, columns) of the frustum; one sample serves a batch of any size.
        grid_shape: Cells along y and x.
    """

    cell_of: Int32[Tensor, " points"]
    start: Int32[Tensor, " cells+1"]
    point: Int32[Tensor, " kept"]
    pixel: Int32[Tensor, " kept"]
    slots: Int32[Tensor, " slots"]
    shape: tuple[int, int, int, int, int]
    grid_shape: tuple[int, int]

    @torch.inference_mode(False)
    def to(self, device: torch.device | str) -> "BevIndex":
        """The index on another device."""
        names = ("cell_of", "start", "point", "pixel", "slots")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def build_index(
    points_m: Float[Tensor, "*samples cameras bins rows columns 3"],
    grid: BevGrid,
    rule: Rule = "floor",
) -> BevIndex:
    """Sorts frustum points into BEV cells, on the device of the points.

    Args:
        points_m: Frustum points in the frame of the grid, all augmentation applied; without the first dimension, or
            with one sample, the index serves every sample of a batch.
        grid: The BEV grid.
        rule: "floor" puts a point into the cell that contains it. "trunc" rounds coordinates towards zero, as LSS,
            BEVDet and BEVDepth do: the cells at the low edges also take what lies up to one cell outside.

    Raises:
        ValueError: Shapes that make no frustum, an unknown rule, or more points or cells than int32 can number.
    """
    if points_m.dim() == 5:
        points_m = points_m[None]
    if points_m.dim() != 6 or points_m.shape[-1] != 3:
        raise ValueError(f"points_m {tuple(points_m.shape)}: must be ([samples,] cameras, bins, rows, columns, 3)")
    _check_size(points_m.shape[:-1], grid.shape)
    return index_of_cells(cells_of(points_m, grid, rule), grid.shape)


@torch.inference_mode(False)
def cells_of(
    points_m: Float[Tensor, "samples cameras bins rows columns 3"], grid: BevGrid, rule: Rule = "floor"
) -> Int32[Tensor, "samples cameras bins rows columns"]:
    """The cell of each point, numbered (sample, y, x), -1 outside the grid."""
    if rule not in ("floor", "trunc"):
        raise ValueError(f"rule {rule!r}: must be 'floor' or 'trunc'")
    points_m = points_m.detach().float()
    ny, nx = grid.shape
    low, step = grid.low_and_step(points_m.device)
    compiled = library.cpu() if points_m.device.type == "cpu" else ""
    if isinstance(compiled, library.Library):
        points_m = points_m.contiguous()
        cells = torch.empty(points_m.shape[:-1], dtype=torch.int32)
        size = torch.tensor([nx, ny, 1], dtype=torch.int32)
        n, per_sample = cells.numel(), max(1, cells[:1].numel())
        compiled.call("bev_cells", points_m, n, per_sample, low, step, size, rule == "trunc", cells, library.threads())
        return cells
    x, y, z = (torch.floor if rule == "floor" else torch.trunc)((points_m - low) / step).unbind(-1)
    return number_cells(x, y, (z >= 0) & (z < 1), grid.shape)


def number_cells(
    x: Float[Tensor, "samples cameras bins rows columns"],
    y: Float[Tensor, "samples cameras bins rows columns"],
    in_layer: Bool[Tensor, "samples cameras bins rows columns"],
    grid_shape: tuple[int, int],
) -> Int32[Tensor, "samples cameras bins rows columns"]:
    """Numbers of cells at whole coordinates x and y: (sample, y, x), -1 outside the grid or its layer."""
    ny, nx = grid_shape
    inside = in_layer & (x >= 0) & (x < nx) & (y >= 0) & (y < ny)
    sample = torch.arange(len(x), dtype=torch.int32, device=x.device).view(-1, 1, 1, 1, 1)
    x, y = torch.where(inside, x, 0).int(), torch.where(inside, y, 0).int()
    return torch.where(inside, (sample * ny + y) * nx + x, -1)


@torch.inference_mode(False)
def index_of_cells(cells: Int32[Tensor, "samples cameras bins rows columns"], grid_shape: tuple[int, int]) -> BevIndex:
    """The index of points whose cells are known: numbered (sample, y, x), -1 for none.

    Raises:
        ValueError: Not integers, no frustum, numbers beyond the grid, or more than int32 can number.
    """
    if cells.dim() != 5 or cells.is_floating_point():
        raise ValueError(f"cells {tuple(cells.shape)} {cells.dtype}: must be 5-dimensional and integers")
    samples, cameras, bins, rows, columns = cells.shape
    _check_size(cells.shape, grid_shape)
    cell_of = cells.to(torch.int32).reshape(-1).contiguous()
    if cell_of.is_inference():
        cell_of = cell_of.clone()
    n_cells = samples * grid_shape[0] * grid_shape[1]
    compiled = library.cpu() if cells.device.type == "cpu" else ""
    if isinstance(compiled, library.Library):
        start = torch.empty(n_cells + 1, dtype=torch.int32)
        n_slots = compiled.call("bev_starts", cell_of, cell_of.numel(), n_cells, start)
        if n_slots < 0:
            raise ValueError(BEYOND.format(n_cells))
        kept = int(start[-1])
        point, pixel, slots = (torch.empty(size, dtype=torch.int32) for size in (kept, kept, n_slots))
        planes = cell_of, samples * cameras, bins, rows * columns
        compiled.call("bev_sort", *planes, n_cells, start, point, pixel, slots)
    else:
        order = torch.argsort(cell_of, stable=True)
        per_cell = torch.bincount(cell_of[cell_of >= 0], minlength=n_cells)
        if len(per_cell) > n_cells:
            raise ValueError(BEYOND.format(n_cells))
        start = torch.cat([per_cell.new_zeros(1), per_cell.cumsum(0)]).int()
        point = order[cell_of.numel() - int(start[-1]) :]
        pixel = (point // (bins * rows * columns) * (rows * columns) + point % (rows * columns)).int()
        point = point.int()
        parts = torch.ones_like(per_cell)
        for _ in range(MAX_PARTS.bit_length() - 1):
            parts = torch.where(per_cell > parts * PART_LENGTH, parts * 2, parts)
        by_parts = torch.argsort(parts, descending=True, stable=True)
        slots = torch.repeat_interleave(by_parts, parts[by_parts]).int()
    return BevIndex(cell_of, start, point, pixel, slots, (samples, cameras, bins, rows, columns), grid_shape)


def _check_size(shape: "torch.Size | tuple[int, ...]", grid_shape: tuple[int, int]) -> None:
    points, cells = int(np.prod(shape, dtype=object)), shape[0] * grid_shape[0] * grid_shape[1]
    if max(points, cells + points // 16 + MAX_PARTS) > INT32_MAX:
        raise ValueError(f"{points} points and {cells} cells: more than int32 can number; split the batch")


class IndexCache:
    """The indices used last, by the content of what they depend on. One of BEVDepth's frustum takes 4 MB per sample.

    For a detector at work, whose cameras are mounted once and for all. The trainer has no use for it: augmentation and
    the motion between exposures give every sample a calibration of its own.

    Attributes:
        hits: Requests that found their index.
        misses: Requests that built it.
    """

    def __init__(self, size: int = 64) -> None:
        self.size, self.hits, self.misses = size, 0, 0
        self._kept: OrderedDict[bytes, BevIndex] = OrderedDict()

    def get(
        self,
        calibration: Iterable["Tensor | np.ndarray"],
        grid: BevGrid,
        points_m: Callable[[], Tensor],
        rule: Rule = "floor",
        device: "torch.device | str | None" = None,
    ) -> BevIndex:
        """The index for a calibration and augmentation, built if it is not there.

        Args:
            calibration: All that the points depend on: intrinsics, poses, image and BEV augmentation, depth bins.
            grid: The BEV grid.
            points_m: Makes the frustum points for ``build_index``; called only if the index is not there.
            rule: As in ``build_index``.
            device: Where the index is wanted; where the points are by default.
        """
        digest = hashlib.blake2b(repr((grid, rule, str(device))).encode(), digest_size=16)
        for array in calibration:
            values = array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
            if values.dtype == object:
                raise ValueError(f"calibration: {type(array).__name__} is no array of numbers")
            digest.update(f"{values.shape}{values.dtype}".encode())
            digest.update(np.ascontiguousarray(values).tobytes())
        key = digest.digest()
        index = self._kept.pop(key, None)
        if index is not None:
            self.hits += 1
        else:
            self.misses += 1
            index = build_index(points_m(), grid, rule)
            index = index.to(device) if device is not None else index
        self._kept[key] = index
        while len(self._kept) > self.size:
            self._kept.popitem(last=False)
        return index

    def __len__(self) -> int:
        return len(self._kept)
