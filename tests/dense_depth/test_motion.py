"""Tracks that are refined by points: against motions that are known exactly, and against boxes drawn by people."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import yaw_pose

from dense_depth import InputError
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import Box, Track, poses_at
from dense_depth.geometry import invert, transform
from dense_depth.instants import timed_tracks
from dense_depth.motion import RefinementConfig, refined
from dense_depth.pose_graph import _normal_equations, _smoothness
from dense_depth.views import Course, SweepPoints, points_near, points_of, view_of

SIZE = np.array([4.4, 1.9, 1.6])
STEP_US = 100_000
START_US = 1_000_000


def pose_of(time_us: float) -> np.ndarray:
    """A car that brakes from 12 m/s and turns in ever more: its pose at a time, exactly."""
    t = np.linspace(0, 1e-6 * time_us, 400)
    speed, yaw = 12 - 1.5 * t, 0.08 * t**2
    x, y = np.trapz(speed * np.cos(yaw), t), np.trapz(speed * np.sin(yaw), t)
    return yaw_pose(yaw[-1], x - 20, y + 8, 0.8)


def body(rng: np.random.Generator, n: int) -> np.ndarray:
    """Points on the rear, a side and the roof of a car, in the frame of its box."""
    u, v = rng.uniform(-0.5, 0.5, (2, n)) * 0.96
    faces = np.stack([np.column_stack([np.full(n, -0.48), u, v]), np.column_stack([u, np.full(n, -0.48), v])])
    points = np.concatenate([faces.reshape(-1, 3), np.column_stack([u * 0.5, v, np.full(n, 0.48)])])
    return points * SIZE


def sweeps_of(rng: np.random.Generator, n_sweeps: int, seen=lambda i: True):
    """Sweeps whose points are hit one after the other in the 100 ms before the stamp, the car's in 15 of them."""
    for i in range(n_sweeps):
        stamp_us = START_US + i * STEP_US
        times_s = rng.uniform(-0.06, -0.045, 240)
        on_car = body(rng, 80)
        xyz = np.array([transform(pose_of(stamp_us + 1e6 * t), p[None])[0] for t, p in zip(times_s, on_car)])
        xyz = (xyz + rng.normal(0, 0.01, xyz.shape)) if seen(i) else np.empty((0, 3))
        around = rng.uniform([-30, -20, 0], [60, 60, 0.02], (2000, 3))  # the ground
        times_s = np.concatenate([times_s[: len(xyz)], rng.uniform(-0.1, 0, len(around))])
        yield SweepPoints(stamp_us, np.concatenate([xyz, around]), times_s)


def annotated(rng: np.random.Generator, keyframes, jitter_m=0.0, category="vehicle.car") -> Track:
    boxes = []
    for i in keyframes:
        time_us = START_US + i * STEP_US - 52_500
        pose = pose_of(time_us)
        pose[:2, 3] += rng.normal(0, jitter_m, 2)
        boxes.append(Box(time_us, pose, SIZE, np.zeros(3), 240, "vehicle.moving"))
    return Track("car", category, tuple(boxes))


def errors(track: Track, times_us) -> np.ndarray:
    """Distance of a track's centres from where the car was."""
    poses, _, known = poses_at([track], times_us)
    assert known.all()
    return np.linalg.norm(poses[:, 0, :3, 3] - [pose_of(t)[:3, 3] for t in times_us], axis=1)


def between(first: int, last: int) -> list[int]:
    return [START_US + i * STEP_US - 52_500 for i in range(first, last + 1)]


@pytest.fixture(scope="module")
def turning():
    """A car annotated twice a second with jitter, from the fifth sweep on: before and after the refinement."""
    rng = np.random.default_rng(1)
    track = annotated(rng, range(5, 26, 5), jitter_m=0.05)
    (new,), report = refined([track], sweeps_of(rng, 36))
    return track, new, report


def test_boxes_between_keyframes_lie_on_the_object(turning):
    track, new, report = turning
    before, after = errors(track, between(5, 25)), errors(new, between(5, 25))
    assert np.mean(after) < 0.5 * np.mean(before)
    assert np.max(after) < np.max(before)
    assert report.refined == 1
    assert report.misfit[1] < report.misfit[0]
    assert len(new.boxes) == 21 - report.rejected + report.beyond


def test_a_turn_is_followed_beyond_the_last_box_where_a_straight_line_leaves_it(turning):
    track, new, report = turning
    later = [time_us for time_us in between(26, 36) if time_us <= new.times_us[-1]]
    assert len(later) >= 8
    assert report.beyond >= 12  # before the first box too
    straight, _, _ = poses_at([track], later, extrapolate_s=2.0)
    assert np.linalg.norm(straight[-1, 0, :3, 3] - pose_of(later[-1])[:3, 3]) > 0.7
    assert errors(new, later).max() < 0.2


def test_annotated_boxes_keep_what_the_annotators_said(turning):
    track, new, _ = turning
    by_time = {box.timestamp_us: box for box in new.boxes}
    for box in track.boxes:
        assert by_time[box.timestamp_us].n_points == 240
        assert by_time[box.timestamp_us].attribute == "vehicle.moving"
    others = [box for time_us, box in by_time.items() if time_us not in track.times_us]
    assert all(box.n_points is None and box.velocity_mps is None for box in others)


def test_the_annotators_mean_is_the_anchor(turning):
    track, new, _ = turning
    poses, _, _ = poses_at([new], track.times_us)
    correction = poses[:, 0, :3, 3] - track.centres
    assert np.abs(correction.mean(0)).max() < 0.02
    assert np.abs(correction).max() > 0.03


def test_a_track_ends_with_its_last_sighting():
    rng = np.random.default_rng(2)
    track = annotated(rng, range(5, 26, 5))
    (new,), report = refined([track], sweeps_of(rng, 36, seen=lambda i: 4 <= i <= 28))
    assert abs(new.times_us[-1] - between(28, 28)[0]) < 10_000
    assert abs(new.times_us[0] - between(4, 4)[0]) < 10_000
    assert report.beyond == 4


def test_something_else_near_the_end_is_not_taken_for_the_object():
    rng = np.random.default_rng(3)
    track = annotated(rng, range(5, 26, 5))
    wall = np.column_stack([rng.uniform(0, 40, 4000), np.full(4000, 14.0), rng.uniform(0.3, 3, 4000)])
    sweeps = [
        sweep._replace(xyz=np.concatenate([sweep.xyz, wall]), times_s=np.append(sweep.times_s, np.full(4000, -0.05)))
        for sweep in sweeps_of(rng, 36, seen=lambda i: i <= 25)
    ]
    (new,), report = refined([track], sweeps)
    assert report.refined == 1
    assert new.times_us[-1] == track.times_us[-1]


def test_a_gap_is_bridged():
    rng = np.random.default_rng(4)
    track = annotated(rng, range(0, 31, 5), jitter_m=0.03)
    (new,), report = refined([track], sweeps_of(rng, 31, seen=lambda i: not 11 <= i <= 18))
    assert report.refined == 1
    assert errors(new, between(0, 30)).max() < errors(track, between(0, 30)).max()


def test_a_view_of_something_else_is_rejected():
    rng = np.random.default_rng(5)
    track = annotated(rng, range(0, 21, 5), jitter_m=0.03)
    sweeps = list(sweeps_of(rng, 21))
    junk = transform(pose_of(sweeps[7].timestamp_us - 52_500), rng.uniform(-0.5, 0.5, (240, 3)) * SIZE)
    sweeps[7].xyz[:240] = junk
    (new,), report = refined([track], sweeps)
    assert report.rejected >= 1
    assert not any(abs(t - between(7, 7)[0]) < 10_000 for t in new.times_us)


def test_tracks_that_are_not_refined_come_back_as_they_were():
    rng = np.random.default_rng(6)
    moving = annotated(rng, range(0, 21, 5), jitter_m=0.03)
    still = Track("parked", "vehicle.car", tuple(Box(t, pose_of(0), SIZE) for t in moving.times_us))
    walker = annotated(rng, range(0, 21, 5), category="human.pedestrian.adult")
    far = Track(
        "far",
        "vehicle.car",
        tuple(Box(b.timestamp_us, yaw_pose(0, 5e-6 * b.timestamp_us, 500), SIZE) for b in moving.boxes),
    )
    tracks = [still, walker, moving, far]
    new, report = refined(tracks, sweeps_of(rng, 21))
    assert [a is b for a, b in zip(new, tracks)] == [True, True, False, True]
    assert (report.still, report.soft, report.refined, report.unseen, report.unproven) == (1, 1, 1, 1, 0)


def test_where_nothing_is_proven_boxes_stay():
    """A perfect annotation cannot be improved, whatever noise the registration finds."""
    rng = np.random.default_rng(2)
    track = annotated(rng, range(21))
    (new,), report = refined([track], sweeps_of(rng, 21))
    assert (report.unproven, report.refined) == (1, 0)
    assert new is track


def test_beyond_boxes_that_stay_the_object_is_found_all_the_same():
    rng = np.random.default_rng(2)
    track = annotated(rng, range(21))
    (new,), report = refined([track], sweeps_of(rng, 28))
    assert (report.unproven, report.beyond) == (1, 7)
    assert errors(new, between(0, 20)).max() < 0.02
    assert errors(new, between(21, 27)).max() < 0.2


def test_no_tracks_and_no_sweeps():
    rng = np.random.default_rng(8)
    assert refined([], sweeps_of(rng, 2))[0] == ()
    track = annotated(rng, range(0, 21, 5))
    assert refined([track], [])[0] == (track,)
    empty = SweepPoints(START_US, np.empty((0, 3)), np.empty(0))
    assert refined([track], [empty])[0] == (track,)


def test_where_only_a_smooth_side_is_seen_nothing_is_found_beyond_the_ends():
    """The side of a long bus looks the same from sweep to sweep, however far the bus has gone."""
    rng = np.random.default_rng(11)
    long, track = np.array([60.0, 2.6, 3.2]), annotated(rng, range(5, 26, 5), jitter_m=0.02)
    track = replace(track, boxes=tuple(replace(box, size_lwh_m=long) for box in track.boxes))
    sweeps = []
    for i in range(36):
        stamp_us = START_US + i * STEP_US
        pose = pose_of(stamp_us - 52_500)
        side = np.column_stack([rng.uniform(-10, 10, 300), np.full(300, -1.3), rng.uniform(-1, 1.5, 300)])
        side[:, 0] -= pose[0, 3]  # the part that the sensor sees: it stays while the bus moves on
        sweeps.append(SweepPoints(stamp_us, transform(pose, side), np.full(300, -0.0525)))
    (new,), report = refined([track], sweeps)
    assert report.beyond == 0
    assert new.times_us[-1] == track.times_us[-1]


def test_options_have_bounds():
    with pytest.raises(InputError, match="--reach-s -1"):
        RefinementConfig(reach_s=-1.0)


def test_a_view_undoes_the_motion_of_the_object_within_the_sweep():
    rng = np.random.default_rng(9)
    on_car = body(rng, 100)
    times_s = rng.uniform(-0.1, 0, len(on_car))
    course = Course(950_000, yaw_pose(0.7, 5, 3, 0.8), np.array([14.0, -3.0, 0.5]), 0.6)
    moments = [course.at(1_000_000 + round(1e6 * t)) for t in times_s]
    xyz = np.array([transform(pose, p[None])[0] for pose, p in zip(moments, on_car)])
    sweep = SweepPoints(1_000_000, xyz, times_s)
    near = points_near(sweep, course, SIZE, 0.0)
    assert len(near.xyz) == len(xyz)
    view = view_of(near, course, SIZE, np.array([0]))
    distances = np.linalg.norm(view.xyz[:, None] - on_car, axis=2).min(1)
    assert distances.max() < 1e-4
    np.testing.assert_allclose(view.world_SE3_box, course.at(view.time_us))


def test_gradients_of_a_pair_are_those_of_its_cost():
    rng = np.random.default_rng(10)
    first = rng.uniform(-2, 2, (60, 3))
    world_SE3_box = [yaw_pose(0.3, 1.0, 2.0), yaw_pose(-0.5, 3.0, 1.0)]
    world = [transform(pose, first + rng.normal(0, 0.03, first.shape)) for pose in world_SE3_box]
    cov = np.tile([0.04, 0.01, 0.05], (120, 1))

    def equations(state):
        poses = [yaw_pose(yaw, x, y) for x, y, yaw in state.reshape(2, 3)]
        xyz = np.concatenate([transform(invert(pose), points) for pose, points in zip(poses, world)])
        axes = np.array([[np.cos(yaw), np.sin(yaw)] for yaw in state[[2, 5]]])
        return _normal_equations(xyz, cov, np.array([0, 60, 120]), axes, np.array([[0, 1]]), False, 0.4)

    state = np.array([1.02, 2.0, 0.31, 3.0, 0.97, -0.5])
    gradient = equations(state)[1][0]
    # The robust cost is q / (9 + q), its slope in q is a ninth of the weight, and the slope of q is twice J' M r.
    numeric = [
        (equations(state + step)[2][0] - equations(state - step)[2][0]) / 2e-6 * 9 / 2 for step in 1e-6 * np.eye(6)
    ]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-4, atol=1e-4)


def test_smoothness_is_nothing_at_constant_velocity():
    times_s = np.array([0.0, 0.1, 0.25, 0.3, 0.7])
    state = np.array([3.0, -1.0, 0.2]) * times_s[:, None] + [5, 6, 7]
    _, hessian, gradient = _smoothness(state, times_s)
    assert np.abs(gradient).max() < 1e-9
    # Any displacement of the middle view alone costs.
    assert (np.linalg.eigvalsh(hessian) > -1e-9 * np.abs(hessian).max()).all()
    assert hessian[0].reshape(3, 3, 3, 3)[1, 0, 1, 0] > 0


def test_recorded_boxes_that_were_left_out_are_found(recorded):
    """PandaSet, every second keyframe: at the others people drew boxes, which no interpolation knows."""
    config = DatasetConfig("nuscenes", recorded / "pandaset_as_nuscenes", "v1.0-mini")
    scene = next(iter(open_dataset(config).scenes()))
    whole = [track for track in scene.tracks if track.travel_m > 0.5 and len(track.boxes) == 6]
    movers = timed_tracks(whole, scene.sweeps)
    known = [Track(track.token, track.category, track.boxes[::2]) for track in movers]
    new, report = refined(known, points_of(scene.sweeps[:23]))
    assert report.refined > 12
    changed = [k for k in range(len(new)) if new[k] is not known[k]]
    before, after = (
        [
            np.linalg.norm((tracks[k].box_at(box.timestamp_us).world_SE3_box - box.world_SE3_box)[:2, 3])
            for k in changed
            for box in movers[k].boxes[1:-1:2]
        ]
        for tracks in (known, new)
    )
    assert np.median(after) < 0.75 * np.median(before)
