"""What every dataset is read into: scenes of sweeps, camera frames and tracks.

The dataclasses are plain and small, so that a scene can be sent to a worker that has neither devkit nor tables.
Arrays in them are read-only by convention. Times are int64 microseconds, lengths metres, transforms 4x4 float64.
"""

import bisect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from dense_depth import InputError
from dense_depth.geometry import SE3, interpolate

DatasetName = Literal["nuscenes", "kitti-raw"]


@dataclass(frozen=True)
class Sweep:
    """One LiDAR revolution.

    Attributes:
        token: Identifies the sweep within the dataset.
        path: The point file.
        n_features: float32 values per point in the file; the first three are x, y, z in the sensor frame.
        timestamp_us: Time of the sweep.
        world_SE3_sensor: Sensor pose at that time.
    """

    token: str
    path: Path
    n_features: int
    timestamp_us: int
    world_SE3_sensor: SE3


@dataclass(frozen=True)
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


@dataclass(frozen=True)
class Box:
    """An object at one instant: x forward, y left, z up from the box centre.

    Attributes:
        timestamp_us: The instant.
        world_SE3_box: Pose of the box centre.
        size_lwh_m: Length (x), width (y) and height (z).
    """

    timestamp_us: int
    world_SE3_box: SE3
    size_lwh_m: np.ndarray


@dataclass(frozen=True)
class Track:
    """The boxes of one object, ordered by time."""

    token: str
    category: str
    boxes: tuple[Box, ...]

    @cached_property
    def _times_us(self) -> list[int]:
        return [box.timestamp_us for box in self.boxes]

    def box_at(self, timestamp_us: int, extrapolate_s: float = 0.0) -> Box | None:
        """The box at any time, interpolated in SE3 between its two neighbours.

        Up to ``extrapolate_s`` before the first or after the last box, the nearest two boxes are continued at
        constant velocity (a single box stays where it is). Returns None further out: nobody knows where it was.
        """
        margin_us = round(extrapolate_s * 1e6)
        if not self._times_us[0] - margin_us <= timestamp_us <= self._times_us[-1] + margin_us:
            return None
        if len(self.boxes) == 1:
            return Box(timestamp_us, self.boxes[0].world_SE3_box, self.boxes[0].size_lwh_m)
        right = min(max(bisect.bisect_left(self._times_us, timestamp_us), 1), len(self.boxes) - 1)
        a, b = self.boxes[right - 1], self.boxes[right]
        alpha = (timestamp_us - a.timestamp_us) / (b.timestamp_us - a.timestamp_us)
        size = a.size_lwh_m + min(max(alpha, 0.0), 1.0) * (b.size_lwh_m - a.size_lwh_m)
        return Box(timestamp_us, interpolate(a.world_SE3_box, b.world_SE3_box, alpha), size)

    @cached_property
    def travel_m(self) -> float:
        """Greatest distance of the object's centre from where it was first seen."""
        centres = np.array([box.world_SE3_box[:3, 3] for box in self.boxes])
        return float(np.linalg.norm(centres - centres[0], axis=1).max())


@dataclass(frozen=True)
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
    """

    dataset: str
    token: str
    name: str
    sweeps: tuple[Sweep, ...]
    frames: tuple[CameraFrame, ...]
    tracks: tuple[Track, ...]
    notes: tuple[str, ...] = ()

    @property
    def cameras(self) -> tuple[str, ...]:
        """Camera names, sorted."""
        return tuple(sorted({frame.camera for frame in self.frames}))

    def frames_of(self, camera: str) -> tuple[CameraFrame, ...]:
        """The frames of one camera, ordered by time."""
        return tuple(frame for frame in self.frames if frame.camera == camera)


class Dataset(Protocol):
    """A dataset on disk."""

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Names of all scenes."""

    def scenes(self, names: Sequence[str] = ()) -> Iterator[Scene]:
        """Reads the scenes with these names (or the scenes of a split with that name), or all of them.

        Raises:
            InputError: A name is unknown, a table row or file is missing, or a calibration is broken.
        """


def open_dataset(
    name: DatasetName,
    dataroot: str | Path,
    version: str | None = None,
    cameras: Sequence[str] = (),
    poses: str | Path | None = None,
    tracks: str | Path | None = None,
) -> Dataset:
    """Opens a dataset by its format.

    Args:
        name: ``nuscenes`` or ``kitti-raw``.
        dataroot: The folder that holds ``samples`` and the table folder (nuScenes), or the date folders (KITTI).
        version: Table folder of nuScenes, such as ``v1.0-mini``.
        cameras: Cameras to read; all when empty.
        poses: kitti-raw only: a file of 3x4 world_SE3_cam0rect rows, one per frame, used in place of OXTS.
        tracks: kitti-raw only: a KITTI tracking label file, used in place of ``tracklet_labels.xml``.

    Raises:
        InputError: The folder or an option does not fit the format.
    """
    root = Path(dataroot)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; pass the dataset's root as --dataroot")
    if name == "nuscenes":
        from dense_depth.datasets.nuscenes import NuScenesDataset

        if poses or tracks:
            raise InputError("--poses and --tracks are for kitti-raw; nuScenes has its own")
        return NuScenesDataset(root, version or "v1.0-trainval", cameras)
    if name == "kitti-raw":
        from dense_depth.datasets.kitti import KittiRawDataset

        if version:
            raise InputError("--version is for nuscenes; kitti-raw has none")
        return KittiRawDataset(root, cameras, Path(poses) if poses else None, Path(tracks) if tracks else None)
    raise InputError(f"--dataset {name}: not known; use nuscenes or kitti-raw")
