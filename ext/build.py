"""Builds the compiled libraries of ``ext``: ``python ext/build.py`` (``make setup`` does it).

The libraries have a plain C interface and see no torch headers, so one build serves every version of torch, and takes
seconds. A library's name holds the hash of its sources and flags and the instruction set it needs; nothing is compiled
at import.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from runpy import run_path

SOURCES = Path(__file__).parent / "csrc"
FOLDER = Path(__file__).parent / "lib"
X86_64_V3 = {"abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
X86_64_V4 = {*X86_64_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
CXX_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math"]
UNITS = {  # the index rounds every product, pooling none
    "pool_cpu.cpp": ["-ffp-contract=fast", "-Wno-psabi"],
    "index_cpu.cpp": ["-ffp-contract=off"],
}
CUDA_UNITS = ["pool_cuda.cu"]
CUDA_FLAGS = ["-std=c++17", "-O3", "--shared", "-Xcompiler", "-fPIC", "--threads", "0"]
CUDA_ARCHITECTURES = (80, 90, 100)


class BuildError(Exception):
    """A library that cannot be built: the message says why in one line, and what to do."""


def instruction_set() -> str | None:
    """What the CPU library is compiled for: an x86-64 level, or the machine's name; None without fused multiply-add."""
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        return machine
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    return "x86-64-v4" if flags >= X86_64_V4 else "x86-64-v3" if flags >= X86_64_V3 else None


def cpu_library() -> Path:
    """Where the CPU library lies, or would lie."""
    return FOLDER / f"bev_cpu-{instruction_set()}-{_hash('.cpp', CXX_FLAGS, UNITS)}.so"


def cuda_library() -> Path:
    """Where the CUDA library lies, or would lie."""
    return FOLDER / f"bev_cuda-{_hash('.cu', CUDA_FLAGS, CUDA_ARCHITECTURES)}.so"


def _hash(suffix: str, *flags: object) -> str:
    digest = hashlib.sha256(repr(flags).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (suffix, ".h"):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def compiler() -> str | None:
    """The C++ compiler: ``CXX``, or the first that is found."""
    return next(filter(shutil.which, [os.environ.get("CXX") or "g++", "g++", "clang++", "c++"]), None)


def why_no_cuda_build() -> str | None:
    """Why the CUDA library would not be built here, or None."""
    if not shutil.which("nvcc"):
        return "nvcc is not on PATH; install the CUDA toolkit"
    spec = find_spec("torch")
    version = Path(spec.origin).parent / "version.py" if spec and spec.origin else None
    if version is None or run_path(str(version)).get("cuda") is None:
        return "torch is a build without CUDA"
    return None


def build_cpu() -> Path:
    """Builds the CPU library unless it is there.

    Raises:
        BuildError: There is no compiler, it fails, or the processor has no fused multiply-add.
    """
    target, level, cxx = cpu_library(), instruction_set(), compiler()
    if target.exists():
        return target
    if level is None:
        raise BuildError("this processor has no AVX2 and fused multiply-add, which the CPU library needs")
    if cxx is None:
        raise BuildError("no C++ compiler (g++, clang++ or CXX); install one, such as: apt-get install g++")
    arch = [f"-march={level}"] if level.startswith("x86") else []
    if level == "x86-64-v4":
        arch.append("-mprefer-vector-width=512")
    with tempfile.TemporaryDirectory() as folder:
        objects = [f"{folder}/{unit}.o" for unit in UNITS]
        for (unit, flags), out in zip(UNITS.items(), objects, strict=True):
            _run([cxx, *CXX_FLAGS, *arch, *flags, "-c", str(SOURCES / unit), "-o", out])
        return _place(target, lambda out: _run([cxx, "-shared", *objects, "-o", out, "-pthread"]))


def build_cuda() -> Path:
    """Builds the CUDA library unless it is there; needs nvcc, but neither a GPU nor torch.

    Raises:
        BuildError: nvcc is missing or fails.
    """
    target = cuda_library()
    if target.exists():
        return target
    if not shutil.which("nvcc"):
        raise BuildError("nvcc is not on PATH; install the CUDA toolkit")
    return _place(target, lambda out: compile_cuda(out, _architectures()))


def _architectures() -> tuple[int, ...]:
    """Those that this nvcc knows: sm_100 came with CUDA 12.8."""
    known = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout.split()
    return tuple(a for a in CUDA_ARCHITECTURES if f"compute_{a}" in known) or CUDA_ARCHITECTURES


def compile_cuda(out: str, architectures: tuple[int, ...]) -> None:
    """Compiles the kernels for the architectures, and PTX of the last for later ones."""
    codes = [f"arch=compute_{a},code=sm_{a}" for a in architectures]
    codes.append(f"arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    gencode = [word for code in codes for word in ("-gencode", code)]
    _run(["nvcc", *CUDA_FLAGS, *gencode, *(str(SOURCES / unit) for unit in CUDA_UNITS), "-o", out])


def _place(target: Path, make) -> Path:  # type: ignore[no-untyped-def]
    """Makes a file beside its place and moves it there, so that no other process sees half of it."""
    try:
        target.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            make(f"{folder}/{target.name}")
            os.replace(f"{folder}/{target.name}", target)
    except OSError as error:
        raise BuildError(f"cannot write {target.parent}: {error}") from error
    for old in target.parent.glob(target.name.rsplit("-", 1)[0] + "-*.so"):
        if old != target:
            old.unlink(missing_ok=True)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stderr + done.stdout).splitlines() if "error" in line.lower()]
        raise BuildError(f"{command[0]} failed: {(lines or [done.stderr.strip()])[0]}")


def main() -> int:
    """Builds what can be built here and says what cannot, and why."""
    failed = False
    parts = {"CPU": (build_cpu, cpu_library, None), "CUDA": (build_cuda, cuda_library, why_no_cuda_build())}
    for name, (build, library, why_not) in parts.items():
        if library().exists():
            continue
        if why_not:
            print(f"ext: no {name} library: {why_not}")
            continue
        started = time.monotonic()
        try:
            path = build()
            print(f"ext: {name} library built in {time.monotonic() - started:.0f} s: {path}")
        except BuildError as error:
            failed |= compiler() is not None
            print(f"ext: no {name} library: {error}\next: pooling falls back to slower code; python -m ext says which")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
