"""Detections as nuScenes' results file, and nuScenes' score of one: the devkit's, on any dataset with tracks."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from dense_depth import InputError
from dense_depth.datasets.scene import Box, Keyframe, Scene
from dense_depth.geometry import SE3, invert, quaternion_from_rotation, rotation_from_quaternion, transform
from training.detection.boxes import CLASSES, Detections, class_of

if TYPE_CHECKING:
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox

MAX_PER_SAMPLE = 500  # of the nuScenes detection task
MOVING_MPS = 0.2
ATTRIBUTES = {  # at rest, moving
    **dict.fromkeys(("car", "truck", "construction_vehicle", "trailer"), ("vehicle.parked", "vehicle.moving")),
    "bus": ("vehicle.stopped", "vehicle.moving"),
    **dict.fromkeys(("motorcycle", "bicycle"), ("cycle.without_rider", "cycle.with_rider")),
    "pedestrian": ("pedestrian.standing", "pedestrian.moving"),
    **dict.fromkeys(("barrier", "traffic_cone"), ("", "")),
}
BICYCLE_RACK = "static_object.bicycle_rack"


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


def evaluate_detection(
    scenes: Iterable[Scene], results_file: Path, samples: Collection[str] | None = None
) -> DetectionScores:
    """Scores a results file with the devkit's ``DetectionEval`` and its configuration detection_cvpr_2019.

    Results of samples of other scenes are left out.

    Args:
        scenes: With tracks.
        results_file: JSON as ``results_of`` makes it.
        samples: Tokens of the keyframes to score; all of the scenes if not given.

    Raises:
        InputError: Scenes without boxes, or a results file that is none or lacks a sample.
    """
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    at = {
        keyframe.sample_token: (scene, keyframe)
        for scene in scenes
        for keyframe in scene.keyframes
        if samples is None or keyframe.sample_token in samples
    }
    results = _results(results_file, [*at])
    try:
        detected = EvalBoxes.deserialize(results, DetectionBox)
    except Exception as error:  # it asserts
        raise InputError(f"{results_file}: not nuScenes detection results ({_one_line(error)})") from error
    annotated = EvalBoxes()
    for token, (scene, keyframe) in at.items():
        annotated.add_boxes(token, annotations(scene, keyframe))
    if not annotated.all:
        raise InputError(f"{len(at)} keyframes to score on: no annotated boxes of the detection classes in them")

    # Its own __init__ reads nuScenes' tables, and fails when nothing was detected.
    evaluation = DetectionEval.__new__(DetectionEval)
    evaluation.verbose, evaluation.cfg = False, config_factory("detection_cvpr_2019")
    evaluation.gt_boxes, evaluation.pred_boxes = (
        _counted(boxes, at, evaluation.cfg.class_range) for boxes in (annotated, detected)
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


def annotations(scene: Scene, keyframe: Keyframe) -> "list[DetectionBox]":
    """The annotated boxes of a keyframe as the devkit's evaluation takes them; -1 points where nobody counted."""
    from nuscenes.eval.detection.constants import ATTRIBUTE_NAMES
    from nuscenes.eval.detection.data_classes import DetectionBox

    found = []
    for track, box in scene.boxes_of(keyframe):
        name = class_of(track.category)
        if name is None:
            continue
        length, width, height = box.size_lwh_m.tolist()
        velocity = np.full(2, np.nan) if box.velocity_mps is None else box.velocity_mps[:2]
        found.append(
            DetectionBox(
                sample_token=keyframe.sample_token,
                translation=tuple(box.world_SE3_box[:3, 3].tolist()),
                size=(width, length, height),
                rotation=tuple(quaternion_from_rotation(box.world_SE3_box[:3, :3]).tolist()),
                velocity=tuple(velocity.tolist()),
                num_pts=-1 if box.n_points is None else box.n_points,
                detection_name=name,
                attribute_name=box.attribute if box.attribute in ATTRIBUTE_NAMES else "",
            )
        )
    return found


def _counted(
    boxes: "EvalBoxes", at: Mapping[str, tuple[Scene, Keyframe]], class_range: Mapping[str, float]
) -> "EvalBoxes":
    """The boxes that are evaluated: within the range of their class, not without points, no cycles in a rack.

    As the devkit's add_center_dist and filter_eval_boxes, which look all that up in nuScenes' tables.
    """
    from nuscenes.eval.common.data_classes import EvalBoxes

    counted = EvalBoxes()
    for token, (scene, keyframe) in at.items():
        racks = [box for track, box in scene.boxes_of(keyframe) if track.category == BICYCLE_RACK]
        kept = []
        for box in boxes[token]:
            box.ego_translation = tuple(np.subtract(box.translation, keyframe.world_SE3_ego[:3, 3]).tolist())
            in_rack = box.detection_name in ("bicycle", "motorcycle") and any(
                _is_inside(np.array(box.translation), rack) for rack in racks
            )
            if box.ego_dist < class_range[box.detection_name] and box.num_pts != 0 and not in_rack:
                kept.append(box)
        counted.add_boxes(token, kept)
    return counted


def _is_inside(point_world: Float[np.ndarray, "3"], box: Box) -> bool:
    """Whether a point is in a box, its surface included."""
    return bool((np.abs(transform(invert(box.world_SE3_box), point_world)) <= box.size_lwh_m / 2).all())


def _results(path: Path, tokens: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The results of these samples, from a results file."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as JSON ({_one_line(error)})") from error
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


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
