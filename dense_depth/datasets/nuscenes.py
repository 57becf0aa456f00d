"""nuScenes and every dataset in its format, read through the nuScenes devkit on the driver.

The tables are checked before anything is yielded: keys that point nowhere, rows missing from a chain, calibrations that
cannot be. The ends of a chain may point at rows that are not there (someone cut the dataset): that becomes a note.
Format: https://www.nuscenes.org/nuscenes#data-format
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dense_depth import InputError
from dense_depth.datasets import DatasetConfig
from dense_depth.datasets.checks import (
    check_cameras,
    check_heading,
    check_intrinsics,
    check_speed,
    check_upright,
    some_of,
)
from dense_depth.datasets.scene import (
    UNTIMED,
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
from dense_depth.geometry import invert, quaternion_from_rotation, rotation_from_quaternion
from dense_depth.trajectory import pose_at

Row = dict[str, Any]

DEFAULT_VERSION = "v1.0-trainval"
LIDAR = "LIDAR_TOP"
LIDAR_FEATURES = 5  # x, y, z, intensity, ring
REVOLUTION_S = 0.05  # where a scene has one sweep alone
# The vehicle's recorded returns end 1.8 m ahead of the LiDAR and 0.7 m beside it.
EGO_ALONG_M, EGO_ACROSS_M = (-2.0, 2.0), (-1.0, 1.0)
MAX_EGO_TILT_DEG = 30.0
MAX_SENSOR_TILT_DEG = 45.0

# The fields that are read: each holds a token of the table named here, or a value of this type.
FIELDS: dict[str, dict[str, str | type]] = {
    "log": {},
    "category": {"name": str},
    "sensor": {"channel": str, "modality": str},
    "calibrated_sensor": {"sensor_token": "sensor", "translation": list, "rotation": list, "camera_intrinsic": list},
    "ego_pose": {"translation": list, "rotation": list},
    "scene": {"log_token": "log", "name": str, "nbr_samples": int},
    "sample": {"scene_token": "scene", "timestamp": int, "prev": str, "next": str},
    "sample_data": {
        **{"sample_token": "sample", "ego_pose_token": "ego_pose", "calibrated_sensor_token": "calibrated_sensor"},
        **{"timestamp": int, "is_key_frame": bool, "width": int, "height": int},
        **{"filename": str, "prev": str, "next": str},
    },
    "instance": {"category_token": "category"},
    "sample_annotation": {
        **{"sample_token": "sample", "instance_token": "instance", "prev": str, "next": str},
        **{"translation": list, "rotation": list, "size": list},
    },
}
TABLES = (*FIELDS, "attribute", "visibility", "map")  # the devkit wants these too


class NuScenesDataset:
    """A dataset in nuScenes format; implements ``Dataset``."""

    def __init__(self, config: DatasetConfig) -> None:
        """Loads and checks the tables.

        Raises:
            InputError: A table is missing or damaged, a row points nowhere, a camera is unknown, or an option is for
                another format.
        """
        if config.poses_file or config.tracks:
            raise InputError("files as --poses and --tracks are for kitti-raw; nuScenes has its own")
        self._has_poses = config.pose_source != "odometry"
        dataroot, version, cameras = config.dataroot, config.version or DEFAULT_VERSION, config.cameras
        self._config, self._dataroot = config, dataroot
        self._folder = dataroot / version
        self._nusc = _load(dataroot, version)
        self._scene_rows = {row["name"]: row for row in sorted(self._nusc.scene, key=lambda row: row["name"])}
        if len(self._scene_rows) != len(self._nusc.scene):
            raise InputError(f"{self._folder / 'scene.json'}: two scenes have the same name")
        available = {row["channel"] for row in self._nusc.sample_data if row["sensor_modality"] == "camera"}
        check_cameras(cameras, available, self._folder)
        self._cameras = tuple(sorted(set(cameras) or available))
        self._all_cameras = not cameras

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Names of all scenes, sorted."""
        return tuple(self._scene_rows)

    def scenes(self, names: Sequence[str] = ()) -> Iterator[Scene]:
        """Reads the scenes with these names, or of the splits with these names, or all, in order of their names.

        Splits are the official ones and those in ``splits.json`` in the table folder, which go first.

        Raises:
            InputError: A name is unknown, a chain of rows is broken, or a calibration cannot be.
        """
        splits = self.splits() if set(names) - set(self._scene_rows) else {}
        selected = set() if names else set(self._scene_rows)
        for name in names:
            if name not in self._scene_rows and name not in splits:
                shown = some_of(self.scene_names)
                raise InputError(
                    f"scene {name}: neither a scene nor a split of {self._folder}; "
                    f"its {len(self.scene_names)} scenes are {shown}; splits are {', '.join(splits)}"
                )
            found = {name} if name in self._scene_rows else set(splits[name]) & set(self._scene_rows)
            if not found:
                raise InputError(f"split {name}: {self._folder} has none of its scenes")
            selected |= found
        return (self._scene(row) for name, row in self._scene_rows.items() if name in selected)

    def splits(self) -> dict[str, list[str]]:
        """The official splits and those in ``splits.json`` in the table folder, which go first.

        Raises:
            InputError: ``splits.json`` cannot be read, or is no map from names to lists.
        """
        from nuscenes.utils.splits import create_splits_scenes

        path = self._folder / "splits.json"
        custom = _parse(path) if path.is_file() else {}
        if not isinstance(custom, dict) or not all(isinstance(scenes, list) for scenes in custom.values()):
            raise InputError(f"{path}: must map the name of each split to a list of scene names")
        return create_splits_scenes() | custom

    def write_poses(self, scenes: Sequence[Scene], out: Path) -> list[Path]:
        """Writes the tables that hold poses, ego_pose.json and sample_annotation.json, into a folder.

        Every ego pose of the scenes, of whatever sensor, is where the sweeps around it and the LiDAR's mount have it.

        Raises:
            InputError: A table is there already.
        """
        ego_poses, annotations = (_rows(self._folder / f"{table}.json") for table in ("ego_pose", "sample_annotation"))
        ego_of = {row["token"]: row for row in ego_poses}
        scene_of = {row["token"]: row["scene_token"] for row in self._nusc.sample}
        time_of = {row["token"]: row["timestamp"] for row in self._nusc.sample}
        posed = {scene.token: scene for scene in scenes}
        for row in self._nusc.sample_data:
            scene = posed.get(scene_of[row["sample_token"]])
            if scene:
                (ego_SE3_lidar,) = self._ego_SE3_sensor(self._data[scene.token, LIDAR][:1])
                times_us = [sweep.timestamp_us for sweep in scene.sweeps]
                poses = np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps])
                pose = pose_at(times_us, poses, row["timestamp"]) @ invert(ego_SE3_lidar)
                ego_of[row["ego_pose_token"]] |= _pose_fields(pose)
        boxes = {(track.token, box.timestamp_us): box for s in scenes for track in s.tracks for box in track.boxes}
        for row in annotations:
            if box := boxes.get((row["instance_token"], time_of[row["sample_token"]])):
                row |= _pose_fields(box.world_SE3_box)
        return [_write(out / "ego_pose.json", ego_poses), _write(out / "sample_annotation.json", annotations)]

    @cached_property
    def _point_times(self) -> tuple[str, bool]:
        """How points are timed, and whether they are free of the vehicle's motion up to the sweep's timestamp.

        "order" and yes for nuScenes; ``lidar.json`` in the table folder says otherwise.

        Raises:
            InputError: ``lidar.json`` cannot be read, or says something else.
        """
        path = self._folder / "lidar.json"
        found = _parse(path) if path.is_file() else {"point_times": "order", "compensated": True}
        if not isinstance(found, dict) or found.keys() != {"point_times", "compensated"}:
            raise InputError(f"{path}: must have point_times and compensated, and nothing else")
        rule, compensated = found["point_times"], found["compensated"]
        if rule not in ("order", "none") or not isinstance(compensated, bool):
            raise InputError(f'{path}: point_times must be "order" or "none", compensated true or false')
        return rule, self._config.compensated(compensated, rule != "none")

    @cached_property
    def _samples(self) -> dict[str, list[Row]]:
        """The keyframes by scene token."""
        samples = defaultdict(list)
        for row in self._nusc.sample:
            samples[row["scene_token"]].append(row)
        return samples

    @cached_property
    def _data(self) -> dict[tuple[str, str], list[Row]]:
        """The rows of sample_data by (scene token, channel), in one pass: trainval has 2.6 million of them."""
        scene_of = {row["token"]: row["scene_token"] for row in self._nusc.sample}
        data = defaultdict(list)
        for row in self._nusc.sample_data:
            if row["channel"] == LIDAR or row["channel"] in self._cameras:
                data[scene_of[row["sample_token"]], row["channel"]].append(row)
        return data

    def _scene(self, scene: Row) -> Scene:
        token, name = _safe(scene["token"], "scene"), scene["name"]
        notes: list[str] = []
        samples = self._chain("sample", name, self._samples[token], notes)
        if scene["nbr_samples"] != len(samples):
            notes.append(f"{name}: nbr_samples is {scene['nbr_samples']} but the sample table has {len(samples)}")

        sweep_rows = self._channel(token, name, LIDAR, notes)
        key_sweeps = self._key_rows(samples, sweep_rows, name, LIDAR)
        world_SE3_ego, ego_SE3_lidar = self._world_SE3_ego(sweep_rows), self._ego_SE3_sensor(sweep_rows)
        notes += check_heading([row["timestamp"] for row in sweep_rows], world_SE3_ego, f"{name}: ego_pose")
        # The sensor's axis that lies along the vehicle's x: nuScenes mounts its LiDAR with y forward.
        forward = np.abs(ego_SE3_lidar[:, 0, :2]).argmax(1)
        crops = [Crop(EGO_ACROSS_M, EGO_ALONG_M) if axis else Crop(EGO_ALONG_M, EGO_ACROSS_M) for axis in forward]
        rule, compensated = self._point_times
        # Stamped at its end; the file has the order of the firings.
        start_s = -revolution_s([row["timestamp"] for row in sweep_rows], REVOLUTION_S)
        timing = UNTIMED if rule == "none" else Timing("order", start_s)
        sweeps = tuple(
            Sweep(
                *(_safe(row["token"], "sample_data"), self._path(row), LIDAR_FEATURES, row["timestamp"], pose, (crop,)),
                timing=timing,
                compensated=compensated,
            )
            for row, pose, crop in zip(sweep_rows, world_SE3_ego @ ego_SE3_lidar, crops)
        )
        frames: list[CameraFrame] = []
        for camera in self._cameras:
            if self._all_cameras and not self._data[token, camera]:
                continue  # this scene was recorded without it
            rows = self._key_rows(samples, self._channel(token, name, camera, notes), name, camera)
            ego_SE3_cam = self._ego_SE3_sensor(rows)
            world_SE3_cam = self._world_SE3_ego(rows) @ ego_SE3_cam
            lidar_SE3_cam = invert(self._ego_SE3_sensor(key_sweeps)) @ ego_SE3_cam
            frames += map(self._frame, rows, world_SE3_cam, lidar_SE3_cam, [row["token"] for row in key_sweeps])
        tracks = self._tracks(name, samples, key_sweeps, notes)
        pose_of = {row["sample_token"]: pose for row, pose in zip(sweep_rows, world_SE3_ego) if row["is_key_frame"]}
        keyframes = tuple(self._keyframe(sample, pose_of[sample["token"]]) for sample in samples)
        is_flat = len(sweeps) > 1 and bool(np.ptp(world_SE3_ego[:, 2, 3]) == 0)
        return Scene("nuscenes", token, name, sweeps, tuple(frames), tracks, tuple(notes), keyframes, is_flat)

    def _channel(self, scene_token: str, name: str, channel: str, notes: list[str]) -> list[Row]:
        """All rows of a channel in order of time, between keyframes too."""
        rows = self._chain("sample_data", f"{name} {channel}", self._data[scene_token, channel], notes)
        egos = [self._nusc.get("ego_pose", row["ego_pose_token"]) for row in rows]
        positions = _numbers("ego_pose", egos, "translation", (3,))
        if self._has_poses:
            check_speed([row["timestamp"] for row in rows], positions, _names("ego_pose", egos))
        return rows

    def _key_rows(self, samples: list[Row], rows: list[Row], name: str, channel: str) -> list[Row]:
        """The row of each sample."""
        row_of: dict[str, Row] = {}
        for row in rows:
            if row["is_key_frame"] and row_of.setdefault(row["sample_token"], row) is not row:
                raise InputError(f"sample {row['sample_token']} ({name}): two key frames of {channel} in sample_data")
        for sample in samples:
            if sample["token"] not in row_of:
                raise InputError(f"sample {sample['token']} ({name}): no key frame of {channel} in sample_data")
        return [row_of[sample["token"]] for sample in samples]

    def _frame(self, row: Row, world_SE3_cam: np.ndarray, lidar_SE3_cam: np.ndarray, key_sweep: str) -> CameraFrame:
        mount = self._nusc.get("calibrated_sensor", row["calibrated_sensor_token"])
        K = _numbers("calibrated_sensor", [mount], "camera_intrinsic", (3, 3))[0]
        check_intrinsics(K, row["width"], row["height"], f"calibrated_sensor {mount['token']}")
        return CameraFrame(
            sample_token=_safe(row["sample_token"], "sample"),
            camera=_safe(row["channel"], "channel"),
            path=self._path(row),
            timestamp_us=row["timestamp"],
            width=row["width"],
            height=row["height"],
            K=K,
            world_SE3_cam=world_SE3_cam,
            key_sweep=key_sweep,
            sensor_SE3_cam=lidar_SE3_cam,
        )

    def _keyframe(self, sample: Row, world_SE3_ego: np.ndarray) -> Keyframe:
        annotations = [self._nusc.get("sample_annotation", token) for token in sample["anns"]]
        tracks = tuple(row["instance_token"] for row in annotations)
        return Keyframe(_safe(sample["token"], "sample"), sample["timestamp"], world_SE3_ego, tracks)

    def _tracks(self, name: str, samples: list[Row], key_sweeps: list[Row], notes: list[str]) -> tuple[Track, ...]:
        # Annotated around the vehicle, and in the tables' world by its pose there.
        worlds = self._world_SE3_ego(key_sweeps) @ invert(self._recorded_poses(key_sweeps))
        world_of = {sample["token"]: world for sample, world in zip(samples, worlds)}
        rows_of: dict[str, list[Row]] = defaultdict(list)
        for sample in samples:
            for row in (self._nusc.get("sample_annotation", token) for token in sample["anns"]):
                rows_of[row["instance_token"]].append(row | {"timestamp": sample["timestamp"]})
        tracks: list[Track] = []
        cut: list[str] = []
        for token, rows in sorted(rows_of.items()):
            rows = self._chain("sample_annotation", f"instance {token}", rows, cut)
            poses = _poses("sample_annotation", rows)
            if not self._has_poses:
                poses = np.stack([world_of[row["sample_token"]] for row in rows]) @ poses
            sizes_lwh = _numbers("sample_annotation", rows, "size", (3,))[:, [1, 0, 2]]  # the table has w, l, h
            if (sizes_lwh <= 0).any():
                raise InputError(f"sample_annotation of instance {token}: a size is not positive")
            velocities = box_velocities([row["timestamp"] for row in rows], poses[:, :3, 3])
            boxes = tuple(
                Box(row["timestamp"], pose, size, velocity, _n_points(row), self._attribute(row))
                for row, pose, size, velocity in zip(rows, poses, sizes_lwh, velocities)
            )
            tracks.append(Track(token, rows[0]["category_name"], boxes))
        if cut:
            notes.append(f"{name}: {len(cut)} ends of annotation chains lie outside the tables, such as {cut[0]}")
        return tuple(tracks)

    def _attribute(self, annotation: Row) -> str:
        """Name of the first attribute."""
        for token in annotation.get("attribute_tokens") or ():
            if not self._has("attribute", token):
                raise InputError(
                    f"sample_annotation {annotation['token']}: attribute {token!r} is not in the table attribute"
                )
            return str(self._nusc.get("attribute", token)["name"])
        return ""

    def _chain(self, table: str, what: str, rows: list[Row], notes: list[str]) -> list[Row]:
        """Sorts rows by time and requires that neighbours point at each other, which also excludes cycles."""
        rows = sorted(rows, key=lambda row: (row["timestamp"], row["token"]))
        for a, b in pairwise(rows):
            pair = f"{table} {a['token']} and {b['token']} ({what})"
            if a["timestamp"] == b["timestamp"]:
                raise InputError(f"{pair}: both have the timestamp {a['timestamp']}")
            if a["next"] != b["token"] or b["prev"] != a["token"]:
                raise InputError(f"{pair}: a row of {table} is missing between them, or the chain is damaged")
        for row, field in ((rows[0], "prev"), (rows[-1], "next")) if rows else ():
            if not row[field]:
                continue
            if self._has(table, row[field]):
                raise InputError(f"{table} {row['token']} ({what}): the chain ends here, but {field} is {row[field]}")
            notes.append(f"{what}: {field} of {table} {row['token']} is not in the table: the dataset was cut")
        return rows

    def _has(self, table: str, token: str) -> bool:
        try:
            self._nusc.getind(table, token)
        except KeyError:
            return False
        return True

    def _world_SE3_ego(self, rows: list[Row]) -> np.ndarray:
        """(n, 4, 4) poses of the vehicle, each at the row's own time; all the same if odometry is to find them."""
        return self._recorded_poses(rows) if self._has_poses else np.tile(np.eye(4), (len(rows), 1, 1))

    def _recorded_poses(self, rows: list[Row]) -> np.ndarray:
        """(n, 4, 4) poses of the vehicle as the tables have them."""
        egos = [self._nusc.get("ego_pose", row["ego_pose_token"]) for row in rows]
        poses = _poses("ego_pose", egos)
        check_upright(poses[:, 2, 2], _names("ego_pose", egos), MAX_EGO_TILT_DEG)
        return poses

    def _ego_SE3_sensor(self, rows: list[Row]) -> np.ndarray:
        """(n, 4, 4) mounts of the sensors."""
        mounts = [self._nusc.get("calibrated_sensor", row["calibrated_sensor_token"]) for row in rows]
        poses = _poses("calibrated_sensor", mounts)
        is_camera = np.array([row["sensor_modality"] == "camera" for row in rows], dtype=bool)
        up_z = np.where(is_camera, -poses[:, 2, 1], poses[:, 2, 2])  # up is -y of a camera
        check_upright(up_z, _names("calibrated_sensor", mounts), MAX_SENSOR_TILT_DEG)
        return poses

    def _path(self, row: Row) -> Path:
        # Symlinks below dataroot are the user's own (samples often live on another disk); names in tables are not.
        name = PurePosixPath(row["filename"])
        if not name.parts or name.is_absolute() or ".." in name.parts or "\0" in row["filename"]:
            raise InputError(f"sample_data {row['token']}: filename {row['filename']!r} does not lie inside dataroot")
        return self._dataroot / name


def _load(dataroot: Path, version: str) -> Any:
    """The devkit's database, with every key checked."""
    folder = dataroot / version
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; pass the name of the table folder as --version")
    from nuscenes import NuScenes

    try:
        nusc = NuScenes(version, str(dataroot), verbose=False)
    except Exception as error:  # it says KeyError and little else: find the culprit in the tables
        _check_tables({table: _rows(folder / f"{table}.json") for table in TABLES})
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{folder}: the nuScenes devkit cannot load it ({reason})") from error
    _check_tables(vars(nusc))
    return nusc


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({error})") from error


def _rows(path: Path) -> list[Row]:
    rows = _parse(path)
    if not (isinstance(rows, list) and all(isinstance(row, dict) and type(row.get("token")) is str for row in rows)):
        raise InputError(f"{path}: must be a list of rows, each with a token")
    return rows


def _check_tables(tables: Mapping[str, list[Row]]) -> None:
    """Requires every field that is read, and that every key points at a row."""
    tokens = {table: {row["token"] for row in tables[table]} for table in FIELDS}
    for table, fields in FIELDS.items():
        if len(tokens[table]) != len(tables[table]):
            raise InputError(f"table {table}: two rows have the same token")
        for row in tables[table]:
            for field, kind in fields.items():
                value = row.get(field)
                if not isinstance(value, str if isinstance(kind, str) else kind):
                    raise InputError(f"{table} {row['token']}: {field} is missing or of the wrong type ({value!r})")
                if isinstance(kind, str) and value not in tokens[kind]:
                    raise InputError(f"{table} {row['token']}: {field} {value!r} is not in the table {kind}")


def _write(path: Path, rows: list[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("x") as file:
            json.dump(rows, file, indent=0)
    except FileExistsError as error:
        raise InputError(f"{path}: is there already; choose another --out") from error
    return path


def _pose_fields(world_SE3_thing: np.ndarray) -> Row:
    rotation = quaternion_from_rotation(world_SE3_thing[:3, :3])
    return {"translation": world_SE3_thing[:3, 3].tolist(), "rotation": rotation.tolist()}


def _safe(token: str, table: str) -> str:
    """A token that can be a file name."""
    if not re.fullmatch(r"[0-9a-zA-Z_-][0-9a-zA-Z_.-]{0,127}", token):
        raise InputError(f"{table} {token!r}: the token cannot be a file name; use up to 128 of 0-9 a-z A-Z _ . -")
    return token


def _n_points(annotation: Row) -> int | None:
    """LiDAR and radar points in a box, where both were counted."""
    lidar, radar = annotation.get("num_lidar_pts"), annotation.get("num_radar_pts")
    if lidar is None or radar is None:
        return None
    if not (isinstance(lidar, int) and isinstance(radar, int)):
        raise InputError(f"sample_annotation {annotation['token']}: num_lidar_pts and num_radar_pts must be integers")
    return lidar + radar


def _names(table: str, rows: list[Row]) -> list[str]:
    return [f"{table} {row['token']}" for row in rows]


def _numbers(table: str, rows: list[Row], field: str, shape: tuple[int, ...]) -> np.ndarray:
    """A field of all rows as (n, *shape) finite float64."""
    values = np.empty((len(rows), *shape))
    for i, row in enumerate(rows):
        try:
            value = np.array(row[field], dtype=np.float64)
        except (TypeError, ValueError):
            value = np.empty(0)
        if value.shape != shape or not np.isfinite(value).all():
            raise InputError(f"{table} {row['token']}: {field} must be {'x'.join(map(str, shape))} finite numbers")
        values[i] = value
    return values


def _poses(table: str, rows: list[Row]) -> np.ndarray:
    """(n, 4, 4) transforms from the fields translation and rotation."""
    wxyz = _numbers(table, rows, "rotation", (4,))
    wrong = np.flatnonzero(np.abs(np.linalg.norm(wxyz, axis=1) - 1) > 1e-3)
    if len(wrong):
        raise InputError(f"{table} {rows[wrong[0]]['token']}: rotation: the norm of the quaternion is not 1")
    poses = np.tile(np.eye(4), (len(rows), 1, 1))
    poses[:, :3, :3] = rotation_from_quaternion(wxyz)
    poses[:, :3, 3] = _numbers(table, rows, "translation", (3,))
    return poses
