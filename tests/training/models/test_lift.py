"""Where pixels are lifted to: one point at a time in NumPy, corners of boxes there and back, cells of the grid."""

import numpy as np
import pytest
import torch

from dense_depth.geometry import invert, project, rotation_from_quaternion, se3, transform, unproject
from dense_depth.label import Points
from ext import BevGrid, build_index
from training.detection.augmentation import (
    AugmentationConfig,
    bev_transform,
    image_transform,
    transform_boxes,
    warp_label,
)
from training.models.lift import Cameras, cell_pixels, frustum_points

CONFIG = AugmentationConfig(64, 176)
HEIGHT, WIDTH = 900, 1600
K = np.array([[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]])
# x of the camera to the right, z forward; a camera that looks ahead, and one that looks to the left and down a little.
AHEAD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
MOUNTS = (
    se3(AHEAD, np.array([1.7, 0.02, 1.5])),
    se3(rotation_from_quaternion(np.array([np.cos(0.7), 0.02, 0.05, np.sin(0.7)])) @ AHEAD, np.array([1.0, 0.5, 1.6])),
)
CHANGES = [None, 0, 1, 2, 3, 4]  # without chance, and seeds; together mirrored both ways


def cameras_of(seed, batch=1):
    """The two cameras, each with its own changes, as tensors and as arrays of the first sample."""
    rngs = [None if seed is None else np.random.default_rng([seed, b]) for b in range(batch)]
    images = np.stack([[image_transform(HEIGHT, WIDTH, CONFIG, rng) for _ in MOUNTS] for rng in rngs])
    bevs = np.stack([bev_transform(CONFIG, rng) for rng in rngs])
    n = len(MOUNTS)
    parts = np.tile(K, (batch, n, 1, 1)), images, np.tile(np.stack(MOUNTS), (batch, 1, 1, 1)), bevs
    return Cameras(*(torch.from_numpy(part) for part in parts)), parts


def test_changes_are_of_all_sorts():
    dets = [[np.linalg.det(image) for image in cameras_of(seed)[1][1][0]] for seed in CHANGES]
    assert (np.array(dets) < 0).any() and (np.array(dets) > 0).any()
    signs = {float(np.sign(np.linalg.det(cameras_of(seed)[1][3][0]))) for seed in CHANGES}
    assert signs == {-1.0, 1.0}


def test_cells_have_their_centres_in_the_middle():
    v_px, u_px = cell_pixels(64, 176, 16)
    blocks = np.arange(176).reshape(11, 16)
    np.testing.assert_allclose(u_px, blocks.mean(1))
    np.testing.assert_allclose(v_px, blocks.mean(1)[:4])
    v_px, u_px = cell_pixels(256, 704, 16, parity=True)
    assert (len(v_px), len(u_px)) == (16, 44)
    np.testing.assert_allclose(u_px[[0, 1, -1]], [0, 703 / 43, 703], rtol=1e-6)
    np.testing.assert_allclose(v_px[[0, 1, -1]], [0, 17, 255], rtol=1e-6)


@pytest.mark.parametrize("seed", CHANGES)
def test_frustum_equals_one_point_at_a_time(seed):
    cameras, (_, images, mounts, bevs) = cameras_of(seed, batch=2)
    depths_m = torch.tensor([2.25, 17.0, 57.75])
    v_px, u_px = cell_pixels(64, 176, 32)
    points_m = frustum_points(cameras, depths_m, v_px, u_px)
    assert points_m.dtype == torch.float32 and points_m.shape == (2, 2, 3, 2, 5, 3)
    for b, n, d, row, column in np.ndindex(points_m.shape[:-1]):
        pixel = np.linalg.solve(images[b, n], [float(u_px[column]), float(v_px[row]), 1])
        point_cam = unproject(K, pixel[None, :2], depths_m[d : d + 1].double().numpy())
        expected = bevs[b] @ transform(mounts[b, n], point_cam)[0]
        np.testing.assert_allclose(points_m[b, n, d, row, column], expected, atol=2e-5)


def corners(box):
    """Of (x, y, z, l, w, h, yaw)."""
    signs = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)]) / 2
    turn = rotation_from_quaternion(np.array([np.cos(box[6] / 2), 0, 0, np.sin(box[6] / 2)]))
    return signs * box[3:6] @ turn.T + box[:3]


@pytest.mark.parametrize("seed", CHANGES)
def test_corners_of_boxes_come_back_where_their_pixels_are_lifted(seed):
    """Seen by the camera without any change, moved as the image is, lifted: the corners of the changed boxes."""
    cameras, (_, images, mounts, bevs) = cameras_of(seed)
    boxes = np.array(
        [[20, 3, 0.8, 4.6, 1.9, 1.7, 0.4, 0, 0], [9, -2, 1, 1.8, 0.6, 1.2, -2.0, 0, 0], [3, 15, 1, 8, 2.5, 3, 1, 0, 0]],
        np.float32,
    )
    changed = transform_boxes(boxes, bevs[0])
    n_seen = 0
    for box, after in zip(boxes, changed):
        expected = corners(after)  # in another order where the view is mirrored
        for n in range(2):
            uv_px, depth_m = project(K, transform(invert(mounts[0, n]), corners(box)))
            if depth_m.min() < 1:
                continue
            n_seen += 1
            uv_px = np.column_stack([uv_px, np.ones(8)]) @ images[0, n, :2].T
            for (u, v), z in zip(uv_px, depth_m):
                v_px, u_px, z_m = (torch.tensor([value]) for value in (v, u, z))
                lifted = frustum_points(cameras, z_m, v_px, u_px)[0, n].flatten().numpy()
                assert np.linalg.norm(expected - lifted, axis=1).min() < 1e-4
    assert n_seen >= 3


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("seed", CHANGES)
def test_label_pixels_are_lifted_into_their_cells(seed, parity):
    """Points seen by a camera, made a label, changed and lifted at their own depth, fall into the cells they came from.

    The pixel of the input is up to 0.71 of its size away from the point; points nearer to a border of their cell than
    that are not asked.
    """
    cameras, (_, images, mounts, bevs) = cameras_of(seed)
    grid, rng = BevGrid(), np.random.default_rng(7)
    n_right = 0
    for n in range(2):
        v, u = rng.uniform(250, HEIGHT - 1, 400).round(), rng.uniform(0, WIDTH - 1, 400).round()
        z = rng.uniform(5, 62, 400).astype(np.float32)
        label = Points(u.astype(np.uint16), v.astype(np.uint16), z, *np.ones((2, len(z)), np.uint8))
        warped = warp_label(label, images[0, n], CONFIG.height, CONFIG.width).depth_m
        points = transform(mounts[0, n], unproject(K, np.column_stack([u, v]), z.astype(np.float64))) @ bevs[0].T
        for row, column in np.argwhere(warped)[:80]:
            of = np.flatnonzero(z == warped[row, column])
            assert len(of) == 1
            point = points[of[0]]
            arguments = (torch.tensor(value) for value in ([warped[row, column]], [float(row)], [float(column)]))
            index = build_index(frustum_points(cameras, *arguments), grid, "trunc" if parity else "floor")
            blur_m = 0.75 * warped[row, column] / (K[0, 0] * abs(np.linalg.det(images[0, n])) ** 0.5) * 1.2
            in_cells = (point - [-51.2, -51.2, -5]) / [0.8, 0.8, 8]
            near = np.abs(in_cells - in_cells.round()) < blur_m / np.array([0.8, 0.8, 8])
            if near.any():
                continue
            cell = np.trunc(in_cells) if parity else np.floor(in_cells)
            inside = (cell >= 0).all() and (cell < [128, 128, 1]).all()
            expected = int(cell[1] * 128 + cell[0]) if inside else -1
            assert int(index.cell_of[n]) == expected
            n_right += inside
    assert n_right >= 10


def test_rounding_beyond_the_low_edge():
    """Half a cell behind the grid: outside, but in the first cell as the reference rounds."""
    cameras = Cameras(
        *(torch.from_numpy(x) for x in (K[None, None], np.eye(3)[None, None], MOUNTS[0][None, None], np.eye(3)[None]))
    )
    grid = BevGrid((11.7 + 0.4, 51.7 + 0.4, 0.8), (-20, 20, 0.8))
    points_m = frustum_points(cameras, torch.tensor([10.0, 10.8]), torch.tensor([491.5]), torch.tensor([816.3]))
    np.testing.assert_allclose(points_m.flatten(0, 4), [[11.7, 0.02, 1.5], [12.5, 0.02, 1.5]], atol=1e-5)
    row = 25 * 50
    assert build_index(points_m, grid, "floor").cell_of.tolist() == [-1, row]
    assert build_index(points_m, grid, "trunc").cell_of.tolist() == [row, row]
