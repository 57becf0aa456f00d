"""Poses that were found are kept, and found again by all that they depend on."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_scene, moving_track, yaw_pose

from dense_depth import InputError, pose_store
from dense_depth.pose_store import pose_path, posed
from dense_depth.poses import PoseReport, Step
from dense_depth.store import open_store
from dense_depth.trajectory import placed


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path, tracks=[moving_track(range(900_000, 1_500_000, 100_000))])[0]


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store", create=True)


@pytest.fixture
def found(monkeypatch):
    """How often poses were worked out; all are moved by a metre that has no short decimals."""
    calls = []

    def find(scene):
        calls.append(scene)
        poses = np.stack([yaw_pose(0.1, 1 / 3, 0) @ sweep.world_SE3_sensor for sweep in scene.sweeps])
        steps = tuple(Step("taken", 0.1, 0.05, 0.3, None) for _ in scene.sweeps)
        return placed(scene, poses), PoseReport(steps, kept=len(calls) > 5)

    monkeypatch.setattr(pose_store, "repaired", find)
    return calls


def test_poses_are_worked_out_once_and_kept_to_the_last_bit(scene, store, found):
    first, report = posed(scene, "repaired", store)
    again, same = posed(scene, "repaired", store)
    assert len(found) == 1 and same == report and report.figures()["pose_misfit_m"] == 0.05
    for a, b in zip((*first.sweeps, *first.frames), (*again.sweeps, *again.frames)):
        pose = "world_SE3_sensor" if hasattr(a, "world_SE3_sensor") else "world_SE3_cam"
        assert getattr(a, pose).tobytes() == getattr(b, pose).tobytes()
    assert not np.allclose(first.sweeps[0].world_SE3_sensor, scene.sweeps[0].world_SE3_sensor)


def test_the_datasets_own_poses_need_no_store(scene, store, found):
    assert posed(scene, "dataset", store) == (scene, None) and not found


def test_auto_repairs_rough_poses_alone(scene, store, found):
    assert posed(scene, "auto", store) == (scene, None)
    rough = replace(scene, rough_poses=True)
    assert pose_path(rough, "auto") == pose_path(rough, "repaired") != pose_path(scene, "auto")
    _, report = posed(rough, "auto", store)
    assert report is not None


def test_what_poses_depend_on_names_their_file(scene, tmp_path):
    def other(**changes):
        return replace(scene, sweeps=(replace(scene.sweeps[0], **changes), *scene.sweeps[1:]))

    box = replace(scene.tracks[0].boxes[0], world_SE3_box=np.eye(4))
    track = replace(scene.tracks[0], boxes=(box, *scene.tracks[0].boxes[1:]))
    short = tmp_path / "short.bin"
    short.write_bytes(scene.sweeps[0].path.read_bytes()[:200])
    changed = [other(world_SE3_sensor=np.eye(4)), other(timestamp_us=5), other(compensated=False), other(path=short)]
    paths = {pose_path(one, "repaired") for one in (scene, *changed, replace(scene, tracks=(track,)))}
    assert len(paths | {pose_path(scene, "odometry")}) == 7
    assert pose_path(replace(scene, name="other"), "repaired") == pose_path(scene, "repaired")


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"sweeps": []}', b"\xff", b'{"sweeps": ["s0"]}'])
def test_a_damaged_file_is_named(scene, store, data):
    store.put(pose_path(scene, "repaired"), data)
    with pytest.raises(InputError, match=r"poses/scene\..*json: not the poses of scene .*; delete it"):
        posed(scene, "repaired", store)
