"""``python -m dense_depth poses``: what it writes is read as it was found."""

import shutil
import sys

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dense_depth.__main__ import main as dense_depth_main
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.kitti_files import read_poses
from dense_depth.poses import by_odometry, repaired

DRIVE = "2011_09_26_drive_0005_sync"


def command(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["dense_depth", "poses", *map(str, options)])
    try:
        dense_depth_main()
        status = 0
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def scene_of(*config, name=None, **others):
    return next(open_dataset(DatasetConfig(*config, **others)).scenes([name] if name else []))


def same_poses(scene, other) -> bool:
    pairs = [(a.world_SE3_sensor, b.world_SE3_sensor) for a, b in zip(scene.sweeps, other.sweeps, strict=True)]
    pairs += [(a.world_SE3_cam, b.world_SE3_cam) for a, b in zip(scene.frames, other.frames, strict=True)]
    boxes = [[box for track in s.tracks for box in track.boxes] for s in (scene, other)]
    pairs += [(a.world_SE3_box, b.world_SE3_box) for a, b in zip(*boxes, strict=True)]
    return all(np.allclose(a, b, atol=1e-5) for a, b in pairs)


def test_nuscenes_tables_hold_what_was_found(generated, tmp_path, monkeypatch, capsys):
    root = tmp_path / "data"
    shutil.copytree(generated, root, ignore=shutil.ignore_patterns("truth"))
    data = ("--dataset", "nuscenes", "--dataroot", root, "--version", "v1.0-synth", "--poses", "odometry")
    status, out, err = command(monkeypatch, capsys, *data, "--out", tmp_path / "out", "--scenes", "synth-0000")
    assert (status, err) == (0, "") and "synth-0000" in out and "ego_pose.json" in out
    unposed = scene_of("nuscenes", root, "v1.0-synth", poses="odometry", name="synth-0000")
    found, _ = by_odometry(unposed)
    untouched = scene_of("nuscenes", root, "v1.0-synth", name="synth-0001")
    for table in ("ego_pose.json", "sample_annotation.json"):
        shutil.copy(tmp_path / "out" / table, root / "v1.0-synth" / table)
    assert same_poses(scene_of("nuscenes", root, "v1.0-synth", name="synth-0000"), found)
    assert same_poses(scene_of("nuscenes", root, "v1.0-synth", name="synth-0001"), untouched)
    status, _, err = command(monkeypatch, capsys, *data, "--out", tmp_path / "out", "--scenes", "synth-0000")
    assert status == 2 and "ego_pose.json: is there already; choose another --out" in err


def test_odometry_does_not_look_at_the_poses_of_nuscenes(generated):
    posed = scene_of("nuscenes", generated, "v1.0-synth", name="synth-0000")
    unposed = scene_of("nuscenes", generated, "v1.0-synth", poses="odometry", name="synth-0000")
    assert len({sweep.world_SE3_sensor.tobytes() for sweep in unposed.sweeps}) == 1
    found, _ = by_odometry(unposed)
    # The motions, cameras around sweeps and boxes around them are as in the tables, which are true.
    world = posed.sweeps[0].world_SE3_sensor @ np.linalg.inv(found.sweeps[0].world_SE3_sensor)
    for a, b in zip(posed.sweeps, found.sweeps):
        apart = np.linalg.inv(a.world_SE3_sensor) @ world @ b.world_SE3_sensor
        assert np.linalg.norm(apart[:3, 3]) < 0.03
        assert np.degrees(Rotation.from_matrix(apart[:3, :3]).magnitude()) < 0.2
    for a, b in zip(posed.frames, found.frames):
        apart = np.linalg.inv(a.world_SE3_cam) @ world @ b.world_SE3_cam
        assert np.linalg.norm(apart[:3, 3]) < 0.03
    for a, b in zip(posed.tracks, found.tracks):
        for one, other in zip(a.boxes, b.boxes, strict=True):
            shift = one.world_SE3_box[:3, 3] - (world @ other.world_SE3_box)[:3, 3]
            assert np.linalg.norm(shift) < 0.3  # 70 m away


def test_kitti_rows_hold_what_was_found(recorded, tmp_path, monkeypatch, capsys):
    root, out = recorded / "kitti_raw", tmp_path / "poses.txt"
    data = ("--dataset", "kitti-raw", "--dataroot", root, "--out", out)
    status, text, err = command(monkeypatch, capsys, *data, "--poses", "repaired")
    assert (status, err) == (0, "") and DRIVE in text
    found, _ = repaired(scene_of("kitti-raw", root))
    read = scene_of("kitti-raw", root, poses=str(out))
    assert all(
        np.allclose(a.world_SE3_sensor, b.world_SE3_sensor, atol=1e-4) for a, b in zip(found.sweeps, read.sweeps)
    )
    rows = read_poses(out, 154)
    assert sorted(rows) == list(range(40)) and np.isnan(np.loadtxt(out)[40:]).all()
    status, _, err = command(monkeypatch, capsys, *data, "--poses", "repaired")
    assert status == 2 and "is there already" in err
    status, _, err = command(monkeypatch, capsys, *data)
    assert status == 2 and "repaired or odometry" in err


@pytest.fixture
def without_poses(recorded, tmp_path):
    """Drive 0005 without GPS and IMU."""
    root = tmp_path / "kitti"
    date = recorded / "kitti_raw" / DRIVE[:10]
    (root / DRIVE[:10] / DRIVE).mkdir(parents=True)
    for path in (*date.glob("calib*"), *(path for path in (date / DRIVE).iterdir() if path.name != "oxts")):
        (root / path.relative_to(recorded / "kitti_raw")).symlink_to(path)
    return root


def test_a_drive_without_poses_is_read_for_odometry_alone(without_poses):
    from dense_depth import InputError

    with pytest.raises(InputError, match="--poses odometry"):
        scene_of("kitti-raw", without_poses)
    scene = scene_of("kitti-raw", without_poses, poses="odometry")
    assert {sweep.world_SE3_sensor.tobytes() for sweep in scene.sweeps} == {np.eye(4).tobytes()}
    assert len(scene.tracks) == 15
