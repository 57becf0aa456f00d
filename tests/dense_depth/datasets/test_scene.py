import pickle
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

from dense_depth import InputError
from dense_depth.datasets import Box, CameraFrame, DatasetConfig, Scene, Sweep, Track, open_dataset
from dense_depth.datasets.scene import Crop, boxes_at
from dense_depth.geometry import se3

START_US = 1_600_000_000_000_000


def make_track(seed, n_boxes, start_us=START_US):
    """Uneven times, turns of up to 150 degrees between boxes about any axis, and a size of its own for every box."""
    rng = np.random.default_rng(seed)
    times_us = start_us + np.cumsum(rng.integers(50_000, 700_000, n_boxes)) - 50_000
    rotation, boxes = Rotation.random(random_state=seed), []
    for i, time_us in enumerate(times_us):
        axis = rng.normal(size=3)
        turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(0, np.radians(150)))
        rotation = rotation * turn
        pose = se3(rotation.as_matrix(), rng.uniform(-1000, 1000, 3))
        boxes.append(Box(int(time_us), pose, np.array([4.0, 2.0, 1.5]) + 0.1 * i))
    return Track(f"track-{seed}", "car", tuple(boxes))


def expected_pose(track, time_us):
    """Inside the track by scipy's Slerp and a line; outside by the rotation vector of the nearest two boxes, scaled."""
    times = np.array([box.timestamp_us for box in track.boxes])
    rotations = Rotation.from_matrix([box.world_SE3_box[:3, :3] for box in track.boxes])
    centres = np.array([box.world_SE3_box[:3, 3] for box in track.boxes])
    since_s, at_s = (times - times[0]) * 1e-6, (time_us - times[0]) * 1e-6
    if times[0] <= time_us <= times[-1]:
        centre = [np.interp(at_s, since_s, column) for column in centres.T]
        return se3(Slerp(since_s, rotations)(at_s).as_matrix(), centre)
    a, b = (0, 1) if time_us < times[0] else (len(times) - 2, len(times) - 1)
    alpha = (at_s - since_s[a]) / (since_s[b] - since_s[a])
    turn = Rotation.from_rotvec(alpha * (rotations[a].inv() * rotations[b]).as_rotvec())
    return se3((rotations[a] * turn).as_matrix(), centres[a] + alpha * (centres[b] - centres[a]))


def span(track):
    return track.boxes[0].timestamp_us, track.boxes[-1].timestamp_us


# Tracks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("extrapolate_s", [0.0, 0.3])
def test_boxes_at_agrees_with_scipy(extrapolate_s):
    """Every track at once, at 400 times from before all of them to after all of them, and at every box time."""
    tracks = [make_track(seed, n_boxes, START_US + 200_000 * seed) for seed, n_boxes in enumerate((2, 3, 9, 20, 5))]
    ends = np.array([span(track) for track in tracks])
    times = set(np.linspace(ends.min() - 500_000, ends.max() + 500_000, 400).round().astype(np.int64).tolist())
    times |= {box.timestamp_us for track in tracks for box in track.boxes}
    margin_us = extrapolate_s * 1e6
    n_boxes = n_none = 0
    for time_us in sorted(times):
        boxes = boxes_at(tracks, time_us, extrapolate_s)
        assert len(boxes) == len(tracks)
        for track, box in zip(tracks, boxes):
            first_us, last_us = span(track)
            if not first_us - margin_us <= time_us <= last_us + margin_us:
                assert box is None
                n_none += 1
                continue
            assert box.timestamp_us == time_us
            np.testing.assert_allclose(box.world_SE3_box, expected_pose(track, time_us), atol=1e-9)
            alone = track.box_at(time_us, extrapolate_s)
            np.testing.assert_allclose(alone.world_SE3_box, box.world_SE3_box, atol=1e-12)
            n_boxes += 1
    assert n_boxes > 500 and n_none > 300


def test_a_box_at_its_own_time_is_that_box():
    track = make_track(3, 6)
    for box in track.boxes:
        found = track.box_at(box.timestamp_us)
        assert found.timestamp_us == box.timestamp_us
        np.testing.assert_allclose(found.world_SE3_box, box.world_SE3_box, atol=1e-12)
        np.testing.assert_array_equal(found.size_lwh_m, box.size_lwh_m)


@pytest.mark.parametrize("n_boxes", [1, 4])
def test_extrapolation_ends_to_the_microsecond(n_boxes):
    track = make_track(7, n_boxes)
    first_us, last_us = span(track)
    assert track.box_at(first_us - 1) is None and track.box_at(last_us + 1) is None
    for inside_us in (first_us - 250_000, last_us + 250_000):
        assert track.box_at(inside_us, 0.25).timestamp_us == inside_us
    assert track.box_at(first_us - 250_001, 0.25) is None
    assert track.box_at(last_us + 250_001, 0.25) is None


def test_extrapolation_by_hand():
    """A car at 10 m/s along x that turns left at 90 degrees a second; 0.2 s later it is 2 m and 18 degrees further."""
    turned = [Rotation.from_euler("z", degrees, degrees=True).as_matrix() for degrees in (0, 45)]
    boxes = [Box(500_000 * i, se3(R, np.array([5.0 * i, 1, 2])), np.ones(3)) for i, R in enumerate(turned)]
    for time_us, x, degrees in ((-200_000, -2, -18), (250_000, 2.5, 22.5), (700_000, 7, 63)):
        box = Track("car", "car", tuple(boxes)).box_at(time_us, 0.2)
        np.testing.assert_allclose(box.world_SE3_box[:3, 3], [x, 1, 2])
        np.testing.assert_allclose(
            box.world_SE3_box[:3, :3], Rotation.from_euler("z", degrees, degrees=True).as_matrix(), atol=1e-12
        )


def test_a_single_box_stays_where_it_is():
    track = make_track(11, 1)
    (box,) = track.boxes
    for offset_us in (-400_000, 0, 400_000):
        found = track.box_at(box.timestamp_us + offset_us, 0.4)
        assert found.timestamp_us == box.timestamp_us + offset_us
        np.testing.assert_allclose(found.world_SE3_box, box.world_SE3_box, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found.size_lwh_m, box.size_lwh_m)


def test_the_size_is_that_of_the_nearer_box():
    sizes = [np.array([4.0, 2.0, 1.5]), np.array([5.0, 2.0, 1.5]), np.array([6.0, 2.0, 1.5])]
    track = Track("car", "car", tuple(Box(100_000 * i, np.eye(4), size) for i, size in enumerate(sizes)))
    lengths = {-50_000: 4, 0: 4, 40_000: 4, 60_000: 5, 100_000: 5, 140_000: 5, 160_000: 6, 200_000: 6, 250_000: 6}
    assert {time_us: track.box_at(time_us, 0.1).size_lwh_m[0] for time_us in lengths} == lengths


def test_boxes_at_without_a_track_in_range():
    assert boxes_at([], START_US) == []
    assert boxes_at([make_track(1, 3), make_track(2, 1)], START_US - 10_000_000, 1.0) == [None, None]


def test_travel():
    """The greatest distance from the first place, not the length of the way nor the distance of the last."""
    places = [(10, 20, 1), (13, 24, 1), (13, 24, 1), (11, 20, 1)]
    boxes = tuple(Box(i, se3(np.eye(3), np.array(place)), np.ones(3)) for i, place in enumerate(places))
    assert Track("a", "car", boxes).travel_m == pytest.approx(5.0)
    assert Track("a", "car", boxes[:1]).travel_m == 0.0


# Scenes ---------------------------------------------------------------------------------------------------------------


def make_scene():
    rng = np.random.default_rng(0)
    crops = (Crop((-2, 2), (-1, 1)),)
    sweeps = tuple(
        Sweep(f"sweep-{i}", Path(f"{i}.bin"), 4, START_US + i, rng.normal(size=(4, 4)), crops) for i in range(3)
    )
    frames = tuple(
        CameraFrame(
            sample_token=f"sample-{i}",
            camera=camera,
            path=Path(f"{camera}-{i}.jpg"),
            timestamp_us=START_US + i,
            width=40,
            height=20,
            K=rng.normal(size=(3, 3)),
            world_SE3_cam=rng.normal(size=(4, 4)),
            key_sweep=f"sweep-{i}",
        )
        for camera in ("CAM_BACK", "CAM_FRONT")
        for i in range(3)
    )
    tracks = (make_track(0, 1), make_track(1, 5), make_track(2, 8))
    return Scene("nuscenes", "token", "scene-0001", sweeps, frames, tracks, ("a note",))


def test_frames_of_a_camera():
    scene = make_scene()
    assert scene.cameras == ("CAM_BACK", "CAM_FRONT")
    for camera in scene.cameras:
        assert [frame.path.name for frame in scene.frames_of(camera)] == [f"{camera}-{i}.jpg" for i in range(3)]
    assert scene.frames_of("CAM_LEFT") == ()
    assert Scene("nuscenes", "token", "empty", (), (), ()).cameras == ()


def assert_same(a, b):
    """Equal in every field, arrays to the bit."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, tuple | list):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    elif hasattr(a, "__dict__") and not isinstance(a, Path):  # cached properties are in there, too
        assert vars(a).keys() == vars(b).keys()
        for name in vars(a):
            assert_same(vars(a)[name], vars(b)[name])
    else:
        assert a == b


@pytest.mark.parametrize("used", [False, True])
def test_scenes_are_pickled(used):
    scene = make_scene()
    if used:
        boxes_at(scene.tracks, START_US + 600_000, 1.0)
        assert {"times_us", "quaternions"} <= vars(scene.tracks[1]).keys()
    copy = pickle.loads(pickle.dumps(scene))
    assert_same(copy, scene)
    for time_us in range(START_US, START_US + 3_000_000, 100_000):
        assert_same(boxes_at(copy.tracks, time_us, 0.2), boxes_at(scene.tracks, time_us, 0.2))
    assert [track.travel_m for track in copy.tracks] == [track.travel_m for track in scene.tracks]


# Opening --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder", "options", "message"),
    [
        ("nuscenes", "gone", {}, r"gone: no such folder; .*--dataroot"),
        ("kitti-raw", "a-file", {}, r"a-file: no such folder; .*--dataroot"),
        ("nuscenes", "", {"poses": "poses.txt"}, "--poses and --tracks are for kitti-raw"),
        ("nuscenes", "", {"tracks": "labels.txt"}, "--poses and --tracks are for kitti-raw"),
        ("nuscenes", "", {}, r"v1.0-trainval: no such folder; .*--version"),
        ("nuscenes", "", {"version": "v1.0-mini"}, r"v1.0-mini: no such folder; .*--version"),
        ("kitti-raw", "", {"version": "v1.0-mini"}, "--version is for nuscenes"),
        ("kitti-raw", "", {}, "no drive; expected folders like"),
        ("waymo", "", {}, "--dataset waymo: not known; use nuscenes or kitti-raw"),
    ],
)
def test_wrong_options_are_named(tmp_path, name, folder, options, message):
    (tmp_path / "a-file").touch()
    with pytest.raises(InputError, match=message) as error:
        open_dataset(DatasetConfig(name, tmp_path / folder, **options))
    assert "\n" not in str(error.value)
