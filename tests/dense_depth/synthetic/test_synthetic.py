"""The generated dataset, read back through nuscenes-devkit and compared with its exact truth."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
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
from dense_depth.datasets.truth import Surface, read_truth
from dense_depth.geometry import invert
from dense_depth.synthetic import Faults, SynthConfig, generate
from dense_depth.synthetic.beams import Parts, Poses
from dense_depth.synthetic.cameras import CAMERAS, camera, expose
from dense_depth.synthetic.lidar import ELEVATIONS_DEG, Lidar, scan
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import EMPTY, block, merge
from dense_depth.synthetic.places import PLACES, Place, build_field, build_highway
from dense_depth.synthetic.raster import Canvas
from dense_depth.synthetic.scene import CLASSES
from dense_depth.synthetic.street import Street, along
from dense_depth.synthetic.tables import Tables
from dense_depth.synthetic.traffic import varying
from dense_depth.synthetic.world import build_world, furniture

CONFIG = SynthConfig(scenes=1, keyframes=6, image_width=400, image_height=225, lidar_noise_m=0.0)
STREET = Street(300.0, (150.0,), bend_m=5.0, bend_x_m=140.0, slope=(0.02, 0.01), hill_m=0.5, bump_m=0.02)
TINY = SynthConfig(scenes=2, keyframes=2, image_width=64, image_height=36, lidar_azimuths=90)


@pytest.fixture(scope="module")
def nusc(tmp_path_factory: pytest.TempPathFactory) -> NuScenes:
    root = tmp_path_factory.mktemp("synth")
    generate(root, CONFIG)
    return NuScenes(CONFIG.version, str(root), verbose=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tiny")
    generate(root, TINY)
    return root


def hashes(root: Path) -> dict[str, str]:
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def annotations_of(nusc: NuScenes, actor: str, scene: str = "synth-0000", seed: int = 0) -> list[dict]:
    """The annotations in time of an actor by the name that it has in its world."""
    token = Tables(seed).token("instance", scene, actor)
    found = [annotation for annotation in nusc.sample_annotation if annotation["instance_token"] == token]
    assert found
    return sorted(found, key=lambda annotation: nusc.get("sample", annotation["sample_token"])["timestamp"])


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
    """Fields, rings and order are those of a nuScenes file, and lost pulses lie where the LiDAR was, as there."""
    row = lidar_rows(nusc)[20]
    points = np.fromfile(Path(nusc.dataroot) / row["filename"], np.float32).reshape(-1, 5)
    intensity, ring = points[:, 3:].T
    assert (ring.reshape(1084, 32) == np.arange(32)).all()
    assert intensity.min() >= 0 and 100 < intensity.max() <= 255
    range_m = np.linalg.norm(points[:, :3], axis=1)
    assert range_m.max() <= 71.0  # from where the LiDAR is at the end
    lost = range_m < 1.0
    assert 0.03 < lost.mean() < 0.5 and (intensity[lost] == 0).all()
    # As in scene-0061 of nuScenes: on a line behind the LiDAR, the first ones a revolution's drive away.
    driven_m = -points[lost, 1]
    assert 0.2 < driven_m[0] < 0.5 and (np.diff(driven_m) < 1e-5).all() and driven_m[-1] < 0.003
    rays = np.bincount(ring[~lost].astype(int), minlength=32) / 1084
    assert (rays[:5] > 0.8).all()  # looks at the near ground


@pytest.mark.parametrize("motion", ["none", "raw"])
def test_directions_of_pulses(motion: str) -> None:
    world = build_world(1.0, np.random.default_rng(0))
    sweep = scan(world, Lidar(32, 1084, 0.0, 70.0, motion), 0.5, np.random.default_rng(0))
    back = np.linalg.norm(sweep.points[:, :3], axis=1) > 0
    assert back.all() == (motion == "none")
    x, y, z, _, ring = sweep.points[back].T
    np.testing.assert_allclose(np.degrees(np.arctan2(z, np.hypot(x, y))), -30.67 + ring * 41.34 / 31, atol=1e-3)
    turned = np.degrees(np.unwrap(np.arctan2(y, x)[ring < 8])) * 1084 / 360  # in firings
    assert (np.diff(turned) < 0.01).all()  # clockwise
    np.testing.assert_allclose(turned - turned[0], np.round(turned - turned[0]), atol=0.01)
    if motion == "raw":
        np.testing.assert_allclose(np.diff(sweep.delays_s[back][ring < 8]), -np.diff(turned) * 0.05 / 1084, atol=1e-6)
    assert 15_000 < back.sum() < 0.99 * 32 * 1084


def test_dropouts_depend_on_range_and_angle() -> None:
    """On a plane, the share of pulses that come back falls with the distance, where they also meet it flatter."""
    lidar = Lidar(beams=32, azimuths=1084, noise_m=0.0, range_m=70.0, motion="none")
    plane = block((400.0, 400.0, 1.0), (0.0, 0.0, -0.5), (90, 90, 90), Material.STREET).float32

    class Plain:
        still = (plane, np.zeros(len(plane), np.uint16))

        def world_SE3_ego(self, time_s: float) -> np.ndarray:
            return np.eye(4)

        parts = Parts(EMPTY, np.zeros(0, np.uint16), np.zeros(0, np.uint16))

        def part_poses(self, time_s: float, after_s: np.ndarray) -> Poses:
            return Poses(after_s, np.zeros((len(after_s), 0, 4, 4)))

    points = scan(Plain(), lidar, 0.0, np.random.default_rng(0)).points
    share = np.bincount(points[:, 4].astype(int), minlength=32) / 1084
    down = ELEVATIONS_DEG[32] < -1.6  # within 70 m
    assert (np.diff(share[down]) < 0.03).all() and share[0] > 0.97 and share[down][-1] < 0.3
    assert share[~down].max() == 0
    np.testing.assert_allclose(points[:, 2], -1.84, atol=1e-4)


@pytest.mark.parametrize("camera", CAMERAS)
def test_key_sweep_agrees_with_truth(nusc: NuScenes, camera: str) -> None:
    """Key-sweep points in a camera, by the devkit's chain of poses, have the true depth of their pixel.

    Compared where it has to hold: on ground and houses, where the true depth is smooth around the pixel, and where
    no other surface hides the point from the camera. What moves, or is thinner than a pixel, may still be in between.
    """
    truth = read_truth(nusc.dataroot, nusc.scene[0]["token"], camera)
    compared = 0
    for key, sample in enumerate(nusc.sample):
        assert truth.sample_tokens[key] == sample["token"]
        points, depth_m, _ = nusc.explorer.map_pointcloud_to_image(sample["data"]["LIDAR_TOP"], sample["data"][camera])
        u, v = np.floor(points[:2] + 0.5).astype(int)
        true_m, surface = truth.depth_m[key], truth.surface[key]
        row, column = np.clip(v, 1, true_m.shape[0] - 2), np.clip(u, 1, true_m.shape[1] - 2)
        window = np.stack([true_m[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        slack_m = np.ptp(window, axis=0)  # how far the depth can be off by rounding to a pixel
        around = np.stack([surface[row + i, column + j] for i in (-1, 0, 1) for j in (-1, 0, 1)])
        massive = ((around == Surface.GROUND) | (around == Surface.BUILDING)).all(axis=0)
        plain = (u == column) & (v == row) & massive & (slack_m < 0.02 * window[4])
        error_m = depth_m - window[4]
        hidden = error_m > slack_m + 0.05
        assert (error_m[plain] < -slack_m[plain] - 0.01).mean() < 0.01  # nothing floats in front of the true surface
        assert hidden[plain].mean() < 0.1
        visible = plain & ~hidden
        assert np.median(np.abs(error_m[visible])) < 0.05
        assert (np.abs(error_m[visible]) <= slack_m[visible] + 0.01).mean() > 0.98
        compared += visible.sum()
    assert compared > 2000


def test_depth_of_the_ground_under_a_level_camera() -> None:
    """Against hand-worked numbers: a camera 1.6 m above a plane sees the row v at depth 1.6 f / (v - c)."""
    sensor = camera("CAM_FRONT", 1600, 900)
    plane = np.array([[[-9e2, -9e2, 0], [9e2, -9e2, 0], [0, 9e2, 0]]], np.float32)
    world_SE3_cam = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 1.6], [0, 0, 0, 1.0]])
    canvas = Canvas(900, 1600, 1)
    canvas.draw(plane, np.zeros(1, np.uint16), invert(world_SE3_cam), sensor.K)
    focal_px = 800 / np.tan(np.radians(35))
    for row in (899, 700, 500):
        np.testing.assert_allclose(1 / canvas.inverse_depth[row, 700:900], 1.6 * focal_px / (row - 449.5), rtol=1e-5)
    assert not canvas.inverse_depth[:449].any()


@pytest.mark.parametrize("channel", ["CAM_FRONT", "CAM_BACK"])
def test_images_are_what_ray_casting_sees(channel: str) -> None:
    """Every pixel of a street scene against open3d: the same triangle, or another at the same depth."""
    world, sensor = build_world(3.0, np.random.default_rng(5)), camera(channel, 800, 450)
    mesh = merge([world.still[0], world.movers(1.0)[0]])
    world_SE3_cam = world.world_SE3_ego(1.0) @ sensor.ego_SE3_cam
    u, v = np.meshgrid(np.arange(800), np.arange(450))
    rays = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3) @ np.linalg.inv(sensor.K).T
    depth_m, triangle = mesh.cast(world_SE3_cam[:3, 3], rays @ world_SE3_cam[:3, :3].T)
    seen = expose(world, sensor, 1.0)
    drawn_m = seen.depth_m.ravel()
    both = np.isfinite(depth_m) & (drawn_m > 0)
    assert (np.isfinite(depth_m) == (drawn_m > 0)).mean() > 0.9999
    agree = np.abs(drawn_m[both] - depth_m[both]) < 1e-3 + 1e-4 * depth_m[both]
    assert agree.mean() > 0.9998  # the rest are rays that meet an edge
    instances = np.concatenate([world.still[1], world.movers(1.0)[1]])
    assert (instances[triangle[both]] == seen.instance.ravel()[both]).mean() > 0.9998


def test_visibility_is_the_share_of_pixels_that_others_do_not_hide(nusc: NuScenes) -> None:
    """Counted again by casting rays at each object alone and at all of them."""
    world = build_world(2.5, np.random.default_rng([0, 0]))
    seen, alone = (np.zeros(len(world.actors) + 1) for _ in range(2))
    instances = np.concatenate([world.still[1], world.movers(0.0)[1]])
    for channel in CAMERAS:
        sensor = camera(channel, 400, 225)
        time_s = sensor.delay_us * 1e-6
        mesh = merge([world.still[0], world.movers(time_s)[0]])
        world_SE3_cam = world.world_SE3_ego(time_s) @ sensor.ego_SE3_cam
        u, v = np.meshgrid(np.arange(400), np.arange(225))
        rays = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3) @ np.linalg.inv(sensor.K).T
        rays = rays @ world_SE3_cam[:3, :3].T
        depth_m, triangle = mesh.cast(world_SE3_cam[:3, 3], rays)
        hit = np.where(np.isfinite(depth_m), instances[triangle], 0)
        seen += np.bincount(hit, minlength=len(seen))
        for i, actor in enumerate(world.actors, start=1):
            alone[i] += np.isfinite(actor.mesh(time_s).cast(world_SE3_cam[:3, 3], rays)[0]).sum()
    checked = 0
    for i, actor in enumerate(world.actors, start=1):
        token = Tables(0).token("instance", "synth-0000", actor.name)
        rows = [a for a in nusc.sample_annotation if a["instance_token"] == token]
        rows = [a for a in rows if a["sample_token"] == nusc.sample[0]["token"]]
        share = seen[i] / alone[i] if alone[i] else 0.0
        if rows and min(abs(share - border) for border in (0.4, 0.6, 0.8)) > 0.02:
            assert rows[0]["visibility_token"] == str(1 + sum(share >= border for border in (0.4, 0.6, 0.8)))
            checked += 1
    assert checked > 20


def test_num_lidar_pts_is_a_recount(nusc: NuScenes, tmp_path: Path) -> None:
    faults = Faults(planar_poses=True, pose_noise_m=0.2, pose_noise_deg=1.0)
    generate(tmp_path / "noisy", SynthConfig(scenes=1, keyframes=3, image_width=64, image_height=36, faults=faults))
    for dataset in (nusc, NuScenes("v1.0-synth", str(tmp_path / "noisy"), verbose=False)):
        for sample in dataset.sample:
            path, boxes, _ = dataset.get_sample_data(sample["data"]["LIDAR_TOP"])
            points = LidarPointCloud.from_file(path).points[:3]
            for box in boxes:
                stored = dataset.get("sample_annotation", box.token)["num_lidar_pts"]
                assert points_in_box(box, points).sum() == stored
        assert sum(a["num_lidar_pts"] for a in dataset.sample_annotation) > 300


def test_tables_refer_to_each_other(nusc: NuScenes, tiny: Path) -> None:
    for dataset in (nusc, NuScenes(TINY.version, str(tiny), verbose=False)):
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
    assert [row["is_key_frame"] for row in rows] == [i % 10 == 0 for i in range(51)]
    assert (np.diff([row["timestamp"] for row in rows]) == 50_000).all()
    for row in rows:
        ahead_us = nusc.get("sample", row["sample_token"])["timestamp"] - row["timestamp"]
        assert 0 <= ahead_us < 500_000 and row["is_key_frame"] == (ahead_us == 0)


def test_cameras_have_their_own_time_and_pose(nusc: NuScenes) -> None:
    for sample in nusc.sample:
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        lidar_pose = nusc.get("ego_pose", lidar["ego_pose_token"])
        for channel in CAMERAS:
            row = nusc.get("sample_data", sample["data"][channel])
            pose = nusc.get("ego_pose", row["ego_pose_token"])
            delay_us = row["timestamp"] - lidar["timestamp"]
            assert -50_000 < delay_us < 0 and pose["timestamp"] == row["timestamp"]
            moved_m = np.linalg.norm(np.subtract(pose["translation"], lidar_pose["translation"]))
            assert 3.0 < moved_m / (abs(delay_us) * 1e-6) < 10.0  # metres per second
    poses = [nusc.get("ego_pose", row["ego_pose_token"]) for row in lidar_rows(nusc)]
    yaw, pitch, roll = np.ptp([Quaternion(pose["rotation"]).yaw_pitch_roll for pose in poses], axis=0)
    assert min(pitch, roll) > np.radians(0.5) and yaw > np.radians(0.5)
    assert np.ptp([pose["translation"][2] for pose in poses]) > 0.05


def test_oncoming_car(nusc: NuScenes) -> None:
    """Its pixels move, and its boxes, interpolated between keyframes, hold its points in the sweeps between."""
    annotations = annotations_of(nusc, "oncoming-0")
    times_us = [nusc.get("sample", a["sample_token"])["timestamp"] for a in annotations]
    moved_m = np.subtract(annotations[-1]["translation"], annotations[0]["translation"])
    speed_mps = np.linalg.norm(moved_m) / (times_us[-1] - times_us[0]) * 1e6
    assert 6.5 < speed_mps < 9.5
    for annotation in annotations:
        velocity = nusc.box_velocity(annotation["token"])
        assert np.linalg.norm(velocity) == pytest.approx(speed_mps, rel=0.1)  # hit sooner or later in a sweep
        heading = Quaternion(annotation["rotation"]).rotation_matrix[:, 0]
        assert heading @ velocity == pytest.approx(np.linalg.norm(velocity), rel=0.01)

    shown = 0
    for channel in CAMERAS:
        truth = read_truth(nusc.dataroot, nusc.scene[0]["token"], channel)
        instance = truth.instance_tokens.index(annotations[0]["instance_token"]) + 1
        assert truth.classes[instance - 1] == "car"
        for key in range(CONFIG.keyframes):
            mask = truth.instance[key] == instance
            assert (truth.moving[key][mask] == 1).all() and (truth.surface[key][mask] == Surface.OBJECT).all()
            assert (truth.moving[key][truth.instance[key] == 0] == 0).all()
            shown += mask.sum() > 50
    assert shown > 2

    held = missed = 0
    for annotation in annotations:  # a box is where the points are, not where the car is at the sweep's timestamp
        sample = nusc.get("sample", annotation["sample_token"])
        row = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        in_box = (world_points(nusc, row) - annotation["translation"]) @ Quaternion(
            annotation["rotation"]
        ).rotation_matrix
        width, length, height = annotation["size"]
        half = np.array([length, width, height]) / 2
        above_ground = in_box[:, 2] > -half[2] + 0.15
        inside = (np.abs(in_box) <= half).all(axis=1) & above_ground
        around = (np.abs(in_box) <= half + 0.3).all(axis=1) & above_ground
        held, missed = held + inside.sum(), missed + (around & ~inside).sum()
    assert held > 50 and missed == 0  # nothing of the car sticks out, nothing else is near


@pytest.mark.parametrize("motion", ["compensated", "raw"])
def test_boxes_are_drawn_around_the_points(nusc: NuScenes, motion: str, tmp_path: Path) -> None:
    """The true pose at the median time of an object's points; uncompensated ones are seen from where the LiDAR was."""
    if motion == "raw":
        generate(tmp_path, dataclasses.replace(TINY, scenes=1, keyframes=6, lidar_azimuths=1084, lidar_distortion=True))
        nusc = NuScenes(TINY.version, str(tmp_path), verbose=False)
    noise_m = (CONFIG if motion == "compensated" else TINY).lidar_noise_m
    world, lidar = build_world(2.5, np.random.default_rng([0, 0])), Lidar(32, 1084, noise_m, 70.0, motion)
    drawn = {(a["sample_token"], a["instance_token"]): a["translation"] for a in nusc.sample_annotation}
    off_m = []
    for key, sample in enumerate(nusc.sample):
        at_s = 0.5 * key
        sweep = scan(world, lidar, at_s, np.random.default_rng([0, 0, 10 * key]))
        row = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        file = np.fromfile(Path(nusc.dataroot) / row["filename"], np.float32).reshape(-1, 5)
        np.testing.assert_array_equal(file, sweep.points)  # so the instances are those of the file
        for i, actor in enumerate(world.actors, start=1):
            box = drawn.get((sample["token"], Tables(0).token("instance", "synth-0000", actor.name)))
            firing = np.flatnonzero(sweep.instances == i) // 32
            if box is None or not len(firing):
                continue
            hit_s = at_s + 0.05 * (np.median(firing) / 1084 - 1)
            expected = actor.world_SE3_box(hit_s)
            if motion == "raw":
                expected = world.world_SE3_ego(at_s) @ invert(world.world_SE3_ego(hit_s)) @ expected
            np.testing.assert_allclose(box, expected[:3, 3], atol=1e-6)
            off_m.append(np.linalg.norm(box - actor.world_SE3_box(at_s)[:3, 3]))
    assert len(off_m) > 60 and 0.25 < max(off_m) < 0.9


def test_what_objects_do(nusc: NuScenes) -> None:
    """A car waits and then turns into the street, a pedestrian stands and then steps out, another was behind a door."""
    world = build_world(9.5, np.random.default_rng(3))
    actors = {actor.name: actor for actor in world.actors}
    merging = [actors["merging"].attribute(t) for t in (0.0, 4.0, 9.5)]
    assert merging == ["vehicle.moving", "vehicle.stopped", "vehicle.moving"]
    headings = [actors["merging"].world_SE3_box(t)[:2, 0] for t in (0.0, 9.5)]
    assert abs(headings[0] @ headings[1]) < 0.5  # it has turned
    assert [actors["late"].attribute(t) for t in (0.0, 9.5)] == ["pedestrian.standing", "pedestrian.moving"]
    assert {actor.attribute(1.0) for actor in world.actors if actor.name.startswith("cone")} == {None}
    assert {actor.attribute(1.0) for actor in world.actors if not actor.moves} >= {"vehicle.parked", None}

    names = {row["token"]: row["name"] for row in nusc.attribute}
    late = [names[row["attribute_tokens"][0]] for row in annotations_of(nusc, "late")]
    assert late[0] == "pedestrian.standing" and late[-1] == "pedestrian.moving"


def overlap_m(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    """How deep two boxes (pose, size) reach into each other, seen from above."""
    signs = np.array([*itertools.product((-0.5, 0.5), repeat=2)])
    corners = [(signs * size[:2]) @ pose[:2, :2].T + pose[:2, 3] for pose, size in (a, b)]
    axes = [pose[:2, k] / np.linalg.norm(pose[:2, k]) for pose, _ in (a, b) for k in (0, 1)]
    along_axes = [(corners[0] @ axis, corners[1] @ axis) for axis in axes]
    return max(0.0, min(min(p.max(), q.max()) - max(p.min(), q.min()) for p, q in along_axes))


@pytest.mark.parametrize(
    "place, seed, slope_deg", [("street", 1, None), ("street", 4, 6.0), ("highway", 2, None), ("field", 3, None)]
)
def test_nobody_drives_through_anybody(place: Place, seed: int, slope_deg: float | None) -> None:
    """Nor does the ego vehicle. People may brush past each other: their boxes hold the longest stride."""
    world = PLACES[place](9.5, np.random.default_rng(seed), slope_deg)
    sizes = [actor.body.size_lwh_m - [0.1, 0.1, 0.05] for actor in world.actors]  # without the margin
    people = [actor.body.category.startswith("human") for actor in world.actors]
    for time_s in np.arange(0.0, 9.6, 0.5):
        world_SE3_ego = world.world_SE3_ego(time_s)
        world_SE3_ego[:3, 3] += world_SE3_ego[:3, 0]  # its middle lies ahead of the rear axle
        boxes = [(actor.world_SE3_box(time_s), size) for actor, size in zip(world.actors, sizes)]
        boxes.append((world_SE3_ego, np.array([4.5, 1.9, 1.6])))
        moves = [*(actor.moves for actor in world.actors), True]
        for (i, a), (j, b) in itertools.combinations(enumerate(boxes), 2):
            if (moves[i] or moves[j]) and np.linalg.norm(a[0][:2, 3] - b[0][:2, 3]) < 20:
                both_people = j < len(people) and people[i] and people[j]
                assert overlap_m(a, b) < (0.3 if both_people else 0.05), (time_s, i, j)


@pytest.mark.parametrize("place", PLACES)
def test_slopes(place: Place) -> None:
    """As steep as asked for, and no steeper; without kinks; the vehicle and all else follow them."""
    duration_s = 30.0 if place == "highway" else 9.5  # its hills are longer
    world = PLACES[place](duration_s, np.random.default_rng(5), 6.0)
    street = world.street
    places_m = np.array([world.world_SE3_ego(t)[:3, 3] for t in np.arange(0.0, duration_s, 0.05)])
    x = np.linspace(0.0, street.length_m, 20_000)
    slope_deg = np.degrees(np.arctan(np.gradient(street.terrain(x, street.middle(x)), x)))
    driven = (x > places_m[0, 0]) & (x < places_m[-1, 0])
    assert 5.7 < np.abs(slope_deg[driven]).max() <= np.abs(slope_deg).max() < 6.05
    speed_mps = np.linalg.norm(np.diff(places_m, axis=0), axis=1).max() / 0.05
    curvature = np.gradient(np.gradient(street.terrain(x, street.middle(x)), x), x)
    assert np.abs(curvature).max() * speed_mps**2 < 1.0  # m/s^2, a tenth of what lifts a car off the road
    rise_m = np.diff(places_m[::10, 2]) / np.linalg.norm(np.diff(places_m[::10], axis=0), axis=1)
    assert np.degrees(np.arcsin(np.abs(rise_m).max())) > 4.5
    for actor in world.actors:
        floor = actor.world_SE3_box(2.0) @ [0, 0, -actor.body.size_lwh_m[2] / 2, 1]
        if 0 < floor[0] < street.length_m:
            assert floor[2] == pytest.approx(street.height(floor[0], floor[1]), abs=0.05)


def test_places_without_structure(tmp_path: Path) -> None:
    """Along a highway nothing changes; on the field there is grass, and all else is far away. Both can be read."""
    still = build_highway(2.0, np.random.default_rng(0)).still[0]
    ends = still.corners_m[np.abs(still.normals[:, 0]) > 1e-6][..., 0]
    assert ((ends < -59) | (ends > 300)).all()  # of the walls, out of reach of the drive from 90 to 145
    world = build_field(2.0, np.random.default_rng(0))
    sweep = scan(world, Lidar(32, 1084, 0.0, 70.0), 1.0, np.random.default_rng(0))
    near = (np.linalg.norm(sweep.points[:, :3], axis=1) < 35) & (sweep.points[:, 2] > -1.0)
    assert (sweep.instances[near & (np.linalg.norm(sweep.points[:, :3], axis=1) > 1)] > 0).all()
    for place in ("highway", "field"):
        generate(tmp_path / place, dataclasses.replace(TINY, place=place, lidar_azimuths=542))
        nusc = NuScenes(TINY.version, str(tmp_path / place), verbose=False)
        for sample in nusc.sample:
            assert sum(nusc.get("sample_annotation", token)["num_lidar_pts"] for token in sample["anns"]) > 10
            assert any(nusc.get("sample_annotation", token)["attribute_tokens"] for token in sample["anns"])


def test_who_leaves_the_street_goes_on() -> None:
    """Nothing stops dead where its path ends, or long after its last change of speed."""
    path = along(STREET, 2.0, 0.0, 40.0)
    for distance_m in (-5.0, 10.0, path.length_m + 5.0):
        step = path.pose(distance_m + 0.5)[:3, 3] - path.pose(distance_m)[:3, 3]
        assert np.linalg.norm(step) == pytest.approx(0.5, rel=0.02) and step[0] > 0.45
    travelled = varying(3.0, np.array([1.0, 2.0]), np.array([4.0, 8.0]))
    assert [travelled(t) for t in (0.0, 1.0, 2.0, 102.0)] == pytest.approx([3.0, 7.0, 13.0, 813.0])


def test_furniture_faces_the_street() -> None:
    """Lamps and traffic lights on arms hang over the road, not over the houses."""
    seen = 0
    for thing in furniture(STREET, np.random.default_rng(0)):
        corners_m = thing.corners_m.reshape(-1, 3)
        lateral = np.abs(corners_m[:, 1] - STREET.middle(corners_m[:, 0]))
        high = corners_m[:, 2] > STREET.terrain(*corners_m[:, :2].T) + 4.5
        if high.any():
            seen += 1
            assert lateral[high].min() < lateral[~high].min() - 0.5 and lateral[high].max() < lateral[~high].max() + 0.1
    assert seen > 10


def test_every_scene_has_all_classes(tmp_path: Path) -> None:
    """With attributes that the devkit's evaluation accepts, hit by the LiDAR and seen by a camera."""
    generate(tmp_path, SynthConfig(scenes=2, keyframes=4, image_width=200, image_height=112))
    nusc = NuScenes(TINY.version, str(tmp_path), verbose=False)
    for scene in nusc.scene:
        samples = {s["token"] for s in nusc.sample if s["scene_token"] == scene["token"]}
        found: dict[str, int] = dict.fromkeys(CLASSES, 0)
        for annotation in nusc.sample_annotation:
            if annotation["sample_token"] in samples and annotation["visibility_token"] != "1":
                found[annotation["category_name"]] += annotation["num_lidar_pts"]
        assert min(found.values()) > 10, found
        shown = set()
        for channel in CAMERAS:
            truth = read_truth(tmp_path, scene["token"], channel)
            ids = np.unique(np.asarray(truth.instance[:]))
            shown |= {truth.classes[i - 1] for i in ids if i}
            assert set(np.unique(np.asarray(truth.surface[:]))) <= set(Surface)
        assert shown == set(CLASSES.values())


def test_same_seed_same_bytes(tiny: Path, tmp_path: Path) -> None:
    """... in place of an earlier dataset, too; `test_command` makes them in another process."""
    generate(tmp_path, dataclasses.replace(TINY, seed=1, scenes=1, version="other"))
    first, other = hashes(tiny), hashes(tmp_path)
    images = {content for path, content in first.items() if path.endswith(".jpg")}
    assert len(first) > 50 and len(images) == 24 and not images & {*other.values()}
    generate(tmp_path, TINY)
    assert hashes(tmp_path) == first
    splits = json.loads((tiny / TINY.version / "splits.json").read_text())
    assert splits["train"] == ["synth-0000"] and splits["val"] == ["synth-0001"]


def test_devkit_evaluates_custom_splits(tmp_path: Path) -> None:
    """Annotations handed in as predictions are perfect detections of all ten classes."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval

    generate(tmp_path, dataclasses.replace(TINY, keyframes=5, lidar_azimuths=542))
    nusc = NuScenes(TINY.version, str(tmp_path), verbose=False)
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
                "detection_name": CLASSES[a["category_name"]],
                "detection_score": 0.9,
                "attribute_name": attributes[a["attribute_tokens"][0]] if a["attribute_tokens"] else "",
            }
            for a in (nusc.get("sample_annotation", token) for token in sample["anns"])
            if a["num_lidar_pts"]  # the evaluation leaves out the others
        ]
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    (tmp_path / "results.json").write_text(json.dumps({"meta": meta, "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(
        nusc, config, str(tmp_path / "results.json"), "synth_val", str(tmp_path / "eval"), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    assert min(metrics.mean_dist_aps.values()) > 0.99, metrics.mean_dist_aps
    assert metrics.nd_score > 0.97


def test_devkit_renders(nusc: NuScenes, tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    sample = nusc.sample[1]
    for channel in ("LIDAR_TOP", "CAM_FRONT"):
        nusc.render_sample_data(sample["data"][channel], out_path=str(tmp_path / f"{channel}.png"), verbose=False)
    nusc.render_annotation(sample["anns"][0], out_path=str(tmp_path / "annotation.png"))
    nusc.render_egoposes_on_map(nusc.log[0]["location"], out_path=str(tmp_path / "map.png"))
    assert len(list(tmp_path.glob("*.png"))) == 4


FAULTY = dataclasses.replace(TINY, scenes=1, keyframes=3)


def tables_of(root: Path, name: str) -> dict[str, dict]:
    return {row["token"]: row for row in json.loads((root / TINY.version / f"{name}.json").read_text())}


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clean")
    generate(root, FAULTY)
    return root


def faulty(clean: Path, root: Path, faults: Faults) -> tuple[list[tuple[dict, dict]], list[tuple[dict, dict]]]:
    """Generates with faults; nothing but the tables may change. Ego poses and mounts, true and recorded."""
    generate(root, dataclasses.replace(FAULTY, faults=faults))
    a, b = hashes(clean), hashes(root)
    if not faults.clock_offset_ms and not faults.missing_sweeps:
        assert {path for path in a if a[path] != b.get(path)} <= {
            "synthetic.json",
            *(f"{TINY.version}/{name}.json" for name in ("ego_pose", "calibrated_sensor", "sample_annotation")),
        }
    pairs = []
    for name in ("ego_pose", "calibrated_sensor"):
        true, recorded = tables_of(clean, name), tables_of(root, name)
        pairs.append([(true[token], recorded[token]) for token in recorded])
    return pairs[0], pairs[1]


def angle_deg(a: dict, b: dict) -> float:
    return np.degrees((Quaternion(a["rotation"]).inverse * Quaternion(b["rotation"])).angle) % 360


def test_fault_planar_poses(clean: Path, tmp_path: Path) -> None:
    poses, _ = faulty(clean, tmp_path, Faults(planar_poses=True))
    for true, recorded in poses:
        assert recorded["translation"] == [*true["translation"][:2], 0.0]
        yaw, pitch, roll = Quaternion(recorded["rotation"]).yaw_pitch_roll
        assert abs(pitch) < 1e-9 and abs(roll) < 1e-9
        assert yaw == pytest.approx(Quaternion(true["rotation"]).yaw_pitch_roll[0], abs=1e-3)
    # Boxes go with the poses: the same box seen from the vehicle.
    for root in (clean, tmp_path):
        assert tables_of(root, "sample_annotation").keys() == tables_of(clean, "sample_annotation").keys()
    z = [row["translation"][2] for row in tables_of(tmp_path, "sample_annotation").values()]
    assert min(z) > -1.0 and max(z) < 4.0


def test_fault_noise_and_drift(clean: Path, tmp_path: Path) -> None:
    poses, _ = faulty(clean, tmp_path / "noise", Faults(pose_noise_m=0.1, pose_noise_deg=0.5))
    errors_m = np.array([np.subtract(b["translation"], a["translation"]) for a, b in poses])
    assert errors_m.std(axis=0) == pytest.approx([0.1] * 3, rel=0.4) and len(np.unique(errors_m[:, 0])) == len(poses)
    angles = [min(angle_deg(a, b), 360 - angle_deg(a, b)) for a, b in poses]
    assert np.sqrt(np.mean(np.square(angles))) == pytest.approx(0.5 * np.sqrt(3), rel=0.4)
    poses, _ = faulty(clean, tmp_path / "drift", Faults(pose_drift_mps=0.2))
    start_us = min(row["timestamp"] for row in tables_of(clean, "sample").values())
    for a, b in poses:
        drift_m = np.linalg.norm(np.subtract(b["translation"], a["translation"]))
        assert drift_m == pytest.approx(abs(a["timestamp"] - start_us) * 0.2e-6, abs=0.2 * 0.025 + 1e-9)


def test_fault_flat_height(clean: Path, tmp_path: Path) -> None:
    """No height, but roll and pitch, as in nuScenes."""
    poses, _ = faulty(clean, tmp_path, Faults(flat_height=True))
    for true, recorded in poses:
        assert recorded["translation"] == [*true["translation"][:2], 0.0]
        np.testing.assert_allclose(recorded["rotation"], true["rotation"], atol=1e-12)
    pitch = [Quaternion(recorded["rotation"]).yaw_pitch_roll[1] for _, recorded in poses]
    assert np.ptp(pitch) > np.radians(0.3)


def test_fault_annotation_noise(clean: Path, tmp_path: Path) -> None:
    """Independent for each box, in its own axes; sensor files, poses and which boxes there are stay."""
    poses, mounts = faulty(clean, tmp_path, Faults(annotation_noise_m=0.1, annotation_noise_deg=2.0))
    assert all(a == b for a, b in [*poses, *mounts])
    true, recorded = tables_of(clean, "sample_annotation"), tables_of(tmp_path, "sample_annotation")
    assert true.keys() == recorded.keys() and len(true) > 100
    shifts_m, turns_deg = [], []
    for token, a in true.items():
        rotation = Quaternion(a["rotation"])
        turned = rotation.inverse * Quaternion(recorded[token]["rotation"])
        np.testing.assert_allclose([turned.x, turned.y], 0.0, atol=1e-9)  # about the box's own z
        turns_deg.append(np.degrees(2 * np.arctan2(turned.z, turned.w)))
        shifts_m.append(rotation.inverse.rotate(np.subtract(recorded[token]["translation"], a["translation"])))
    turns_deg = (np.array(turns_deg) + 180) % 360 - 180
    errors = np.column_stack([np.array(shifts_m) / 0.1, turns_deg / 2.0])
    assert np.abs(errors.mean(axis=0)).max() < 4 / np.sqrt(len(errors))
    assert errors.std(axis=0) == pytest.approx([1.0] * 4, rel=0.2)
    assert np.abs(np.corrcoef(errors.T) - np.eye(4)).max() < 4 / np.sqrt(len(errors))
    again = tmp_path / "again"
    generate(again, dataclasses.replace(FAULTY, faults=Faults(annotation_noise_m=0.1, annotation_noise_deg=2.0)))
    assert tables_of(again, "sample_annotation") == recorded


def test_lidar_json_is_what_the_reader_needs(clean: Path, tmp_path: Path) -> None:
    """Written unless points are those of nuScenes."""
    from dense_depth.datasets import DatasetConfig, open_dataset

    def timing(root: Path) -> tuple[str, bool]:
        (scene,) = open_dataset(DatasetConfig("nuscenes", root, TINY.version)).scenes()
        return scene.sweeps[0].timing.rule, scene.sweeps[0].compensated

    assert timing(clean) == ("order", True) and not (clean / TINY.version / "lidar.json").exists()
    one = dataclasses.replace(FAULTY, keyframes=1)
    generate(tmp_path / "flash", dataclasses.replace(one, lidar_flash=True))
    assert timing(tmp_path / "flash") == ("none", True)
    generate(tmp_path / "raw", dataclasses.replace(one, lidar_distortion=True))
    assert timing(tmp_path / "raw") == ("order", False)
    with pytest.raises(InputError, match="--lidar-distortion and --lidar-flash"):
        generate(tmp_path / "both", dataclasses.replace(one, lidar_distortion=True, lidar_flash=True))


def test_fault_calibration(clean: Path, tmp_path: Path) -> None:
    poses, mounts = faulty(clean, tmp_path, Faults(calibration_error_m=0.05, calibration_error_deg=1.0))
    assert all(a == b for a, b in poses)
    off = [np.linalg.norm(np.subtract(b["translation"], a["translation"])) for a, b in mounts]
    turned = [min(angle_deg(a, b), 360 - angle_deg(a, b)) for a, b in mounts]
    np.testing.assert_allclose(sorted(off), [0.0] + [0.05] * 6, atol=1e-9)  # the LiDAR's is right
    np.testing.assert_allclose(sorted(turned), [0.0] + [1.0] * 6, atol=1e-6)


def test_fault_clock(clean: Path, tmp_path: Path) -> None:
    faulty(clean, tmp_path, Faults(clock_offset_ms=40.0))
    true, recorded = tables_of(clean, "sample_data"), tables_of(tmp_path, "sample_data")
    for token, row in recorded.items():
        late_us = row["timestamp"] - true[token]["timestamp"]
        assert late_us == (0 if row["filename"].endswith(".bin") else 40_000)
        assert (tmp_path / row["filename"]).read_bytes() == (clean / true[token]["filename"]).read_bytes()
    poses, before = tables_of(tmp_path, "ego_pose"), tables_of(clean, "ego_pose")
    moved = [
        np.linalg.norm(
            np.subtract(poses[r["ego_pose_token"]]["translation"], before[r["ego_pose_token"]]["translation"])
        )
        for r in recorded.values()
        if r["filename"].endswith(".jpg")
    ]
    assert min(moved) > 0.1 and max(moved) < 0.5


def test_fault_missing_sweeps(clean: Path, tmp_path: Path) -> None:
    faulty(clean, tmp_path, Faults(missing_sweeps=0.4))
    rows = [row for row in tables_of(tmp_path, "sample_data").values() if row["filename"].endswith(".bin")]
    keys = [row for row in rows if row["is_key_frame"]]
    assert len(keys) == 3 and 4 < len(rows) < 19
    on_disk = {str(path.relative_to(tmp_path)) for path in tmp_path.glob("s*/LIDAR_TOP/*.bin")}
    assert on_disk == {row["filename"] for row in rows}
    rows.sort(key=lambda row: row["timestamp"])
    assert [row["next"] for row in rows[:-1]] == [row["token"] for row in rows[1:]]


def test_compensation_is_the_motion_of_the_vehicle() -> None:
    """Points on what stands lie on it: with the pose of the end, or uncompensated each with the pose of its pulse."""
    world = build_world(1.0, np.random.default_rng(0))
    sweeps = {
        motion: scan(world, Lidar(32, 542, 0.0, 70.0, motion), 0.5, np.random.default_rng(0))
        for motion in ("raw", "compensated")
    }
    raw, compensated = (sweep.points[:, :3].astype(np.float64) for sweep in sweeps.values())
    mount = Lidar(32, 542, 0.0, 70.0).ego_SE3_lidar
    azimuth_deg = np.degrees(np.arctan2(raw[:, 1], raw[:, 0])) - 90  # in the ego frame
    share = ((100.0 - azimuth_deg + 1e-6) % 360) / 360
    back = np.linalg.norm(raw, axis=1) > 0
    np.testing.assert_allclose(sweeps["raw"].delays_s[back], 0.05 * (share - 1)[back], atol=1e-6)
    poses = [world.world_SE3_ego(0.5 + 0.05 * (i / 542 - 1)) @ mount for i in range(542)]
    own = np.repeat(np.stack(poses), 32, axis=0)
    end = world.world_SE3_ego(0.5) @ mount
    by_pulse = (own[:, :3, :3] @ raw[..., None])[..., 0] + own[:, :3, 3]
    by_end = compensated @ end[:3, :3].T + end[:3, 3]
    np.testing.assert_allclose(by_end, by_pulse, atol=2e-4)
    still = back & ~np.isin(sweeps["raw"].instances, [i for i, a in enumerate(world.actors, start=1) if a.moves])
    cast = world.still[0].raycaster.compute_distance
    assert np.quantile(cast(by_pulse[still].astype(np.float32)).numpy(), 0.999) < 0.001
    skewed = raw @ end[:3, :3].T + end[:3, 3]
    assert np.quantile(cast(skewed[still].astype(np.float32)).numpy(), 0.9) > 0.03


def test_each_pulse_meets_the_world_of_its_own_instant() -> None:
    """Single firings against open3d, which casts them at all triangles where they are at that time."""
    world, lidar, at_s = build_world(3.0, np.random.default_rng(3)), Lidar(32, 1084, 0.0, 70.0, "raw"), 1.2
    sweep = scan(world, lidar, at_s, np.random.default_rng(0))
    moving = [i for i, actor in enumerate(world.actors, start=1) if actor.moves]
    on_movers = np.isin(sweep.instances, moving).reshape(1084, 32)
    firings = np.argsort(-on_movers.sum(axis=1), kind="stable")[:60:3]
    compared = 0
    for firing in firings:
        time_s = at_s + 0.05 * (firing / 1084 - 1)
        mesh = merge([world.still[0], world.movers(time_s)[0]])
        instances = np.concatenate([world.still[1], world.movers(time_s)[1]])
        world_SE3_lidar = world.world_SE3_ego(time_s) @ lidar.ego_SE3_lidar
        fired = slice(32 * firing, 32 * (firing + 1))
        points, found = sweep.points[fired, :3].astype(np.float64), sweep.instances[fired]
        range_m = np.linalg.norm(points, axis=1)
        back = range_m > 0
        directions = points[back] / range_m[back, None] @ world_SE3_lidar[:3, :3].T
        distance_m, triangle = mesh.cast(world_SE3_lidar[:3, 3], directions)
        same = instances[triangle] == found[back]
        assert same.mean() > 0.9  # but for rays that meet an edge
        assert (np.abs(distance_m - range_m[back]) < 0.002)[same].mean() > 0.95
        compared += (same & np.isin(found[back], moving)).sum()
    assert compared > 100


def test_points_on_a_car_are_where_it_was_hit() -> None:
    """In its box at the time of each pulse; at the sweep's timestamp a car ahead has left those on its tail behind."""
    world, lidar = build_world(9.5, np.random.default_rng(0)), Lidar(32, 1084, 0.0, 70.0)
    actors = {actor.name: (i, actor) for i, actor in enumerate(world.actors, start=1)}
    for at_s, name in itertools.product((0.5, 1.5), ("oncoming-0", "oncoming-2", "turning")):
        i, actor = actors[name]
        sweep, half_m = scan(world, lidar, at_s, np.random.default_rng(0)), actor.body.size_lwh_m / 2
        mine = sweep.instances == i
        points, delays_s = sweep.points[mine, :3], sweep.delays_s[mine]
        end = world.world_SE3_ego(at_s) @ lidar.ego_SE3_lidar
        points = points @ end[:3, :3].T + end[:3, 3]
        for point, delay_s in zip(points, delays_s, strict=True):
            box_SE3_world = invert(actor.world_SE3_box(at_s + delay_s))
            assert (np.abs(box_SE3_world[:3, :3] @ point + box_SE3_world[:3, 3]) <= half_m).all()
        if name == "turning":  # 9.6 m/s for 36 ms; its box has a margin of 0.05 m
            box_SE3_world = invert(actor.world_SE3_box(at_s))
            rear = points @ box_SE3_world[0, :3] + box_SE3_world[0, 3] + half_m[0]
            assert rear.min() == pytest.approx(0.05 - 9.6 * 0.0365, abs=0.03) and len(rear) > 40


def test_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("kept")
    with pytest.raises(InputError, match="not empty"):
        generate(tmp_path, TINY)
    (tmp_path / "synthetic.json").write_text(json.dumps({"version": ".."}))  # must not reach outside the folder
    with pytest.raises(InputError, match="not empty"):
        generate(tmp_path, TINY)
    assert (tmp_path / "precious.txt").read_text() == "kept"


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cv2.imwrite", lambda *arguments: False)
    with pytest.raises(InputError, match=f"{tmp_path}: cannot be written.*CAM_FRONT.*jpg: is the disk full"):
        generate(tmp_path, TINY)
    assert not (tmp_path / TINY.version).exists()


@pytest.mark.parametrize(
    "change",
    [{"scenes": 0}, {"keyframes": 0}, {"image_width": 1}, {"lidar_noise_m": -1.0}, {"lidar_noise_m": float("nan")}]
    + [{"lidar_range_m": 4.0}, {"image_height": 10**6}, {"keyframes": 10**6}]
    + [{"missing_sweeps": 1.5}, {"pose_noise_m": -1.0}, {"clock_offset_ms": float("inf")}]
    + [{"version": version} for version in ("", "..", "a/b", "samples")],
)
def test_refuses_bad_options(tmp_path: Path, change: dict) -> None:
    option, change = f"--{next(iter(change)).replace('_', '-')}", dict(change)
    with pytest.raises(InputError, match=option):
        faults = {name: change.pop(name) for name in list(change) if name in vars(Faults())}
        generate(tmp_path / "new", SynthConfig(**change, faults=Faults(**faults)))
    assert not (tmp_path / "new").exists()


def test_lost_truth_is_an_error(tiny: Path, tmp_path: Path) -> None:
    for folder in ("truth", TINY.version):
        shutil.copytree(tiny / folder, tmp_path / folder)
    scene = json.loads((tmp_path / "v1.0-synth" / "scene.json").read_text())[0]["token"]
    chunk = tmp_path / "truth" / scene / "CAM_BACK.zarr" / "depth_m" / "c" / "1" / "0" / "0"
    chunk.unlink()
    with pytest.raises(InputError, match="1 frames of /depth_m are lost"):
        read_truth(tmp_path, scene, "CAM_BACK")
    with pytest.raises(InputError, match="no truth"):
        read_truth(tmp_path, scene, "CAM_TOP")


def test_command(tiny: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "dense_depth", *arguments]
        return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONHASHSEED": "7"})

    names = ("scenes", "keyframes", "image_width", "image_height", "lidar_azimuths")
    size = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(TINY, name)))]
    done = run("synth", "--out", str(tmp_path / "new"), *size)
    assert done.returncode == 0 and "keyframe 2 of 4" in done.stdout and done.stderr == ""
    assert hashes(tmp_path / "new") == hashes(tiny)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    refused = run("synth", "--out", str(tmp_path / "other"), *size)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "other" in refused.stderr
    assert run("synth", "--keyframes", "x").returncode == 2
