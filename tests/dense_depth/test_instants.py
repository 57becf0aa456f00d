"""A spinning LiDAR that measures every pulse at its own instant, worked out in closed form, against ``instants``."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import CONFIG
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import UNTIMED, Box, CameraFrame, Scene, Sweep, Timing, Track, poses_at
from dense_depth.deskew import deskew, moved, twist_of
from dense_depth.geometry import invert, se3, transform
from dense_depth.instants import Revolution, _parts, revolution_of, timed_tracks
from dense_depth.label import Source
from dense_depth.sweeps import point_times, read_sweep

START_US, PERIOD_US, N_SWEEPS = 1_600_000_000_000_000, 100_000, 9
SIZE = np.array([4.4, 1.9, 1.5])
NOWHERE = np.zeros((0, 3))


def ego_at(t):
    """Drives at 12 m/s and turns; the pose at a time, or at each of many."""
    t = np.asarray(t, np.float64)
    poses = np.zeros((*t.shape, 4, 4))
    tilt = np.stack(np.broadcast_arrays(0.5 * t, 0.02, -0.01), axis=-1)
    poses[..., :3, :3] = Rotation.from_euler("zyx", tilt).as_matrix()
    poses[..., :3, 3] = np.stack(np.broadcast_arrays(12 * t, 3 * t * t, 1.8), axis=-1)
    poses[..., 3, 3] = 1.0
    return poses


def car_at(t, start, velocity):
    yaw = np.arctan2(velocity[1], velocity[0])
    return se3(Rotation.from_euler("z", yaw).as_matrix(), np.array([*(start + velocity * t), 0.8]))


def spin(start, velocity, timing, t_stamp, rng, compensated):
    """Points of one revolution, each where its world point is when the beam looks at it.

    Args:
        start: (n, 3) world points at time 0.
        velocity: (n, 3) of each.
        timing: Of the revolution; only ``start_s``, ``end_s``, ``first_azimuth`` and ``clockwise`` are used.
        t_stamp: Time of the stamp in seconds.
        rng: Where the search for the times starts.
        compensated: For the sensor's own motion, to the stamp.

    Returns:
        (n, 4): x, y, z and the time after the stamp, in order of time.
    """
    share = rng.random(len(start))
    for _ in range(30):  # a fixed point: the beam looks there at the time at which the point is there
        times = timing.start_s + (timing.end_s - timing.start_s) * share
        world = start + velocity * (t_stamp + times)[:, None]
        in_sensor = transform(invert(ego_at(t_stamp + times)), world[:, None])[:, 0]
        turned = np.arctan2(in_sensor[:, 1], in_sensor[:, 0]) - timing.first_azimuth
        before, share = share, np.remainder((-turned if timing.clockwise else turned) / (2 * np.pi), 1)
    points = transform(invert(ego_at(t_stamp)), world) if compensated else in_sensor
    order = np.argsort(times)
    is_seen = (
        np.abs(share - before)[order] < 1e-6
    )  # what moves along with the end of a revolution may be missed by both
    return np.column_stack([points, times])[order[is_seen]].astype(np.float32)


# Where it starts and how fast it is: ahead, alongside and near, at the seam of the revolution, and slow far away.
CARS = [
    ((20.0, 4.0), (11.0, 0.0)),
    ((4.0, -3.4), (14.0, 1.0)),
    ((-6.0, 3.5), (16.0, 0.5)),
    ((30.0, -20.0), (-3.0, 8.0)),
]


@pytest.fixture
def spun(tmp_path):
    """A drive past four moving cars, of a LiDAR with a timing."""

    def build(timing, compensated):
        rng = np.random.default_rng(3)
        in_box = [rng.uniform(-0.48, 0.48, (40, 3)) * SIZE for _ in CARS]
        still = rng.uniform([-40, -40, 2.5], [60, 40, 8], (200, 3))  # above the cars
        motions = [(np.array(start), np.array(velocity)) for start, velocity in CARS]

        start = np.concatenate([still, *(transform(car_at(0.0, *m), p) for m, p in zip(motions, in_box))])
        speeds = [np.zeros_like(still), *(np.tile([*m[1], 0.0], (len(p), 1)) for m, p in zip(motions, in_box))]
        velocity = np.concatenate(speeds)
        sweeps, boxes = [], [[] for _ in CARS]
        for i in range(N_SWEEPS):
            t = i * PERIOD_US * 1e-6
            path = tmp_path / f"{i}.bin"
            points = spin(start, velocity, timing, t, rng, compensated)
            if timing.rule == "azimuth":
                points = points[rng.permutation(len(points))]
            points.tofile(path)
            stamp_us = START_US + i * PERIOD_US
            sweep = Sweep(f"s{i}", path, 4, stamp_us, ego_at(t), (), timing=timing, compensated=compensated)
            sweeps.append(sweep)
            for car, m in enumerate(motions if i % 2 == 0 else []):  # annotated in every second sweep
                # The annotator draws the box where the points on the object's centre would be.
                centre = spin(car_at(0.0, *m)[None, :3, 3], np.array([[*m[1], 0.0]]), timing, t, rng, compensated)[0]
                hit = car_at(t + centre[3], *m)
                at_stamp = ego_at(t) if compensated else ego_at(t) @ invert(ego_at(t + centre[3]))
                pose = hit if compensated else at_stamp @ hit
                boxes[car].append(Box(stamp_us, pose, SIZE))
        tracks = tuple(Track(f"car{i}", "car", tuple(part)) for i, part in enumerate(boxes))
        camera_us = START_US + 4 * PERIOD_US + 13_000
        frame = CameraFrame("k", "CAM", tmp_path / "k.jpg", camera_us, 100, 50, np.eye(3), np.eye(4), "s4")
        truth = start + velocity * (camera_us - START_US) * 1e-6
        return Scene("test", "scene", "scene", tuple(sweeps), (frame,), tracks), motions, truth, len(still)

    return build


TIMINGS = {
    "nuScenes": (Timing("order", -0.1, 0.0, 2.0, clockwise=True), True),
    "KITTI": (Timing("azimuth", -0.05, 0.05, np.pi, clockwise=True), False),
    "counter-clockwise": (Timing("azimuth", 0.0, 0.1, 0.3, clockwise=False), True),
    "a column": (Timing("column", -0.1, 0.0, -1.0, clockwise=False, column=3), False),
}


@pytest.mark.parametrize("name", TIMINGS)
def test_boxes_get_the_time_and_the_place_at_which_the_beam_met_them(spun, name):
    scene, motions, _, _ = spun(*TIMINGS[name])
    timed = timed_tracks(scene.tracks, scene.sweeps)
    # File order is even in time only where pulses are; a few points are far from that.
    tolerance_m = 0.25 if TIMINGS[name][0].rule == "order" else 0.06

    def off(tracks):
        return [
            np.linalg.norm((box.world_SE3_box - car_at(1e-6 * (box.timestamp_us - START_US), *motion))[:2, 3])
            for track, motion in zip(tracks, motions)
            for box in track.boxes
        ]

    assert max(off(timed)) < tolerance_m < 0.4 < max(off(scene.tracks))


@pytest.mark.parametrize("name", ["KITTI", "counter-clockwise", "a column"])
def test_points_on_movers_meet_where_the_object_is_when_the_camera_looks(spun, name):
    """Those of the object at the seam too, of which a sweep sees parts that are a revolution apart."""
    scene, _, truth, n_still = spun(*TIMINGS[name])
    (frame,) = scene.frames
    wide = replace(CONFIG, box_margin_m=0.3)

    def off(scene):
        cloud = SceneCloud(scene, [frame], wide)
        selection = cloud.select(np.eye(4), frame.timestamp_us, "s4")
        points, source = cloud.points(selection)
        far = np.linalg.norm(truth - ego_at(0.4)[:3, 3], axis=1) < 60
        moving = points[source == Source.MOVING]
        return cKDTree(truth[n_still:]).query(moving)[0], cKDTree(truth[:n_still][far[:n_still]]).query(points)[0]

    distance, _ = off(scene)
    assert len(distance) > 0.95 * 8 * 160  # hardly any is missed
    assert np.percentile(distance, 95) < 0.06 and np.mean(distance > 0.15) < 0.005
    blind = tuple(replace(sweep, timing=UNTIMED) for sweep in scene.sweeps)
    assert np.percentile(off(replace(scene, sweeps=blind))[0], 95) > 0.3


def test_static_points_of_a_sweep_that_is_not_compensated_meet_in_the_world(spun):
    scene, _, truth, n_still = spun(*TIMINGS["KITTI"])
    (frame,) = scene.frames

    def off(scene):
        cloud = SceneCloud(replace(scene, tracks=()), [frame], replace(CONFIG, dynamics="none"))
        points, _ = cloud.points(cloud.select(np.eye(4), frame.timestamp_us, "s4"))
        return np.sort(cKDTree(points).query(truth[:n_still])[0])

    assert np.percentile(off(scene), 90) < 0.01
    skewed = tuple(replace(sweep, compensated=True) for sweep in scene.sweeps)
    assert np.percentile(off(replace(scene, sweeps=skewed)), 50) > 0.02


def test_deskewing_agrees_with_the_pose_at_each_point():
    rng = np.random.default_rng(0)
    poses, times_s = np.stack([ego_at(t) for t in (-0.1, 0.0, 0.1)]), np.array([-0.1, 0.0, 0.1])
    twist = twist_of(poses, times_s, 1)
    points, at = rng.uniform(-50, 50, (300, 4)).astype(np.float32), rng.uniform(-0.1, 0.1, 300).astype(np.float32)
    found = deskew(points, at, twist)
    for point, t, ours in zip(points.astype(np.float64), at.astype(np.float64), found):
        rotation = Rotation.from_rotvec(twist.angular_rps * t).as_matrix()
        np.testing.assert_allclose(ours, rotation @ point[:3] + twist.linear_mps * t, atol=2e-5)
        exact = invert(ego_at(0.0)) @ ego_at(t)
        np.testing.assert_allclose(moved(twist, t)[:3, 3], exact[:3, 3], atol=0.04)


def test_every_instant_of_a_body_belongs_to_one_of_its_parts():
    rng = np.random.default_rng(5)
    low = rng.uniform(-0.2, 0.99, 500)
    spans = np.stack([low, low + rng.uniform(0.001, 0.6, 500)], axis=1)
    middle = spans.mean(1)
    spans = spans[(middle >= 0) & (middle < 1)]
    n_parts = rng.integers(1, 5, len(spans))
    row, at, shares = _parts(spans, n_parts)
    for i, (low, high) in enumerate(spans):
        parts, middles = shares[row == i], at[row == i]
        inside = np.mod(np.linspace(low, high, 200), 1)
        belongs = (inside[:, None] >= parts[:, 0]) & (inside[:, None] < parts[:, 1])
        assert (belongs.sum(1) == 1).all()
        wide = (high - low) / n_parts[i]
        nearest = np.abs(inside - middles[belongs.argmax(1)])
        assert nearest.max() <= wide / 2 + 1e-9
        assert len(parts) in (n_parts[i], n_parts[i] + 1)


@pytest.mark.parametrize("clockwise", [True, False])
def test_the_revolution_is_found_from_points(clockwise):
    share = np.linspace(0, 1, 3000, endpoint=False)
    azimuth = 0.7 + 2 * np.pi * share * (-1 if clockwise else 1)
    points = np.column_stack([10 * np.cos(azimuth), 10 * np.sin(azimuth), share]).astype(np.float32)
    sweep = Sweep("s", None, 3, 0, np.eye(4), (), timing=Timing("order", -0.05, 0.0))
    found = revolution_of(sweep, points, point_times(sweep, points))
    assert found.clockwise is clockwise and found.first_azimuth == pytest.approx(0.7, abs=0.01)
    assert np.abs(np.mod(found.share(points[:, :2]) - share + 0.5, 1) - 0.5).max() < 0.002
    shuffled = points[np.random.default_rng(0).permutation(3000)]
    assert revolution_of(sweep, shuffled, point_times(sweep, shuffled)) is None
    assert Revolution(-0.05, 0.05, 0.0, True).time_s(0.5) == -0.025


def test_recorded_files_are_in_order_of_time(recorded):
    """File order gives the times that PandaSet measured to 2.5 ms, and nuScenes' sweep turns clockwise, evenly."""
    root = recorded / "pandaset_as_nuscenes"
    (scene,) = open_dataset(DatasetConfig("nuscenes", root, "v1.0-mini")).scenes()
    for sweep in scene.sweeps[::7]:
        points = read_sweep(sweep)
        measured = 1e-5 * np.load(root / "point_times" / sweep.path.name.replace(".pcd.bin", ".npy"))
        assert np.abs(point_times(sweep, points) - measured).max() < 2.6e-3
        revolution = revolution_of(sweep, points, point_times(sweep, points))
        assert revolution.clockwise and revolution.first_azimuth == pytest.approx(-np.pi / 2, abs=0.05)
    (path,) = (recorded / "nuscenes_keyframe").glob("*LIDAR_TOP*.bin")
    sweep = Sweep("s", path, 5, 0, np.eye(4), (), timing=Timing("order", -0.05, 0.0))
    points = read_sweep(sweep)
    revolution = revolution_of(sweep, points, point_times(sweep, points))
    assert revolution.clockwise
    far = np.linalg.norm(points[:, :2], axis=1) > 3
    wrong = np.abs(np.mod(revolution.share(points[far, :2]) - np.linspace(0, 1, len(points))[far] + 0.5, 1) - 0.5)
    assert np.percentile(wrong, 95) < 0.02


def test_key_sweep_points_on_recorded_movers_go_where_their_own_times_put_them(recorded):
    """PandaSet: on cars faster than 3 m/s, by the measured time of each point and the annotated velocity."""
    root = recorded / "pandaset_as_nuscenes"
    (scene,) = open_dataset(DatasetConfig("nuscenes", root, "v1.0-mini", cameras=("CAM_FRONT_LEFT",))).scenes()
    sweeps, of_sample = {s.token: s for s in scene.sweeps}, {k.sample_token: k for k in scene.keyframes}
    config = AccumulationConfig(past_s=0, future_s=0)
    clouds = [SceneCloud(scene, scene.frames, config)]
    clouds.append(
        SceneCloud(replace(scene, sweeps=tuple(replace(s, timing=UNTIMED) for s in scene.sweeps)), scene.frames, config)
    )
    near = np.zeros((2, 2))
    for frame in scene.frames:
        sweep = sweeps[frame.key_sweep]
        world = transform(sweep.world_SE3_sensor, read_sweep(sweep)[:, :3].astype(np.float64))
        after_s = 1e-5 * np.load(root / "point_times" / sweep.path.name.replace(".pcd.bin", ".npy"))
        lag_s = 1e-6 * (frame.timestamp_us - sweep.timestamp_us) - after_s
        expected = []
        for _, box in scene.boxes_of(of_sample[frame.sample_token]):
            if np.linalg.norm(box.velocity_mps) > 3:
                on = (np.abs(transform(invert(box.world_SE3_box), world)) <= box.size_lwh_m / 2).all(1)
                expected.append(world[on] + box.velocity_mps * lag_s[on, None])
        expected = np.concatenate([NOWHERE, *expected])
        for row, cloud in zip(near, clouds):
            points, _ = cloud.points(cloud.select(np.eye(4), frame.timestamp_us, frame.key_sweep))
            distance = cKDTree(points).query(expected)[0]
            row += (distance < 0.1).sum(), len(distance)
    share = near[:, 0] / near[:, 1]
    assert near[0, 1] > 5000 and share[0] > 0.9 > 0.4 > share[1]


def test_poses_at_and_the_table_need_no_tracks():
    poses, sizes, known = poses_at([], [START_US])
    assert poses.shape == (1, 0, 4, 4) and sizes.shape == (1, 0, 3) and known.shape == (1, 0)
