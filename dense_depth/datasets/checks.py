"""What every reader checks of what it reads: cameras, calibrations, poses."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from dense_depth import InputError

MAX_SPEED_MPS = 60.0


def check_cameras(cameras: Sequence[str], available: Collection[str], where: Path) -> None:
    """Raises InputError for a camera that is not there."""
    for camera in cameras:
        if camera not in available:
            raise InputError(f"camera {camera}: not in {where}; there are {', '.join(sorted(available))}")


def some_of(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def check_intrinsics(K: np.ndarray, width: int, height: int, what: str) -> None:
    """Refuses a K that no pinhole camera with this image size has; a transposed one is the common mistake.

    Raises:
        InputError: K is not [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0 and (cx, cy) in the image.
    """
    if K.shape != (3, 3) or not np.isfinite(K).all() or K[1, 0] != 0 or K[2].tolist() != [0, 0, 1]:
        raise InputError(f"{what}: K is not of the form [[fx, s, cx], [0, fy, cy], [0, 0, 1]]; is it transposed?")
    if K[0, 0] <= 0 or K[1, 1] <= 0:
        raise InputError(f"{what}: the focal lengths of K are {K[0, 0]:g} and {K[1, 1]:g}; both must be positive")
    if not (0 <= K[0, 2] <= width and 0 <= K[1, 2] <= height):
        raise InputError(
            f"{what}: the principal point ({K[0, 2]:g}, {K[1, 2]:g}) is outside the {width}x{height} image"
        )


def check_upright(up_z: np.ndarray, names: Sequence[str], max_tilt_deg: float) -> None:
    """Refuses poses whose up axis leans: a unit quaternion in xyzw order is still a rotation, but a wild one.

    Args:
        up_z: (n,) the vertical part of each unit up axis.
        names: What to name in the message, one per pose.
        max_tilt_deg: Largest angle to the vertical.

    Raises:
        InputError: A pose leans more.
    """
    wrong = np.flatnonzero(up_z < np.cos(np.radians(max_tilt_deg)))
    if len(wrong):
        tilt_deg = np.degrees(np.arccos(np.clip(up_z[wrong[0]], -1, 1)))
        raise InputError(
            f"{names[wrong[0]]}: the up axis is {tilt_deg:.0f} degrees from the vertical, more than "
            f"{max_tilt_deg:g}; is the rotation in another order (quaternions are wxyz) or transposed?"
        )


def check_speed(timestamps_us: Sequence[int], positions: np.ndarray, names: Sequence[str]) -> None:
    """Refuses a trajectory that jumps.

    Args:
        timestamps_us: n increasing times.
        positions: (n, 3) places in metres.
        names: What to name in the message, one per place.

    Raises:
        InputError: Two successive places are further apart than ``MAX_SPEED_MPS`` allows.
    """
    speed_mps = np.linalg.norm(np.diff(positions, axis=0), axis=1) / (np.diff(timestamps_us) * 1e-6)
    wrong = np.flatnonzero(speed_mps >= MAX_SPEED_MPS)
    if len(wrong):
        raise InputError(
            f"{names[wrong[0] + 1]}: the pose jumps: {speed_mps[wrong[0]]:.0f} m/s from the one before, "
            f"more than {MAX_SPEED_MPS:g}; check its translation and timestamp"
        )
