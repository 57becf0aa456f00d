"""Poses by registration, in a street of boxes on hilly ground that is ray-cast here: the truth is known exactly."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dense_depth import poses
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import Box, Crop, Keyframe, Scene, Sweep, Timing, Track
from dense_depth.deskew import deskew, twist_of
from dense_depth.geometry import exp, invert, log, se3, transform
from dense_depth.poses import by_odometry, repaired
from dense_depth.registration import make_scan, merge, misfit_m, register, single, thin_out
from dense_depth.sweeps import point_times, read_sweep

SWEEP_S, SPEED_MPS, ACCELERATION_MPS2, HILL_M, HILL_LENGTH_M = 0.1, 5.0, 4.0, 1.0, 12.0
AZIMUTHS, BEAMS = 400, 32


def height(x):
    return HILL_M * np.sin(x / HILL_LENGTH_M)


def houses(rng):
    """Lower and upper corners of boxes along a street."""
    x = np.repeat(np.arange(-40.0, 70.0, 9.0), 2)
    side = np.tile([-1.0, 1.0], len(x) // 2)
    near, length = rng.uniform(6, 11, len(x)), rng.uniform(2, 7, len(x))
    y = np.sort(np.stack([side * near, side * (near + 4)]), axis=0)
    z = np.full(len(x), 30.0)
    return np.column_stack([x, y[0], -z]), np.column_stack([x + length, y[1], z])


def cast(world_SE3_sensor, rays, lower, upper):
    """Distance along each ray, from its own pose, to the boxes and the ground; infinite for the sky."""
    origin, direction = world_SE3_sensor[:, :3, 3], (world_SE3_sensor[:, :3, :3] @ rays[..., None])[..., 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = ((corner - origin[:, None]) / direction[:, None] for corner in (lower, upper))
        entry, leave = np.minimum(a, b).max(-1), np.maximum(a, b).min(-1)
        houses_m = np.where((entry < leave) & (entry > 0), entry, np.inf).min(-1)
        down = np.where(direction[:, 2] < -0.02, -origin[:, 2] / direction[:, 2], np.inf)
        for _ in range(30):  # the ground is gentle: this converges
            ground_z = height(origin[:, 0] + np.where(np.isfinite(down), down, 0) * direction[:, 0])
            down = np.where(np.isfinite(down), (ground_z - origin[:, 2]) / direction[:, 2], np.inf)
    return np.minimum(houses_m, np.where(down > 0, down, np.inf))


def true_pose(time_s):
    x = SPEED_MPS * time_s + ACCELERATION_MPS2 / 2 * time_s**2
    slope = HILL_M / HILL_LENGTH_M * np.cos(x / HILL_LENGTH_M)
    turn = Rotation.from_euler("ZYX", [0.05 * np.sin(time_s), -np.arctan(slope), 0.01 * np.sin(2 * time_s)])
    return se3(turn.as_matrix(), np.array([x, 0.5 * np.sin(0.7 * time_s), height(x) + 1.8]))


def street(folder, n_sweeps=16, distorted=False, seed=0) -> Scene:
    """A scene with true poses; ``distorted``: each point in the frame of the sensor at its own time."""
    rng = np.random.default_rng(seed)
    corners = houses(rng)
    azimuth = np.pi - np.arange(AZIMUTHS) * 2 * np.pi / AZIMUTHS - 1e-3  # from behind, clockwise
    a, e = (grid.ravel() for grid in np.meshgrid(azimuth, np.radians(np.linspace(-25, 8, BEAMS)), indexing="ij"))
    rays = np.column_stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    offsets_s = SWEEP_S * (np.arange(AZIMUTHS) / AZIMUTHS - 0.5) * distorted
    timing = Timing("azimuth", -SWEEP_S / 2, SWEEP_S / 2, first_azimuth=np.pi)
    sweeps = []
    for i in range(n_sweeps):
        at = np.repeat([true_pose(SWEEP_S * i + offset_s) for offset_s in offsets_s], BEAMS, axis=0)
        range_m = cast(at, rays, *corners)
        seen = range_m < 60
        range_m = range_m[seen] + 0.01 * rng.standard_normal(seen.sum())
        path = folder / f"{i}.bin"
        np.column_stack([rays[seen] * range_m[:, None], np.zeros(seen.sum())]).astype(np.float32).tofile(path)
        time_us, pose = 1_000_000 + round(1e6 * SWEEP_S * i), true_pose(SWEEP_S * i)
        sweeps.append(Sweep(f"s{i}", path, 4, time_us, pose, (), timing=timing, compensated=not distorted))
    keyframes = tuple(Keyframe(s.token, s.timestamp_us, s.world_SE3_sensor, ()) for s in sweeps[::5])
    return Scene("test", "street", "street", tuple(sweeps), (), (), keyframes=keyframes)


@pytest.fixture(scope="module")
def true(tmp_path_factory) -> Scene:
    return street(tmp_path_factory.mktemp("street"))


def with_poses(scene: Scene, world_SE3_sensor) -> Scene:
    pose_of = {s.timestamp_us: pose for s, pose in zip(scene.sweeps, world_SE3_sensor)}
    sweeps = tuple(replace(s, world_SE3_sensor=pose_of[s.timestamp_us]) for s in scene.sweeps)
    return replace(
        scene,
        sweeps=sweeps,
        keyframes=tuple(replace(k, world_SE3_ego=pose_of[k.timestamp_us]) for k in scene.keyframes),
    )


def poses_of(scene: Scene):
    return np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps])


def errors(found, truth, step=10):
    """Of the motion over ``step`` sweeps: metres, degrees."""
    wrong = invert(invert(truth[:-step]) @ truth[step:]) @ invert(found[:-step]) @ found[step:]
    turn = Rotation.from_matrix(wrong[:, :3, :3]).magnitude()
    return np.linalg.norm(wrong[:, :3, 3], axis=1), np.degrees(turn)


def faulty(truth, kind):
    rng, wrong = np.random.default_rng(1), truth.copy()
    if kind == "noise":
        turns = Rotation.from_rotvec(np.radians(0.2) * rng.standard_normal((len(truth), 3))).as_matrix()
        wrong[:, :3, :3] = truth[:, :3, :3] @ turns
        wrong[:, :3, 3] += 0.05 * rng.standard_normal((len(truth), 3))
    else:
        wrong[:, 2, 3] = 1.8
    if kind == "planar":
        yaw = np.arctan2(truth[:, 1, 0], truth[:, 0, 0])
        wrong[:, :3, :3] = Rotation.from_euler("z", yaw[:, None]).as_matrix()
    return wrong


def test_log_is_the_inverse_of_exp():
    rng = np.random.default_rng(0)
    for shift in rng.uniform(-1, 1, (20, 6)):
        np.testing.assert_allclose(log(exp(shift)), shift, atol=1e-12)
        np.testing.assert_allclose(exp(shift)[:3, :3], Rotation.from_rotvec(shift[:3]).as_matrix(), atol=1e-12)


def test_a_scan_finds_back_to_the_scans_before_it(true):
    scans = [make_scan(thin_out(read_sweep(s)[:, :3].astype(np.float64))) for s in true.sweeps[:4]]
    truth = poses_of(true)[:4]
    target = merge(list(zip(scans[:3], truth[:3])), truth[2])
    wrong = truth[3] @ exp(np.array([0.003, -0.006, 0.01, 0.1, -0.15, 0.07]))
    fit = register(target, scans[3], wrong)
    assert fit.n_open == 0 and fit.inliers > 0.9
    left = log(invert(truth[3]) @ wrong @ exp(fit.shift))
    assert np.abs(left[3:]).max() < 0.01 and np.degrees(np.abs(left[:3])).max() < 0.05
    assert misfit_m(target, scans[3].held_out, truth[3]) < 0.5 * misfit_m(target, scans[3].held_out, wrong)
    assert misfit_m(target, scans[3].held_out, se3(np.eye(3), np.array([1e4, 0, 0]))) == np.inf


def test_along_a_corridor_nothing_is_taken_from_the_fit():
    rng = np.random.default_rng(0)

    def corridor(n=20_000):
        s, t = rng.uniform(-40, 40, n), rng.uniform(0, 1, n)
        floor, wall = np.column_stack([s, 10 * t - 5, 0 * s - 1.8]), np.column_stack([s, np.full(n, 5.0), 4 * t - 1.8])
        return np.concatenate([floor, wall, wall * [1, -1, 1]]) + 0.01 * rng.standard_normal((3 * n, 3))

    scans = [make_scan(thin_out(corridor())) for _ in range(2)]
    fit = register(merge([(scans[0], np.eye(4))], np.eye(4)), scans[1], exp(np.array([0, 0, 0.01, 0.2, 0.1, 0.05])))
    assert fit.n_open == 1
    assert abs(fit.shift[3]) < 0.01  # along the corridor the guess stays
    np.testing.assert_allclose(fit.shift[[2, 4, 5]], [-0.01, -0.1, -0.05], atol=5e-3)


@pytest.mark.parametrize(
    ("kind", "prior_m", "prior_deg"), [("noise", 0.07, 0.2), ("flat", 0.5, 0.0), ("planar", 0.05, 1.0)]
)
def test_faulty_poses_are_repaired(true, kind, prior_m, prior_deg):
    truth = poses_of(true)
    prior = with_poses(true, faulty(truth, kind))
    assert errors(poses_of(prior), truth)[0].mean() > prior_m and errors(poses_of(prior), truth)[1].mean() >= prior_deg
    found, report = repaired(prior)
    off_m, off_deg = errors(poses_of(found), truth)
    assert off_m.max() < 0.03 and off_deg.max() < 0.15
    figures = report.figures()
    assert figures["pose_misfit_m"] < 0.6 * figures["pose_misfit_before_m"]
    assert figures["poses_open"] == 0 and not report.kept
    assert kind == "flat" or figures["poses_rejected"] < 0.2  # with the height of the path it fits at once
    # It stays where the dataset has it, but for the height and the tilt that the dataset leaves out.
    apart = poses_of(found)[:, :3, 3] - poses_of(prior)[:, :3, 3]
    assert np.abs(apart[:, :2]).max() < (0.15 if kind == "noise" else 0.7)
    assert kind != "noise" or np.abs(poses_of(found)[:, :3, 3] - truth[:, :3, 3]).max() < 0.1


def test_true_poses_do_not_get_worse(true):
    truth = poses_of(true)
    found, report = repaired(true)
    assert report.kept or max(errors(poses_of(found), truth)[0]) < 0.02
    assert report.figures()["pose_misfit_m"] <= report.figures()["pose_misfit_before_m"]


def test_odometry_needs_no_poses(true):
    truth = poses_of(true)
    found, report = by_odometry(with_poses(true, np.tile(truth[0], (len(truth), 1, 1))))
    off_m, off_deg = errors(poses_of(found), truth)
    assert off_m.max() < 0.03 and off_deg.max() < 0.15
    np.testing.assert_allclose(poses_of(found)[0], truth[0], atol=1e-12)
    assert report.figures()["pose_misfit_before_m"] is None


def test_sweeps_that_are_not_compensated_are_deskewed(true, tmp_path):
    scene = street(tmp_path, n_sweeps=12, distorted=True)
    truth = poses_of(scene)
    lost = with_poses(scene, np.tile(np.eye(4), (len(truth), 1, 1)))
    chain, _, scans = poses._chained(lost, [], None)
    off_m = errors(chain, truth)[0].max()
    assert off_m < 0.02
    # As the same sweep looks that was taken in a flash.
    flash, raw = (make_scan(thin_out(read_sweep(s.sweeps[11])[:, :3].astype(np.float64))) for s in (true, scene))
    flash, here = single(flash, np.eye(4)), np.eye(4)
    assert misfit_m(flash, scans[11].held_out, here) < 0.6 * misfit_m(flash, raw.held_out, here)


def test_objects_that_move_and_the_vehicle_take_no_part(true):
    sweep = replace(true.sweeps[0], ego_crops=(Crop((-4.0, 4.0), (-3.0, 3.0)),))
    place = sweep.world_SE3_sensor @ se3(np.eye(3), np.array([10.0, 0.0, 0.0]))
    times_us = [s.timestamp_us for s in true.sweeps[:2]]
    size = np.array([6.0, 4.0, 60.0])
    track = Track("car", "car", tuple(Box(t, place, size) for t in times_us))
    around = poses._Around([sweep], [track], sweep.world_SE3_sensor[None])
    scan, _ = poses._scan(sweep, twist_of(poses_of(true), np.arange(16.0), 0), around.at(0))
    points = np.concatenate([scan.points, scan.held_out])
    assert len(points) > 1000
    assert not ((np.abs(points[:, 0] - 10) < 3) & (np.abs(points[:, 1]) < 2)).any()
    assert not ((np.abs(points[:, 0]) < 4) & (np.abs(points[:, 1]) < 3)).any()


def test_sweeps_that_cannot_be_used_follow_the_dataset(true, tmp_path):
    empty = tmp_path / "empty.bin"
    np.zeros((5, 4), np.float32).tofile(empty)
    sweeps = list(true.sweeps)
    sweeps[5], sweeps[9] = replace(sweeps[5], path=tmp_path / "lost.bin"), replace(sweeps[9], path=empty)
    truth = poses_of(true)
    found, report = repaired(with_poses(replace(true, sweeps=tuple(sweeps)), faulty(truth, "flat")))
    assert [report.steps[i].verdict for i in (0, 5, 9)] == ["start", "unreadable", "few points"]
    assert report.steps[15].after_m is None  # it would be compared with sweep 5
    assert errors(poses_of(found), truth)[0].max() < 0.2


def test_one_sweep_or_none_to_compare_with(true):
    for n in (1, 2):
        alone = replace(true, sweeps=true.sweeps[:n], keyframes=())
        for find in (repaired, by_odometry):
            found, report = find(alone)
            assert len(report.steps) == len(found.sweeps) == n and report.steps[0].verdict == "start"


def structure_m(scene: Scene, first: int, last: int) -> float:
    """Median distance of what stands, 5 to 30 m away, in one sweep from that in another."""
    found, times_s = [], 1e-6 * np.array([sweep.timestamp_us for sweep in scene.sweeps])
    for i in (first, last):
        sweep, points = scene.sweeps[i], read_sweep(scene.sweeps[i])
        xyz = deskew(points, point_times(sweep, points), twist_of(poses_of(scene), times_s, i))
        range_m = np.linalg.norm(xyz, axis=1)
        kept = (range_m > 5) & (range_m < 30) & (xyz[:, 2] > -1.2)
        found.append(transform(sweep.world_SE3_sensor, xyz[kept].astype(np.float64)))
    return float(np.median(cKDTree(found[0]).query(found[1])[0]))


@pytest.mark.parametrize("source", ["repaired", "odometry"])
def test_recorded_sweeps_a_second_apart_fit(recorded, source):
    config = DatasetConfig("kitti-raw", recorded / "kitti_raw", poses=source)
    (scene,) = open_dataset(config).scenes()
    cut = replace(scene, sweeps=scene.sweeps[:12])
    found, _ = (repaired if source == "repaired" else by_odometry)(cut)
    assert structure_m(found, 0, 10) < 0.08  # 0.21 by GPS/IMU, 0.13 by ORB-SLAM3
