"""The z-buffer and the visibility test against plain float64 numpy and brute force."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import CONFIG, K, make_scene, moving_track, yaw_pose
from scipy.spatial.transform import Rotation, Slerp

from dense_depth import InputError
from dense_depth.accumulation import SceneCloud
from dense_depth.datasets.scene import CameraFrame, Scene, Sweep
from dense_depth.geometry import se3
from dense_depth.label import Source, label_camera, quantise
from dense_depth.projection import EMPTY_KEY, VisibilityConfig, gather, hide, new_keys, render_label, splat

NO_TEST = VisibilityConfig(visibility="none")


def rendered(cloud, frame, scale=1.0, config=NO_TEST, **kwargs):
    height, width, K = label_camera(frame, scale)
    label, stats = render_label(cloud, frame, K, config, new_keys(height, width), **kwargs)
    return quantise(label.depth_m), label.source, label.age, stats


def reference(scene, frame, scale, without):
    """The label from the files of a scene, by the conventions alone: float64, box by box, then a sort.

    Nearest depth first, then the smaller source code, then the fresher sweep.
    """
    width, height = round(frame.width * scale), round(frame.height * scale)
    found = []  # depth in 1/256 m, source code, age in s, row, column
    for sweep in scene.sweeps:
        age_s = (sweep.timestamp_us - frame.timestamp_us) / 1e6
        in_window = abs(age_s) <= 1 or sweep.token == frame.key_sweep
        if not in_window or sweep.token in without:
            continue
        xyz = np.fromfile(sweep.path, "<f4").reshape(-1, 5)[:, :3].astype(np.float64)
        xyz = xyz[np.linalg.norm(xyz, axis=1) <= 80]
        world = (sweep.world_SE3_sensor @ np.column_stack([xyz, np.ones(len(xyz))]).T)[:3].T
        moves = np.zeros(len(world), bool)
        for track in scene.tracks:
            then, now = box_of(track, sweep.timestamp_us), box_of(track, frame.timestamp_us)
            in_box = np.linalg.solve(then, np.column_stack([world, np.ones(len(world))]).T)[:3].T
            half = track.boxes[0].size_lwh_m / 2
            inside = (np.abs(in_box) <= half + 0.1).all(1) & (in_box[:, 2] >= -half[2]) & ~moves
            world[inside] = (now @ np.column_stack([in_box, np.ones(len(world))])[inside].T)[:3].T
            moves |= inside
        x, y, z = np.linalg.solve(frame.world_SE3_cam, np.column_stack([world, np.ones(len(world))]).T)[:3]
        with np.errstate(divide="ignore", invalid="ignore"):
            u = (frame.K[0, 0] * x / z + frame.K[0, 2] + 0.5) * width / frame.width
            v = (frame.K[1, 1] * y / z + frame.K[1, 2] + 0.5) * height / frame.height
        seen = (z >= 0.1) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
        code = np.full(len(z), 1) if sweep.token == frame.key_sweep else np.where(moves, 3, 2)
        columns = np.floor(256 * z + 0.5), code, np.full(len(z), abs(age_s)), np.floor(v), np.floor(u)
        found += [row for row, is_seen in zip(zip(*columns), seen) if is_seen]
    depth, codes, ages = np.zeros((height, width)), np.zeros((height, width), int), np.zeros((height, width))
    for steps, code, age_s, row, column in sorted(found, reverse=True):
        at = int(row), int(column)
        depth[at], codes[at], ages[at] = steps, code, age_s
    return depth, codes, ages


def box_of(track, time_us):
    """Pose of a track's box at a time, between its neighbours: scipy's slerp, and a line."""
    times = np.array([box.timestamp_us for box in track.boxes])
    poses = np.array([box.world_SE3_box for box in track.boxes])
    pose = np.eye(4)
    pose[:3, :3] = Slerp(times, Rotation.from_matrix(poses[:, :3, :3]))(time_us).as_matrix()
    pose[:3, 3] = [np.interp(time_us, times, poses[:, i, 3]) for i in range(3)]
    return pose


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.37])
@pytest.mark.parametrize("without", [[], ["s2"]])
@pytest.mark.parametrize("seed", range(5))
def test_zbuffer_equals_a_float64_reference(tmp_path, scale, seed, without):
    scene, frame, _, _ = make_scene(tmp_path, tracks=(moving_track(range(0, 3_000_000, 500_000)),), seed=seed)
    cloud = SceneCloud(scene, [frame], CONFIG)
    depth, source, age, _ = rendered(cloud, frame, scale, without=without)
    expected_depth, expected_source, expected_age_s = reference(scene, frame, scale, without)
    assert (depth > 0).sum() == (source > 0).sum() > 10
    # Float32 moves a point on the edge of a pixel, or of a depth step, to its neighbour, but rarely.
    assert ((depth > 0) != (expected_depth > 0)).sum() <= 2
    both = (depth > 0) & (expected_depth > 0)
    assert (np.abs(depth[both] - expected_depth[both]) <= 1).mean() > 0.99
    assert (source[both] == expected_source[both]).mean() > 0.97
    assert (age[both] == np.round(expected_age_s[both] * 10)).mean() > 0.97
    assert set(age[both]) <= ({1, 2} if without else {0, 1, 2}) and not age[depth == 0].any()


def cloud_of(points_cam, source=Source.STATIC, age=0):
    """A cloud of one segment in the camera frame, and its selection."""
    cloud = object.__new__(SceneCloud)
    cloud.xyz = np.ascontiguousarray(points_cam.T, np.float32)
    cloud.start, cloud.stop = np.array([0]), np.array([len(points_cam)])
    low, high = points_cam.min(0), points_cam.max(0)
    picks = np.array([[i >> a & 1 for a in range(3)] for i in range(8)], bool)
    cloud.corners = np.where(picks, high, low)[None].astype(np.float32)

    class Everything:
        segments = np.array([0])
        ref_SE3_body = np.eye(4)[None]
        body = np.array([0])

    Everything.code = np.array([source << 5 | age], np.uint8)
    return cloud, Everything


def points_at(pixels, depth):
    """Camera-frame points that project to given (u, v)."""
    pixels, depth = np.asarray(pixels, float), np.broadcast_to(np.asarray(depth, float), len(pixels))
    return np.column_stack([(pixels - [49.5, 24.5]) / 100 * depth[:, None], depth])


def test_pixel_rule_at_the_borders():
    uv = [[-0.4, 10], [99.4, 10], [-0.6, 12], [99.6, 12], [10, -0.4], [10, 49.4], [12, -0.6], [12, 49.6]]
    keys = new_keys(50, 100)
    assert splat(*cloud_of(points_at(uv, 10.0)), K, keys) == (4, slice(0, 50))
    assert np.argwhere(keys != EMPTY_KEY).tolist() == [[0, 10], [10, 0], [10, 99], [49, 10]]


def test_the_nearest_point_wins_and_ties_go_to_the_smaller_code_and_then_the_fresher_sweep():
    keys = new_keys(50, 100)
    at = [[20.0, 20.0]]
    for depth, source, age in ((9.0, 3, 0), (7.0, 3, 0), (7.0, 2, 9), (7.0, 2, 4), (7.0, 2, 5), (8.0, 1, 0)):
        splat(*cloud_of(points_at(at, depth), source, age), K, keys)
    assert keys[20, 20] == 7 * 256 << 8 | 2 << 5 | 4


def test_age_is_rounded_half_up_and_capped(tmp_path):
    """One point, 10 m ahead, in one sweep after the other: the label has the age of the freshest."""
    ages = {
        0: 0,
        49_999: 0,
        50_000: 1,
        -149_999: 1,
        -150_000: 2,
        1_000_000: 10,
        3_049_999: 30,
        3_100_000: 31,
        -(9**7): 31,
    }
    np.array([[10, 0, 0, 0, 0]], np.float32).tofile(tmp_path / "one.bin")
    forward = se3(np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.zeros(3))
    frame = CameraFrame("k", "CAM", tmp_path / "k.jpg", 10_000_000, 100, 50, K, forward, "far")
    far = Sweep("far", tmp_path / "one.bin", 5, 0, yaw_pose(0, 20, 0), ())  # the same pixel, behind
    config = replace(CONFIG, past_s=10, future_s=10)
    for n in range(1, len(ages) + 1):
        times_us = list(ages)[-n:]
        sweeps = [far] + [
            Sweep(f"{t}", tmp_path / "one.bin", 5, 10_000_000 + t, np.eye(4), ()) for t in sorted(times_us)
        ]
        scene = Scene("test", "scene", "scene", tuple(sweeps), (frame,), ())
        depth, source, age, _ = rendered(SceneCloud(scene, [frame], config), frame)
        assert np.argwhere(depth).tolist() == [[25, 50]] and depth[25, 50] == 2560 and source[25, 50] == 2
        assert age[25, 50] == min(ages[t] for t in times_us) == age.sum()


def test_points_behind_the_camera_and_too_far_are_not_drawn():
    keys = new_keys(50, 100)
    points = np.array([[0.0, 0, -5], [0, 0, 0.05], [0, 0, 256], [0, 0, np.float32(1e20)], [1e20, 0, 5], [0, 0, 254]])
    assert splat(*cloud_of(points), K, keys)[0] == 1
    assert keys.min() >> 8 == 254 * 256


@pytest.mark.parametrize("seed", range(3))
def test_order_of_points_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    points = points_at(rng.uniform(-5, 105, (5000, 2)), rng.uniform(1, 80, 5000))
    results = []
    for _ in range(3):
        keys = new_keys(50, 100)
        splat(*cloud_of(rng.permutation(points)), K, keys)
        results.append(keys)
    assert (results[0] == results[1]).all() and (results[0] == results[2]).all()


def test_skipped_segments_hold_no_visible_point(tmp_path):
    """Corners that enclose everything switch the skipping off; the labels stay the same."""
    scene, frame, _, _ = make_scene(tmp_path, tracks=(moving_track(range(0, 3_000_000, 500_000)),))
    cloud = SceneCloud(scene, [frame], CONFIG)
    depth, source, age, _ = rendered(cloud, frame)
    picks = np.array([[i >> a & 1 for a in range(3)] for i in range(8)], bool)
    cloud.corners = np.broadcast_to(np.where(picks, 1e3, -1e3), cloud.corners.shape).astype(np.float32)
    everything = rendered(cloud, frame)
    assert all((a == b).all() for a, b in zip((depth, source, age), everything))


def kept_after_hiding(keys, config):
    """The z-buffer without its hidden pixels, by way of the lists; a copy."""
    left = keys.copy()
    filled = np.flatnonzero((keys != EMPTY_KEY).any(1))
    visible = hide(gather(left, slice(filled[0], filled[-1] + 1)), keys.shape[1], K, config)
    assert (left == EMPTY_KEY).all()
    left[np.repeat(np.arange(len(keys)), np.diff(visible.start)), visible.u] = visible.key
    return left


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 8), (7, 61), (40, 200)])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_gather_lists_the_pixels_row_by_row_and_empties_the_zbuffer(height, width, share):
    rng = np.random.default_rng(width)
    keys = np.where(rng.random((height, width)) < share, rng.integers(0, 1 << 24, (height, width)), EMPTY_KEY)
    keys = keys.astype(np.uint32)
    v, u = np.nonzero(keys != EMPTY_KEY)
    expected = keys[v, u]
    rows = slice(v[0], v[-1] + 1) if len(v) else slice(0, 0)
    pixels = gather(keys, rows)
    assert (keys == EMPTY_KEY).all()
    assert pixels.u.tolist() == u.tolist() and pixels.key.tolist() == expected.tolist()
    assert pixels.start.tolist() == np.searchsorted(v, np.arange(height + 1)).tolist()


def brute_force_hidden(depth, cell, reach_x, reach_y, config):
    """Which pixels are hidden, straight from the definition."""
    height, width = depth.shape
    rows, columns = -(-height // cell), -(-width // cell)
    nearest = np.full((rows, columns), 65535.0)
    for v, u in np.argwhere(depth > 0):
        nearest[v // cell, u // cell] = min(nearest[v // cell, u // cell], depth[v, u])
    hidden = np.zeros(depth.shape, bool)
    for v, u in np.argwhere(depth > 0):
        r, c = v // cell, u // cell
        boxes = [
            nearest[max(r - reach_y, 0) : r + 1, max(c - reach_x, 0) : c + 1],
            nearest[r : r + reach_y + 1, max(c - reach_x, 0) : c + 1],
            nearest[max(r - reach_y, 0) : r + 1, c : c + reach_x + 1],
            nearest[r : r + reach_y + 1, c : c + reach_x + 1],
        ]
        limits = [np.floor(min(box.min() * (1 + config.margin_ratio) + config.margin_m * 256, 65535)) for box in boxes]
        hidden[v, u] = sum(depth[v, u] > limit for limit in limits) >= config.min_quadrants
    return hidden


@pytest.mark.parametrize("min_quadrants", [1, 2, 3, 4])
@pytest.mark.parametrize(("cell", "reach_x", "reach_y"), [(1, 2, 3), (2, 3, 1), (3, 1, 1), (1, 0, 0), (4, 30, 30)])
def test_hide_equals_its_definition(min_quadrants, cell, reach_x, reach_y):
    rng = np.random.default_rng(min_quadrants)
    depth = rng.uniform(2, 80, (41, 67)) * (rng.random((41, 67)) < 0.3)
    steps = np.floor(depth * 256 + 0.5).astype(np.uint32)
    keys = np.where(steps > 0, steps << 8 | 2, EMPTY_KEY).astype(np.uint32)
    px_per_deg = 100 * np.pi / 180
    config = VisibilityConfig(
        min_quadrants=min_quadrants,
        width_deg=reach_x * cell / px_per_deg,
        height_deg=reach_y * cell / px_per_deg,
        cell_deg=cell / px_per_deg,
    )
    expected = brute_force_hidden(steps.astype(float), cell, reach_x, reach_y, config)
    assert expected.any() or (cell == 1 and reach_x == 0)
    assert (kept_after_hiding(keys, config) == np.where(expected, EMPTY_KEY, keys)).all()


def test_one_quadrant_is_the_window_minimum_of_opencv():
    import cv2

    rng = np.random.default_rng(0)
    depth = (rng.uniform(2, 80, (60, 90)) * (rng.random((60, 90)) < 0.2)).astype(np.float32)
    depth = np.floor(depth * 256) / 256
    keys = np.where(depth > 0, (depth * 256).astype(np.uint32) << 8 | 2, EMPTY_KEY).astype(np.uint32)
    px_per_deg = 100 * np.pi / 180
    config = VisibilityConfig(min_quadrants=1, width_deg=3 / px_per_deg, height_deg=2 / px_per_deg, cell_deg=0)
    left = kept_after_hiding(keys, config)
    nearest = cv2.erode(np.where(depth > 0, depth, 1e6).astype(np.float32), np.ones((5, 7)), borderValue=1e6)
    kept = (depth > 0) & (depth <= np.floor((nearest * 1.05 + 0.3) * 256) / 256)
    assert (kept == (left != EMPTY_KEY)).all()


def test_hide_keeps_roads_and_silhouettes_and_removes_what_shines_through():
    """A sparse fence of points at 10 m before a wall at 30 m; the wall beside the fence, and a road below."""
    depth = np.zeros((50, 100))
    depth[5:25, 20:50:3] = 10.0  # fence, dense in rows, a point every third column
    depth[5:25, 21:48:3] = 30.0  # wall seen through it
    depth[5:25, 56:90:3] = 30.0  # wall beside it
    rows = np.arange(30, 50)
    depth[30:50, ::4] = (100 * 1.5 / (rows - 24.5))[:, None]  # road from a camera 1.5 m above it
    keys = np.where(depth > 0, (depth * 256).astype(np.uint32) << 8 | 2, EMPTY_KEY).astype(np.uint32)
    px_per_deg = 100 * np.pi / 180
    config = VisibilityConfig(width_deg=4 / px_per_deg, height_deg=4 / px_per_deg, cell_deg=0)
    kept = kept_after_hiding(keys, config) != EMPTY_KEY
    assert not kept[6:24, 21:46][depth[6:24, 21:46] == 30].any()
    assert kept[5:25, 56:90:3].all()
    assert kept[30:50, ::4].all()
    assert kept[depth == 10].all()


def test_labels_leave_the_zbuffer_empty_and_count(tmp_path):
    scene, frame, _, _ = make_scene(tmp_path)
    cloud = SceneCloud(scene, [frame], CONFIG)
    height, width, K = label_camera(frame, 1.0)
    keys = new_keys(height, width)
    label, first = render_label(cloud, frame, K, VisibilityConfig(), keys)
    assert (keys == EMPTY_KEY).all()
    again, second = render_label(cloud, frame, K, VisibilityConfig(), keys)
    assert second == first
    assert (again.depth_m == label.depth_m).all() and label.depth_m.any()
    held_out = rendered(cloud, frame, without=["s2"])
    assert not (held_out[1] == Source.KEY_SWEEP).any()
    assert held_out[3].n_sweeps == first.n_sweeps - 1


def test_config_refuses_nonsense():
    with pytest.raises(InputError, match="--min-quadrants"):
        VisibilityConfig(min_quadrants=5)
    with pytest.raises(InputError, match="--width-deg"):
        replace(NO_TEST, width_deg=-1.0)
