"""What every reader does with what it reads: checks of cameras, calibrations and poses, and parts of long drives."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from dense_depth import InputError
from dense_depth.datasets.scene import Scene
from dense_depth.geometry import invert

MAX_SPEED_MPS = 60.0

MOVING_MPS = 3.0  # slower, GPS noise of 0.1 m would turn the direction of a step
MIN_MOVING = 5  # fewer steps say nothing
# Vehicles go along their x axis: every step in recordings of nuScenes, KITTI and PandaSet lies within 9 degrees of it.
# Poses that are inverted or transposed, and quaternions in xyzw order, turn the median step by 38 degrees or more.
HEADING_STEP_US = 500_000
MAX_SIDEWAYS_DEG = 30.0
MAX_REVERSE_MPS = 10.0  # no reverse gear goes faster
# How far poses may be from the dataset's own, by medians over steps of a second, before a note and before a refusal.
# ORB-SLAM3's and GPS/IMU's are 2 degrees apart in direction, 6 % in length and 0.12 degrees in rotation, of which one
# degree moves a point at 30 m by 0.5 m.
COMPARED_STEP_US = 1_000_000
DIRECTION_DEG = (6.0, 20.0)
STRETCH = (1.1, 1.25)
ROTATION_DEG = (0.3, 1.0)

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


def check_heading(timestamps_us: Sequence[int], world_SE3_vehicle: Float[np.ndarray, "n 4 4"], what: str) -> list[str]:
    """Refuses poses of a vehicle that goes sideways: inverted, transposed, or with an axis that does not look ahead.

    Args:
        timestamps_us: n increasing times.
        world_SE3_vehicle: Poses then, x forward.
        what: What to name in the message.

    Returns:
        A note if the vehicle mostly goes backwards.

    Raises:
        InputError: It goes sideways, or faster backwards than vehicles do, most of the time that it moves.
    """
    first, last = _steps(timestamps_us, HEADING_STEP_US)
    step_m = (invert(world_SE3_vehicle[first]) @ world_SE3_vehicle[last])[:, :3, 3]
    length_m = np.linalg.norm(step_m, axis=1)
    speed_mps = length_m / (np.asarray(timestamps_us)[last] - np.asarray(timestamps_us)[first]) * 1e6
    moving = speed_mps > MOVING_MPS
    if moving.sum() < MIN_MOVING:
        return []
    ahead = step_m[moving, 0] / length_m[moving]
    angle_deg = np.degrees(np.arccos(np.clip(np.median(ahead), -1, 1)))
    if np.mean(np.abs(ahead) < np.cos(np.radians(MAX_SIDEWAYS_DEG))) > 0.5:
        raise InputError(
            f"{what}: the vehicle mostly goes sideways, {angle_deg:.0f} degrees from the x axis of its poses, which "
            "must look forward; are they inverted, transposed, or their quaternions not wxyz?"
        )
    backwards = ahead < 0
    fast = speed_mps[moving] > MAX_REVERSE_MPS
    if fast.sum() >= MIN_MOVING and backwards[fast].mean() > 0.5:
        fast_mps = np.median(speed_mps[moving][fast])
        raise InputError(
            f"{what}: the vehicle goes backwards at {fast_mps:.0f} m/s; are its poses inverted, or their quaternions "
            "not wxyz?"
        )
    if backwards.mean() > 0.5:
        return [f"{what}: the vehicle mostly goes backwards; if it did not, its poses are wrong"]
    return []


def compare_poses(
    timestamps_us: Sequence[int],
    world_SE3_sensor: Float[np.ndarray, "n 4 4"],
    reference_SE3_sensor: Float[np.ndarray, "n 4 4"],
    what: str,
    reference: str,
) -> list[str]:
    """Compares the motions of a sensor, second by second, with those by other poses, whose world may be another.

    Args:
        timestamps_us: n increasing times.
        world_SE3_sensor: The poses to judge.
        reference_SE3_sensor: What to judge them by.
        what: What to name in the message.
        reference: Where the reference comes from.

    Returns:
        A note if they differ more than good poses do.

    Raises:
        InputError: They differ so much that one of the two is wrong.
    """
    first, last = _steps(timestamps_us, COMPARED_STEP_US)
    if not len(first):
        return []
    a, b = (invert(poses[first]) @ poses[last] for poses in (world_SE3_sensor, reference_SE3_sensor))
    trace = np.trace(np.swapaxes(a[:, :3, :3], 1, 2) @ b[:, :3, :3], axis1=1, axis2=2)
    rotation_deg = np.degrees(np.median(np.arccos(np.clip((trace - 1) / 2, -1, 1))))
    differences = [f"turn {rotation_deg:.1f} degrees otherwise"]
    beyond = np.array([rotation_deg > limit for limit in ROTATION_DEG])

    length_a, length_b = np.linalg.norm(a[:, :3, 3], axis=1), np.linalg.norm(b[:, :3, 3], axis=1)
    moving = length_b > MOVING_MPS * COMPARED_STEP_US * 1e-6
    if moving.sum() >= MIN_MOVING:
        cosine = (a[:, :3, 3] * b[:, :3, 3]).sum(1)[moving] / np.maximum(length_a * length_b, 1e-9)[moving]
        direction_deg = np.degrees(np.median(np.arccos(np.clip(cosine, -1, 1))))
        ratio = np.median(length_a[moving] / length_b[moving])
        differences += [f"go {direction_deg:.0f} degrees beside", f"are {ratio:.2f} times as long"]
        beyond |= [direction_deg > limit for limit in DIRECTION_DEG]
        beyond |= [not 1 / limit <= ratio <= limit for limit in STRETCH]
    noted, refused = beyond
    message = f"{what}: motions over a second {', '.join(differences)}, compared with {reference}"
    if refused:
        raise InputError(
            f"{message}; are these poses inverted, scaled, late, or of another frame or drive? "
            "If the others are the wrong ones, move those away"
        )
    return [f"{message}; good poses differ less"] if noted else []


def _steps(timestamps_us: Sequence[int], step_us: int) -> tuple[Int[np.ndarray, " steps"], Int[np.ndarray, " steps"]]:
    """Indices of the first and the last of two times about ``step_us`` apart, at most half as long again."""
    times_us = np.asarray(timestamps_us)
    last = np.searchsorted(times_us, times_us + round(0.9 * step_us))
    first = np.flatnonzero(last < len(times_us))
    last = last[first]
    near = times_us[last] - times_us[first] <= 1.5 * step_us
    return first[near], last[near]


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
