"""New poses for sweeps: cameras, boxes and keyframes go with them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import K, yaw_pose

from dense_depth.datasets.scene import Box, CameraFrame, Keyframe, Scene, Sweep, Track
from dense_depth.geometry import invert, se3
from dense_depth.trajectory import placed, pose_at

TIMES_US = [1_000_000, 1_100_000, 1_200_000]
MOUNT = yaw_pose(0.3, 0.5, -0.2, 1.0)


def scene_of(poses, camera_us=1_150_000, camera_pose=None, mount=MOUNT) -> Scene:
    sweeps = [Sweep(f"s{i}", Path("x"), 4, t, pose, ()) for i, (t, pose) in enumerate(zip(TIMES_US, poses))]
    camera_pose = pose_at(TIMES_US, poses, camera_us) @ MOUNT if camera_pose is None else camera_pose
    frame = CameraFrame("k", "CAM", Path("x"), camera_us, 100, 50, K, camera_pose, "s1", mount)
    boxes = [Box(t, pose @ yaw_pose(0.1, 9.0, 2.0), np.ones(3), np.zeros(3)) for t, pose in zip(TIMES_US, poses)]
    keyframe = Keyframe("k", TIMES_US[1], poses[1], ("car",))
    return Scene("test", "s", "s", tuple(sweeps), (frame,), (Track("car", "car", tuple(boxes)),), (), (keyframe,))


BEFORE = np.stack([yaw_pose(0.1 * i, 1.0 * i, 0.2 * i) for i in range(3)])
AFTER = np.stack([yaw_pose(0.12 * i, 500 + 1.1 * i, 0.1 * i, 0.05 * i) for i in range(3)])


def test_boxes_and_keyframes_keep_their_place_around_the_sensor():
    scene = placed(scene_of(BEFORE), AFTER)
    for pose, box in zip(AFTER, scene.tracks[0].boxes):
        np.testing.assert_allclose(invert(pose) @ box.world_SE3_box, yaw_pose(0.1, 9.0, 2.0), atol=1e-9)
    np.testing.assert_allclose(scene.keyframes[0].world_SE3_ego, AFTER[1], atol=1e-9)
    centres = np.array([box.world_SE3_box[:3, 3] for box in scene.tracks[0].boxes])
    np.testing.assert_allclose(scene.tracks[0].boxes[1].velocity_mps, (centres[2] - centres[0]) / 0.2, atol=1e-9)
    assert [sweep.token for sweep in scene.sweeps] == ["s0", "s1", "s2"]


@pytest.mark.parametrize("mount", [MOUNT, None])
def test_a_camera_goes_with_the_pose_at_its_own_time(mount):
    (frame,) = placed(scene_of(BEFORE, mount=mount), AFTER).frames
    # Half way in time: half the turn and half the way.
    middle = yaw_pose(0.18, 501.65, 0.15, 0.075)
    np.testing.assert_allclose(frame.world_SE3_cam, middle @ MOUNT, atol=1e-9)


def test_errors_of_single_camera_poses_go_where_the_mount_is_known():
    wrong = pose_at(TIMES_US, BEFORE, 1_150_000) @ MOUNT @ se3(np.eye(3), np.array([0.05, 0.0, 0.1]))
    (frame,) = placed(scene_of(BEFORE, camera_pose=wrong), BEFORE).frames
    np.testing.assert_allclose(frame.world_SE3_cam, pose_at(TIMES_US, BEFORE, 1_150_000) @ MOUNT, atol=1e-9)


def test_poses_go_on_at_constant_velocity():
    line = np.stack([se3(np.eye(3), np.array([2.0 * i, 0, 0])) for i in range(3)])
    for time_us, x in ((900_000, -2.0), (1_000_000, 0.0), (1_150_000, 3.0), (1_300_000, 6.0)):
        np.testing.assert_allclose(pose_at(TIMES_US, line, time_us)[:3, 3], [x, 0, 0], atol=1e-12)
    assert pose_at(TIMES_US[:1], line[:1], 5)[0, 3] == 0.0


def test_the_same_poses_change_nothing():
    scene = scene_of(BEFORE)
    same = placed(scene, BEFORE)
    for old, new in zip(scene.tracks[0].boxes, same.tracks[0].boxes):
        np.testing.assert_allclose(new.world_SE3_box, old.world_SE3_box, atol=1e-12)
    assert replace(same, sweeps=(), frames=(), tracks=(), keyframes=()).name == scene.name
