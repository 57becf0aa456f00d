"""Results and scores of detection, against nuscenes-devkit on the same files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.common.data_classes import EvalBoxes
from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_gt_of_sample_tokens
from nuscenes.eval.detection.data_classes import DetectionBox
from nuscenes.eval.detection.evaluate import DetectionEval
from pyquaternion import Quaternion
from torch.utils.data import default_collate

from dense_depth import InputError
from dense_depth.datasets import DatasetConfig, open_dataset
from ext import BevGrid
from training.detection.boxes import CLASSES, Boxes, Detections, ground_truth
from training.detection.scores import evaluate_detection, results_of
from training.models.center_head import CenterHeadConfig, TaskOutput, decode
from training.models.center_targets import TargetConfig, center_targets

VERSION = "v1.0-synth"


def read(root, names=(), version=VERSION):
    return [*open_dataset(DatasetConfig("nuscenes", root, version)).scenes(names)]


def truth_of(scenes):
    return {k.sample_token: ground_truth(scene, k) for scene in scenes for k in scene.keyframes}


@pytest.fixture(scope="module")
def nusc(generated):
    return NuScenes(VERSION, str(generated), verbose=False)


@pytest.fixture(scope="module")
def scenes(generated):
    return read(generated, ["synth_val"])


@pytest.fixture(scope="module")
def truth(scenes):
    return truth_of(scenes)


def certain(truth):
    """The ground truth as detections; objects at rest where their velocity is not known."""
    return {
        token: Detections(Boxes(np.nan_to_num(boxes), classes), np.full(len(classes), 0.9, np.float32))
        for token, ((boxes, classes), _) in truth.items()
    }


def poses_of(truth):
    return {token: one.world_SE3_ego for token, one in truth.items()}


def write(path, results):
    path.write_text(json.dumps(results))
    return path


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


def test_perfect_prediction_scores_one(truth, scenes, tmp_path):
    """Annotations -> targets -> the outputs of a perfect head -> decode -> results file -> DetectionEval."""
    grid = BevGrid()
    targets = default_collate([center_targets(k.boxes, grid, TargetConfig()) for k in truth.values()])
    detections = dict(zip(truth, decode(perfect_outputs(targets), grid, CenterHeadConfig())))
    results = write(tmp_path / "results.json", results_of(detections, poses_of(truth)))
    scores = evaluate_detection(scenes, results)
    assert min(scores.class_boxes.values()) > 0  # else the class counts as 0
    assert scores.mean_ap > 0.99 and scores.nds > 0.95, scores
    assert all(scores.errors[name] < 0.01 for name in ("trans_err", "scale_err", "orient_err", "vel_err")), scores


def noisy(truth):
    """Every box twice or once, moved, with any score."""
    rng, found = np.random.default_rng(0), {}
    for token, ((boxes, classes), _) in certain(truth).items():
        boxes = np.concatenate([boxes, boxes[::2]])
        boxes += rng.normal(size=boxes.shape) * [1, 1, 1, 0, 0, 0, 0.3, 1, 1]
        boxes[:, 3:6] *= 1.2
        classes = np.concatenate([classes, classes[::2]])
        found[token] = Detections(Boxes(boxes.astype(np.float32), classes), rng.uniform(size=len(boxes)))
    return found


def assert_scores(scores, metrics, boxes):
    """Equal to the devkit's, but for the rounding of rotations that were matrices in between."""
    assert scores.mean_ap == pytest.approx(metrics.mean_ap, abs=1e-9)
    assert scores.nds == pytest.approx(metrics.nd_score, abs=1e-9)
    assert scores.errors == pytest.approx(metrics.tp_errors, abs=1e-9)
    assert scores.class_ap == pytest.approx(metrics.mean_dist_aps, abs=1e-9)
    counts = [box.detection_name for box in boxes.all]
    assert scores.class_boxes == {name: counts.count(name) for name in CLASSES}


def test_scores_are_the_devkits(nusc, truth, scenes, generated, tmp_path):
    """Noisy detections: the figures of DetectionEval itself, for a split, its scenes, and beside other results."""
    results = write(tmp_path / "noisy.json", results_of(noisy(truth), poses_of(truth)))
    config = config_factory("detection_cvpr_2019")
    devkit = DetectionEval(nusc, config, str(results), "synth_val", str(tmp_path / "devkit"), verbose=False)
    metrics, _ = devkit.evaluate()
    scores = evaluate_detection(scenes, results)
    assert 0.1 < scores.mean_ap < 0.9 and min(scores.errors.values()) > 0.1
    assert_scores(scores, metrics, devkit.gt_boxes)

    # "val" is a split of the table folder here, which goes before nuScenes' own.
    train = read(generated, ["synth_train"])
    content = json.loads(results.read_text())
    others = {token: [] for token in truth_of(train)}
    both = write(tmp_path / "both.json", {**content, "results": {**others, **content["results"]}})
    for names in (["val"], ["synth-0001"], ["val", "synth-0001"]):
        assert evaluate_detection(read(generated, names), both) == scores
    everything = [*train, *scenes]
    assert evaluate_detection(everything, both).mean_ap < scores.mean_ap
    assert evaluate_detection(everything, both, truth.keys()) == scores


def devkit_scores(root, version, tokens, results):
    """What the devkit's own reading, filters and evaluation say."""
    nusc = NuScenes(version, str(root), verbose=False)
    evaluation = DetectionEval.__new__(DetectionEval)
    evaluation.verbose, evaluation.cfg = False, config_factory("detection_cvpr_2019")
    chosen = {token: json.loads(results.read_text())["results"][token] for token in tokens}
    detected = EvalBoxes.deserialize(chosen, DetectionBox)
    annotated = load_gt_of_sample_tokens(nusc, tokens, DetectionBox)
    total = len(annotated.all), len(detected.all)
    evaluation.gt_boxes, evaluation.pred_boxes = (
        filter_eval_boxes(nusc, add_center_dist(nusc, boxes), evaluation.cfg.class_range)
        for boxes in (annotated, detected)
    )
    assert len(evaluation.gt_boxes.all) < total[0] and len(evaluation.pred_boxes.all) < total[1]
    return evaluation.evaluate()[0], evaluation.gt_boxes


def test_scores_of_recorded_tables_are_the_devkits(recorded, tmp_path):
    """Boxes without points, attributes, and objects that move."""
    root, version = recorded / "pandaset_as_nuscenes", "v1.0-mini"
    scenes = read(root, version=version)
    truth = truth_of(scenes)
    results = write(tmp_path / "noisy.json", results_of(noisy(truth), poses_of(truth)))
    scores = evaluate_detection(scenes, results)
    assert 0.05 < scores.mean_ap < 0.9
    assert_scores(scores, *devkit_scores(root, version, [*truth], results))


@pytest.fixture
def tables(tmp_path, generated):
    """The folder of a copy of the tables, and one of its tables, and what writes one."""
    folder = tmp_path / "changed" / VERSION
    folder.mkdir(parents=True)
    for path in (generated / VERSION).glob("*.json"):
        (folder / path.name).write_text(path.read_text())
    for name in ("maps", "samples", "sweeps"):
        (tmp_path / "changed" / name).symlink_to(generated / name)

    def rows(table):
        return json.loads((folder / f"{table}.json").read_text())

    def write_rows(table, rows):
        (folder / f"{table}.json").write_text(json.dumps(rows))

    return folder.parent, rows, write_rows


def test_what_does_not_count_is_the_devkits(tables, tmp_path):
    """Boxes out of range and without points, and cycles in a bicycle rack; detections in one as well."""
    root, rows, write_rows = tables
    instances, annotations, categories = rows("instance"), rows("sample_annotation"), rows("category")
    name_of = {row["token"]: row["name"] for row in categories}
    of_class = {name_of[row["category_token"]]: row for row in instances}
    cycle, rack = of_class["vehicle.bicycle"], of_class["movable_object.barrier"]
    categories.append({**categories[0], "token": "f" * 32, "name": "static_object.bicycle_rack"})
    rack["category_token"] = "f" * 32
    place = {row["sample_token"]: row for row in annotations if row["instance_token"] == cycle["token"]}
    n_inside = 0
    for i, row in enumerate(annotations):
        if row["instance_token"] == rack["token"] and (own := place.get(row["sample_token"])):
            x, y, z = own["translation"]
            row.update(translation=[x + 0.4, y - 0.3, z], size=[2.0, 3.0, 4.0])
            n_inside += 1
        elif i % 7 == 0:
            row.update(num_lidar_pts=0, num_radar_pts=0)
    assert n_inside
    for table, changed in (("instance", instances), ("sample_annotation", annotations), ("category", categories)):
        write_rows(table, changed)
    scenes = read(root)
    truth = truth_of(scenes)
    results = write(tmp_path / "noisy.json", results_of(noisy(truth), poses_of(truth)))
    scores = evaluate_detection(scenes, results)
    assert_scores(scores, *devkit_scores(root, VERSION, [*truth], results))
    without = [
        replace(scene, tracks=tuple(replace(t, category=t.category.replace("_rack", "")) for t in scene.tracks))
        for scene in scenes
    ]
    assert evaluate_detection(without, results).class_boxes["bicycle"] > scores.class_boxes["bicycle"]


def test_nothing_detected(truth, scenes, tmp_path):
    """... scores 0, where the devkit alone fails."""
    nothing = {
        token: Detections(Boxes(np.zeros((0, 9), np.float32), np.zeros(0, np.int64)), np.zeros(0)) for token in truth
    }
    results = write(tmp_path / "results.json", results_of(nothing, poses_of(truth)))
    scores = evaluate_detection(scenes, results)
    assert scores.mean_ap == scores.nds == 0 and set(scores.errors.values()) == {1.0}


def test_kitti_is_scored_too(recorded, tmp_path):
    """Perfect detections of the classes that it has; the others count as 0, as in the devkit."""
    scenes = [*open_dataset(DatasetConfig("kitti-raw", recorded / "kitti_raw")).scenes()]
    truth = truth_of(scenes)
    results = write(tmp_path / "results.json", results_of(certain(truth), poses_of(truth)))
    scores = evaluate_detection(scenes, results)
    shown = {name for name, n in scores.class_boxes.items() if n}
    assert "car" in shown and shown < {*CLASSES}
    assert {name for name, ap in scores.class_ap.items() if ap > 0.99} == shown
    assert all(ap == 0 for name, ap in scores.class_ap.items() if name not in shown)


def test_bad_input(truth, scenes, tmp_path):
    results = results_of(certain(truth), poses_of(truth))
    good, token = write(tmp_path / "results.json", results), [*truth][1]

    def refused(match, content=None, of=scenes):
        path = good if content is None else write(tmp_path / "bad.json", content)
        with pytest.raises(InputError, match=match) as error:
            evaluate_detection(of, path)
        assert "\n" not in str(error.value)

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
    animals = [replace(s, tracks=tuple(replace(t, category="animal") for t in s.tracks)) for s in scenes]
    refused("3 keyframes to score on: no annotated boxes", of=animals)

    found = certain(truth)
    found[token].boxes.boxes[2, 4] = np.inf
    with pytest.raises(InputError, match=f"^sample {token}: a detected box is not finite"):
        results_of(found, poses_of(truth))
