"""The CUDA kernels run on the CPU, a thread for a thread: the bits of the CPU library, whose own tests are elsewhere.

It shows the arithmetic, the indexing and the barriers where there is no GPU; tests marked ``cuda`` show the rest.
"""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from ext import backends, build, index_of_cells, library
from ext.library import Library

EMULATION = Path(__file__).parent / "cuda_on_cpu"


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """The CUDA sources compiled for the CPU; launches become calls."""
    if isinstance(library.cpu(), str) or build.compiler() is None:
        pytest.skip(f"no CPU library to compare with: {library.cpu()}")
    folder = tmp_path_factory.mktemp("cuda_on_cpu")
    launch = re.compile(r"([\w:]+(?:<[^<>]*>)?)<<<(.*?), stream>>>\(")
    for unit in build.CUDA_UNITS:
        source = (build.SOURCES / unit).read_text()
        shared = "extern __shared__ __align__(16) unsigned char shared[];"
        source = source.replace(shared, "unsigned char* shared = emulated::shared();")
        source, count = launch.subn(r"emulated::launch(\2, [](auto... a) { \1(a...); }, ", source)
        assert count
        (folder / f"{unit}.cpp").write_text(source)
    flags = ["-std=c++20", "-O1", "-w", "-D__CUDACC__", "-fPIC", "-shared", "-pthread", "-ffp-contract=off"]
    includes = [f"-I{EMULATION}", f"-I{build.SOURCES}"]
    units = [str(folder / f"{unit}.cpp") for unit in build.CUDA_UNITS]
    arch = [f"-march={build.instruction_set()}"] if build.instruction_set().startswith("x86") else []
    command = [build.compiler(), *flags, *arch, *includes, *units, "-o", str(folder / "emulated.so")]
    done = subprocess.run(command, capture_output=True, text=True)
    if "<barrier>" in done.stderr or "c++20" in done.stderr:
        pytest.skip("this compiler has no C++20")
    assert done.returncode == 0, done.stderr[:2000]
    return Library(str(folder / "emulated.so"), library._CUDA, cuda=True)


F32, F64, F16, BF16 = torch.float32, torch.float64, torch.float16, torch.bfloat16


@pytest.mark.parametrize(
    ("shape", "channels", "samples", "dtypes"),
    [
        ((2, 40, 3, 5), 80, 2, (F32, F32, F32)),
        ((1, 59, 4, 6), 64, 1, (F32, F32, F32)),
        ((1, 20, 4, 6), 128, 1, (F32, F32, F32)),
        ((1, 70, 3, 5), 83, 1, (F32, F32, F32)),  # rows that are not aligned to 16 bytes
        ((1, 20, 4, 6), 300, 1, (F32, F32, F32)),  # blocks of channels
        ((1, 600, 1, 3), 8, 1, (F32, F32, F32)),  # 16 parts of bins, each warp half empty
        ((1, 1, 1, 1), 1, 1, (F32, F32, F32)),
        ((1, 20, 4, 6), 7, 1, (F64, F64, F64)),
        ((2, 40, 3, 5), 80, 1, (BF16, BF16, BF16)),
        ((2, 40, 3, 5), 80, 1, (BF16, F32, F32)),
        ((2, 40, 3, 5), 64, 1, (F16, F16, F32)),
        ((2, 40, 3, 5), 136, 1, (F16, F32, F16)),
        ((2, 40, 3, 5), 20, 1, (BF16, BF16, F32)),
    ],
)
def test_kernels_give_the_bits_of_the_cpu_library(kernels, monkeypatch, shape, channels, samples, dtypes):
    dtype, depth_dtype, out_dtype = dtypes
    generator = torch.Generator().manual_seed(channels)
    cells = torch.randint(-6, 20, (1, *shape), generator=generator).clamp(min=-1)
    cells = torch.where(torch.rand(cells.shape, generator=generator) < 0.5, 3, cells).int()  # one long interval
    index = index_of_cells(cells, (4, 5))
    pixels = shape[0] * shape[2] * shape[3]
    depth = torch.rand(samples, pixels * shape[1], generator=generator).to(depth_dtype)
    context = torch.randn(samples, pixels, channels, generator=generator).to(dtype)
    grad = torch.randn(samples, 20, channels, generator=generator).to(out_dtype)
    monkeypatch.setattr(library, "cuda", lambda: kernels)
    monkeypatch.setattr(backends, "launch_args", lambda tensor: (0, 0))
    results = {}
    for backend in ("cpu", "cuda"):
        entries = index.start, index.point, index.pixel, index.slots
        out = backends.forward(backend, depth, context, *entries, out_dtype)
        grads = backends.backward(backend, grad, depth, context, index.cell_of, shape[1], shape[2] * shape[3])
        results[backend] = out, *grads
    for ours, theirs in zip(results["cuda"], results["cpu"]):
        assert ours.dtype == theirs.dtype and (ours == theirs).all()
