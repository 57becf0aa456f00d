"""What every reader does with what it reads: checks of cameras, calibrations and poses, and parts of long drives."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dense_depth import InputError
from dense_depth.datasets.scene import Scene

MAX_SPEED_MPS = 60.0

# A worker holds the labels of one camera of a scene, 10 bytes per labelled pixel: 1 GB if a method fills every pixel.
PART_PIXELS = 100_000_000
PART_KEYFRAMES = 200  # a worker holds the sweeps of a scene, too: at 10 Hz with the margins 0.4 GB of 64 beams
PART_MARGIN_US = 5_000_000  # sweeps and boxes of a part reach this far beyond its keyframes


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


def part_names(name: str, n_keyframes: int, image_pixels: int) -> list[str]:
    """Names of the scenes that a drive becomes: its own, or ``<name>.000``, ``<name>.001``, ... of a long one.

    Args:
        name: The drive.
        n_keyframes: How many it has.
        image_pixels: Pixels of the dataset's largest image, whatever cameras are read: names do not depend on that.
    """
    size = _part_keyframes(image_pixels)
    return [name] if n_keyframes <= size else [f"{name}.{i:03d}" for i in range(-(-n_keyframes // size))]


def split_drive(drive: Scene, image_pixels: int) -> Iterator[Scene]:
    """Cuts a drive into the scenes that ``part_names`` names, each small enough for the memory of a worker."""
    names = part_names(drive.name, len(drive.keyframes), image_pixels)
    if len(names) == 1:
        yield drive
        return
    size = _part_keyframes(image_pixels)
    for i, name in enumerate(names):
        keyframes = drive.keyframes[i * size : (i + 1) * size]
        tokens = {keyframe.sample_token for keyframe in keyframes}
        first_us, last_us = keyframes[0].timestamp_us - PART_MARGIN_US, keyframes[-1].timestamp_us + PART_MARGIN_US
        near = (
            replace(track, boxes=tuple(box for box in track.boxes if first_us <= box.timestamp_us <= last_us))
            for track in drive.tracks
        )
        yield replace(
            drive,
            token=name,
            name=name,
            sweeps=tuple(sweep for sweep in drive.sweeps if first_us <= sweep.timestamp_us <= last_us),
            frames=tuple(frame for frame in drive.frames if frame.sample_token in tokens),
            tracks=tuple(track for track in near if track.boxes),
            keyframes=keyframes,
        )


def _part_keyframes(image_pixels: int) -> int:
    return min(max(PART_PIXELS // image_pixels, 1), PART_KEYFRAMES)
