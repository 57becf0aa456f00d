"""Point files of sweeps: reading, counting, and a survey of many."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dense_depth import InputError
from dense_depth.datasets.scene import Sweep


def count_points(sweep: Sweep) -> int:
    """How many points a sweep file holds, by its size alone.

    Raises:
        InputError: The file is missing, empty, or does not hold whole points.
    """
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


def survey(sweeps: Sequence[Sweep], drop_bad: bool) -> tuple[list[int], dict[str, str]]:
    """Points of each sweep by file size, 0 for a bad one, and the errors of the bad ones by token.

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


def read_sweep(sweep: Sweep) -> Float[np.ndarray, "n features"]:
    """Reads the points of a sweep in its sensor frame; raises InputError as ``count_points`` does."""
    count_points(sweep)
    return np.fromfile(sweep.path, np.float32).reshape(-1, sweep.n_features)
