"""BEV pooling in plain torch: what the compiled code must compute, and the backend where there is none.

Tensors are flat: depth (samples, points), context (samples, pixels, channels), out (samples, cells, channels); the
numbering is that of ``BevIndex``.
"""

import warnings

import torch
from jaxtyping import Float, Int32
from torch import Tensor

BINS_AT_ONCE = 8  # bounds the memory of the backward pass


def pool(
    depth: Float[Tensor, "samples points"],
    context: Float[Tensor, "samples pixels channels"],
    start: Int32[Tensor, " cells+1"],
    point: Int32[Tensor, " kept"],
    pixel: Int32[Tensor, " kept"],
) -> Float[Tensor, "samples cells channels"]:
    """The definition: out[cell] is the sum of depth * context over the points of the cell. Differentiable."""
    cell = torch.repeat_interleave(torch.arange(len(start) - 1, device=start.device), start.diff())
    lifted = depth[:, point, None] * context[:, pixel]  # (samples, kept, channels)
    out = lifted.new_zeros(len(depth), len(start) - 1, context.shape[2])
    return out.index_add(1, cell, lifted)


def pool_csr(
    depth: Float[Tensor, "samples points"],
    context: Float[Tensor, "samples pixels channels"],
    start: Int32[Tensor, " cells+1"],
    point: Int32[Tensor, " kept"],
    pixel: Int32[Tensor, " kept"],
) -> Float[Tensor, "samples cells channels"]:
    """The same as a sparse matrix (cells x pixels, values are depths) times context: never makes the lifted tensor."""
    return torch.stack([_csr_product(start, pixel, d[point], c) for d, c in zip(depth, context, strict=True)])


def pool_backward(
    grad: Float[Tensor, "samples cells channels"],
    depth: Float[Tensor, "samples points"],
    context: Float[Tensor, "samples pixels channels"],
    cell_of: Int32[Tensor, " points"],
    bins: int,
    camera_pixels: int,
) -> tuple[Float[Tensor, "samples points"], Float[Tensor, "samples pixels channels"]]:
    """Gradients of depth and context: both gather grad at the cells of the points."""
    planes = cell_of.view(-1, bins, camera_pixels)
    cameras = len(planes)
    grad_depth = torch.empty_like(depth).view(-1, cameras, bins, camera_pixels)
    grad_context = torch.empty_like(context)
    by_pixel = planes.transpose(1, 2).reshape(-1)
    inside = (by_pixel >= 0).nonzero()[:, 0]
    start = torch.searchsorted(inside, torch.arange(0, len(by_pixel) + 1, bins, device=grad.device)).int()
    for s in range(len(grad)):
        values = depth[s].view(cameras, bins, camera_pixels).transpose(1, 2).reshape(-1)
        grad_context[s] = _csr_product(start, by_pixel[inside], values[inside], grad[s])
        rows = context[s].view(cameras, 1, camera_pixels, -1)
        for camera in range(cameras):
            for first in range(0, bins, BINS_AT_ONCE):
                cells = planes[camera, first : first + BINS_AT_ONCE]
                dots = (grad[s][cells.clamp(min=0)] * rows[camera]).sum(-1)
                grad_depth[s, camera, first : first + BINS_AT_ONCE] = dots.where(cells >= 0, 0)
    return grad_depth.view_as(depth), grad_context


def _csr_product(start: Tensor, column: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    shape = len(start) - 1, len(dense)
    # torch calls its CSR tensors beta; autocast would multiply in half precision.
    with warnings.catch_warnings(), torch.autocast(dense.device.type, enabled=False):
        warnings.simplefilter("ignore")
        return torch.sparse_csr_tensor(start, column, values, shape, check_invariants=False) @ dense
