"""Ground truth, results and scores of detection, against nuscenes-devkit on the same files."""

import json
import math

import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.utils import quaternion_yaw
from nuscenes.eval.detection.constants import DETECTION_NAMES
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.utils.data_classes import Box
from pyquaternion import Quaternion
from torch.utils.data import default_collate

from dense_depth import InputError
from ext import BevGrid
from training.detection.boxes import CLASSES, Boxes, Detections, evaluate_detection, ground_truth, results_of
from training.models.center_head import CenterHeadConfig, TaskOutput, decode
from training.models.center_targets import TargetConfig, center_targets

VERSION = "v1.0-synth"


@pytest.fixture(scope="module")
def nusc(generated):
    return NuScenes(VERSION, str(generated), verbose=False)


@pytest.fixture(scope="module")
def truth(generated):
    return ground_truth(generated, VERSION, ["synth_val"])


def certain(truth):
    """The ground truth as detections; objects at rest where their velocity is not known."""
    return {
        token: Detections(Boxes(np.nan_to_num(boxes), classes), np.full(len(classes), 0.9, np.float32))
        for token, ((boxes, classes), _) in truth.items()
    }


def poses_of(truth):
    return {token: keyframe.world_SE3_ego for token, keyframe in truth.items()}


def write(path, results):
    path.write_text(json.dumps(results))
    return path


def test_classes():
    assert sorted(CLASSES) == sorted(DETECTION_NAMES)


def test_ground_truth_equals_devkit(nusc, truth, generated):
    """Boxes, classes and velocities as the devkit's own boxes have them after a move into the ego frame."""
    scene = next(row for row in nusc.scene if row["name"] == "synth-0001")
    samples = [row for row in nusc.sample if row["scene_token"] == scene["token"]]
    assert [*truth] == [row["token"] for row in samples]
    assert {*ground_truth(generated, VERSION)} == {row["token"] for row in nusc.sample}
    tilt = 0.0
    for sample in samples:
        pose = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
        ego = Quaternion(pose["rotation"])
        expected = []
        for row in (nusc.get("sample_annotation", token) for token in sample["anns"]):
            box = Box(
                row["translation"], row["size"], Quaternion(row["rotation"]), velocity=nusc.box_velocity(row["token"])
            )
            box.translate(-np.array(pose["translation"]))
            box.rotate(ego.inverse)
            width, length, height = box.wlh
            yaw = quaternion_yaw(box.orientation)
            expected.append([*box.center, length, width, height, yaw, *box.velocity[:2]])
        tilt = max(tilt, np.abs(ego.rotation_matrix[2, :2]).max())
        boxes, classes = truth[sample["token"]].boxes
        assert boxes.dtype == np.float32 and classes.dtype == np.int64
        np.testing.assert_allclose(boxes, expected, atol=1e-4)
        names = [nusc.get("sample_annotation", token)["category_name"] for token in sample["anns"]]
        for name, kind in zip(names, classes):
            assert CLASSES[kind].removesuffix("_vehicle").replace("_", "") in name
    assert tilt > 1e-3  # else nothing was asked of roll and pitch


@pytest.fixture
def changed(tmp_path, generated):
    """The folder of a copy of the tables, and what replaces its annotations."""
    folder = tmp_path / "changed" / VERSION
    folder.mkdir(parents=True)
    for path in (generated / VERSION).glob("*.json"):
        (folder / path.name).write_text(path.read_text())
    (tmp_path / "changed" / "maps").symlink_to(generated / "maps")

    def replace(rows):
        (folder / "sample_annotation.json").write_text(json.dumps(rows))

    return folder.parent, json.loads((folder / "sample_annotation.json").read_text()), replace


def test_annotations_that_say_less(changed):
    """Alone in time: no velocity. Without a LiDAR or radar point: left out, unless asked for. Without a size: named."""
    root, rows, replace = changed
    for i, row in enumerate(rows):
        row.update(prev="", next="", num_lidar_pts=int(i % 3 == 0), num_radar_pts=int(i % 3 == 1))
    replace(rows)
    hit, everything = (ground_truth(root, VERSION, only_hit=only) for only in (True, False))
    for token, ((boxes, _), _) in everything.items():
        mine = [i % 3 < 2 for i, row in enumerate(rows) if row["sample_token"] == token]
        assert np.isnan(boxes[:, 7:]).all() and np.isfinite(boxes[:, :7]).all() and len(boxes) == len(mine)
        np.testing.assert_array_equal(hit[token].boxes.boxes, boxes[mine])
    rows[8]["size"] = [1.0, 0.0, 1.0]
    replace(rows)
    ground_truth(root, VERSION)
    with pytest.raises(InputError, match=f"^sample_annotation {rows[8]['token']}: .*size"):
        ground_truth(root, VERSION, only_hit=False)


def test_results_are_the_annotations(nusc, truth):
    """Ground truth taken through the results file is what the tables say."""
    results = results_of(certain(truth), poses_of(truth))
    assert results["meta"]["use_camera"] and not results["meta"]["use_lidar"]
    for token, found in results["results"].items():
        rows = (nusc.get("sample_annotation", a) for a in nusc.get("sample", token)["anns"])
        rows = [row for row in rows if row["num_lidar_pts"]]
        assert len(rows) == len(found)
        for row, box in zip(rows, found):
            assert box["sample_token"] == token and box["detection_score"] == pytest.approx(0.9)
            np.testing.assert_allclose(box["translation"], row["translation"], atol=1e-4)
            np.testing.assert_allclose(box["size"], row["size"], rtol=1e-6)
            velocity = np.nan_to_num(nusc.box_velocity(row["token"])[:2])
            np.testing.assert_allclose(box["velocity"], velocity, atol=0.02)  # what is along z of the ego is lost
            turn = Quaternion(box["rotation"]).inverse * Quaternion(row["rotation"])
            assert abs((turn.yaw_pitch_roll[0] + math.pi) % (2 * math.pi) - math.pi) < 1e-3


def test_attributes():
    """By class, at rest and at 0.19 and 0.21 m/s across the ego's heading."""
    boxes = np.tile(np.array([1, 2, 0, 4, 2, 1, 0.3, 0, 0], np.float32), (30, 1))
    boxes[10:20, 8], boxes[20:, 8] = 0.19, -0.21
    classes = np.tile(np.arange(10), 3)
    detections = {"s": Detections(Boxes(boxes, classes), np.ones(30, np.float32))}
    found = results_of(detections, {"s": np.eye(4)})["results"]["s"]
    assert [box["detection_name"] for box in found] == [*CLASSES] * 3
    rest = {
        **dict.fromkeys(("car", "truck", "construction_vehicle", "trailer"), "vehicle.parked"),
        **dict.fromkeys(("bicycle", "motorcycle"), "cycle.without_rider"),
        **{"bus": "vehicle.stopped", "pedestrian": "pedestrian.standing", "barrier": "", "traffic_cone": ""},
    }
    moving = {
        **dict.fromkeys(("car", "truck", "construction_vehicle", "trailer", "bus"), "vehicle.moving"),
        **dict.fromkeys(("bicycle", "motorcycle"), "cycle.with_rider"),
        **{"pedestrian": "pedestrian.moving", "barrier": "", "traffic_cone": ""},
    }
    assert [box["attribute_name"] for box in found] == [table[n] for table in (rest, rest, moving) for n in CLASSES]


def test_at_most_500():
    boxes = np.tile(np.array([0, 0, 0, 4, 2, 1, 0, 0, 0], np.float32), (700, 1))
    scores = np.random.default_rng(0).uniform(size=700).astype(np.float32)
    detections = Detections(Boxes(boxes, np.zeros(700, np.int64)), scores)
    found = [box["detection_score"] for box in results_of({"s": detections}, {"s": np.eye(4)})["results"]["s"]]
    assert found == sorted(scores.tolist(), reverse=True)[:500]


def perfect_outputs(targets):
    """The heat maps of the targets; every cell states the nearest object of its task, as seen from that cell."""
    outputs = []
    for target in targets.tasks:
        samples, _, ny, nx = target.heatmap.shape
        row, column = torch.meshgrid(torch.arange(ny), torch.arange(nx), indexing="ij")
        code = torch.zeros(samples, 10, ny, nx)
        for sample in range(samples):
            used = target.mask[sample]
            if used.any():
                cell, codes = target.cell[sample, used], target.code[sample, used].nan_to_num(0.0)
                dy, dx = (cell // nx).view(-1, 1, 1) - row, (cell % nx).view(-1, 1, 1) - column
                nearest = (dx**2 + dy**2).argmin(0)
                code[sample] = codes[nearest].permute(2, 0, 1)
                code[sample, 0] += dx.gather(0, nearest[None])[0]
                code[sample, 1] += dy.gather(0, nearest[None])[0]
        outputs.append(TaskOutput(target.heatmap.clamp(1e-6, 1 - 1e-6).logit(), code))
    return outputs


def test_perfect_prediction_scores_one(truth, generated, tmp_path):
    """Annotations -> targets -> the outputs of a perfect head -> decode -> results file -> DetectionEval."""
    grid = BevGrid()
    targets = default_collate([center_targets(k.boxes, grid, TargetConfig()) for k in truth.values()])
    detections = dict(zip(truth, decode(perfect_outputs(targets), grid, CenterHeadConfig())))
    results = write(tmp_path / "results.json", results_of(detections, poses_of(truth)))
    scores = evaluate_detection(generated, VERSION, "synth_val", results)
    assert min(scores.class_boxes.values()) > 0  # else the class counts as 0
    assert scores.mean_ap > 0.99 and scores.nds > 0.95, scores
    assert all(scores.errors[name] < 0.01 for name in ("trans_err", "scale_err", "orient_err", "vel_err")), scores


def test_scores_are_the_devkits(nusc, truth, generated, tmp_path):
    """Noisy detections: the figures of DetectionEval itself, for a split, its scenes, and beside other results."""
    rng = np.random.default_rng(0)
    noisy = {}
    for token, ((boxes, classes), _) in certain(truth).items():
        boxes = np.concatenate([boxes, boxes[::2]])
        boxes += rng.normal(size=boxes.shape) * [1, 1, 1, 0, 0, 0, 0.3, 1, 1]
        boxes[:, 3:6] *= 1.2
        classes = np.concatenate([classes, classes[::2]])
        noisy[token] = Detections(Boxes(boxes.astype(np.float32), classes), rng.uniform(size=len(boxes)))
    results = write(tmp_path / "noisy.json", results_of(noisy, poses_of(truth)))
    config = config_factory("detection_cvpr_2019")
    devkit = DetectionEval(nusc, config, str(results), "synth_val", str(tmp_path / "devkit"), verbose=False)
    metrics, _ = devkit.evaluate()

    scores = evaluate_detection(generated, VERSION, "synth_val", results)
    assert 0.1 < scores.mean_ap < 0.9 and min(scores.errors.values()) > 0.1
    assert (scores.mean_ap, scores.nds) == (metrics.mean_ap, metrics.nd_score)
    assert scores.errors == metrics.tp_errors and scores.class_ap == metrics.mean_dist_aps
    counts = [box.detection_name for box in devkit.gt_boxes.all]
    assert scores.class_boxes == {name: counts.count(name) for name in CLASSES}

    # "val" is a split of the table folder here, which goes before nuScenes' own.
    others = {token: [] for token in ground_truth(generated, VERSION, ["synth_train"])}
    content = json.loads(results.read_text())
    both = write(tmp_path / "both.json", {**content, "results": {**others, **content["results"]}})
    for split in ("val", "synth-0001", ["val", "synth-0001"]):
        assert evaluate_detection(generated, VERSION, split, both) == scores
    assert evaluate_detection(generated, VERSION, ["train", "val"], both).mean_ap < scores.mean_ap


def test_nothing_detected(truth, generated, tmp_path):
    """... scores 0, where the devkit alone fails."""
    nothing = {
        token: Detections(Boxes(np.zeros((0, 9), np.float32), np.zeros(0, np.int64)), np.zeros(0)) for token in truth
    }
    results = write(tmp_path / "results.json", results_of(nothing, poses_of(truth)))
    scores = evaluate_detection(generated, VERSION, "synth_val", results)
    assert scores.mean_ap == scores.nds == 0 and set(scores.errors.values()) == {1.0}


def test_bad_input(truth, generated, changed, tmp_path):
    results = results_of(certain(truth), poses_of(truth))
    good, token = write(tmp_path / "results.json", results), [*truth][1]

    def refused(match, split="synth_val", content=None, root=generated, version=VERSION):
        path = good if content is None else write(tmp_path / "bad.json", content)
        with pytest.raises(InputError, match=match) as error:
            evaluate_detection(root, version, split, path)
        assert "\n" not in str(error.value)

    refused("v1.0-nothing: no such folder", version="v1.0-nothing")
    refused("split vall: .*scenes are synth-0000, synth-0001; its splits are train, val, synth_train", split="vall")
    refused("split mini_val: ", split="mini_val")
    refused('bad.json: not a nuScenes results file; "results"', content=[])
    refused('bad.json: not a nuScenes results file; "results"', content={"results": {token: {}}})
    few = {key: boxes for key, boxes in results["results"].items() if key != token}
    refused(f"bad.json: lacks 1 of 3 samples, first {token}", content={"meta": {}, "results": few})
    many = {**results["results"], token: results["results"][token] * 20}
    refused(f"bad.json: sample {token} has {len(many[token])} boxes; keep", content={"meta": {}, "results": many})
    wrong = {**results["results"], token: [{**results["results"][token][0], "detection_name": "tram"}]}
    refused("bad.json: not nuScenes detection results .*tram", content={"meta": {}, "results": wrong})
    good.write_text("{")
    refused("results.json: cannot be read as JSON")
    write(good, results)
    root, rows, replace = changed
    replace([{**row, "category_name": "animal", "instance_token": rows[0]["instance_token"]} for row in rows[:1]])
    refused("split synth_val: .* has no annotated boxes", root=root)
    (root / VERSION / "ego_pose.json").write_text("[{}]")
    refused(f"{VERSION}: the devkit cannot load it .KeyError.*token", root=root)

    found = certain(truth)
    found[token].boxes.boxes[2, 4] = np.inf
    with pytest.raises(InputError, match=f"^sample {token}: a detected box is not finite"):
        results_of(found, poses_of(truth))
