"""What every dataset is read into: scenes of sweeps, camera frames and tracks.

The dataclasses are plain and small, so that a scene can be sent to a worker that has neither devkit nor tables.
Arrays in them are read-only by convention. Times are int64 microseconds, lengths metres, transforms 4x4 float64.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dense_depth.geometry import SE3, quaternion_from_rotation, rotation_from_quaternion, se3, slerp


class Crop(NamedTuple):
    """A part of the space around a sensor, in its frame: what lies strictly between all of these.

    Attributes:
        x_m: Lowest and highest x.
        y_m: Lowest and highest y.
        z_m: Lowest and highest z.
    """

    x_m: tuple[float, float]
    y_m: tuple[float, float]
    z_m: tuple[float, float] = (-np.inf, np.inf)


@dataclass(frozen=True, eq=False)
class Sweep:
    """One LiDAR revolution.

    Attributes:
        token: Identifies the sweep within the dataset.
        path: The point file.
        n_features: Values per point in the file; the first three are x, y, z in the sensor frame.
        timestamp_us: Time of the sweep.
        world_SE3_sensor: Sensor pose at that time.
        ego_crops: Points in one of these lie on the ego vehicle.
        format: How the file holds its points, see ``dense_depth.sweeps.FORMATS``.
    """

    token: str
    path: Path
    n_features: int
    timestamp_us: int
    world_SE3_sensor: SE3
    ego_crops: tuple[Crop, ...]
    format: str = "float32"


@dataclass(frozen=True, eq=False)
class CameraFrame:
    """One image of a keyframe.

    Attributes:
        sample_token: The keyframe.
        camera: Channel name, such as CAM_FRONT or image_02.
        path: The image file.
        timestamp_us: Time of exposure.
        width: Image width in pixels.
        height: Image height in pixels.
        K: 3x3 intrinsics; integer coordinates are pixel centres.
        world_SE3_cam: Camera pose at the time of exposure.
        key_sweep: Token of the sweep that belongs to the keyframe.
    """

    sample_token: str
    camera: str
    path: Path
    timestamp_us: int
    width: int
    height: int
    K: np.ndarray
    world_SE3_cam: SE3
    key_sweep: str


@dataclass(frozen=True, eq=False)
class Box:
    """An object at one instant: x forward, y left, z up from the box centre.

    Attributes:
        timestamp_us: The instant.
        world_SE3_box: Pose of the box centre.
        size_lwh_m: Length (x), width (y) and height (z).
        velocity_mps: (3,) of the centre in the world frame, NaN where it is not known; None for a box that was not
            annotated but interpolated.
        n_points: LiDAR and radar points in an annotated box; None where the dataset does not say.
        attribute: What the object does, in the dataset's words, such as ``vehicle.parked``; may be empty.
    """

    timestamp_us: int
    world_SE3_box: SE3
    size_lwh_m: np.ndarray
    velocity_mps: np.ndarray | None = None
    n_points: int | None = None
    attribute: str = ""


@dataclass(frozen=True, eq=False)
class Track:
    """The boxes of one object, ordered by time."""

    token: str
    category: str
    boxes: tuple[Box, ...]

    def box_at(self, timestamp_us: int, extrapolate_s: float = 0.0) -> Box | None:
        """The box at any time: see ``boxes_at``."""
        return boxes_at([self], timestamp_us, extrapolate_s)[0]

    @cached_property
    def times_us(self) -> list[int]:
        """Times of the boxes."""
        return [box.timestamp_us for box in self.boxes]

    @cached_property
    def quaternions(self) -> Float[np.ndarray, "boxes 4"]:
        """Rotations world_SE3_box of the boxes."""
        return quaternion_from_rotation(np.stack([box.world_SE3_box[:3, :3] for box in self.boxes]))

    @cached_property
    def travel_m(self) -> float:
        """Greatest distance of the object's centre from where it was first seen."""
        centres = np.array([box.world_SE3_box[:3, 3] for box in self.boxes])
        return float(np.linalg.norm(centres - centres[0], axis=1).max())


def boxes_at(tracks: Sequence[Track], timestamp_us: int, extrapolate_s: float = 0.0) -> list[Box | None]:
    """The box of each track at any time, interpolated in SE3 between its two neighbours.

    Up to ``extrapolate_s`` before the first or after the last box, the nearest two boxes are continued at constant
    velocity (a single box stays where it is). None further out: nobody knows where the object was.
    """
    margin_us = round(extrapolate_s * 1e6)
    boxes: list[Box | None] = [None] * len(tracks)
    known, neighbours, alphas = [], [], []
    for i, track in enumerate(tracks):
        times = track.times_us
        if not times[0] - margin_us <= timestamp_us <= times[-1] + margin_us:
            continue
        if len(times) == 1:
            boxes[i] = Box(timestamp_us, track.boxes[0].world_SE3_box, track.boxes[0].size_lwh_m)
            continue
        right = min(max(bisect.bisect_left(times, timestamp_us), 1), len(times) - 1)
        known.append(i)
        neighbours.append((right - 1, right))
        alphas.append((timestamp_us - times[right - 1]) / (times[right] - times[right - 1]))
    if not known:
        return boxes
    alpha = np.array(alphas)
    ends = [(tracks[i], a, b) for i, (a, b) in zip(known, neighbours)]
    rotation = rotation_from_quaternion(
        slerp(
            np.stack([track.quaternions[a] for track, a, _ in ends]),
            np.stack([track.quaternions[b] for track, _, b in ends]),
            alpha,
        )
    )
    for k, (track, a, b) in enumerate(ends):
        first, second = track.boxes[a], track.boxes[b]
        centre = (1 - alpha[k]) * first.world_SE3_box[:3, 3] + alpha[k] * second.world_SE3_box[:3, 3]
        nearest = second if alpha[k] > 0.5 else first
        boxes[known[k]] = Box(timestamp_us, se3(rotation[k], centre), nearest.size_lwh_m)
    return boxes


def box_velocities(
    timestamps_us: Sequence[int], centres: Float[np.ndarray, "boxes 3"], max_gap_s: float = 1.5
) -> Float[np.ndarray, "boxes 3"]:
    """Velocities of one object in m/s from the places of its boxes, as nuScenes' devkit defines them.

    The difference of both neighbours in time, or to the one neighbour of an end. NaN for a single box and where
    neighbours are further apart than ``max_gap_s`` per step.
    """
    n = len(timestamps_us)
    first, last = np.maximum(np.arange(n) - 1, 0), np.minimum(np.arange(n) + 1, n - 1)
    times_s = 1e-6 * np.asarray(timestamps_us)
    gaps_s = times_s[last] - times_s[first]
    known = (gaps_s > 0) & (gaps_s <= max_gap_s * (last - first))
    return np.where(known[:, None], (centres[last] - centres[first]) / np.where(known, gaps_s, 1.0)[:, None], np.nan)


@dataclass(frozen=True, eq=False)
class Keyframe:
    """An annotated instant.

    Attributes:
        sample_token: Identifies it; its camera frames name it.
        timestamp_us: The time of its boxes.
        world_SE3_ego: Pose of the vehicle, x forward, y left, z up, at the time of the key sweep. nuScenes: the ego
            pose of LIDAR_TOP; KITTI: the LiDAR itself.
        track_tokens: The tracks that have a box here, in the dataset's order of annotations.
    """

    sample_token: str
    timestamp_us: int
    world_SE3_ego: SE3
    track_tokens: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Scene:
    """One continuous drive.

    Attributes:
        dataset: Name of the dataset format.
        token: Identifies the scene; safe as a file name.
        name: What a user calls it on the command line.
        sweeps: Ordered by (timestamp, token).
        frames: Every camera frame of every keyframe, ordered by (camera, timestamp).
        tracks: Annotated objects, ordered by token.
        notes: What the reader left out or found odd, one line each.
        keyframes: The annotated instants, ordered by time.
    """

    dataset: str
    token: str
    name: str
    sweeps: tuple[Sweep, ...]
    frames: tuple[CameraFrame, ...]
    tracks: tuple[Track, ...]
    notes: tuple[str, ...] = ()
    keyframes: tuple[Keyframe, ...] = ()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names, sorted."""
        return tuple(sorted({frame.camera for frame in self.frames}))

    def frames_of(self, camera: str) -> tuple[CameraFrame, ...]:
        """The frames of one camera, ordered by time."""
        return tuple(frame for frame in self.frames if frame.camera == camera)

    def boxes_of(self, keyframe: Keyframe) -> list[tuple[Track, Box]]:
        """The annotated boxes of a keyframe, each with its track, in the dataset's order of annotations."""
        tracks = [self._track_of[token] for token in keyframe.track_tokens]
        return [(track, track.boxes[bisect.bisect_left(track.times_us, keyframe.timestamp_us)]) for track in tracks]

    @cached_property
    def _track_of(self) -> dict[str, Track]:
        return {track.token: track for track in self.tracks}
