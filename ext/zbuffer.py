"""The z-buffer of ``dense_depth.projection`` for whole sweeps on a GPU, equal bit for bit."""

import torch
from jaxtyping import Float32, Int64, UInt8, UInt32
from torch import Tensor

from ext import library
from ext.library import launch_args, warn_once

NEAR_M, FAR_M = 0.1, 255.0  # as in dense_depth.projection
EMPTY_KEY = 0xFFFFFFFF


def new_keys(height: int, width: int, device: "torch.device | str" = "cpu") -> UInt32[Tensor, "height width"]:
    """An empty z-buffer."""
    return torch.full((height, width), EMPTY_KEY, dtype=torch.uint32, device=device)


def splat(
    xyz: Float32[Tensor, "3 points"],
    start: Int64[Tensor, " segments"],
    stop: Int64[Tensor, " segments"],
    image_T_segment: Float32[Tensor, "segments 3 4"],
    source: UInt8[Tensor, " segments"],
    keys: UInt32[Tensor, "height width"],
    backend: str = "auto",
) -> None:
    """Projects segments of a cloud into one camera and keeps the smallest key per pixel.

    A key is depth in 1/256 m << 8 | source.

    Args:
        xyz: Points, each segment in its own frame.
        start: First point of each segment.
        stop: End of each segment, at most the number of points.
        image_T_segment: Intrinsics times pose, composed in float64 and cast, as ``dense_depth.projection.splat`` does.
        source: Low byte of the keys of each segment, ``Selection.code``.
        keys: Z-buffer from ``new_keys``, changed in place. All tensors are contiguous and on its device.
        backend: "cuda" or "cpu" for compiled code, "torch", or "auto".

    Raises:
        ValueError: Tensors that do not fit together, or a backend for another device.
        RuntimeError: A backend that is asked for by name is not live.
    """
    tensors = xyz, start, stop, image_T_segment, source
    dtypes = torch.float32, torch.int64, torch.int64, torch.float32, torch.uint8, torch.uint32
    for tensor, dtype in zip((*tensors, keys), dtypes, strict=True):
        if tensor.dtype != dtype or tensor.device != keys.device or not tensor.is_contiguous():
            raise ValueError(f"a {tensor.dtype} tensor on {tensor.device}: must be contiguous {dtype} on {keys.device}")
    (height, width), n = keys.shape, len(start)
    shapes = {"xyz": (3, *xyz.shape[1:2]), "start": (n,), "stop": (n,), "image_T_segment": (n, 3, 4), "source": (n,)}
    for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
        if tensor.shape != shape:
            raise ValueError(f"{name} {tuple(tensor.shape)}: must be {shape}")
    device = keys.device.type
    if backend not in ("auto", "torch", device):
        raise ValueError(f"backend {backend!r} does not work on {device} tensors")
    compiled = library.cuda() if device == "cuda" else library.cpu() if device == "cpu" else "there is no compiled code"
    if backend == "torch" or isinstance(compiled, str):
        if backend == device:
            raise RuntimeError(f"backend {backend!r} is not live: {compiled}")
        if backend == "auto":
            warn_once(f"z-buffer on {device} falls back to torch, which is slower; {device}: {compiled}")
        for s, (first, end) in enumerate(zip(start.tolist(), stop.tolist())):
            _splat_torch(xyz[:, first:end], image_T_segment[s], int(source[s]), keys)
        return
    arguments = xyz, xyz.shape[1], *tensors[1:], n, height, width, NEAR_M, FAR_M, keys
    if device == "cuda":
        compiled.call("zbuffer_splat_cuda", *arguments, *launch_args(keys))
    else:
        compiled.call("zbuffer_splat", *arguments)


def _splat_torch(xyz: Tensor, image_T_segment: Tensor, source: int, keys: Tensor) -> None:
    """One segment, an operation at a time: every product and sum is rounded to float32."""
    (x, y, z), T = xyz, image_T_segment.tolist()
    u, v, depth = (row[0] * x + row[1] * y + row[2] * z + row[3] for row in T)
    in_front = (depth >= torch.tensor(NEAR_M, dtype=torch.float32)) & (depth < FAR_M)
    depth = torch.where(in_front, depth, 1.0)
    inverse = 1.0 / depth
    u, v = u * inverse + 0.5, v * inverse + 0.5
    height, width = keys.shape
    inside = in_front & (u >= 0) & (u < width) & (v >= 0) & (v < height)
    pixel = v[inside].int().long() * width + u[inside].int()
    key = (depth[inside] * 256 + 0.5).int().long() << 8 | source
    flat = keys.view(-1)
    flat.copy_(flat.long().scatter_reduce_(0, pixel, key, "amin").to(torch.uint32))
