"""KITTI raw in its own folder layout: ``<root>/<date>/<date>_drive_<NNNN>_sync`` and ``<root>/<date>/calib_*.txt``.

A frame index is one instant: all its sensors get one time and one pose, as in KITTI's own development kit, because the
recording triggers the cameras by the LiDAR and the clocks only differ by a constant 10-15 ms. The time is that of
``velodyne_points/timestamps.txt``, in whole microseconds, taken as UTC.
Format: Geiger et al., "Vision meets Robotics: The KITTI Dataset", 2013, and the readme of its development kit.
"""

import calendar
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from scipy.spatial.transform import Rotation

from dense_depth import InputError
from dense_depth.datasets import base
from dense_depth.datasets.base import Box, CameraFrame, Scene, Sweep, Track
from dense_depth.geometry import SE3, invert, is_rotation, se3

EARTH_RADIUS_M = 6378137.0
SCENE_KEYFRAMES = 200  # a shard holds a whole scene in memory, so longer drives are split
SCENE_MARGIN_US = 5_000_000  # sweeps of a part reach this far beyond its keyframes
MAX_TILT_DEG = 30.0


class KittiRawDataset:
    """A folder of KITTI raw drives; implements ``Dataset``."""

    def __init__(self, dataroot: Path, cameras: Sequence[str], poses: Path | None, tracks: Path | None) -> None:
        """Finds the drives.

        Args:
            dataroot: The folder that holds the date folders.
            cameras: Such as ``image_02``; of the two colour cameras those that are there when empty.
            poses: In place of OXTS: rows of 12 numbers world_SE3_cam0rect, one per frame of the one drive to read.
            tracks: In place of ``tracklet_labels.xml``: KITTI tracking labels of the one drive to read.

        Raises:
            InputError: There is no drive, or no drive has a camera.
        """
        folders = sorted(path for path in dataroot.glob("*/*_drive_*_sync") if path.is_dir())
        if not folders:
            raise InputError(f"{dataroot}: no drive; expected folders like <date>/<date>_drive_0001_sync in it")
        self._drives = {folder.name: _Drive(folder, tuple(sorted(set(cameras)))) for folder in folders}
        self._poses, self._tracks = poses, tracks
        available = set().union(*(drive.available for drive in self._drives.values()))
        for camera in cameras:
            if camera not in available:
                raise InputError(f"camera {camera}: not in {dataroot}; there are {', '.join(sorted(available))}")

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Names of all scenes: drive folders, or ``<drive>.000``, ``<drive>.001``, ... of a long drive."""
        return tuple(name for drive in self._drives.values() for name in drive.parts)

    def scenes(self, names: Sequence[str] = ()) -> Iterator[Scene]:
        """Reads the scenes with these names, all scenes of the drives with these names, or everything.

        Raises:
            InputError: A name is unknown, a file is missing or malformed, or a calibration cannot be.
        """
        for name in names:
            if name not in self._drives and name not in self.scene_names:
                shown = ", ".join(self.scene_names[:5]) + (", ..." if len(self.scene_names) > 5 else "")
                raise InputError(f"scene {name}: not known; the {len(self.scene_names)} scenes are {shown}")
        chosen = []
        for drive_name, drive in self._drives.items():
            parts = [part for part in drive.parts if not names or drive_name in names or part in names]
            chosen += [(drive, parts)] if parts else []
        if len(chosen) > 1 and (self._poses or self._tracks):
            raise InputError(f"--poses and --tracks are for one drive; select one of {', '.join(self._drives)}")
        return (scene for drive, parts in chosen for scene in drive.scenes(parts, self._poses, self._tracks))


class _Label(NamedTuple):
    """A box of a label file."""

    track: str
    category: str
    frame: int
    velo_SE3_box: SE3
    size_lwh_m: np.ndarray


@dataclass(frozen=True)
class _Drive:
    folder: Path
    wanted: tuple[str, ...]

    @cached_property
    def available(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("image_0[0-3]"))

    @cached_property
    def cameras(self) -> list[str]:
        return list(self.wanted) or [camera for camera in self.available if camera in ("image_02", "image_03")]

    @cached_property
    def sweeps(self) -> dict[int, Path]:
        return _indexed(self.folder / "velodyne_points" / "data", "bin")

    @cached_property
    def images(self) -> dict[str, dict[int, Path]]:
        return {camera: _indexed(self.folder / camera / "data", "jpg", "png") for camera in self.cameras}

    @cached_property
    def parts(self) -> dict[str, list[int]]:
        """Keyframes, which are frames with a sweep and an image, by scene name."""
        keyframes = sorted(self.sweeps.keys() & set().union(*self.images.values()))
        if len(keyframes) <= SCENE_KEYFRAMES:
            return {self.folder.name: keyframes}
        starts = enumerate(range(0, len(keyframes), SCENE_KEYFRAMES))
        return {f"{self.folder.name}.{i:03d}": keyframes[k : k + SCENE_KEYFRAMES] for i, k in starts}

    def scenes(self, parts: Iterable[str], poses_file: Path | None, tracks_file: Path | None) -> Iterator[Scene]:
        for camera in self.cameras or ["image_02"]:
            if not self.sweeps.keys() & self.images.get(camera, {}).keys():
                raise InputError(f"{self.folder}: no frame has a file in velodyne_points/data and one in {camera}/data")
        times_us = _read_times(self.folder / "velodyne_points" / "timestamps.txt", self.sweeps)
        cam0_SE3_velo = self._cam0_SE3_velo()
        world_SE3_velo = self._world_SE3_velo(cam0_SE3_velo, times_us, poses_file)
        tracks, notes = self._tracks(cam0_SE3_velo, times_us, world_SE3_velo, tracks_file), self._notes()
        if tracks is None:
            notes.append(f"{self.folder.name}: no tracklet_labels.xml, so there are no tracks")
        cameras = [self._camera(camera, cam0_SE3_velo) for camera in self.images]
        token = {frame: f"{self.folder.name}_{frame:010d}" for frame in self.sweeps}
        margin_us = SCENE_MARGIN_US if len(self.parts) > 1 else 1 << 60
        for name in parts:
            keyframes = self.parts[name]
            first_us, last_us = times_us[keyframes[0]] - margin_us, times_us[keyframes[-1]] + margin_us
            sweeps = (
                Sweep(token[i], path, 4, times_us[i], world_SE3_velo[i])
                for i, path in self.sweeps.items()
                if first_us <= times_us[i] <= last_us
            )
            frames = (
                CameraFrame(
                    sample_token=token[i],
                    camera=camera,
                    path=images[i],
                    timestamp_us=times_us[i],
                    width=width,
                    height=height,
                    K=K,
                    world_SE3_cam=world_SE3_velo[i] @ velo_SE3_cam,
                    key_sweep=token[i],
                )
                for (camera, images), (width, height, K, velo_SE3_cam) in zip(self.images.items(), cameras)
                for i in keyframes
                if i in images
            )
            here = (
                replace(track, boxes=boxes)
                for track in tracks or ()
                if (boxes := tuple(box for box in track.boxes if first_us <= box.timestamp_us <= last_us))
            )
            yield Scene("kitti-raw", name, name, tuple(sweeps), tuple(frames), tuple(here), tuple(notes))

    def _world_SE3_velo(self, cam0_SE3_velo: SE3, times_us: dict[int, int], poses_file: Path | None) -> dict[int, SE3]:
        """Sensor poses by frame."""
        source = poses_file or self.folder / "oxts" / "data"
        if poses_file:
            poses = {i: pose @ cam0_SE3_velo for i, pose in _read_poses(poses_file, max(times_us) + 1).items()}
        else:
            imu_SE3_velo = invert(_rigid(self.folder.parent / "calib_imu_to_velo.txt"))
            poses = {i: pose @ imu_SE3_velo for i, pose in _read_oxts(source).items()}
        for i in self.sweeps:
            if i not in poses:
                raise InputError(f"{source}: no pose for frame {i}, which has a sweep")
        places = np.array([poses[i][:3, 3] for i in self.sweeps])
        base.check_speed([times_us[i] for i in self.sweeps], places, [f"{source}, frame {i}" for i in self.sweeps])
        return poses

    def _tracks(
        self, cam0_SE3_velo: SE3, times_us: dict[int, int], poses: dict[int, SE3], tracks_file: Path | None
    ) -> list[Track] | None:
        """Objects of the whole drive, at the frames whose pose is known."""
        path = tracks_file or self.folder / "tracklet_labels.xml"
        if not tracks_file and not path.exists():
            return None
        labels = _read_tracking(path, invert(cam0_SE3_velo)) if tracks_file else _read_tracklets(path)
        boxes: dict[str, list[Box]] = defaultdict(list)
        category: dict[str, str] = {}
        for label in sorted(labels, key=lambda label: (label.track, label.frame)):
            if (label.size_lwh_m <= 0).any():
                raise InputError(f"{path}: {label.track}, frame {label.frame}: a size is not positive")
            if label.frame in times_us and label.frame in poses:
                world_SE3_box = poses[label.frame] @ label.velo_SE3_box
                boxes[label.track].append(Box(times_us[label.frame], world_SE3_box, label.size_lwh_m))
                category.setdefault(label.track, label.category)
        return [Track(track, category[track], tuple(boxes[track])) for track in boxes]

    def _notes(self) -> list[str]:
        notes = []
        for folder, files in {"velodyne_points": self.sweeps, **self.images}.items():
            hole = sorted(set(range(min(files), max(files))) - files.keys())
            if hole:
                notes.append(f"{self.folder.name}: hole: {folder} has no frame {_ranges(hole)}")
        for camera, images in self.images.items():
            alone = sorted(images.keys() - self.sweeps.keys())
            if alone:
                notes.append(f"{self.folder.name}: {camera} frame {_ranges(alone)} left out: there is no sweep")
        return notes

    def _cam0_SE3_velo(self) -> SE3:
        """From the velodyne to the rectified camera 0."""
        path = self.folder.parent / "calib_cam_to_cam.txt"
        velo_to_cam = self.folder.parent / "calib_velo_to_cam.txt"
        cam0_SE3_velo = se3(_rotation(path, "R_rect_00"), np.zeros(3)) @ _rigid(velo_to_cam)
        base.check_upright(-cam0_SE3_velo[1:2, 2], [f"{velo_to_cam}: R"], MAX_TILT_DEG)
        return cam0_SE3_velo

    def _camera(self, camera: str, cam0_SE3_velo: SE3) -> tuple[int, int, np.ndarray, SE3]:
        """Width, height, K and velo_SE3_cam of a rectified camera."""
        path = self.folder.parent / "calib_cam_to_cam.txt"
        number = camera.removeprefix("image_")
        width, height = (int(size) for size in _calib(path, f"S_rect_{number}", (2,)))
        P = _calib(path, f"P_rect_{number}", (3, 4))
        base.check_intrinsics(P[:, :3], width, height, f"{path}: P_rect_{number}")
        image = min(self.images[camera].values())
        if _image_size(image) != (width, height):
            raise InputError(f"{image}: {_image_size(image)} pixels, but S_rect_{number} in {path} is {width, height}")
        # P = K [I | t]: the rectified cameras only differ by a shift.
        cam_SE3_cam0 = se3(np.eye(3), np.linalg.solve(P[:, :3], P[:, 3]))
        return width, height, P[:, :3], invert(cam_SE3_cam0 @ cam0_SE3_velo)


def _indexed(folder: Path, *suffixes: str) -> dict[int, Path]:
    """Frame files by index, in order; of two for one index the last suffix."""
    paths = (path for suffix in suffixes for path in folder.glob(f"*.{suffix}"))
    files = {int(path.stem): path for path in paths if path.stem.isdecimal()}
    return dict(sorted(files.items()))


def _ranges(indices: Sequence[int]) -> str:
    """Such as ``3, 7-9``."""
    runs = groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height from the header."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise InputError(f"{path}: not an image ({error})") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().rstrip().split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _floats(text: str, count: int, where: str) -> np.ndarray:
    """The numbers of a line, which must be finite and ``count``."""
    try:
        values = np.array(text.split(), dtype=np.float64)
    except ValueError:
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        raise InputError(f"{where}: expected {count} finite numbers")
    return values


def _calib(path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    for line in _lines(path):
        name, _, values = line.partition(":")
        if name == key:
            return _floats(values, int(np.prod(shape)), f"{path}: {key}").reshape(shape)
    raise InputError(f"{path}: {key} is missing")


def _rotation(path: Path, key: str) -> np.ndarray:
    rotation = _calib(path, key, (3, 3))
    if not is_rotation(rotation):
        raise InputError(f"{path}: {key} is not a rotation")
    return rotation


def _rigid(path: Path) -> SE3:
    return se3(_rotation(path, "R"), _calib(path, "T", (3,)))


def _read_times(path: Path, needed: Iterable[int]) -> dict[int, int]:
    """Microseconds since the epoch by frame; lines of frames that were not recorded may be empty."""
    times_us: dict[int, int] = {}
    before_us = 0
    for frame, line in enumerate(_lines(path)):
        if not line.strip():
            continue
        try:  # in integers: float seconds would lose microseconds
            whole, fraction = line.strip().split(".")
            seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%d %H:%M:%S"))
            times_us[frame] = seconds * 1_000_000 + int(fraction[:6].ljust(6, "0"))
        except ValueError as error:
            raise InputError(f"{path}:{frame + 1}: expected a time like 2011-09-26 13:04:32.345808896") from error
        if times_us[frame] <= before_us:
            raise InputError(f"{path}:{frame + 1}: the time is not later than the one before")
        before_us = times_us[frame]
    for frame in needed:
        if frame not in times_us:
            raise InputError(f"{path}:{frame + 1}: no time for frame {frame}, which has a sweep")
    return times_us


def _read_poses(path: Path, n_frames: int) -> dict[int, SE3]:
    lines = _lines(path)
    if len(lines) != n_frames:
        raise InputError(f"{path}:{len(lines)}: the file has {len(lines)} poses, but the drive has {n_frames} frames")
    poses = {}
    for index, line in enumerate(lines):
        matrix = _floats(line, 12, f"{path}:{index + 1}").reshape(3, 4)
        if not is_rotation(matrix[:, :3]):
            raise InputError(f"{path}:{index + 1}: the left 3x3 part of the pose is not a rotation")
        poses[index] = se3(matrix[:, :3], matrix[:, 3])
    return poses


def _read_oxts(folder: Path) -> dict[int, SE3]:
    """world_SE3_imu by frame: x east, y north, z up, from the place of the first frame.

    The Mercator projection of the KITTI development kit, true to scale at the first latitude.
    """
    files = _indexed(folder, "txt")
    if not files:
        raise InputError(f"{folder}: no files with GPS/IMU poses; pass --poses to use others")
    rows = np.array([_floats(" ".join(_lines(path)[0].split()[:6]), 6, str(path)) for path in files.values()])
    lat, lon, roll, pitch, yaw = np.radians(rows[:, 0]), np.radians(rows[:, 1]), *rows[:, 3:].T
    scale = np.cos(lat[0]) * EARTH_RADIUS_M
    places = np.column_stack([scale * lon, scale * np.log(np.tan(np.pi / 4 + lat / 2)), rows[:, 2]])
    rotations = Rotation.from_euler("ZYX", np.column_stack([yaw, pitch, roll])).as_matrix()
    base.check_upright(rotations[:, 2, 2], [str(path) for path in files.values()], MAX_TILT_DEG)
    return {index: se3(R, place) for index, R, place in zip(files, rotations, places - places[0])}


def _read_tracklets(path: Path) -> list[_Label]:
    """Boxes of ``tracklet_labels.xml``: bottom centre and yaw in the velodyne frame of each frame."""
    labels = []
    try:
        for number, tracklet in enumerate(ElementTree.parse(path).getroot().findall("tracklets/item")):
            where = f"{path}: tracklet {number}"
            size_lwh = _floats(" ".join(tracklet.findtext(key, "") for key in "lwh"), 3, f"{where}: l, w, h")
            first = int(tracklet.findtext("first_frame", ""))
            category = tracklet.findtext("objectType", "").lower()
            for index, item in enumerate(tracklet.findall("poses/item"), first):
                text = " ".join(item.findtext(key, "") for key in ("tx", "ty", "tz", "rz"))
                *centre, yaw = _floats(text, 4, f"{where}, frame {index}: tx, ty, tz, rz")
                centre[2] += size_lwh[2] / 2  # the file has the bottom
                velo_SE3_box = se3(Rotation.from_euler("z", yaw).as_matrix(), np.array(centre))
                labels.append(_Label(f"tracklet_{number:04d}", category, index, velo_SE3_box, size_lwh))
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: malformed ({error})") from error
    return labels


def _read_tracking(path: Path, velo_SE3_cam0: SE3) -> list[_Label]:
    """Boxes of KITTI tracking labels: bottom centre and turn about y (down) in the rectified camera 0."""
    labels: dict[tuple[int, int], _Label] = {}
    for number, line in enumerate(_lines(path), 1):
        columns = line.split()
        if len(columns) not in (17, 18):  # results have a score at the end
            raise InputError(f"{path}:{number}: expected 17 columns, found {len(columns)}")
        category = columns.pop(2)
        if category == "DontCare":
            continue
        values = _floats(" ".join(columns[:16]), 16, f"{path}:{number}")
        frame, track = int(values[0]), int(values[1])
        h, w, l, x, y, z, ry = values[9:]  # noqa: E741
        if (frame, track) in labels:
            raise InputError(f"{path}:{number}: object {track} is in frame {frame} twice")
        c, s = np.cos(ry), np.sin(ry)
        cam0_R_box = np.array([[c, s, 0], [0, 0, -1], [-s, c, 0]])  # columns: forward, left, up
        velo_SE3_box = velo_SE3_cam0 @ se3(cam0_R_box, np.array([x, y - h / 2, z]))
        name = f"track_{track:04d}"
        labels[frame, track] = _Label(name, category.lower(), frame, velo_SE3_box, np.array([l, w, h]))
    return list(labels.values())
