"""The implementations of BEV pooling, and the choice between them."""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ext import library, reference
from ext.library import Library, launch_args, warn_once

BACKENDS = ("cuda", "cpu", "torch_scatter", "torch")
# By measurement: on a CPU the CSR product of torch is many times faster than torch_scatter, and as deterministic.
PREFERRED = {"cuda": ("cuda", "torch_scatter", "torch"), "cpu": ("cpu", "torch", "torch_scatter")}
ENVIRONMENT = "DENSE_DEPTH_BEV_POOL"
MAX_CUDA_CHANNELS_AT_ONCE = 128  # as in csrc/pool.h

_chosen: str | None = None


def status() -> dict[str, str | None]:
    """Why each backend is not live; None for one that is."""
    return {name: why_not(name) for name in BACKENDS}


def why_not(name: str, device_type: str | None = None) -> str | None:
    """Why a backend is not live, on one device or on any; None if it is. Looks at no other backend."""
    if name == "torch":
        return None
    if name == "torch_scatter":
        return _why_no_torch_scatter(device_type == "cuda")
    compiled = library.cuda() if name == "cuda" else library.cpu()
    return compiled if isinstance(compiled, str) else None


@functools.cache
def _why_no_torch_scatter(on_cuda: bool) -> str | None:
    try:
        import torch_scatter  # noqa: F401
    except ModuleNotFoundError:
        return "torch_scatter is not installed"
    except (ImportError, OSError, RuntimeError) as error:
        return f"torch_scatter does not load ({str(error).splitlines()[0]}); compile it anew for this torch"
    if on_cuda and torch.ops.torch_scatter.cuda_version() < 0:
        return "torch_scatter is a build without CUDA"
    return None


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within this context, pools with one backend, unless a call names another."""
    global _chosen
    before, _chosen = _chosen, _check(name)
    try:
        yield
    finally:
        _chosen = before


def resolve(name: str, device_type: str) -> str:
    """The backend for a call: that of the call, the context or the environment, else the best that is live.

    Raises:
        ValueError: There is no such backend, or it does not work on this device.
        RuntimeError: It is asked for by name, but is not live.
    """
    if name == "auto":
        name = _chosen or os.environ.get(ENVIRONMENT) or "auto"
    wanted = PREFERRED.get(device_type, ("torch",))
    if _check(name) != "auto":
        if name not in wanted:
            raise ValueError(f"backend {name!r} does not work on {device_type} tensors")
        if reason := why_not(name, device_type):
            raise RuntimeError(f"backend {name!r} is not live: {reason}")
        return name
    best = next(candidate for candidate in wanted if why_not(candidate, device_type) is None)
    if best != wanted[0]:
        reason = why_not(wanted[0], device_type)
        warn_once(f"bev_pool on {device_type} falls back to {best}, which is slower; {wanted[0]}: {reason}")
    return best


def _check(name: str) -> str:
    if name not in (*BACKENDS, "auto"):
        raise ValueError(f"backend {name!r}: must be one of {', '.join(BACKENDS)}, auto")
    return name


def forward(
    backend: str,
    depth: Tensor,
    context: Tensor,
    start: Tensor,
    point: Tensor,
    pixel: Tensor,
    slots: Tensor,
    out_dtype: torch.dtype,
) -> Tensor:
    """Sums in at least float32, rounded once to out_dtype; all tensors contiguous."""
    out = context.new_empty(len(context), len(start) - 1, context.shape[2], dtype=out_dtype)
    if out.numel() == 0:
        return out
    sizes = len(depth), depth.shape[1], context.shape[1], out.shape[1], context.shape[2]
    if backend == "cuda":
        compiled = library.cuda()
        assert isinstance(compiled, Library)
        function = f"bev_pool_forward_cuda_{_name(context)}_{_name(depth)}_{_name(out)}"
        entries = start, point, pixel, slots, len(slots)
        compiled.call(function, depth, context, *entries, *sizes, out, *launch_args(context))
        return out
    depth, sums = _widened(depth), _widened(context)
    if backend == "cpu":
        compiled = library.cpu()
        assert isinstance(compiled, Library)
        out = torch.empty_like(out, dtype=sums.dtype)
        function = f"bev_pool_forward_{_name(sums)}"
        compiled.call(function, depth, sums, start, point, pixel, *sizes, out, library.threads())
    elif backend == "torch_scatter":
        import torch_scatter

        lifted = depth[:, point, None] * sums[:, pixel]
        out = torch_scatter.segment_csr(lifted, start.long()[None].expand(len(lifted), -1), reduce="sum")
    else:
        out = reference.pool_csr(depth, sums, start, point, pixel)
    return out.to(out_dtype)


def backward(
    backend: str,
    grad: Tensor,
    depth: Tensor,
    context: Tensor,
    cell_of: Tensor,
    bins: int,
    camera_pixels: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of depth and context in their dtypes; all tensors contiguous."""
    if depth.numel() == 0 or grad.numel() == 0:
        return torch.zeros_like(depth), torch.zeros_like(context)
    pixels, cells, channels = context.shape[1], grad.shape[1], context.shape[2]
    if backend == "cuda":
        compiled = library.cuda()
        assert isinstance(compiled, Library)
        # Depth gradients of further blocks of channels are added in memory, which then must be as wide as the sums.
        wide = _widened(depth) if channels > MAX_CUDA_CHANNELS_AT_ONCE else depth
        grad_depth, grad_context = torch.empty_like(wide), torch.empty_like(context)
        function = f"bev_pool_backward_cuda_{_name(context)}_{_name(wide)}_{_name(grad)}"
        sizes = len(context), pixels, bins, camera_pixels, cells, channels
        compiled.call(function, grad, wide, context, cell_of, *sizes, grad_depth, grad_context, *launch_args(context))
        return grad_depth.to(depth.dtype), grad_context
    wide_grad, wide, sums = _widened(grad), _widened(depth), _widened(context)
    if backend == "cpu":
        compiled = library.cpu()
        assert isinstance(compiled, Library)
        grad_depth, grad_context = torch.empty_like(wide), torch.empty_like(sums)
        function = f"bev_pool_backward_{_name(sums)}"
        sizes = len(context), pixels // camera_pixels, bins, camera_pixels, cells, channels
        arguments = wide_grad, wide, sums, cell_of, *sizes, grad_depth, grad_context
        compiled.call(function, *arguments, library.threads())
    else:
        grad_depth, grad_context = reference.pool_backward(wide_grad, wide, sums, cell_of, bins, camera_pixels)
    return grad_depth.to(depth.dtype), grad_context.to(context.dtype)


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
