import numpy as np
import pytest

from dense_depth import InputError, sweeps
from dense_depth.datasets import Sweep
from dense_depth.sweeps import Format, count_points, read_sweep, survey


def sweep_at(path, **changes) -> Sweep:
    return Sweep(path.name, path, 5, 0, np.eye(4), (), **changes)


def test_points_are_read_as_they_were_written(tmp_path):
    points = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    points.tofile(tmp_path / "a.bin")
    sweep = sweep_at(tmp_path / "a.bin")
    assert count_points(sweep) == 7
    np.testing.assert_array_equal(read_sweep(sweep), points)


def test_a_format_is_a_line_of_the_table(tmp_path, monkeypatch):
    """Text files stand for a format to come; a survey counts both."""
    monkeypatch.setitem(
        sweeps.FORMATS,
        "text",
        Format(lambda sweep: len(np.loadtxt(sweep.path)), lambda sweep: np.loadtxt(sweep.path, np.float32)),
    )
    (tmp_path / "a.txt").write_text("1 2 3\n4 5 6\n")
    np.zeros((4, 5), np.float32).tofile(tmp_path / "b.bin")
    text = sweep_at(tmp_path / "a.txt", format="text")
    np.testing.assert_array_equal(read_sweep(text), [[1, 2, 3], [4, 5, 6]])
    assert survey([text, sweep_at(tmp_path / "b.bin")], drop_bad=False) == ([2, 4], {})


def test_a_survey_lists_the_bad_ones_or_refuses_them(tmp_path):
    np.zeros((4, 5), np.float32).tofile(tmp_path / "good.bin")
    (tmp_path / "short.bin").write_bytes(b"12345")
    files = [sweep_at(tmp_path / name) for name in ("short.bin", "good.bin", "gone.bin")]
    n_points, dropped = survey(files, drop_bad=True)
    assert n_points == [0, 4, 0] and dropped.keys() == {"short.bin", "gone.bin"}
    assert "truncated: 5 bytes" in dropped["short.bin"] and "missing" in dropped["gone.bin"]
    with pytest.raises(InputError, match=r"short\.bin: sweep file is truncated"):
        survey(files, drop_bad=False)
