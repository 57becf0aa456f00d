"""Point files of sweeps: reading and counting by format, and a survey of many.

A new format is a function that counts, a function that reads, and one line in ``FORMATS``.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from dense_depth import InputError
from dense_depth.datasets.scene import Sweep


class Format(NamedTuple):
    """How to use the point files of a format. Both raise InputError for a file that is missing or malformed.

    Attributes:
        count: How many points a file holds, without reading them.
        read: The points, x, y, z in the sensor frame first.
    """

    count: Callable[[Sweep], int]
    read: Callable[[Sweep], Float32[np.ndarray, "n features"]]


def count_points(sweep: Sweep) -> int:
    """How many points a sweep file holds, without reading them.

    Raises:
        InputError: The file is missing, empty, or does not hold whole points.
    """
    return FORMATS[sweep.format].count(sweep)


def read_sweep(sweep: Sweep) -> Float32[np.ndarray, "n features"]:
    """Reads the points of a sweep in its sensor frame; raises InputError as ``count_points`` does."""
    return FORMATS[sweep.format].read(sweep)


def point_times(sweep: Sweep, points: Float32[np.ndarray, "n features"]) -> Float32[np.ndarray, " n"] | None:
    """When each point was measured, in seconds from the sweep's timestamp; None where all have that of the sweep."""
    timing, n = sweep.timing, len(points)
    if timing.rule == "none":
        return None
    if timing.rule == "column":
        return points[:, timing.column]
    if timing.rule == "order":
        share = np.arange(n, dtype=np.float32) / np.float32(n)
    else:
        turned = np.arctan2(points[:, 1], points[:, 0]) - np.float32(timing.first_azimuth)
        turned = -turned if timing.clockwise else turned
        share = np.remainder(turned / np.float32(2 * np.pi), np.float32(1))
    return np.float32(timing.start_s) + np.float32(timing.end_s - timing.start_s) * share


def survey(sweeps: Sequence[Sweep], drop_bad: bool) -> tuple[list[int], dict[str, str]]:
    """Points of each sweep by ``count_points``, 0 for a bad one, and the errors of the bad ones by token.

    Raises:
        InputError: A sweep is bad and ``drop_bad`` is false.
    """
    n_points: list[int] = []
    dropped: dict[str, str] = {}
    for sweep in sweeps:
        try:
            n_points.append(count_points(sweep))
        except InputError as error:
            if not drop_bad:
                raise
            n_points.append(0)
            dropped[sweep.token] = str(error)
    return n_points, dropped


def _count_float32(sweep: Sweep) -> int:
    try:
        size = sweep.path.stat().st_size
    except OSError as error:
        raise InputError(f"{sweep.path}: sweep file is missing; restore it from the dataset") from error
    point_bytes = 4 * sweep.n_features
    if size == 0 or size % point_bytes:
        raise InputError(
            f"{sweep.path}: sweep file is truncated: {size} bytes are not one or more whole points of "
            f"{point_bytes} bytes; restore it from the dataset"
        )
    return size // point_bytes


def _read_float32(sweep: Sweep) -> Float32[np.ndarray, "n features"]:
    _count_float32(sweep)
    return np.fromfile(sweep.path, np.float32).reshape(-1, sweep.n_features)


FORMATS = {
    "float32": Format(_count_float32, _read_float32),  # nothing but the values of one point after the other
}
