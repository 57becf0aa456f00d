"""Image and bird's-eye-view augmentation: numbers worked by hand, brute force, and corners of boxes."""

import numpy as np
import pytest

from dense_depth.geometry import pixel_of
from dense_depth.label import Points
from training.detection.augmentation import (
    AugmentationConfig,
    bev_transform,
    image_transform,
    transform_boxes,
    warp_image,
    warp_label,
)

CONFIG = AugmentationConfig()
PLAIN = AugmentationConfig(rotate_deg=0.0, flip=0.0)


def similarity(scale, degrees, shift, mirrored=False):
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    matrix = np.array([[scale * c, -scale * s, shift[0]], [scale * s, scale * c, shift[1]], [0, 0, 1]])
    return matrix @ np.diag([-1.0 if mirrored else 1.0, 1, 1])


WARPS = {
    "smaller": similarity(0.37, 0, (3.1, -8.3)),
    "larger": similarity(1.7, 0, (-20.2, -9.4)),
    "mirrored": similarity(0.793, 0, (95.3, 2.2), mirrored=True),
    "turned": similarity(0.61, 5.4, (4.4, -3.7)),
    "all": similarity(0.53, -17.0, (83.9, 9.1), mirrored=True),
}


# Where pixels go


@pytest.mark.parametrize(
    "recorded, size, scale, left, top",
    [
        ((900, 1600), (256, 704), 0.44, 0, 140),  # as in BEVDepth
        ((900, 1600), (512, 1408), 0.88, 0, 280),
        ((225, 400), (64, 96), 64 / 225, 9, 0),  # too wide: cut on both sides
        ((100, 200), (200, 400), 2.0, 0, 0),
    ],
)
def test_without_chance_the_image_fills_the_input(recorded, size, scale, left, top):
    config = AugmentationConfig(*size)
    image_T_recorded = image_transform(*recorded, config, None)
    # The left border of pixel 0 is at -0.5 before and after scaling.
    expected = [[scale, 0, 0.5 * scale - 0.5 - left], [0, scale, 0.5 * scale - 0.5 - top], [0, 0, 1]]
    np.testing.assert_allclose(image_T_recorded, expected, atol=1e-12)


def test_range_of_image_changes():
    """Scale, angle, mirror and place of 400 draws; the bottom stays, and sides are bare only if they must be."""
    rng = np.random.default_rng(0)
    scales, angles, mirrored = [], [], []
    for _ in range(400):
        matrix = image_transform(900, 1600, CONFIG, rng)[:2, :2]
        mirrored.append(np.linalg.det(matrix) < 0)
        scales.append(abs(np.linalg.det(matrix)) ** 0.5)
        turn = matrix / scales[-1] @ np.diag([-1 if mirrored[-1] else 1, 1])
        np.testing.assert_allclose(turn @ turn.T, np.eye(2), atol=1e-12)
        angles.append(np.degrees(np.arctan2(turn[1, 0], turn[0, 0])))
        plain = image_transform(900, 1600, PLAIN, rng)
        ends = plain @ np.array([[-0.5, 1599.5], [-0.5, 899.5], [1, 1]])
        assert abs(ends[1, 1] - 255.5) <= 0.5  # by rounding to whole pixels
        bare = ends[0, 0] > 0.01, ends[0, 1] < 702.99
        assert sum(bare) <= (plain[0, 0] < 0.4406) * 2 and (plain[0, 0] < 0.4394 or not any(bare))
    assert 0.386 <= min(scales) < 0.4 and 0.53 < max(scales) <= 0.55
    assert -5.4 <= min(angles) < -5 and 5 < max(angles) <= 5.4 and abs(np.mean(angles)) < 0.5
    assert 0.4 < np.mean(mirrored) < 0.6


def test_images_are_mirrored_and_turned_about_the_middle():
    always = AugmentationConfig(rotate_deg=0.0, flip=1.0)
    for seed in range(5):
        plain = image_transform(900, 1600, PLAIN, np.random.default_rng(seed))
        mirrored = image_transform(900, 1600, always, np.random.default_rng(seed))
        at = np.array([312.0, 640.5, 1])
        np.testing.assert_allclose(mirrored @ at, [703 - (plain @ at)[0], (plain @ at)[1], 1])
        turned = image_transform(900, 1600, AugmentationConfig(flip=0.0), np.random.default_rng(seed))
        middle = [351.5, 127.5, 1]
        np.testing.assert_allclose(turned @ np.linalg.inv(plain) @ middle, middle, atol=1e-9)
        assert np.abs(turned - plain).max() > 0.01


def test_equal_seeds_give_equal_changes():
    for draw in (lambda rng: image_transform(900, 1600, CONFIG, rng), lambda rng: bev_transform(CONFIG, rng)):
        first, again, other = (draw(np.random.default_rng(seed)) for seed in (3, 3, 4))
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 1e-3


# Labels and images


def points_of(depth_m, source, confidence=None):
    """The points of maps, row by row."""
    v, u = np.nonzero(depth_m)
    codes = source[v, u], np.zeros(len(v), np.uint8), None if confidence is None else confidence[v, u]
    return Points(u.astype(np.uint16), v.astype(np.uint16), depth_m[v, u], *codes)


def warp_by_sorting(depth_m, codes, input_T_label, height, width):
    """All pixels at once, the farthest written first; of equal depths the first in row order last."""
    v, u = (x[::-1] for x in np.nonzero(depth_m > 0))
    uv_px = np.column_stack([u, v, np.ones(len(u))]) @ input_T_label[:2].T
    column, row = pixel_of(uv_px).T
    order = np.argsort(-depth_m[v, u], kind="stable")
    order = order[((row >= 0) & (row < height) & (column >= 0) & (column < width))[order]]
    out, out_codes = np.zeros((height, width), np.float32), np.zeros((len(codes), height, width), np.uint8)
    out[row[order], column[order]] = depth_m[v, u][order]
    out_codes[:, row[order], column[order]] = codes[:, v, u][:, order]
    return out, *out_codes


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("share", [0.03, 0.9])
@pytest.mark.parametrize("n_depths", [6000, 7])
def test_labels_equal_brute_force(name, share, n_depths):
    """With depths that are all different, and with many that are equal, each code tells which pixel won."""
    rng = np.random.default_rng(1)
    depth_m = rng.permutation(np.repeat(np.linspace(2, 60, n_depths), -(-6000 // n_depths))[:6000]).reshape(60, 100)
    depth_m = depth_m.astype(np.float32)
    depth_m[rng.uniform(size=depth_m.shape) > share] = 0
    codes = rng.integers(1, 255, (2, 60, 100), np.uint8)
    got = warp_label(points_of(depth_m, *codes), WARPS[name], 40, 90)
    expected = warp_by_sorting(depth_m, codes, WARPS[name], 40, 90)
    assert got.depth_m.dtype == np.float32 and (got.depth_m > 0).sum() > 20
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_labels_by_hand():
    depth_m = np.array([[5, 0, 7, 3], [4, 6, 0, 0], [0, 0, 0, 2], [0, 0, 1, 0]], np.float32)
    codes = np.arange(1, 17, dtype=np.uint8).reshape(4, 4)
    points = points_of(depth_m, codes)
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    near, which, confidence = warp_label(points, half, 2, 2)
    np.testing.assert_array_equal(near, [[4, 3], [0, 1]])
    np.testing.assert_array_equal(which, [[5, 4], [0, 15]])
    np.testing.assert_array_equal(confidence, [[255, 255], [0, 255]])  # a measured point is certain
    mirror = np.array([[-1.0, 0, 3], [0, 1, 0], [0, 0, 1]])
    near, which, _ = warp_label(points, mirror, 4, 4)
    np.testing.assert_array_equal(near, depth_m[:, ::-1])
    np.testing.assert_array_equal(which, np.where(depth_m > 0, codes, 0)[:, ::-1])
    assert not np.any(warp_label(Points(*(x[:0] for x in points[:5])), half, 2, 2))


def test_enlarging_loses_nothing():
    rng = np.random.default_rng(2)
    depth_m = rng.uniform(2, 60, (30, 50)).astype(np.float32)
    points = points_of(depth_m, np.ones(depth_m.shape, np.uint8))
    for scale, degrees in ((1.0, 0), (1.3, 0), (1.5, 5.4), (2.0, 45)):
        there = similarity(scale, degrees, (0, 0))
        there[:2, 2] = [80.2, 70.3] - there[:2, :2] @ [24.5, 14.5]
        larger = warp_label(points, there, 140, 160).depth_m
        np.testing.assert_array_equal(np.sort(larger[larger > 0]), np.sort(depth_m.ravel()))


@pytest.mark.parametrize("name", WARPS)
def test_image_and_label_go_to_the_same_place(name):
    """An image of its own coordinates, and a label that holds them too: apart by rounding, and not to one side.

    A warp that took borders for centres would put all of the image to one side by half a pixel.
    """
    v, u = np.mgrid[:100, :200].astype(np.uint8)
    image = np.stack([u, v, np.full_like(u, 255)], -1)
    warped = warp_image(image, WARPS[name], 70, 100)
    random_m = np.random.default_rng(0).uniform(2, 60, u.shape).astype(np.float32)  # any pixel of several may win
    depth_m, *codes = warp_label(points_of(random_m, u, v), WARPS[name], 70, 100)
    whole = (depth_m > 0) & (warped[..., 2] == 255)  # no border between image and black
    assert whole.sum() > 1500
    scale = abs(np.linalg.det(WARPS[name])) ** 0.5
    apart = warped[whole][:, :2].astype(float) - np.stack(codes)[:, whole].T
    assert np.abs(apart).max() <= 0.5 / scale * 2**0.5 + 1.01
    assert np.abs(apart.mean(0)).max() < 0.1
    assert not warp_image(image, similarity(1, 0, (500, 0)), 70, 100).any()


# Bird's-eye view


BOXES = np.array(
    [
        [10, 4, 0.5, 4.5, 1.9, 1.6, 0.3, 3, -1],
        [-20, 7, -1, 12, 2.9, 3.5, 2.9, -6, 2],
        [3, -30, 0, 0.6, 0.7, 1.8, -1.7, np.nan, np.nan],
        [0, 0, 0, 2, 1, 1, -np.pi / 2, 0, 0],
    ],
    np.float32,
)


def corners(box):
    """Front left, front right, rear right, rear left, first below, then above."""
    x, y, z, length, width, height, yaw = box[:7].astype(np.float64)
    ahead, left = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([-np.sin(yaw), np.cos(yaw), 0])
    sides = [(1, 1), (1, -1), (-1, -1), (-1, 1)]
    return np.array(
        [
            np.array([x, y, z + up * height / 2]) + a * length / 2 * ahead + b * width / 2 * left
            for up in (-1, 1)
            for a, b in sides
        ]
    )


def bev(degrees=0.0, scale=1.0, mirror=(1, 1)):
    angle = np.radians(degrees)
    turn = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    return np.diag([*mirror, 1.0]) @ turn * scale


@pytest.mark.parametrize(
    "bev_T_ego",
    [
        bev(),
        bev(22.5),
        bev(scale=1.05),
        bev(mirror=(-1, 1)),
        bev(mirror=(1, -1)),
        bev(mirror=(-1, -1)),
        bev(-17, 0.95, (-1, 1)),
        bev(11, 1.02, (1, -1)),
        *(bev_transform(CONFIG, np.random.default_rng(seed)) for seed in range(6)),
    ],
)
def test_corners_of_boxes_move_with_the_view(bev_T_ego):
    """Front corners stay in front; a mirror swaps left and right. Velocity is where the middle is a second on."""
    before = BOXES.copy()
    moved = transform_boxes(BOXES, bev_T_ego)
    np.testing.assert_array_equal(BOXES, before)
    assert moved.dtype == np.float32 and (moved[:, 3:6] > 0).all()
    order = [1, 0, 3, 2, 5, 4, 7, 6] if np.linalg.det(bev_T_ego) < 0 else [*range(8)]
    for box, after in zip(BOXES, moved):
        np.testing.assert_allclose(corners(after)[order], corners(box) @ bev_T_ego.T, atol=2e-5)
        if np.isnan(box[7]):
            assert np.isnan(after[7:]).all()
        else:
            second_on = (box[:3] + [*box[7:], 0]) @ bev_T_ego.T
            np.testing.assert_allclose(after[:3] + [*after[7:], 0], second_on, atol=2e-5)
    assert transform_boxes(BOXES[:0], bev_T_ego).shape == (0, 9)


def test_range_of_bev_changes():
    np.testing.assert_array_equal(bev_transform(CONFIG, None), np.eye(3))
    rng = np.random.default_rng(0)
    scales, angles, mirrors = [], [], []
    for _ in range(400):
        matrix = bev_transform(CONFIG, rng)
        scales.append(matrix[2, 2])
        turn = matrix / scales[-1]
        np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
        mirrors.append(np.sign(np.diag(turn))[:2])  # turned by less than a right angle
        angles.append(np.degrees(np.arcsin(turn[1, 0] * mirrors[-1][1])))
    assert 0.95 <= min(scales) < 0.955 and 1.045 < max(scales) <= 1.05
    assert -22.5 <= min(angles) < -21 and 21 < max(angles) <= 22.5
    counts = np.unique(np.array(mirrors), axis=0, return_counts=True)[1]
    assert len(counts) == 4 and counts.min() > 70
