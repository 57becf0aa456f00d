"""KITTI raw in its own folder layout: ``<root>/<date>/<date>_drive_<NNNN>_sync`` and ``<root>/<date>/calib_*.txt``.

A frame index is one instant: all its sensors get one time and one pose, as in KITTI's own development kit, because the
recording triggers the cameras by the LiDAR and the clocks only differ by a constant 10-15 ms. The time is that of
``velodyne_points/timestamps.txt``, in whole microseconds, taken as UTC: the LiDAR looks ahead then, in the middle of a
revolution that starts behind and goes clockwise. Its points are not compensated for the vehicle's motion. Public code
disagrees on both; with this order and deskewing, sweeps of drive 0005 fit onto each other best (mean GICP error 0.100,
with the other direction 0.186, as they are 0.127).
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np

from dense_depth import InputError
from dense_depth.datasets import DatasetConfig
from dense_depth.datasets.checks import (
    check_cameras,
    check_heading,
    check_intrinsics,
    check_speed,
    check_upright,
    compare_poses,
    part_names,
    some_of,
    split_drive,
)
from dense_depth.datasets.kitti_files import (
    MAX_TILT_DEG,
    KittiBox,
    frame_files,
    image_size,
    read_calib,
    read_oxts,
    read_poses,
    read_rigid,
    read_rotation,
    read_times,
    read_tracking,
    read_tracklets,
    write_poses,
)
from dense_depth.datasets.scene import (
    Box,
    CameraFrame,
    Crop,
    Keyframe,
    Scene,
    Sweep,
    Timing,
    Track,
    box_velocities,
    revolution_s,
)
from dense_depth.geometry import SE3, invert, se3

IMAGE_PIXELS = 1242 * 375  # of the rectified images, more or less
# Where the vehicle returns points. Those of the roof end 1.2 m behind the LiDAR and 1.5 m beside it. Those of the
# bonnet, up to eight a sweep, have x 2.49 to 2.86 m, |y| up to 0.56 m and z -1.04 to -0.89 m; their crop ends at the
# bumper and below the windscreen, so that nothing else can be in it.
EGO_CROPS = (Crop((-2.0, 2.0), (-1.6, 1.6)), Crop((2.0, 3.0), (-0.8, 0.8), (-1.5, -0.7)))
REVOLUTION_S = 0.1  # of a drive of one sweep


class KittiRawDataset:
    """A folder of KITTI raw drives; implements ``Dataset``."""

    def __init__(self, config: DatasetConfig) -> None:
        """Finds the drives.

        Without ``cameras``, those of the two colour cameras that are there are read. ``poses`` and ``tracks`` are of
        the one drive to read.

        Raises:
            InputError: There is no drive, no drive has a camera, or an option is for another format.
        """
        if config.version:
            raise InputError("--version is for nuscenes; kitti-raw has none")
        dataroot, cameras = config.dataroot, config.cameras
        folders = sorted(path for path in dataroot.glob("*/*_drive_*_sync") if path.is_dir())
        if not folders:
            raise InputError(f"{dataroot}: no drive; expected folders like <date>/<date>_drive_0001_sync in it")
        has_poses, compensated = config.pose_source != "odometry", config.compensated(False, timed=True)
        wanted = tuple(sorted(set(cameras)))
        self._drives = {folder.name: _Drive(folder, wanted, has_poses, compensated) for folder in folders}
        self._poses, self._tracks = config.poses_file, config.tracks
        available = set().union(*(drive.available for drive in self._drives.values()))
        check_cameras(cameras, available, dataroot)

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Names of all scenes: drive folders, or ``<drive>.000``, ``<drive>.001``, ... of a long drive."""
        return tuple(name for drive in self._drives.values() for name in drive.parts)

    def splits(self) -> dict[str, list[str]]:
        """None: KITTI raw has no splits."""
        return {}

    def scenes(self, names: Sequence[str] = ()) -> Iterator[Scene]:
        """Reads the scenes with these names, all scenes of the drives with these names, or everything.

        Raises:
            InputError: A name is unknown, a file is missing or malformed, or a calibration cannot be.
        """
        for name in names:
            if name not in self._drives and name not in self.scene_names:
                shown = some_of(self.scene_names)
                raise InputError(f"scene {name}: not known; the {len(self.scene_names)} scenes are {shown}")
        chosen = []
        for drive_name, drive in self._drives.items():
            parts = [part for part in drive.parts if not names or drive_name in names or part in names]
            chosen += [(drive, parts)] if parts else []
        if len(chosen) > 1 and (self._poses or self._tracks):
            raise InputError(f"--poses and --tracks are for one drive; select one of {', '.join(self._drives)}")
        return (scene for drive, parts in chosen for scene in drive.scenes(parts, self._poses, self._tracks))

    def write_poses(self, scenes: Sequence[Scene], out: Path) -> list[Path]:
        """Writes a file for ``--poses``: rows of world_SE3_cam0rect, nan for frames without a sweep.

        Raises:
            InputError: The scenes are not one drive, or its parts are not in one world.
        """
        drives = [drive for drive in self._drives.values() if any(scene.name in drive.parts for scene in scenes)]
        if len(drives) != 1:
            raise InputError(f"a file of poses is of one drive; select one of {', '.join(self._drives)} by --scenes")
        if len(scenes) > 1 and not drives[0].has_poses:
            raise InputError(
                f"{drives[0].folder.name}: each of its {len(scenes)} parts starts anew; pick one by --scenes"
            )
        drives[0].write_poses(scenes, out)
        return [out]


@dataclass(frozen=True)
class _Drive:
    folder: Path
    wanted: tuple[str, ...]
    has_poses: bool  # else the world is what the sensor sees, until odometry finds more
    compensated: bool  # as in ``Sweep``

    @cached_property
    def available(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("image_0[0-3]"))

    @cached_property
    def cameras(self) -> list[str]:
        return list(self.wanted) or [camera for camera in self.available if camera in ("image_02", "image_03")]

    @cached_property
    def sweeps(self) -> dict[int, Path]:
        return frame_files(self.folder / "velodyne_points" / "data", "bin")

    @cached_property
    def images(self) -> dict[str, dict[int, Path]]:
        return {camera: frame_files(self.folder / camera / "data", "jpg", "png") for camera in self.cameras}

    @cached_property
    def keyframes(self) -> list[int]:
        """Frames with a sweep and an image."""
        return sorted(self.sweeps.keys() & set().union(*self.images.values()))

    @cached_property
    def parts(self) -> list[str]:
        return part_names(self.folder.name, len(self.keyframes), IMAGE_PIXELS)

    def scenes(self, parts: Collection[str], poses_file: Path | None, tracks_file: Path | None) -> Iterator[Scene]:
        whole = self._read(poses_file, tracks_file)
        return (part for part in split_drive(whole, IMAGE_PIXELS) if part.name in parts)

    def write_poses(self, scenes: Sequence[Scene], out: Path) -> None:
        velo_SE3_cam0 = invert(self._cam0_SE3_velo())
        pose_of = {sweep.token: sweep.world_SE3_sensor for scene in scenes for sweep in scene.sweeps}
        # The parts of a drive overlap; a frame has the pose of the part that makes labels of it.
        pose_of |= {key.sample_token: key.world_SE3_ego for scene in scenes for key in scene.keyframes}
        poses = {i: pose_of[t] @ velo_SE3_cam0 for i in self.sweeps if (t := self._token(i)) in pose_of}
        times_us = read_times(self.folder / "velodyne_points" / "timestamps.txt", self.sweeps)
        write_poses(out, poses, max(times_us) + 1)

    def _token(self, frame: int) -> str:
        return f"{self.folder.name}_{frame:010d}"

    def _read(self, poses_file: Path | None, tracks_file: Path | None) -> Scene:
        """The whole drive as one scene."""
        for camera in self.cameras or ["image_02"]:
            if not self.sweeps.keys() & self.images.get(camera, {}).keys():
                raise InputError(f"{self.folder}: no frame has a file in velodyne_points/data and one in {camera}/data")
        times_us = read_times(self.folder / "velodyne_points" / "timestamps.txt", self.sweeps)
        cam0_SE3_velo = self._cam0_SE3_velo()
        notes = self._notes()
        world_SE3_velo = self._world_SE3_velo(cam0_SE3_velo, times_us, poses_file, notes)
        tracks = self._tracks(cam0_SE3_velo, times_us, world_SE3_velo, tracks_file)
        if tracks is None:
            notes.append(f"{self.folder.name}: no tracklet_labels.xml, so there are no tracks")
        name, token = self.folder.name, {frame: self._token(frame) for frame in self.sweeps}
        half_s = revolution_s([times_us[i] for i in self.sweeps], REVOLUTION_S) / 2
        timing = Timing("azimuth", -half_s, half_s, first_azimuth=np.pi, clockwise=True)
        known = "float32", timing, self.compensated
        sweeps = (
            Sweep(token[i], path, 4, times_us[i], world_SE3_velo[i], EGO_CROPS, *known)
            for i, path in self.sweeps.items()
        )
        frames = (
            CameraFrame(
                *(token[i], camera, images[i], times_us[i], *size, K, world_SE3_velo[i] @ velo_SE3_cam, token[i]),
                sensor_SE3_cam=velo_SE3_cam,
            )
            for camera, images in self.images.items()
            for size, K, velo_SE3_cam in [self._camera(camera, cam0_SE3_velo)]
            for i in self.keyframes
            if i in images
        )
        seen = defaultdict(list)
        for track in tracks or ():
            for time_us in track.times_us:
                seen[time_us].append(track.token)
        keyframes = (
            Keyframe(token[i], times_us[i], world_SE3_velo[i], tuple(seen[times_us[i]])) for i in self.keyframes
        )
        return Scene(
            *("kitti-raw", name, name, tuple(sweeps), tuple(frames), tuple(tracks or ())),
            notes=tuple(notes),
            keyframes=tuple(keyframes),
            rough_poses=not poses_file,
        )

    def _world_SE3_velo(
        self, cam0_SE3_velo: SE3, times_us: dict[int, int], poses_file: Path | None, notes: list[str]
    ) -> dict[int, SE3]:
        """Sensor poses by frame."""
        if not self.has_poses:
            return dict.fromkeys(times_us, np.eye(4))
        source = poses_file or self.folder / "oxts" / "data"
        if poses_file:
            poses = {i: pose @ cam0_SE3_velo for i, pose in read_poses(poses_file, max(times_us) + 1).items()}
        else:
            poses = self._poses_of_oxts()
        for i in self.sweeps:
            if i not in poses:
                raise InputError(f"{source}: no pose for frame {i}, which has a sweep")
        times = [times_us[i] for i in self.sweeps]
        of_sweeps = np.array([poses[i] for i in self.sweeps])
        check_speed(times, of_sweeps[:, :3, 3], [f"{source}, frame {i}" for i in self.sweeps])
        if poses_file:
            notes += self._compare_with_oxts(poses, times_us, poses_file)
        notes += check_heading(times, of_sweeps, str(source))
        return poses

    def _poses_of_oxts(self) -> dict[int, SE3]:
        imu_SE3_velo = invert(read_rigid(self.folder.parent / "calib_imu_to_velo.txt"))
        return {i: pose @ imu_SE3_velo for i, pose in read_oxts(self.folder / "oxts" / "data").items()}

    def _compare_with_oxts(self, poses: dict[int, SE3], times_us: dict[int, int], poses_file: Path) -> list[str]:
        try:
            of_oxts = self._poses_of_oxts()
        except InputError as error:
            return [f"{poses_file}: not compared with GPS/IMU poses: {error}"]
        both = [i for i in poses if i in of_oxts and i in times_us]
        if not both:
            return []
        ours, theirs = (np.array([some[i] for i in both]) for some in (poses, of_oxts))
        reference = f"the GPS/IMU poses in {self.folder / 'oxts'}"
        return compare_poses([times_us[i] for i in both], ours, theirs, str(poses_file), reference)

    def _tracks(
        self, cam0_SE3_velo: SE3, times_us: dict[int, int], poses: dict[int, SE3], tracks_file: Path | None
    ) -> list[Track] | None:
        """Objects of the whole drive, at the frames whose pose is known."""
        path = tracks_file or self.folder / "tracklet_labels.xml"
        if not tracks_file and not path.exists():
            return None
        read = read_tracking(path, invert(cam0_SE3_velo)) if tracks_file else read_tracklets(path)
        of_track: dict[str, list[KittiBox]] = defaultdict(list)
        for box in sorted(read, key=lambda box: (box.track, box.frame)):
            if (box.size_lwh_m <= 0).any():
                raise InputError(f"{path}: {box.track}, frame {box.frame}: a size is not positive")
            if box.frame in times_us and box.frame in poses:
                of_track[box.track].append(box)
        tracks = []
        for token, boxes in of_track.items():
            times = [times_us[box.frame] for box in boxes]
            world_SE3_box = np.stack([poses[box.frame] @ box.velo_SE3_box for box in boxes])
            velocities = box_velocities(times, world_SE3_box[:, :3, 3])
            parts = zip(times, world_SE3_box, [box.size_lwh_m for box in boxes], velocities)
            tracks.append(Track(token, boxes[0].category, tuple(Box(*part) for part in parts)))
        return tracks

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
        cam0_SE3_velo = se3(read_rotation(path, "R_rect_00"), np.zeros(3)) @ read_rigid(velo_to_cam)
        check_upright(-cam0_SE3_velo[1:2, 2], [f"{velo_to_cam}: R"], MAX_TILT_DEG)
        return cam0_SE3_velo

    def _camera(self, camera: str, cam0_SE3_velo: SE3) -> tuple[tuple[int, int], np.ndarray, SE3]:
        """Width and height, K and velo_SE3_cam of a rectified camera."""
        path = self.folder.parent / "calib_cam_to_cam.txt"
        number = camera.removeprefix("image_")
        width, height = (int(size) for size in read_calib(path, f"S_rect_{number}", (2,)))
        P = read_calib(path, f"P_rect_{number}", (3, 4))
        check_intrinsics(P[:, :3], width, height, f"{path}: P_rect_{number}")
        image = min(self.images[camera].values())
        if image_size(image) != (width, height):
            raise InputError(f"{image}: {image_size(image)} pixels, but S_rect_{number} in {path} is {width, height}")
        # P = K [I | t]: the rectified cameras only differ by a shift.
        cam_SE3_cam0 = se3(np.eye(3), np.linalg.solve(P[:, :3], P[:, 3]))
        return (width, height), P[:, :3], invert(cam_SE3_cam0 @ cam0_SE3_velo)


def _ranges(indices: Sequence[int]) -> str:
    """Such as ``3, 7-9``."""
    runs = groupby(enumerate(indices), key=lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(group) for _, group in runs)]
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
