import dataclasses
import json

import numpy as np
import pytest
from conftest import yaw_pose

from dense_depth import InputError
from dense_depth.datasets import CameraFrame, DatasetConfig, Keyframe, Scene, Sweep, open_dataset
from dense_depth.datasets.checks import check_heading, compare_poses, part_names, split_drive
from dense_depth.geometry import invert, rotation_from_quaternion

# Which way vehicles go ------------------------------------------------------------------------------------------------


def drive(speed_mps=5.0, turn=0.1, n=60):
    """Times and poses of a vehicle that drives along its x axis, and turns."""
    seconds = 0.1 * np.arange(n)
    steps = speed_mps * 0.1 * np.column_stack([np.cos(turn * seconds), np.sin(turn * seconds)])
    places = np.cumsum(steps, axis=0) + [300, 200]
    poses = np.stack([yaw_pose(turn * t + 0.05 * turn, x, y, 1.0) for t, (x, y) in zip(seconds, places)])
    return (1e6 * seconds).astype(np.int64), poses


def test_forward_standing_and_reversing_vehicles_are_let_through():
    assert check_heading(*drive(), "drive") == []
    assert check_heading(*drive(20.0, 0.0), "drive") == []
    (note,) = check_heading(*drive(-5.0), "drive")
    assert "drive: the vehicle mostly goes backwards" in note
    for poses in (drive(1.0)[1] @ yaw_pose(np.pi / 2, 0, 0), drive(n=1)[1]):  # too slow to say, too short
        assert check_heading(drive(n=len(poses))[0], poses, "drive") == []
    times_us, poses = drive()
    parking = np.concatenate([drive(-4.0, n=20)[1], poses[20:]])  # a third of the time
    assert check_heading(times_us, parking, "drive") == []


def test_wrong_poses_of_a_vehicle_are_refused():
    times_us, poses = drive()
    transposed = yaw_pose(0.6, 0, 0) @ poses
    transposed[:, :3, :3] = np.swapaxes(transposed[:, :3, :3], 1, 2)
    for wrong in (poses @ yaw_pose(np.pi / 2, 0, 0), poses @ yaw_pose(-0.6, 0, 0), transposed):
        with pytest.raises(InputError, match=r"^drive: the vehicle mostly goes sideways, \d+ degrees .*wxyz") as error:
            check_heading(times_us, wrong, "drive")
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="drive: the vehicle goes backwards at 15 m/s"):
        check_heading(*drive(-15.0), "drive")


def recorded_chains(recorded):
    """Times, quaternions and places of the vehicle in two scenes of nuScenes, at every sweep."""
    poses = {}
    for info in json.loads((recorded / "nuscenes_mini_val" / "infos.json").read_text()):
        for row in (info, *info["sweeps"]):
            poses[row["timestamp"]] = row["ego2global_rotation"], row["ego2global_translation"]
    times_us = np.array(sorted(poses))
    wxyz, places = (np.array([poses[time_us][part] for time_us in times_us.tolist()]) for part in (0, 1))
    for part in np.split(np.arange(len(times_us)), np.flatnonzero(np.diff(times_us) > 5_000_000) + 1):
        yield times_us[part], wxyz[part], places[part]


def test_recorded_vehicles_go_forward(recorded):
    """None is refused or noted as it is; as ego_SE3_world and with xyzw quaternions each scene is."""

    def poses_of(wxyz, places):
        poses = np.tile(np.eye(4), (len(wxyz), 1, 1))
        poses[:, :3, :3], poses[:, :3, 3] = rotation_from_quaternion(wxyz), places
        return poses

    chains = list(recorded_chains(recorded))
    assert [len(times_us) for times_us, _, _ in chains] == [388, 399]
    for times_us, wxyz, places in chains:
        assert check_heading(times_us, poses_of(wxyz, places), "scene") == []
        for wrong in (invert(poses_of(wxyz, places - places[0])), poses_of(wxyz[:, [1, 2, 3, 0]], places)):
            with pytest.raises(InputError, match="scene: the vehicle mostly goes sideways"):
                check_heading(times_us, wrong, "scene")
    (scene,) = open_dataset(DatasetConfig("nuscenes", recorded / "pandaset_as_nuscenes", "v1.0-mini")).scenes()
    assert not [note for note in scene.notes if "vehicle" in note]


# Poses against others -------------------------------------------------------------------------------------------------


def test_good_poses_agree_whatever_their_world():
    times_us, poses = drive()
    assert compare_poses(times_us, yaw_pose(1.3, 5, 7, 2) @ poses, poses, "poses.txt", "oxts") == []
    assert compare_poses(times_us[:5], poses[:5], invert(poses[:5]), "poses.txt", "oxts") == []  # half a second


@pytest.mark.parametrize(
    ("stretch", "turn", "aside", "noted", "refused"),
    [
        (1.05, 0.0, 0.0, False, False),
        (1.15, 0.0, 0.0, True, False),
        (1 / 1.15, 0.0, 0.0, True, False),
        (1.3, 0.0, 0.0, True, True),
        (1 / 1.3, 0.0, 0.0, True, True),
        (0.0, 0.0, 0.0, True, True),
        (1.0, np.radians(0.2), 0.0, False, False),
        (1.0, np.radians(0.6), 0.0, True, False),
        (1.0, np.radians(1.5), 0.0, True, True),
        (1.0, 0.0, np.radians(4), False, False),
        (1.0, 0.0, np.radians(12), True, False),
        (1.0, 0.0, np.radians(30), True, True),
    ],
)
def test_differences_between_poses(stretch, turn, aside, noted, refused):
    """Motions that are so many times as long, turn so many radians a second more, and lie so many radians aside."""
    times_us, reference = drive()
    poses = reference.copy()
    poses[:, :3, 3] *= stretch
    further = np.stack([yaw_pose(turn * t * 1e-6, 0, 0) for t in times_us])
    poses = poses @ further @ yaw_pose(aside, 0, 0)
    if refused:
        with pytest.raises(InputError, match=r"^poses.txt: motions over a second .* compared with oxts; are these"):
            compare_poses(times_us, poses, reference, "poses.txt", "oxts")
    else:
        notes = compare_poses(times_us, poses, reference, "poses.txt", "oxts")
        assert len(notes) == noted


# Parts of long drives -------------------------------------------------------------------------------------------------


def test_parts_follow_from_the_size_of_the_images():
    """An Argoverse log of 157 keyframes at 2048x1550 needs parts; nuScenes scenes and KITTI drives of 200 do not."""
    assert part_names("scene", 41, 1600 * 900) == ["scene"]
    assert part_names("drive", 200, 1242 * 375) == ["drive"]
    assert part_names("drive", 201, 1242 * 375) == ["drive.000", "drive.001"]
    assert part_names("log", 157, 2048 * 1550) == [f"log.{i:03d}" for i in range(6)]
    assert part_names("huge", 2, 10**9) == ["huge.000", "huge.001"]


def test_every_keyframe_is_in_one_part():
    """Every frame, too; the sweeps within 5 s of a part's keyframes, and no more."""
    times_us = [100_000 * i for i in range(157)]
    sweeps = [Sweep(f"s{i}", None, 4, time_us, np.eye(4), ()) for i, time_us in enumerate(times_us)]
    frames = [
        CameraFrame(f"k{i}", camera, None, time_us, 2048, 1550, np.eye(3), np.eye(4), f"s{i}")
        for camera in ("left", "right")
        for i, time_us in enumerate(times_us)
    ]
    keyframes = [Keyframe(f"k{i}", time_us, np.eye(4), ()) for i, time_us in enumerate(times_us)]
    log = Scene("test", "log", "log", tuple(sweeps), tuple(frames), (), ("a note",), tuple(keyframes))
    parts = list(split_drive(log, 2048 * 1550))
    assert [part.name for part in parts] == [part.token for part in parts] == part_names("log", 157, 2048 * 1550)
    assert sum((part.keyframes for part in parts), ()) == log.keyframes
    assert sorted(len(part.frames) for part in parts) == [4, 62, 62, 62, 62, 62]
    for part in parts:
        assert part.notes == ("a note",)
        assert [frame.sample_token for frame in part.frames_of("left")] == [k.sample_token for k in part.keyframes]
        first_us, last_us = part.keyframes[0].timestamp_us - 5_000_000, part.keyframes[-1].timestamp_us + 5_000_000
        assert [sweep.timestamp_us for sweep in part.sweeps] == [t for t in times_us if first_us <= t <= last_us]
    short = dataclasses.replace(log, keyframes=log.keyframes[:31])
    assert list(split_drive(short, 2048 * 1550)) == [short]
