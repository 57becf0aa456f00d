"""Boxes of the ten nuScenes detection classes: ground truth, results file and score.

Boxes live in the nominal ego frame of their keyframe, x forward, y left, z up: the ego pose at the time of the
LIDAR_TOP key sweep, from which the devkit's evaluation also measures range. (BEVDepth averages the poses of the six
cameras.)
"""

import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int64

from dense_depth import InputError
from dense_depth.datasets.checks import some_of
from dense_depth.geometry import SE3, invert, quaternion_from_rotation, rotation_from_quaternion, se3, transform

TASKS = (  # of CenterPoint: classes of one task share a regression, and suppress each other
    ("car",),
    ("truck", "construction_vehicle"),
    ("bus", "trailer"),
    ("barrier",),
    ("motorcycle", "bicycle"),
    ("pedestrian", "traffic_cone"),
)
CLASSES = tuple(name for task in TASKS for name in task)
MAX_PER_SAMPLE = 500  # of the nuScenes detection task
MOVING_MPS = 0.2
ATTRIBUTES = {  # at rest, moving
    **dict.fromkeys(("car", "truck", "construction_vehicle", "trailer"), ("vehicle.parked", "vehicle.moving")),
    "bus": ("vehicle.stopped", "vehicle.moving"),
    **dict.fromkeys(("motorcycle", "bicycle"), ("cycle.without_rider", "cycle.with_rider")),
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
    **dict.fromkeys(("barrier", "traffic_cone"), ("", "")),
}


class Boxes(NamedTuple):
    """The boxes of a keyframe in its nominal ego frame.

    Attributes:
        boxes: x, y, z of the box's middle and length, width, height in metres, yaw in radians, velocity along x and y
            in m/s, NaN where it is not known.
        classes: Index into ``CLASSES``.
    """

    boxes: Float32[np.ndarray, "n 9"]
    classes: Int64[np.ndarray, " n"]


class Keyframe(NamedTuple):
    """The ground truth of a keyframe and its nominal ego pose."""

    boxes: Boxes
    world_SE3_ego: SE3


class Detections(NamedTuple):
    """Detected boxes and their scores in 0..1."""

    boxes: Boxes
    scores: Float32[np.ndarray, " n"]


@dataclass(frozen=True)
class DetectionScores:
    """What nuScenes' evaluation says.

    Attributes:
        mean_ap: Mean over all ten classes; one without a box in the ground truth counts as 0.
        nds: nuScenes detection score.
        errors: Mean errors of true positives: trans_err in m, scale_err as 1 - IoU, orient_err in rad, vel_err in m/s,
            attr_err as 1 - accuracy.
        class_ap: Average precision by class.
        class_boxes: Boxes by class in the ground truth, within the class's range and with points.
    """

    mean_ap: float
    nds: float
    errors: dict[str, float]
    class_ap: dict[str, float]
    class_boxes: dict[str, int]


def ground_truth(dataroot: Path, version: str, names: Sequence[str] = (), only_hit: bool = True) -> dict[str, Keyframe]:
    """The annotated boxes of the detection classes by sample token, through the nuScenes devkit.

    Velocities are the devkit's: central differences of the annotations, NaN where there is no neighbour in time.

    Args:
        dataroot: The folder that holds the table folder.
        version: Table folder, such as ``v1.0-mini``.
        names: Scenes, or splits of ``splits.json`` or of nuScenes; all when empty.
        only_hit: Only boxes with at least one LiDAR or radar point, as the evaluation counts them.

    Raises:
        InputError: The tables cannot be read, a name is unknown, or an annotation is no box.
    """
    nusc = _open(dataroot, version)
    return {token: _keyframe(nusc, token, only_hit) for token in _sample_tokens(nusc, names)}


def _keyframe(nusc: Any, sample_token: str, only_hit: bool) -> Keyframe:
    from nuscenes.eval.detection.utils import category_to_detection_name

    sample = nusc.get("sample", sample_token)
    if "LIDAR_TOP" not in sample["data"]:
        raise InputError(f"sample {sample_token}: no LIDAR_TOP sample_data, whose ego pose the boxes are relative to")
    pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
    world_SE3_ego = se3(rotation_from_quaternion(np.array(pose["rotation"])), np.array(pose["translation"]))

    rows, classes = [], []
    for row in (nusc.get("sample_annotation", token) for token in sample["anns"]):
        name = category_to_detection_name(row["category_name"])
        if name is None or (only_hit and row["num_lidar_pts"] + row["num_radar_pts"] == 0):
            continue
        box = np.array([*row["translation"], *row["size"], *row["rotation"]], dtype=np.float64)
        if not np.isfinite(box).all() or box[3:6].min() <= 0 or not box[6:].any():
            raise InputError(f"sample_annotation {row['token']}: translation, size or rotation are of no box; mend it")
        rows.append(np.concatenate([box, nusc.box_velocity(row["token"])]))
        classes.append(CLASSES.index(name))
    world = np.array(rows).reshape(-1, 13)
    ego_SE3_world = invert(world_SE3_ego)
    centres = transform(ego_SE3_world, world[:, :3])
    ahead = (ego_SE3_world[:3, :3] @ rotation_from_quaternion(world[:, 6:10]))[..., 0]
    velocities = world[:, 10:] @ ego_SE3_world[:3, :3].T
    yaw = np.arctan2(ahead[:, 1], ahead[:, 0])
    boxes = np.column_stack([centres, world[:, [4, 3, 5]], yaw, velocities[:, :2]]).astype(np.float32)
    return Keyframe(Boxes(boxes, np.array(classes, dtype=np.int64)), world_SE3_ego)


def results_of(detections: Mapping[str, Detections], world_SE3_ego: Mapping[str, SE3]) -> dict[str, Any]:
    """The results file of the nuScenes detection task, ready for ``json.dump``.

    The attribute follows from class and speed as in BEVDepth's evaluator: above 0.2 m/s an object moves and a cycle has
    a rider; at rest buses are stopped and other vehicles parked. The best 500 boxes of a sample stay.

    Args:
        detections: Boxes in the nominal ego frame by sample token; every sample of the split, also when it has none.
        world_SE3_ego: The nominal ego poses of these samples.

    Raises:
        InputError: A box is not finite.
    """
    results = {}
    for token, (boxes, scores) in detections.items():
        best = np.argsort(-scores, kind="stable")[:MAX_PER_SAMPLE]
        ego, pose = boxes.boxes[best].astype(np.float64), world_SE3_ego[token]
        if not np.isfinite(ego).all():
            raise InputError(f"sample {token}: a detected box is not finite; the model has diverged, take another one")
        centres = transform(pose, ego[:, :3])
        yaw_wxyz = np.column_stack([np.cos(ego[:, 6] / 2), *np.zeros((2, len(ego))), np.sin(ego[:, 6] / 2)])
        wxyz = quaternion_from_rotation(pose[:3, :3] @ rotation_from_quaternion(yaw_wxyz))
        velocities = ego[:, 7:] @ pose[:2, :2].T
        moving = np.linalg.norm(velocities, axis=1) > MOVING_MPS
        names = [CLASSES[i] for i in boxes.classes[best]]
        results[token] = [
            {
                "sample_token": token,
                "translation": centres[i].tolist(),
                "size": ego[i, [4, 3, 5]].tolist(),
                "rotation": wxyz[i].tolist(),
                "velocity": velocities[i].tolist(),
                "detection_name": name,
                "detection_score": float(scores[best[i]]),
                "attribute_name": ATTRIBUTES[name][int(moving[i])],
            }
            for i, name in enumerate(names)
        ]
    used = {"use_camera": True, "use_lidar": False, "use_radar": False, "use_map": False, "use_external": False}
    return {"meta": used, "results": results}


def evaluate_detection(dataroot: Path, version: str, split: str | Sequence[str], results_file: Path) -> DetectionScores:
    """Scores a results file with the devkit's ``DetectionEval`` and its configuration detection_cvpr_2019.

    Results of samples outside the split are left out.

    Args:
        dataroot: The folder that holds the table folder.
        version: Table folder, such as ``v1.0-mini``.
        split: Splits of ``splits.json`` in the table folder, which go first, or of nuScenes, or scenes.
        results_file: JSON as ``results_of`` makes it.

    Raises:
        InputError: Unknown split, tables without boxes, or a results file that is none or lacks a sample of the split.
    """
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_gt_of_sample_tokens
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    nusc = _open(dataroot, version)
    tokens = _sample_tokens(nusc, [split] if isinstance(split, str) else split)
    results = _results(results_file, tokens)
    try:
        detected = EvalBoxes.deserialize(results, DetectionBox)
    except Exception as error:  # it asserts
        raise InputError(f"{results_file}: not nuScenes detection results ({_one_line(error)})") from error
    with redirect_stderr(io.StringIO()):  # a progress bar
        annotated = load_gt_of_sample_tokens(nusc, tokens, DetectionBox)
    if not annotated.all:
        raise InputError(f"split {split}: {nusc.table_root} has no annotated boxes of the detection classes in it")

    # Its own __init__ knows no scenes, takes a split of splits.json named "val" for nuScenes', and fails when nothing
    # was detected.
    evaluation = DetectionEval.__new__(DetectionEval)
    evaluation.verbose, evaluation.cfg = False, config_factory("detection_cvpr_2019")
    evaluation.gt_boxes, evaluation.pred_boxes = (
        filter_eval_boxes(nusc, add_center_dist(nusc, boxes), evaluation.cfg.class_range) if boxes.all else boxes
        for boxes in (annotated, detected)
    )
    metrics, _ = evaluation.evaluate()
    counts = Counter(box.detection_name for box in evaluation.gt_boxes.all)
    return DetectionScores(
        mean_ap=metrics.mean_ap,
        nds=metrics.nd_score,
        errors=metrics.tp_errors,
        class_ap={name: float(metrics.mean_dist_aps[name]) for name in CLASSES},
        class_boxes={name: counts[name] for name in CLASSES},
    )


def _results(path: Path, tokens: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The results of these samples, from a results file."""
    content = _parse(path)
    results = content.get("results") if isinstance(content, dict) else None
    if not (isinstance(results, dict) and all(isinstance(boxes, list) for boxes in results.values())):
        raise InputError(f'{path}: not a nuScenes results file; "results" must map samples to lists of boxes')
    if missing := [token for token in tokens if token not in results]:
        raise InputError(
            f"{path}: lacks {len(missing)} of {len(tokens)} samples, first {missing[0]}; detect on all of them"
        )
    for token in tokens:
        if len(results[token]) > MAX_PER_SAMPLE:
            raise InputError(f"{path}: sample {token} has {len(results[token])} boxes; keep the best {MAX_PER_SAMPLE}")
    return {token: results[token] for token in tokens}


def _open(dataroot: Path, version: str) -> Any:
    """The devkit's database."""
    folder = dataroot / version
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; pass the name of the table folder as --version")
    from nuscenes import NuScenes

    try:
        return NuScenes(version, str(dataroot), verbose=False)
    except Exception as error:  # whatever the tables lack
        raise InputError(
            f"{folder}: the devkit cannot load it ({_one_line(error)}); repair or replace the table files"
        ) from error


def _sample_tokens(nusc: Any, names: Sequence[str]) -> list[str]:
    """Samples of the scenes or splits with these names, of all without a name."""
    from nuscenes.utils.splits import create_splits_scenes

    path = Path(nusc.table_root) / "splits.json"
    splits = create_splits_scenes() | (_parse(path) if path.is_file() else {})
    scenes = {row["name"]: row["token"] for row in nusc.scene}
    tokens = set() if names else {*scenes.values()}
    for name in names:
        found = {name, *splits.get(name, ())} & set(scenes)
        if not found:
            known = [split for split, members in splits.items() if set(members) & set(scenes)]
            raise InputError(
                f"split {name}: {path.parent} has neither a scene of that name nor one in a split of that name; "
                f"its scenes are {some_of([*scenes])}; its splits are {', '.join(known) or 'none'}"
            )
        tokens |= {scenes[scene] for scene in found}
    return [row["token"] for row in nusc.sample if row["scene_token"] in tokens]


def _parse(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({_one_line(error)})") from error


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
