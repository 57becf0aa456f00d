"""Poses that were found for a scene, kept in a store: one file per scene, source and algorithm, named by all inputs."""

import hashlib
import json
from typing import Any

import numpy as np

from dense_depth import InputError
from dense_depth.datasets import PoseSource
from dense_depth.datasets.scene import Scene
from dense_depth.poses import ALGORITHM, PoseReport, Step, by_odometry, repaired
from dense_depth.store import Bucket, Folder
from dense_depth.sweeps import scene_sha256, survey
from dense_depth.trajectory import placed


def pose_path(scene: Scene, source: PoseSource) -> str:
    """Where a store keeps the poses of a scene: a hash of all that they depend on but what is in the sweeps' files."""
    n_points, _ = survey(scene.sweeps, drop_bad=True)
    digest = hashlib.sha256(f"{chosen(scene, source)} {ALGORITHM}".encode() + scene_sha256(scene, n_points))
    for keyframe in scene.keyframes:
        digest.update(f"{keyframe.timestamp_us}".encode() + keyframe.world_SE3_ego.tobytes())
    return f"poses/{scene.token}.{digest.hexdigest()[:16]}.json"


def chosen(scene: Scene, source: PoseSource) -> PoseSource:
    """What "auto" means for a scene; other sources mean themselves."""
    if source != "auto":
        return source
    return "repaired" if scene.rough_poses else "dataset"


def posed(scene: Scene, source: PoseSource, store: Folder | Bucket) -> tuple[Scene, PoseReport | None]:
    """A scene with poses from a source, and how they came about; None for the dataset's own.

    Poses that the store does not have are worked out and put there. Of several workers at once, the first one's count.

    Raises:
        InputError: The file in the store is damaged.
    """
    source = chosen(scene, source)
    if source == "dataset":
        return scene, None
    path = pose_path(scene, source)
    try:
        data = store.get(path)
    except FileNotFoundError:
        found, report = repaired(scene) if source == "repaired" else by_odometry(scene)
        store.put_if_absent(path, _encoded(found, report))
        data = store.get(path)
    try:
        poses, report = _decoded(json.loads(data), scene)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{store.url}/{path}: not the poses of {scene.name} ({error}); delete it") from error
    return scene if report.kept else placed(scene, poses), report


def _encoded(scene: Scene, report: PoseReport) -> bytes:
    """JSON keeps every bit of a float."""
    record = {
        "sweeps": [sweep.token for sweep in scene.sweeps],
        "world_SE3_sensor": [sweep.world_SE3_sensor.tolist() for sweep in scene.sweeps],
        "steps": [step._asdict() for step in report.steps],
        "kept": report.kept,
        "figures": report.figures(),
    }
    return json.dumps(record, allow_nan=False).encode()


def _decoded(record: dict[str, Any], scene: Scene) -> tuple[np.ndarray, PoseReport]:
    if record["sweeps"] != [sweep.token for sweep in scene.sweeps]:
        raise ValueError("its sweeps are others")
    poses = np.array(record["world_SE3_sensor"], np.float64)
    if poses.shape != (len(scene.sweeps), 4, 4) or not np.isfinite(poses).all():
        raise ValueError("world_SE3_sensor must be a finite 4x4 matrix for each sweep")
    return poses, PoseReport(tuple(Step(**step) for step in record["steps"]), bool(record["kept"]))
