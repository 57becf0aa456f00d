"""Accumulation on small hand-made scenes; the devkit comparison is in test_devkit.py."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import CONFIG, cut_points, make_scene, moving_track, yaw_pose

from dense_depth import InputError
from dense_depth.accumulation import AccumulationConfig, Reason, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import Box, Crop
from dense_depth.geometry import invert, transform
from dense_depth.label import Source
from dense_depth.sweeps import count_points


def cloud_at(scene, frame, config, **kwargs):
    cloud = SceneCloud(scene, [frame], config)
    selection = cloud.select(invert(frame.world_SE3_cam), frame.timestamp_us, frame.key_sweep, **kwargs)
    return selection, *cloud.points(selection)


def sorted_rows(points):
    return points[np.lexsort(np.round(points, 2).T)]


def distance_to(points, targets):
    from scipy.spatial import cKDTree

    return cKDTree(targets).query(points)[0]


def test_static_points_meet_in_the_camera_frame(tmp_path):
    scene, frame, static_world, _ = make_scene(tmp_path)
    selection, points, source = cloud_at(scene, frame, CONFIG)
    truth = transform(invert(frame.world_SE3_cam), static_world)
    assert selection.n_sweeps == 5
    assert distance_to(points, truth).max() < 1e-4
    assert (source == Source.KEY_SWEEP).sum() > 0 and (source == Source.STATIC).sum() > 3 * 400


@pytest.mark.parametrize("times_us", [(0, 500_000, 1_000_000, 1_500_000, 2_000_000), (1_000_000, 1_200_000)])
def test_moving_points_meet_at_the_camera_time(tmp_path, times_us):
    """Each sweep's points on the car land where the car is when the camera looks, up to 0.1 s beyond the last box."""
    dense = moving_track(range(0, 3_000_000, 20_000))
    scene, frame, static_world, in_box = make_scene(tmp_path, tracks=(dense,))
    car_at_camera = transform(invert(frame.world_SE3_cam) @ dense.box_at(frame.timestamp_us).world_SE3_box, in_box)
    static = transform(invert(frame.world_SE3_cam), static_world)
    given = replace(scene, tracks=(moving_track(times_us),))
    _, points, source = cloud_at(given, frame, CONFIG)
    moving = points[(source == Source.MOVING) | (distance_to(points, static) > 1e-3)]
    seen_at_us = [sweep.timestamp_us for sweep in scene.sweeps if sweep.timestamp_us <= times_us[-1] + 100_000]
    assert len(moving) == len(seen_at_us) * len(in_box)  # what is seen later is left out
    # Between boxes 0.5 s apart the centre moves on a chord; here the path is straight, so only rounding is left.
    assert distance_to(moving, car_at_camera).max() < 1e-3

    _, smeared, _ = cloud_at(given, frame, replace(CONFIG, dynamics="none"))
    off = distance_to(smeared, np.concatenate([car_at_camera, static]))
    assert (off > 0.5).sum() > 2 * len(in_box)

    _, dropped, source = cloud_at(given, frame, replace(CONFIG, dynamics="drop"))
    assert distance_to(dropped, static).max() < 1e-3
    assert not (source == Source.MOVING).any()


def test_a_parked_object_is_static_world(tmp_path):
    parked = moving_track(range(0, 3_000_000, 500_000), speed=0.0, yaw_rate=0.0)
    scene, frame, static_world, in_box = make_scene(tmp_path, tracks=(parked,))
    _, points, source = cloud_at(scene, frame, CONFIG)
    assert not (source == Source.MOVING).any()
    assert len(points) == 5 * (len(static_world) + len(in_box))


def test_an_object_without_a_pose_at_the_camera_time_is_left_out_and_counted(tmp_path):
    """The car is annotated up to 1.1 s; at 1.23 s nobody knows where it is if tracks are not continued."""
    track = moving_track((900_000, 1_000_000, 1_100_000))
    scene, frame, static_world, in_box = make_scene(tmp_path, tracks=(track,))
    selection, points, source = cloud_at(scene, frame, CONFIG)
    assert selection.n_unknown_pose == 5 * len(in_box)  # of all sweeps, before and after its last box
    assert not (source == Source.MOVING).any() and len(points) == 5 * len(static_world)
    selection, _, _ = cloud_at(scene, frame, replace(CONFIG, extrapolate_s=0.5))
    assert selection.n_unknown_pose == 0


def test_an_object_that_leaves_its_straight_line_is_left_out_beyond_its_boxes(tmp_path):
    """It was annotated up to 1.2 s and turns then: its points are not carried, and not static world either."""
    annotated = moving_track((1_000_000, 1_100_000, 1_200_000), yaw_rate=0.0)
    after = [replace(box) for box in moving_track((1_300_000, 1_400_000), yaw_rate=0.0).boxes]
    after[1].world_SE3_box[1, 3] += 0.1  # less than it may leave its line in 0.2 s
    real = replace(annotated, boxes=(*annotated.boxes, *after))
    scene, frame, static_world, in_box = make_scene(tmp_path, tracks=(real,))
    frame = replace(frame, timestamp_us=1_200_000)
    selection, points, _ = cloud_at(replace(scene, tracks=(annotated,)), frame, CONFIG)
    static = transform(invert(frame.world_SE3_cam), static_world)
    assert selection.n_unknown_pose == len(in_box)  # of the sweep at 1.4 s
    car = transform(invert(frame.world_SE3_cam) @ annotated.boxes[-1].world_SE3_box, in_box)
    assert distance_to(points, np.concatenate([static, car])).max() < 1e-3


def test_window_and_left_out_sweeps(tmp_path):
    scene, frame, _, _ = make_scene(tmp_path)
    n = {}
    for past, future in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0), (0.13, 0.07)):
        selection, _, source = cloud_at(scene, frame, replace(CONFIG, past_s=past, future_s=future))
        n[past, future] = selection.n_sweeps
        assert (source == Source.KEY_SWEEP).any()  # the key sweep is at 1.2 s, the camera at 1.23 s
    assert n == {(1.0, 0.0): 3, (0.0, 1.0): 3, (0.0, 0.0): 1, (0.13, 0.07): 3}
    selection, _, source = cloud_at(scene, frame, CONFIG, without=["s2", "s4"])
    assert selection.n_sweeps == 3 and not (source == Source.KEY_SWEEP).any()
    cloud = SceneCloud(scene, [frame], replace(CONFIG, past_s=0.1, future_s=0.1))
    with pytest.raises(ValueError, match="have not been read"):
        cloud.select(np.eye(4), 1_400_000, "s4")


def test_a_vehicle_of_two_parts():
    """A roof of any height, and a bonnet that is low, ahead and off the middle; borders are outside."""
    crops = (Crop((-2, 2), (-1, 1)), Crop((2, 3), (-0.5, 0.7), (-1.5, -0.5)))
    points = np.array([[x, y, z] for x in (-3, -1, 2, 2.5, 3) for y in (-0.6, 0.6) for z in (-2, -1, -0.5, 9)])
    cut = cut_points(points.astype(np.float32), AccumulationConfig(min_range_m=0.0), crops)
    ego = {(x, y, z) for x, y, z in points[cut.reason == Reason.EGO].tolist()}
    assert ego == {(-1, y, z) for y in (-0.6, 0.6) for z in (-2, -1, -0.5, 9)} | {(2.5, 0.6, -1)}
    only = AccumulationConfig(min_range_m=0.0, ego_crop_m=(0.0, 0.0))  # the option stands in for all crops
    assert not cut_points(points.astype(np.float32), only, crops).reason_counts[Reason.EGO]


@pytest.mark.parametrize("crop_m", [(2.0, 1.0), (1.0, 2.0)])
@pytest.mark.parametrize("asked", [True, False])
def test_cut_accounts_for_every_point(crop_m, asked):
    rng = np.random.default_rng(1)
    points = rng.normal(size=(5000, 5)).astype(np.float32) * [20, 20, 2, 1, 1]
    points = points.astype(np.float32)
    points[:10, :2] = 0.5  # on the ego vehicle
    points[10:15, 0] = np.nan
    points[15:17, 2] = np.inf
    points[17, 1] = 1e30
    points[18, :3] = 150, 0, 0
    points[19, :3] = 0, 0, 50  # straight up: no azimuth
    boxes = [Box(0, yaw_pose(0.3, 12, 4), np.array([8.0, 4.0, 3.0])), Box(0, yaw_pose(0, 12, 4), np.array([9.0, 5, 4]))]
    config = AccumulationConfig(ego_crop_m=crop_m if asked else None, min_range_m=0.0, box_margin_m=0.0)
    crop = Crop(*((-size_m, size_m) for size_m in crop_m))
    cut = cut_points(points, config, () if asked else (crop,), boxes)

    xyz = points[:, :3].astype(np.float64)
    bad = ~(np.abs(xyz) < 1e3).all(1)
    ego = ~bad & (np.abs(xyz[:, :2]) < crop_m).all(1)
    far = ~bad & ~ego & (np.linalg.norm(xyz, axis=1) > 80)
    inside = [
        (np.abs(transform(invert(box.world_SE3_box), np.nan_to_num(xyz))) <= box.size_lwh_m / 2).all(1) for box in boxes
    ]
    kept = ~bad & ~ego & ~far
    assert set(np.flatnonzero(cut.reason == Reason.NONFINITE)) == set(np.flatnonzero(bad)) == set(range(10, 18))
    assert (cut.reason == Reason.EGO).tolist() == ego.tolist()
    assert (cut.reason == Reason.RANGE).tolist() == far.tolist()
    assert (cut.reason == Reason.MOVING).tolist() == (kept & (inside[0] | inside[1])).tolist()
    assert cut.reason_counts.tolist() == np.bincount(cut.reason, minlength=len(Reason)).tolist()
    sizes = np.diff(cut.start)
    assert sizes[-2:].tolist() == [(kept & inside[0]).sum(), (kept & inside[1] & ~inside[0]).sum()]
    assert cut.xyz.shape[1] == kept.sum()
    static = np.sort(xyz[kept & ~inside[0] & ~inside[1]], axis=0)
    np.testing.assert_allclose(np.sort(cut.xyz[:, : cut.start[-3]].T, axis=0), static, rtol=1e-6)
    first = transform(invert(boxes[0].world_SE3_box), xyz[kept & inside[0]])
    np.testing.assert_allclose(cut.xyz[:, cut.start[-3] : cut.start[-2]].T, first, atol=1e-4)


def test_segment_corners_hold_their_points(tmp_path):
    from scipy.spatial import Delaunay

    scene, frame, _, _ = make_scene(tmp_path, tracks=(moving_track(range(0, 3_000_000, 500_000)),))
    cloud = SceneCloud(scene, [frame], CONFIG)
    for start, stop, corners in zip(cloud.start, cloud.stop, cloud.corners):
        centre = corners.mean(0)
        apart = np.sign(corners - centre)
        apart[:, 2] = np.where(np.arange(8) & 4, 1, -1)  # the hull of a single point is flat
        hull = Delaunay((centre + (corners - centre) * 1.001 + apart * 1e-3).astype(np.float64))
        assert (hull.find_simplex(cloud.xyz[:, start:stop].T) >= 0).all()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b""), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "truncated"),
        (lambda path: path.write_bytes(path.read_bytes()[:-3]), "truncated"),
    ],
)
def test_bad_sweep_files_are_named(tmp_path, damage, says):
    scene, frame, _, _ = make_scene(tmp_path)
    damage(scene.sweeps[1].path)
    with pytest.raises(InputError, match=rf"1\.bin.*{says}"):
        count_points(scene.sweeps[1])
    with pytest.raises(InputError, match=rf"1\.bin.*{says}"):
        SceneCloud(scene, [frame], CONFIG)


def test_nan_points_are_refused_unless_a_share_is_allowed(tmp_path):
    scene, frame, _, _ = make_scene(tmp_path)
    points = np.fromfile(scene.sweeps[1].path, np.float32).reshape(-1, 5)
    points[7, 1] = np.nan
    points.tofile(scene.sweeps[1].path)
    with pytest.raises(InputError, match=r"1\.bin: 1 of \d+ points are NaN"):
        SceneCloud(scene, [frame], CONFIG)
    cloud = SceneCloud(scene, [frame], replace(CONFIG, max_bad_points=0.01))
    assert cloud.reason_counts[1, Reason.NONFINITE] == 1
    assert np.isfinite(cloud.xyz[:, : cloud.stop.max()]).all()


def test_bad_sweeps_can_be_dropped_and_are_listed(tmp_path):
    scene, frame, _, _ = make_scene(tmp_path)
    complete = cloud_at(scene, frame, CONFIG, without=["s0", "s1", "s4"])[1]
    scene.sweeps[0].path.unlink()
    scene.sweeps[1].path.write_bytes(b"123")
    points = np.fromfile(scene.sweeps[4].path, np.float32)
    points[5] = np.nan
    points.tofile(scene.sweeps[4].path)
    config = replace(CONFIG, bad_sweeps="drop")
    cloud = SceneCloud(scene, [frame], config)
    assert list(cloud.dropped) == ["s0", "s1", "s4"] == list(cloud.dropped_of([frame]))
    assert "NaN" in cloud.dropped["s4"] and "missing" in cloud.dropped["s0"]
    selection, left, _ = cloud_at(scene, frame, config)
    assert selection.n_sweeps == 2
    np.testing.assert_array_equal(sorted_rows(left), sorted_rows(complete))
    for sweep in scene.sweeps[2:4]:
        sweep.path.unlink()
    with pytest.raises(InputError, match="every sweep is bad"):
        SceneCloud(scene, [frame], config)


def test_config_refuses_nonsense():
    with pytest.raises(InputError, match="--past-s"):
        AccumulationConfig(past_s=-1)
    with pytest.raises(InputError, match="--max-range-m"):
        AccumulationConfig(max_range_m=300)


def test_refined_tracks_are_asked_for(recorded):
    """PandaSet: objects are found in single sweeps, and their points go elsewhere; others stay where they were."""
    config = DatasetConfig("nuscenes", recorded / "pandaset_as_nuscenes", "v1.0-mini", cameras=("CAM_FRONT",))
    (scene,) = open_dataset(config).scenes()
    frame = scene.frames[2]
    near = AccumulationConfig(past_s=0.5, future_s=0.5)
    plain, refined = (SceneCloud(scene, [frame], replace(near, refine=refine)) for refine in (False, True))
    assert plain.motion.refined == 0 and refined.motion.refined > 10
    points = []
    for cloud in (plain, refined):
        found, source = cloud.points(cloud.select(np.eye(4), frame.timestamp_us, frame.key_sweep))
        points.append((found[source == Source.STATIC], found[source == Source.MOVING]))
    (still_a, moving_a), (still_b, moving_b) = points
    assert abs(len(still_a) - len(still_b)) < 0.01 * len(still_a)
    assert np.median(distance_to(still_a, still_b)) == 0
    assert 0.005 < np.mean(distance_to(moving_b, moving_a)) < 0.3
