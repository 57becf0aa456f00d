"""``bev_pool``: depth distributions times image features, summed into BEV cells, as one operator.

The lift-splat of Philion and Fidler, "Lift, Splat, Shoot", ECCV 2020, without the lifted tensor, as BEVPoolv2 (Huang
and Huang, arXiv 2211.17111) does it; with a fixed order of summation in fp32 that all compiled code shares.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ext import backends
from ext.index import BevGrid, BevIndex, index_of_cells, number_cells

HALF = (torch.float16, torch.bfloat16)


def bev_pool(
    depth: Float[Tensor, "batch cameras bins rows columns"],
    context: Float[Tensor, "batch cameras channels rows columns"],
    index: BevIndex,
    backend: str = "auto",
    out_dtype: torch.dtype | None = None,
) -> Float[Tensor, "batch channels y x"]:
    """Sums depth * context into the cells of a BEV grid. Differentiable in depth and context.

    Sums are made in fp32 (fp64 for fp64) and in a fixed order. Depth may be fp32 where context is fp16 or bf16, as
    autocast leaves them. Fastest where context is channels-last in memory, as the result is.

    Args:
        depth: Weight of each frustum point, such as a probability.
        context: Features of each pixel.
        index: From ``build_index``, on the same device; for one sample (it then serves all) or for the whole batch.
        backend: "cuda", "cpu", "torch_scatter", "torch", or "auto" for the best that is live. ``use_backend`` and the
            environment variable DENSE_DEPTH_BEV_POOL set it from outside.
        out_dtype: fp32 for fp32, fp16 and bf16 by default. The dtype of a fp16 or bf16 context makes both passes
            faster on a GPU; rounding to bf16 costs 0.4 %.

    Raises:
        ValueError: Shapes, devices or dtypes that do not fit together.
    """
    _check(depth, context, index)
    batch, cameras, bins, rows, columns = depth.shape
    channels = context.shape[2]
    if depth.dtype != context.dtype and not (depth.dtype == torch.float32 and context.dtype in HALF):
        common = torch.promote_types(depth.dtype, context.dtype)
        depth, context = depth.to(common), context.to(common)
    if out_dtype is None:
        out_dtype = torch.promote_types(context.dtype, torch.float32)
    elif out_dtype not in (context.dtype, torch.promote_types(context.dtype, torch.float32)):
        raise ValueError(f"out_dtype {out_dtype}: must be that of context, {context.dtype}, or float32 for a half type")
    samples = batch if index.shape[0] == 1 else 1  # an index for the whole batch is one big sample
    pixels = index.shape[0] * cameras * rows * columns
    out = torch.ops.dense_depth.bev_pool(
        depth.reshape(samples, pixels * bins),
        context.permute(0, 1, 3, 4, 2).reshape(samples, pixels, channels),
        index.cell_of,
        index.start,
        index.point,
        index.pixel,
        index.slots,
        bins,
        rows * columns,
        out_dtype,
        backend,
    )
    return out.view(batch, *index.grid_shape, channels).permute(0, 3, 1, 2)


def bev_pool_bilinear(
    depth: Float[Tensor, "batch cameras bins rows columns"],
    context: Float[Tensor, "batch cameras channels rows columns"],
    points_m: Float[Tensor, "batch cameras bins rows columns 3"],
    grid: BevGrid,
    backend: str = "auto",
) -> Float[Tensor, "batch channels y x"]:
    """Spreads every point over the four cells around it, so that a gradient reaches its position too.

    A point on a cell's centre counts in that cell alone; weights fall linearly to zero over one cell size. For depths
    that are sampled or shifted by a network. The index is made anew at each call, since positions change. Points with
    z outside the grid do not count, and z has no gradient.
    """
    if points_m.shape != (*depth.shape, 3):
        raise ValueError(f"points_m {tuple(points_m.shape)}: must be depth's shape {tuple(depth.shape)} and 3")
    low, step = grid.low_and_step(points_m.device)
    at = ((points_m - low) / step).nan_to_num(nan=-2.0)  # in cells; what is not a number is outside, without gradient
    corner = torch.floor(at[..., :2].detach() - 0.5)
    fraction = at[..., :2] - 0.5 - corner  # (..., 2) in [0, 1)
    in_layer = (at[..., 2] >= 0) & (at[..., 2] < 1)
    weights, cells = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            cells.append(number_cells(corner[..., 0] + dx, corner[..., 1] + dy, in_layer, grid.shape))
            weight_x = fraction[..., 0] if dx else 1 - fraction[..., 0]
            weight_y = fraction[..., 1] if dy else 1 - fraction[..., 1]
            weight = torch.where(cells[-1] >= 0, weight_x * weight_y, 0)
            weights.append(depth * weight.to(torch.promote_types(depth.dtype, torch.float32)))
    # Four bins for one: the pooled sum is the same, and its gradient in the weights leads on to the positions.
    index = index_of_cells(torch.cat(cells, 2), grid.shape)
    return bev_pool(torch.cat(weights, 2), context, index, backend)


def _check(depth: Tensor, context: Tensor, index: BevIndex) -> None:
    samples, *frustum = index.shape
    if depth.dim() != 5 or list(depth.shape[1:]) != frustum or (samples != 1 and samples != len(depth)):
        raise ValueError(f"depth {tuple(depth.shape)}: the index is for {index.shape} (one sample serves any batch)")
    expected = *depth.shape[:2], *depth.shape[3:]
    if context.dim() != 5 or (*context.shape[:2], *context.shape[3:]) != expected:
        raise ValueError(f"context {tuple(context.shape)}: does not fit depth {tuple(depth.shape)}")
    if not depth.device == context.device == index.start.device:
        raise ValueError(f"depth on {depth.device}, context on {context.device}, index on {index.start.device}")
    if not (depth.is_floating_point() and context.is_floating_point()):
        raise ValueError(f"depth is {depth.dtype} and context {context.dtype}: must be floating point")


@torch.library.custom_op("dense_depth::bev_pool", mutates_args=())
def _pool(
    depth: Tensor,
    context: Tensor,
    cell_of: Tensor,
    start: Tensor,
    point: Tensor,
    pixel: Tensor,
    slots: Tensor,
    bins: int,
    camera_pixels: int,
    out_dtype: torch.dtype,
    backend: str,
) -> Tensor:
    """Depth (samples, points), context (samples, pixels, channels) -> (samples, cells, channels)."""
    backend = backends.resolve(backend, context.device.type)
    return backends.forward(backend, depth.contiguous(), context.contiguous(), start, point, pixel, slots, out_dtype)


@_pool.register_fake
def _(depth, context, cell_of, start, point, pixel, slots, bins, camera_pixels, out_dtype, backend):  # type: ignore[no-untyped-def]
    return context.new_empty(context.shape[0], start.shape[0] - 1, context.shape[2], dtype=out_dtype)


@torch.library.custom_op("dense_depth::bev_pool_backward", mutates_args=())
def _pool_backward(
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    cell_of: Tensor,
    bins: int,
    camera_pixels: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of depth and context."""
    backend = backends.resolve(backend, context.device.type)
    tensors = grad.contiguous(), depth.contiguous(), context.contiguous(), cell_of
    return backends.backward(backend, *tensors, bins, camera_pixels)


@_pool_backward.register_fake
def _(grad, depth, context, cell_of, bins, camera_pixels, backend):  # type: ignore[no-untyped-def]
    return torch.empty(depth.shape, dtype=depth.dtype, device=depth.device), torch.empty(
        context.shape, dtype=context.dtype, device=context.device
    )


def _no_second(ctx, *_):  # type: ignore[no-untyped-def]
    raise NotImplementedError("bev_pool has no second derivative; leave out create_graph=True, or detach its gradient")


_pool_backward.register_autograd(_no_second)


def _setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    depth, context, cell_of, _, _, _, _, ctx.bins, ctx.camera_pixels, _, ctx.backend = inputs
    ctx.save_for_backward(depth, context, cell_of)


def _gradients(ctx, grad):  # type: ignore[no-untyped-def]
    arguments = *ctx.saved_tensors, ctx.bins, ctx.camera_pixels, ctx.backend
    grads = torch.ops.dense_depth.bev_pool_backward(grad, *arguments)
    return *grads, *[None] * 9


_pool.register_autograd(_gradients, setup_context=_setup)
