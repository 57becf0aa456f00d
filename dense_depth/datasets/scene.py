"""What every dataset is read into: scenes of sweeps, camera frames and tracks.

The dataclasses are plain and small, so that a scene can be sent to a worker that has neither devkit nor tables.
Arrays in them are read-only by convention. Times are int64 microseconds, lengths metres, transforms 4x4 float64.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from dense_depth.geometry import SE3, quaternion_from_rotation, rotation_from_quaternion, slerp


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


class Timing(NamedTuple):
    """When the points of a sweep were measured.

    Attributes:
        rule: "order": evenly from start to end, in the order of the file. "azimuth": evenly by direction in the sensor
            frame, for files in another order. "column": the file says it. "none": nobody knows, so all at the sweep's
            timestamp.
        start_s: First point of the revolution, in seconds from the sweep's timestamp.
        end_s: Its last point.
        first_azimuth: Rule "azimuth": direction of the first point, in radians from x towards y.
        clockwise: Rule "azimuth": whether the azimuth falls with time.
        column: Rule "column": which value of a point is its time in seconds from the sweep's timestamp.
    """

    rule: Literal["order", "azimuth", "column", "none"] = "none"
    start_s: float = 0.0
    end_s: float = 0.0
    first_azimuth: float = 0.0
    clockwise: bool = True
    column: int = -1


UNTIMED = Timing()


def revolution_s(timestamps_us: Sequence[int], default_s: float) -> float:
    """Duration of a revolution: the median gap between sweeps, or the default for fewer than two."""
    return float(np.median(np.diff(timestamps_us))) * 1e-6 if len(timestamps_us) > 1 else default_s


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
        timing: When each point was measured.
        compensated: Whether the points are free of the sensor's own motion: where the sensor would have seen them at
            the sweep's timestamp. Else each is in the frame of the sensor at its own time.
    """

    token: str
    path: Path
    n_features: int
    timestamp_us: int
    world_SE3_sensor: SE3
    ego_crops: tuple[Crop, ...]
    format: str = "float32"
    timing: Timing = UNTIMED
    compensated: bool = True


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
        sensor_SE3_cam: Where the camera is mounted, seen from the LiDAR; None where nobody knows.
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
    sensor_SE3_cam: SE3 | None = None


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
    def centres(self) -> Float[np.ndarray, "boxes 3"]:
        """Centres of the boxes in the world."""
        return np.array([box.world_SE3_box[:3, 3] for box in self.boxes])

    @cached_property
    def travel_m(self) -> float:
        """Greatest distance of the object's centre from where it was first seen."""
        return float(np.linalg.norm(self.centres - self.centres[0], axis=1).max())


def boxes_at(tracks: Sequence[Track], timestamp_us: int, extrapolate_s: float = 0.0) -> list[Box | None]:
    """The box of each track at a time, None where nobody knows it: see ``poses_at``."""
    poses, sizes, known = (values[0] for values in poses_at(tracks, [timestamp_us], extrapolate_s))
    return [Box(timestamp_us, *box) if is_known else None for *box, is_known in zip(poses, sizes, known)]


def poses_at(
    tracks: Sequence[Track], timestamps_us: 'Sequence[int] | Int[np.ndarray, " times"]', extrapolate_s: float = 0.0
) -> tuple[
    Float[np.ndarray, "times tracks 4 4"], Float[np.ndarray, "times tracks 3"], Bool[np.ndarray, "times tracks"]
]:
    """Where each track is at each time: see ``TrackTable``.

    Returns:
        world_SE3_box; the length, width and height; and whether they are known, which they are up to ``extrapolate_s``
        before the first and after the last box. Where they are not, they mean nothing.
    """
    table, n, m = TrackTable(tracks), len(timestamps_us), len(tracks)
    times_us, which = np.repeat(np.asarray(timestamps_us, np.int64), m), np.tile(np.arange(m), n)
    poses, sizes = table.at(times_us, which)
    known = table.beyond_us(times_us, which) <= round(extrapolate_s * 1e6)
    return poses.reshape(n, m, 4, 4), sizes.reshape(n, m, 3), known.reshape(n, m)


class TrackTable:
    """The boxes of many tracks in one table, which tells where they are at any time."""

    def __init__(self, tracks: Sequence[Track]) -> None:
        """Copies the boxes."""
        self._n_boxes = np.array([len(track.boxes) for track in tracks], np.int64)
        self._first = np.cumsum(self._n_boxes) - self._n_boxes
        empty = np.empty((0, 4))
        self._times_us = np.concatenate([np.empty(0, np.int64), *(track.times_us for track in tracks)])
        self._quaternions = np.concatenate([empty, *(track.quaternions for track in tracks)])
        self._centres = np.concatenate([empty[:, :3], *(track.centres for track in tracks)])
        self._sizes = np.array([box.size_lwh_m for track in tracks for box in track.boxes]).reshape(-1, 3)
        # One sorted list for all tracks: the index of the track, then the time.
        self._start_us, self._span_us = 0, 1
        if len(self._times_us):
            self._start_us, self._span_us = int(self._times_us.min()), int(np.ptp(self._times_us)) + 1
        self._keys = self._key(self._times_us, np.repeat(np.arange(len(tracks)), self._n_boxes))

    def __len__(self) -> int:
        """How many tracks there are."""
        return len(self._n_boxes)

    def _key(self, times_us: Int[np.ndarray, " n"], tracks: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        return tracks * self._span_us + np.clip(times_us - self._start_us, 0, self._span_us - 1)

    def at(
        self, times_us: Int[np.ndarray, " n"], tracks: Int[np.ndarray, " n"]
    ) -> tuple[Float[np.ndarray, "n 4 4"], Float[np.ndarray, "n 3"]]:
        """Poses of tracks, interpolated in SE3 between the two neighbouring boxes.

        Before the first and after the last box, the nearest two boxes are continued at constant velocity (a single box
        stays where it is).

        Args:
            times_us: A time for each.
            tracks: Indices of the tracks.

        Returns:
            world_SE3_box; length, width and height of the nearer box.
        """
        left, right, alpha = self._neighbours(times_us, tracks)
        poses = np.zeros((len(alpha), 4, 4))
        poses[:, :3, :3] = rotation_from_quaternion(slerp(self._quaternions[left], self._quaternions[right], alpha))
        poses[:, :3, 3] = (1 - alpha)[:, None] * self._centres[left] + alpha[:, None] * self._centres[right]
        poses[:, 3, 3] = 1.0
        return poses, self._sizes[np.where(alpha > 0.5, right, left)]

    def centres_at(self, times_us: Int[np.ndarray, " n"], tracks: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
        """The places of ``at``, for a fraction of its time."""
        left, right, alpha = self._neighbours(times_us, tracks)
        return (1 - alpha)[:, None] * self._centres[left] + alpha[:, None] * self._centres[right]

    def _neighbours(
        self, times_us: Int[np.ndarray, " n"], tracks: Int[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Indices of two boxes, and the fraction of the way between them."""
        first, last = self._first[tracks], self._first[tracks] + self._n_boxes[tracks] - 1
        right = np.clip(np.searchsorted(self._keys, self._key(times_us, tracks)), np.minimum(first + 1, last), last)
        left = np.maximum(right - 1, first)
        gap_us = self._times_us[right] - self._times_us[left]
        return left, right, np.where(gap_us > 0, (times_us - self._times_us[left]) / np.maximum(gap_us, 1), 0.0)

    def beyond_us(self, times_us: Int[np.ndarray, " n"], tracks: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
        """How far times lie before the first or after the last box of tracks; 0 between them."""
        first, last = self._first[tracks], self._first[tracks] + self._n_boxes[tracks] - 1
        return np.maximum(np.maximum(self._times_us[first] - times_us, times_us - self._times_us[last]), 0)


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
        rough_poses: Whether the poses are of a kind that is known to bend the static world: without heights, or of
            GPS and IMU alone.
    """

    dataset: str
    token: str
    name: str
    sweeps: tuple[Sweep, ...]
    frames: tuple[CameraFrame, ...]
    tracks: tuple[Track, ...]
    notes: tuple[str, ...] = ()
    keyframes: tuple[Keyframe, ...] = ()
    rough_poses: bool = False

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
