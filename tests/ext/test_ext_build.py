"""Building the libraries: messages, no needless work, and the kernels under nvcc."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ext import build, library


def test_the_library_here_is_that_of_the_sources():
    if build.compiler() is None or build.instruction_set() is None:
        pytest.skip("no compiler, or a processor without fused multiply-add")
    assert build.build_cpu() == build.cpu_library() and build.cpu_library().exists()
    assert isinstance(library.cpu(), library.Library)


def test_other_sources_make_another_name(monkeypatch, tmp_path):
    shutil.copytree(build.SOURCES, tmp_path / "csrc")
    before = build.cpu_library(), build.cuda_library()
    monkeypatch.setattr(build, "SOURCES", tmp_path / "csrc")
    assert (build.cpu_library(), build.cuda_library()) == before
    with (tmp_path / "csrc" / "pool.h").open("a") as file:
        file.write("// changed\n")
    assert build.cpu_library() != before[0] and build.cuda_library() != before[1]


def test_a_missing_compiler_is_said_and_is_no_failure(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(build, "instruction_set", lambda: "x86-64-v3")
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    assert build.main() == 0
    output = capsys.readouterr().out
    assert "no CPU library: no C++ compiler" in output and "apt-get install g++" in output
    assert "no CUDA library: nvcc is not on PATH" in output


def test_a_failing_compiler_is_a_failure_and_leaves_nothing(monkeypatch, tmp_path, capsys):
    if build.compiler() is None:
        pytest.skip("no compiler")
    broken = tmp_path / "csrc"
    shutil.copytree(build.SOURCES, broken)
    (broken / "pool_cpu.cpp").write_text("int broken(")
    monkeypatch.setattr(build, "SOURCES", broken)
    monkeypatch.setattr(build, "FOLDER", tmp_path / "lib")
    monkeypatch.setattr(build, "instruction_set", lambda: "x86-64-v3")
    monkeypatch.setattr(build, "why_no_cuda_build", lambda: "not wanted")
    assert build.main() == 1
    assert "error" in capsys.readouterr().out
    assert not list(tmp_path.glob("lib/*.so"))


def test_a_folder_without_a_library_says_what_to_run(monkeypatch, tmp_path):
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    monkeypatch.setattr(build, "instruction_set", lambda: "x86-64-v3")
    assert "python -m ext.build" in library.cpu.__wrapped__()
    monkeypatch.setattr(build, "instruction_set", lambda: None)
    assert "fused multiply-add" in library.cpu.__wrapped__()
    build.cpu_library().write_bytes(b"no library")
    monkeypatch.setattr(build, "instruction_set", lambda: "x86-64-v3")
    build.cpu_library().write_bytes(b"no library")
    assert "does not load" in library.cpu.__wrapped__()


def test_a_library_cut_short_is_not_loaded(monkeypatch, tmp_path):
    """To map it and to touch what is missing would end the process."""
    if isinstance(library.cpu(), str):
        pytest.skip(library.cpu())
    content = build.cpu_library().read_bytes()
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    for size in (0, 63, 64, len(content) // 2, len(content) - 1):
        build.cpu_library().write_bytes(content[:size])
        assert "does not load" in library.cpu.__wrapped__()


def test_the_build_command_prints_no_warning():
    command = [sys.executable, "-W", "error", "-m", "ext.build"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(build.__file__).parents[1])
    assert done.returncode == 0 and done.stderr == ""


def test_an_older_nvcc_builds_what_it_knows(monkeypatch):
    answer = subprocess.CompletedProcess([], 0, stdout="compute_80\ncompute_89\ncompute_90\n")
    monkeypatch.setattr(build.subprocess, "run", lambda *args, **kwargs: answer)
    assert build._architectures() == (80, 90)


def test_the_build_script_needs_no_torch():
    """``make setup`` calls it each time, so it must cost nothing where all is built."""
    code = "import runpy, sys; runpy.run_path('ext/build.py'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(build.__file__).parents[1])


def test_kernels_compile_for_three_generations(tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    out = tmp_path / "bev_cuda.so"
    build.compile_cuda(str(out), (80, 90, 100))
    content = out.read_bytes()
    for name in ("bev_pool_forward_cuda_bfloat16_float32_bfloat16", "bev_pool_backward_cuda_float32_float32_float32"):
        assert name.encode() in content
    if shutil.which("cuobjdump"):
        listed = subprocess.run(
            ["cuobjdump", "--list-elf", str(out)], capture_output=True, text=True, check=True
        ).stdout
        assert all(f"sm_{architecture}." in listed for architecture in (80, 90, 100))
