"""Loads the compiled libraries; calls them with tensors."""

import ctypes
import functools
import struct
import warnings
from ctypes import c_float, c_int, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

# Arguments in order: p pointer, l int64, i int, f float.
_TYPES = {"p": c_void_p, "l": c_int64, "i": c_int, "f": c_float}
_CPU = {
    "bev_pool_forward_float32": "pppppllllipi",
    "bev_pool_forward_float64": "pppppllllipi",
    "bev_pool_backward_float32": "ppppllilli" + "ppi",
    "bev_pool_backward_float64": "ppppllilli" + "ppi",
    "bev_cells": "pllpppipi",
    "bev_starts": "pllp",
    "bev_sort": "plillpppp",
}
_DTYPES = [  # of context, depth and output
    *((name, name, name) for name in ("float32", "float64")),
    *(
        (name, depth, out)
        for name in ("float16", "bfloat16")
        for depth in (name, "float32")
        for out in (name, "float32")
    ),
]
_CUDA = {
    **{f"bev_pool_forward_cuda_{'_'.join(dtypes)}": "ppppppilllli" + "pip" for dtypes in _DTYPES},
    **{f"bev_pool_backward_cuda_{'_'.join(dtypes)}": "ppppllilli" + "ppip" for dtypes in _DTYPES},
    "bev_pool_cuda_ready": "i",
}


class Library:
    """A loaded library. Functions take tensors for pointers; those that return a CUDA error raise it."""

    def __init__(self, path: str, signatures: dict[str, str], cuda: bool) -> None:
        library = ctypes.CDLL(path)  # calls release the GIL
        if cuda:
            library.bev_pool_cuda_error.restype = ctypes.c_char_p
        self._cuda, self._library = cuda, library
        for name, letters in signatures.items():
            function = getattr(library, name)
            function.argtypes = [_TYPES[letter] for letter in letters]
            function.restype = c_int if cuda else c_int64

    def call(self, name: str, *args: "Tensor | int | float") -> int:
        """Calls a function. The caller keeps the tensors alive, contiguous, and on the right device."""
        values = [arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args]
        result = getattr(self._library, name)(*values)
        if self._cuda and result:
            raise RuntimeError(f"{name}: CUDA error: {self._library.bev_pool_cuda_error(result).decode()}")
        return result


def threads() -> int:
    """Threads for CPU work, as many as torch uses."""
    return torch.get_num_threads()


def launch_args(tensor: Tensor) -> tuple[int, int]:
    """Device and current stream for a kernel on a tensor's device."""
    index = tensor.device.index if tensor.device.index is not None else torch.cuda.current_device()
    return index, torch.cuda.current_stream(index).cuda_stream


@functools.cache
def cpu() -> "Library | str":
    """The CPU library, or why there is none."""
    from ext import build  # here, so that `python -m ext.build` finds it unused

    if build.instruction_set() is None:
        return "this processor has no AVX2 and fused multiply-add"
    path = build.cpu_library()
    if not path.exists():
        hint = "" if build.compiler() else "; first install a C++ compiler, such as: apt-get install g++"
        return f"not built for these sources and this processor; run: python -m ext.build{hint}"
    return _load(path, _CPU, cuda=False)


@functools.cache
def cuda() -> "Library | str":
    """The CUDA library, or why there is none."""
    from ext import build

    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU" if torch.version.cuda else "torch is a build without CUDA"
    path = build.cuda_library()
    if not path.exists():
        why = build.why_no_cuda_build()
        return f"not built for these sources; run: python -m ext.build{f' ({why})' if why else ''}"
    loaded = _load(path, _CUDA, cuda=True)
    if isinstance(loaded, Library):
        try:
            loaded.call("bev_pool_cuda_ready", torch.cuda.current_device())
        except RuntimeError as error:
            return f"{error}; the driver must be as new as the nvcc that built {path.name}"
    return loaded


def _load(path: Path, signatures: dict[str, str], cuda: bool) -> "Library | str":
    try:
        if _is_cut_short(path):
            raise OSError("its end is missing")
        return Library(str(path), signatures, cuda)
    except (OSError, AttributeError) as error:
        return f"{path.name} does not load: {error}; delete it and run: python -m ext.build"


def _is_cut_short(path: Path) -> bool:
    """Whether an ELF file ends before its section table does: to load it would kill the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or not header.startswith(b"\x7fELF"):
        return False  # for the loader to say
    (table,), (size, count) = struct.unpack_from("<Q", header, 40), struct.unpack_from("<HH", header, 58)
    return path.stat().st_size < table + size * count


@functools.cache
def warn_once(message: str) -> None:
    """One warning for each message and process."""
    warnings.warn(message, RuntimeWarning, stacklevel=3)
