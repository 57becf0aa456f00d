"""Point files of sweeps: reading and counting by format, and a survey of many.

A new format is a function that counts, a function that reads, and one line in ``FORMATS``.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from dense_depth import InputError
from dense_depth.datasets.scene import Scene, Sweep
from dense_depth.deskew import Twist, deskew, twist_of


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


def read_timed(sweep: Sweep) -> tuple[Float32[np.ndarray, "n features"], Float32[np.ndarray, " n"] | None]:
    """The points of a sweep and their times: see ``read_sweep`` and ``point_times``."""
    points = read_sweep(sweep)
    return points, point_times(sweep, points)


def compensated(
    sweep: Sweep, points: Float32[np.ndarray, "n features"], times_s: Float32[np.ndarray, " n"] | None, twist: Twist
) -> Float32[np.ndarray, "n columns"]:
    """Points, x, y, z first, where the sensor would have seen them at the sweep's timestamp.

    Args:
        sweep: The sweep.
        points: As read.
        times_s: Of ``point_times``.
        twist: How the sensor moved.
    """
    return points if sweep.compensated or times_s is None else deskew(points, times_s, twist)


def twist_at(sweeps: Sequence[Sweep], i: int) -> Twist:
    """How the sensor moved during sweep ``i``, by the poses of its neighbours in time."""
    near = sweeps[max(i - 1, 0) : i + 2]
    times_s = 1e-6 * np.array([sweep.timestamp_us - sweeps[i].timestamp_us for sweep in near])
    return twist_of(np.stack([sweep.world_SE3_sensor for sweep in near]), times_s, min(i, 1))


def scene_sha256(scene: Scene, n_points: Sequence[int]) -> bytes:
    """Hash of the sweeps and tracks of a scene: what labels and poses depend on, but for what is in the files.

    Args:
        scene: The scene.
        n_points: Of each sweep, from ``survey``.
    """
    digest = hashlib.sha256(f"{scene.dataset} {scene.token}".encode())
    for sweep, n in zip(scene.sweeps, n_points):
        digest.update(f"{sweep.token} {sweep.timestamp_us} {sweep.n_features} {sweep.ego_crops} {n}".encode())
        digest.update(f"{sweep.format} {sweep.timing} {sweep.compensated}".encode() + sweep.world_SE3_sensor.tobytes())
    for track in scene.tracks:
        digest.update(f"{track.token} {track.category}".encode())
        for box in track.boxes:
            digest.update(f"{box.timestamp_us}".encode() + box.world_SE3_box.tobytes() + box.size_lwh_m.tobytes())
    return digest.digest()


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
