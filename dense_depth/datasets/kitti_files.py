"""The files of KITTI: calibration, time stamps, poses, tracklets and tracking labels.

Every reader raises ``InputError``, naming the file and the line or key, when a file is missing or malformed.
Format: Geiger et al., "Vision meets Robotics: The KITTI Dataset", 2013, and the readme of its development kit.
"""

import calendar
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
from scipy.spatial.transform import Rotation

from dense_depth import InputError
from dense_depth.datasets.checks import check_upright
from dense_depth.geometry import SE3, is_rotation, se3

EARTH_RADIUS_M = 6378137.0
MAX_TILT_DEG = 30.0
UNKNOWN_POSE = ["nan"] * 12


class KittiBox(NamedTuple):
    """A box of a label file."""

    track: str
    category: str
    frame: int
    velo_SE3_box: SE3
    size_lwh_m: np.ndarray


def frame_files(folder: Path, *suffixes: str) -> dict[int, Path]:
    """Frame files by index, in order; of two for one index the last suffix."""
    paths = (path for suffix in suffixes for path in folder.glob(f"*.{suffix}"))
    files = {int(path.stem): path for path in paths if path.stem.isdecimal()}
    return dict(sorted(files.items()))


def image_size(path: Path) -> tuple[int, int]:
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


def read_calib(path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers behind ``key:`` in a calibration file."""
    for line in _lines(path):
        name, _, values = line.partition(":")
        if name == key:
            return _floats(values, int(np.prod(shape)), f"{path}: {key}").reshape(shape)
    raise InputError(f"{path}: {key} is missing")


def read_rotation(path: Path, key: str) -> np.ndarray:
    """The rotation behind ``key:`` in a calibration file."""
    rotation = read_calib(path, key, (3, 3))
    if not is_rotation(rotation):
        raise InputError(f"{path}: {key} is not a rotation")
    return rotation


def read_rigid(path: Path) -> SE3:
    """The transform in R and T of a calibration file."""
    return se3(read_rotation(path, "R"), read_calib(path, "T", (3,)))


def read_times(path: Path, needed: Iterable[int]) -> dict[int, int]:
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


def read_poses(path: Path, n_frames: int) -> dict[int, SE3]:
    """world_SE3_cam0rect by frame: one row of 12 numbers for every frame of the drive, all nan where nobody knows."""
    lines = _lines(path)
    if len(lines) != n_frames:
        raise InputError(f"{path}:{len(lines)}: the file has {len(lines)} poses, but the drive has {n_frames} frames")
    poses = {}
    for index, line in enumerate(lines):
        if line.split() == UNKNOWN_POSE:
            continue
        matrix = _floats(line, 12, f"{path}:{index + 1}").reshape(3, 4)
        if not is_rotation(matrix[:, :3]):
            raise InputError(f"{path}:{index + 1}: the left 3x3 part of the pose is not a rotation")
        poses[index] = se3(matrix[:, :3], matrix[:, 3])
    return poses


def write_poses(path: Path, poses: Mapping[int, SE3], n_frames: int) -> None:
    """Writes poses as ``read_poses`` reads them."""
    rows = (poses[i][:3].ravel() if i in poses else UNKNOWN_POSE for i in range(n_frames))
    path.write_text("".join(" ".join(map(str, row)) + "\n" for row in rows))


def read_oxts(folder: Path) -> dict[int, SE3]:
    """world_SE3_imu by frame: x east, y north, z up, from the place of the first frame.

    The Mercator projection of the KITTI development kit, true to scale at the first latitude.
    """
    files = frame_files(folder, "txt")
    if not files:
        raise InputError(f"{folder}: no files with GPS/IMU poses; use others by --poses FILE, or --poses odometry")
    rows = np.array([_floats(" ".join(_lines(path)[0].split()[:6]), 6, str(path)) for path in files.values()])
    lat, lon, roll, pitch, yaw = np.radians(rows[:, 0]), np.radians(rows[:, 1]), *rows[:, 3:].T
    scale = np.cos(lat[0]) * EARTH_RADIUS_M
    places = np.column_stack([scale * lon, scale * np.log(np.tan(np.pi / 4 + lat / 2)), rows[:, 2]])
    rotations = Rotation.from_euler("ZYX", np.column_stack([yaw, pitch, roll])).as_matrix()
    check_upright(rotations[:, 2, 2], [str(path) for path in files.values()], MAX_TILT_DEG)
    return {index: se3(R, place) for index, R, place in zip(files, rotations, places - places[0])}


def read_tracklets(path: Path) -> list[KittiBox]:
    """Boxes of ``tracklet_labels.xml``: bottom centre and yaw in the velodyne frame of each frame."""
    boxes = []
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
                boxes.append(KittiBox(f"tracklet_{number:04d}", category, index, velo_SE3_box, size_lwh))
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path}: malformed ({error})") from error
    return boxes


def read_tracking(path: Path, velo_SE3_cam0: SE3) -> list[KittiBox]:
    """Boxes of KITTI tracking labels: bottom centre and turn about y (down) in the rectified camera 0."""
    boxes: dict[tuple[int, int], KittiBox] = {}
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
        if (frame, track) in boxes:
            raise InputError(f"{path}:{number}: object {track} is in frame {frame} twice")
        c, s = np.cos(ry), np.sin(ry)
        cam0_R_box = np.array([[c, s, 0], [0, 0, -1], [-s, c, 0]])  # columns: forward, left, up
        velo_SE3_box = velo_SE3_cam0 @ se3(cam0_R_box, np.array([x, y - h / 2, z]))
        name = f"track_{track:04d}"
        boxes[frame, track] = KittiBox(name, category.lower(), frame, velo_SE3_box, np.array([l, w, h]))
    return list(boxes.values())
