"""The generated dataset, read back through nuscenes-devkit and compared with its exact truth."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from nuscenes.nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from pyquaternion import Quaternion

from dense_depth import InputError
from dense_depth.datasets.synthetic import CAMERAS, SynthConfig, generate, read_truth

CONFIG = SynthConfig(keyframes=4, image_width=400, image_height=225, lidar_noise_m=0.0)
TINY = SynthConfig(scenes=2, keyframes=2, image_width=64, image_height=36, lidar_azimuths=90)


@pytest.fixture(scope="module")
def nusc(tmp_path_factory: pytest.TempPathFactory) -> NuScenes:
    root = tmp_path_factory.mktemp("synth")
    generate(root, CONFIG)
    return NuScenes(CONFIG.version, str(root), verbose=False)


def hashes(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def annotations_of(nusc: NuScenes, category: str, attribute: str) -> list[dict]:
    """The annotations in time of the only instance of a category with an attribute."""
    token = nusc.field2token("attribute", "name", attribute)[0]
    found = [a for a in nusc.sample_annotation if a["category_name"] == category and a["attribute_tokens"] == [token]]
    assert len({a["instance_token"] for a in found}) == 1
    return sorted(found, key=lambda a: nusc.get("sample", a["sample_token"])["timestamp"])


def lidar_rows(nusc: NuScenes) -> list[dict]:
    rows = [row for row in nusc.sample_data if row["channel"] == "LIDAR_TOP"]
    return sorted(rows, key=lambda row: row["timestamp"])


def world_points(nusc: NuScenes, row: dict) -> np.ndarray:
    """The points of a sweep in the world, (n, 3), by the poses in the tables alone."""
    points = np.fromfile(Path(nusc.dataroot) / row["filename"], np.float32).reshape(-1, 5)[:, :3].astype(np.float64)
    for table, token in (("calibrated_sensor", "calibrated_sensor_token"), ("ego_pose", "ego_pose_token")):
        pose = nusc.get(table, row[token])
        points = points @ Quaternion(pose["rotation"]).rotation_matrix.T + pose["translation"]
    return points


def test_devkit_aggregates_sweeps(nusc: NuScenes) -> None:
    key_points, _ = LidarPointCloud.from_file_multisweep(nusc, nusc.sample[-1], "LIDAR_TOP", "LIDAR_TOP", nsweeps=1)
    points, times = LidarPointCloud.from_file_multisweep(nusc, nusc.sample[-1], "LIDAR_TOP", "LIDAR_TOP", nsweeps=10)
    assert points.nbr_points() > 9 * key_points.nbr_points() > 9 * 10_000
    np.testing.assert_allclose(np.unique(times.round(3)), np.arange(10) * 0.05, atol=1e-9)


def test_sweep_layout(nusc: NuScenes) -> None:
    """Fields, rings and elevations are those of a nuScenes file."""
    row = lidar_rows(nusc)[0]
    points = np.fromfile(Path(nusc.dataroot) / row["filename"], np.float32).reshape(-1, 5)
    x, y, z, intensity, ring = points.T
    elevation_deg = np.degrees(np.arctan2(z, np.hypot(x, y)))
    np.testing.assert_allclose(elevation_deg, -30.67 + ring * 41.34 / 31, atol=1e-3)
    assert set(ring) <= set(range(32)) and (ring[:5] == np.arange(5)).all()  # the rings of one firing together
    turn_deg = np.diff(np.unwrap(np.arctan2(y[ring == 0], x[ring == 0]))) * 180 / np.pi
    np.testing.assert_allclose(turn_deg, -360 / 1084, atol=1e-3)  # clockwise; ring 0 always meets the ground
    assert intensity.min() >= 0 and intensity.max() <= 255
    assert np.linalg.norm(points[:, :3], axis=1).max() <= 70.001


@pytest.mark.parametrize("camera", CAMERAS)
def test_key_sweep_agrees_with_truth(nusc: NuScenes, camera: str) -> None:
    """Key-sweep points in a camera, by the devkit's chain of poses, have the true depth of their pixel.

    Compared where it has to hold: on the background, where the true depth is smooth around the pixel, and where
    no other surface hides the point from the camera.
    """
    truth = read_truth(nusc.dataroot, nusc.scene[0]["token"], camera)
    compared = 0
    for key, sample in enumerate(nusc.sample):
        assert truth.sample_tokens[key] == sample["token"]
        points, depth_m, _ = nusc.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], sample["data"][camera])
        u, v = np.floor(points[:2] + 0.5).astype(int)
        true_m, instance = truth.depth_m[key], truth.instance[key]
        row, column = np.clip(v, 1, true_m.shape[0] - 2), np.clip(u, 1, true_m.shape[1] - 2)
        window = np.stack([true_m[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        slack_m = np.ptp(window, axis=0)  # how far the depth can be off by rounding to a pixel
        same_object = np.stack([instance[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)]).max(0) == 0
        plain = (u == column) & (v == row) & same_object & (slack_m < 0.02 * window[4])
        error_m = depth_m - window[4]
        hidden = error_m > slack_m + 0.05
        assert not (error_m[plain] < -slack_m[plain] - 0.01).any()  # nothing floats in front of the true surface
        assert hidden[plain].mean() < 0.1
        visible = plain & ~hidden
        assert np.median(np.abs(error_m[visible])) < 0.05
        assert (np.abs(error_m[visible]) <= slack_m[visible] + 0.01).mean() > 0.99
        compared += visible.sum()
    assert compared > 2000


def test_truth_is_the_depth_of_the_ground_under_a_level_camera() -> None:
    """Against hand-worked numbers: a camera 1.6 m above a plane sees the row v at depth 1.6 f / (v - c)."""
    from dense_depth.datasets.synthetic import World, camera, cast, cuboid

    sensor = camera("CAM_FRONT", 1600, 900)
    plane = cuboid((400.0, 400.0, 1.0), (0.0, 0.0, -0.5), (90, 90, 90))
    ego = np.eye(4)
    ego[2, 3] = 1.6 - sensor.ego_SE3_sensor[2, 3]
    depth_m = cast(World(None, plane, (), lambda time_s: ego), sensor, 0.0).distance.reshape(900, 1600)
    focal_px = 800 / np.tan(np.radians(35))
    for row in (899, 700, 500):
        np.testing.assert_allclose(depth_m[row], 1.6 * focal_px / (row - 449.5), rtol=1e-5)
    assert np.isinf(depth_m[:449]).all()


def test_num_lidar_pts_is_a_recount(nusc: NuScenes, tmp_path: Path) -> None:
    generate(tmp_path / "noisy", SynthConfig(keyframes=3, image_width=64, image_height=36))
    for dataset in (nusc, NuScenes("v1.0-synth", str(tmp_path / "noisy"), verbose=False)):
        for sample in dataset.sample:
            path, boxes, _ = dataset.get_sample_data(sample["data"]["LIDAR_TOP"])
            points = LidarPointCloud.from_file(path).points[:3]
            for box in boxes:
                stored = dataset.get("sample_annotation", box.token)["num_lidar_pts"]
                assert points_in_box(box, points).sum() == stored
        assert sum(a["num_lidar_pts"] for a in dataset.sample_annotation) > 300


def test_tables_refer_to_each_other(nusc: NuScenes, tmp_path: Path) -> None:
    generate(tmp_path, TINY)
    for dataset in (nusc, NuScenes(TINY.version, str(tmp_path), verbose=False)):
        tokens = {name: {row["token"] for row in getattr(dataset, name)} for name in dataset.table_names}
        for name in dataset.table_names:
            rows = getattr(dataset, name)
            assert rows and len(tokens[name]) == len(rows)
            for row in rows:
                for field, value in row.items():
                    table = "sample_annotation" if field.endswith("_annotation_token") else field.removesuffix("_token")
                    table = "sample" if field.endswith("_sample_token") else table
                    if field.endswith("_token") and table in tokens:
                        assert value in tokens[table], (name, field)
                    if field in ("prev", "next"):
                        assert value == "" or value in tokens[name]
                    if field.endswith("_tokens"):
                        assert set(value) <= tokens[field.removesuffix("_tokens")]
                if "filename" in row:
                    assert (Path(dataset.dataroot) / row["filename"]).is_file()
        for name, groups in (("sample_data", "channel"), ("sample_annotation", "instance_token")):
            by_token = {row["token"]: row for row in getattr(dataset, name)}
            heads = [row for row in by_token.values() if not row["prev"]]
            walked = 0
            for row in heads:
                while row["next"]:
                    after = by_token[row["next"]]
                    assert after["prev"] == row["token"] and after[groups] == row[groups]
                    row, walked = after, walked + 1
            assert walked + len(heads) == len(by_token)  # every row is on exactly one chain
        for instance in dataset.instance:
            first = dataset.get("sample_annotation", instance["first_annotation_token"])
            last = dataset.get("sample_annotation", instance["last_annotation_token"])
            assert first["prev"] == "" and last["next"] == "" and last["instance_token"] == instance["token"]
            count = sum(a["instance_token"] == instance["token"] for a in dataset.sample_annotation)
            assert count == instance["nbr_annotations"]


def test_sweeps_belong_to_the_sample_that_follows(nusc: NuScenes) -> None:
    rows = lidar_rows(nusc)
    assert [row["is_key_frame"] for row in rows] == [i % 10 == 0 for i in range(31)]
    assert (np.diff([row["timestamp"] for row in rows]) == 50_000).all()
    for row in rows:
        ahead_us = nusc.get("sample", row["sample_token"])["timestamp"] - row["timestamp"]
        assert 0 <= ahead_us < 500_000 and row["is_key_frame"] == (ahead_us == 0)


def test_cameras_have_their_own_time_and_pose(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        lidar_pose = nusc.get("ego_pose", lidar["ego_pose_token"])
        for camera in CAMERAS:
            row = nusc.get("sample_data", sample["data"][camera])
            pose = nusc.get("ego_pose", row["ego_pose_token"])
            delay_us = row["timestamp"] - lidar["timestamp"]
            assert delay_us != 0 and abs(delay_us) <= 25_000 and pose["timestamp"] == row["timestamp"]
            moved_m = np.linalg.norm(np.subtract(pose["translation"], lidar_pose["translation"]))
            assert moved_m == pytest.approx(8.0 * abs(delay_us) * 1e-6, rel=0.1)  # 8 m/s along a gently curved road
    poses = [nusc.get("ego_pose", row["ego_pose_token"]) for row in lidar_rows(nusc)]
    yaw, pitch, roll = np.ptp([Quaternion(pose["rotation"]).yaw_pitch_roll for pose in poses], axis=0)
    assert min(pitch, roll) > np.radians(0.5) and yaw > np.radians(0.5)
    assert np.ptp([pose["translation"][2] for pose in poses]) > 0.02


def test_moving_car(nusc: NuScenes) -> None:
    """Its pixels move, and its boxes, interpolated between keyframes, hold its points in the sweeps between."""
    annotations = annotations_of(nusc, "vehicle.car", "vehicle.moving")
    assert len(annotations) == CONFIG.keyframes
    times_us = [nusc.get("sample", a["sample_token"])["timestamp"] for a in annotations]
    speed_mps = np.subtract(annotations[-1]["translation"], annotations[0]["translation"]) / 1.5
    assert np.linalg.norm(speed_mps) == pytest.approx(10.0, rel=0.05)

    truth = read_truth(nusc.dataroot, nusc.scene[0]["token"], "CAM_FRONT")
    instance = truth.instance_tokens.index(annotations[0]["instance_token"]) + 1
    masks = [truth.instance[key] == instance for key in range(CONFIG.keyframes)]
    assert all(mask.sum() > 50 for mask in masks) and (masks[0] ^ masks[1]).sum() > 20
    for key, mask in enumerate(masks):
        assert (truth.moving[key][mask] == 1).all()
        assert (truth.moving[key][truth.instance[key] == 0] == 0).all()

    for row in lidar_rows(nusc):
        later = min(max(np.searchsorted(times_us, row["timestamp"]), 1), len(annotations) - 1)
        a, b = annotations[later - 1], annotations[later]
        share = (row["timestamp"] - times_us[later - 1]) / (times_us[later] - times_us[later - 1])
        centre = (1 - share) * np.array(a["translation"]) + share * np.array(b["translation"])
        rotation = Quaternion.slerp(Quaternion(a["rotation"]), Quaternion(b["rotation"]), share).rotation_matrix
        width, length, height = a["size"]
        in_box = (world_points(nusc, row) - centre) @ rotation
        half = np.array([length, width, height]) / 2
        above_ground = in_box[:, 2] > -half[2] + 0.1
        inside = (np.abs(in_box) <= half).all(axis=1) & above_ground
        around = (np.abs(in_box) <= half + 0.4).all(axis=1) & above_ground
        assert inside.sum() > 20
        assert inside.sum() == around.sum()  # nothing of the car sticks out, nothing else is near


def test_pedestrian_appears_late(nusc: NuScenes) -> None:
    """The keyframe before its first annotation does not have it, nor does any image before that."""
    annotations = annotations_of(nusc, "human.pedestrian.adult", "pedestrian.moving")
    samples = [sample["token"] for sample in nusc.sample]
    first = samples.index(annotations[0]["sample_token"])
    assert 0 < first < len(samples)
    for camera in CAMERAS:
        truth = read_truth(nusc.dataroot, nusc.scene[0]["token"], camera)
        instance = truth.instance_tokens.index(annotations[0]["instance_token"]) + 1
        assert not any((truth.instance[key] == instance).any() for key in range(first))


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name, config in (("a", TINY), ("b", TINY), ("c", SynthConfig(**{**vars(TINY), "seed": 1}))):
        generate(tmp_path / name, config)
    a, b, c = (hashes(tmp_path / name) for name in "abc")
    assert a == b and len(a) > 50
    assert a.keys() != c.keys()
    generate(tmp_path / "c", TINY)  # replaces its own earlier dataset, whatever that was
    assert hashes(tmp_path / "c") == a
    splits = json.loads((tmp_path / "a" / TINY.version / "splits.json").read_text())
    assert splits["train"] == ["synth-0000"] and splits["val"] == ["synth-0001"]


def test_devkit_evaluates_custom_splits(tmp_path: Path) -> None:
    """Annotations handed in as predictions are perfect detections."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    generate(tmp_path, TINY)
    nusc = NuScenes(TINY.version, str(tmp_path), verbose=False)
    names = {"vehicle.car": "car", "human.pedestrian.adult": "pedestrian"}
    attributes = {row["token"]: row["name"] for row in nusc.attribute}
    results: dict[str, list[dict]] = {}
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] != "synth-0001":
            continue
        results[sample["token"]] = [
            {
                "sample_token": sample["token"],
                **{field: a[field] for field in ("translation", "size", "rotation")},
                "velocity": np.nan_to_num(nusc.box_velocity(a["token"])[:2]).tolist(),
                "detection_name": names[a["category_name"]],
                "detection_score": 0.9,
                "attribute_name": attributes[a["attribute_tokens"][0]],
            }
            for a in (nusc.get("sample_annotation", token) for token in sample["anns"])
        ]
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    (tmp_path / "results.json").write_text(json.dumps({"meta": meta, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(
        nusc, config, str(tmp_path / "results.json"), "synth_val", str(tmp_path / "eval"), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    assert metrics.mean_dist_aps["car"] == pytest.approx(1.0, abs=0.01)


def test_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    with pytest.raises(InputError, match="not empty"):
        generate(tmp_path, TINY)
    (tmp_path / "synthetic.json").write_text(json.dumps({"version": ".."}))  # must not reach outside the folder
    with pytest.raises(InputError, match="not empty"):
        generate(tmp_path, TINY)
    assert (tmp_path / "precious.txt").read_text() == "kept"


@pytest.mark.parametrize(
    "change",
    [{"scenes": 0}, {"keyframes": 0}, {"image_width": 1}, {"lidar_noise_m": -1.0}, {"lidar_noise_m": float("nan")}]
    + [{"version": version} for version in ("", "..", "a/b", "samples")],
)
def test_refuses_bad_options(tmp_path: Path, change: dict) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(change)).replace('_', '-')}"):
        generate(tmp_path / "new", SynthConfig(**change))
    assert not (tmp_path / "new").exists()


def test_lost_truth_is_an_error(tmp_path: Path) -> None:
    generate(tmp_path, SynthConfig(keyframes=2, image_width=64, image_height=36, lidar_azimuths=90))
    scene = json.loads((tmp_path / "v1.0-synth" / "scene.json").read_text())[0]["token"]
    chunk = tmp_path / "truth" / scene / "CAM_BACK.zarr" / "depth_m" / "c" / "1" / "0" / "0"
    chunk.unlink()
    with pytest.raises(InputError, match="1 frames of /depth_m are lost"):
        read_truth(tmp_path, scene, "CAM_BACK")
    with pytest.raises(InputError, match="no truth"):
        read_truth(tmp_path, scene, "CAM_TOP")


def test_command(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, "-m", "dense_depth", *arguments], capture_output=True, text=True)

    size = ("--keyframes", "2", "--image-width", "64", "--image-height", "36")
    done = run("synth", "--out", str(tmp_path / "new"), *size)
    assert done.returncode == 0 and "keyframe 2 of 2" in done.stdout and done.stderr == ""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    refused = run("synth", "--out", str(tmp_path / "other"), *size)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "other" in refused.stderr
    assert run("synth", "--keyframes", "x").returncode == 2
