"""The classical method against hand-worked cases, the paper's steps in scipy, and its authors' figures on KITTI."""

import itertools

import cv2
import numpy as np
import pytest
from scipy import ndimage

from dense_depth.completion.classical import DIAMOND_5, EVEN_CHANCE_AT, IpBasicConfig, distance_confidence, ip_basic

VARIANTS = [
    IpBasicConfig(multiscale, blur, extrapolate)
    for multiscale, blur, extrapolate in itertools.product(
        (False, True), ("gaussian", "bilateral", "none"), (True, False)
    )
]
FAST = IpBasicConfig(blur="none", extrapolate=False)
every_variant = pytest.mark.parametrize("config", VARIANTS, ids=str)


def sparse(seed, density=0.05, shape=(120, 160)):
    """Ground below a horizon and boxes on it, some of it measured; nothing above."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    depth_m = np.where(rows > 50, 900 / np.maximum(rows - 40, 1), np.inf)
    for z in rng.uniform(12, 80, 8):
        box = (np.abs(rows - 50) < 300 / z) & (np.abs(columns - rng.integers(shape[1])) < 200 / z)
        depth_m[box] = np.minimum(depth_m[box], z)
    measured = np.isfinite(depth_m) & (rng.random(shape) < density)
    return np.where(measured, depth_m, 0).astype(np.float32)


def points(shape, **depths):
    depth_m = np.zeros(shape, np.float32)
    for place, z in depths.items():
        depth_m[tuple(map(int, place[1:].split("_")))] = z
    return depth_m


def test_one_point_grows_to_a_rounded_square():
    # Diamond of radius 2; closing leaves it; a 7x7 square around each of its pixels; the median needs 13 of 25 pixels,
    # which those at (5, 3) lack by one.
    half_widths = np.array([2, 4, 4, 5, 5, 5, 5, 5, 4, 4, 2])  # rows -5 to 5
    expected = np.zeros((31, 31), np.float32)
    for row, half_width in enumerate(half_widths, start=15 - 5):
        expected[row, 15 - half_width : 15 + half_width + 1] = 10
    np.testing.assert_array_equal(ip_basic(points((31, 31), p15_15=10), FAST), expected)


@pytest.mark.parametrize("z", [10, 20, 40])
def test_multiscale_takes_a_lone_point_for_an_outlier(z):
    """Of the 25 pixels around it, at most 9 lie on its cross: the median is empty."""
    assert not ip_basic(points((41, 41), p20_20=z), IpBasicConfig(True, "none", False)).any()
    assert not ip_basic(points((41, 41), p20_20=z), IpBasicConfig(True)).any()


@every_variant
def test_a_wall_with_holes_is_whole_again(config):
    rng = np.random.default_rng(0)
    depth_m = np.where(rng.random((90, 120)) < 0.3, np.float32(20), np.float32(0))
    np.testing.assert_allclose(ip_basic(depth_m, config), 20, rtol=1e-6)


@pytest.mark.parametrize("blur", ["gaussian", "none"])
def test_a_slope_comes_out_two_rows_nearer(blur):
    """The diamond takes the nearest depth two rows below; closing, median and a symmetric blur keep a line."""
    slope = np.repeat(np.linspace(40, 10, 61, dtype=np.float32)[:, None], 50, axis=1)
    completed = ip_basic(slope, IpBasicConfig(blur=blur))
    np.testing.assert_allclose(completed[8:-8], slope[10:-6], rtol=1e-5)


@pytest.mark.parametrize(
    ("multiscale", "near_m", "grown"),
    [(False, 10, 2), (True, 10, 3), (True, 15, 3), (True, 16, 2), (True, 30, 2), (True, 31, 1)],
)
@pytest.mark.parametrize("blur", ["gaussian", "bilateral", "none"])
def test_the_nearer_side_of_an_edge_wins(multiscale, near_m, grown, blur):
    """By the radius of the diamond, or of the cross of its band."""
    depth_m = np.full((40, 60), 50, np.float32)
    depth_m[:, :30] = near_m
    edge = 30 + grown
    expected = np.where(np.arange(60) < edge, near_m, 50).astype(float)
    if blur == "gaussian":  # 1 4 6 4 1 over 16
        expected[edge - 2 : edge + 2] = near_m + (50 - near_m) * np.array([1, 5, 11, 15]) / 16
    completed = ip_basic(depth_m, IpBasicConfig(multiscale, blur))
    np.testing.assert_allclose(completed, np.tile(expected, (40, 1)), atol=1e-3)


def test_a_far_point_among_near_ones_is_taken_for_seen_through():
    depth_m = np.full((30, 30), 5, np.float32)
    depth_m[15, 15] = 60
    for config in VARIANTS:
        np.testing.assert_allclose(ip_basic(depth_m, config), 5, rtol=1e-6)


def test_extrapolation_carries_the_highest_depth_up():
    depth_m = np.zeros((80, 90), np.float32)
    depth_m[40:, :40] = 10
    depth_m[60:, 40:] = 50
    completed = ip_basic(depth_m, IpBasicConfig(blur="none"))
    assert (completed > 0).all()
    assert (completed[:, :40] == 10).all()  # the diamond and the 7x7 fill carry the edge on by 2 and 3 pixels
    assert (completed[:, 50:] == 50).all()
    without = ip_basic(depth_m, FAST)
    assert not without[:34].any()
    assert not without[:54, 50:].any()
    np.testing.assert_array_equal(without[60:], completed[60:])


def test_multiscale_alone_fills_below_the_highest_depth_of_each_column():
    depth_m = np.zeros((80, 90), np.float32)
    depth_m[40:, :40] = 10
    depth_m[60:, 40:] = 50
    completed = ip_basic(depth_m, IpBasicConfig(True, "none", False))
    assert not completed[:37].any()
    assert not completed[:59, 43:].any()  # a cross of 7 pixels carried 10 m on by 3, one of 3 carried 50 m up by 1
    assert (completed[59:, 43:] == 50).all()


def test_multiscale_fills_gaps_of_36_rows():
    """On either side 2 by the cross for 20 m, 4 by the square of 9 pixels, 12 by six squares of 5."""
    depth_m = np.full((80, 60), 20, np.float32)
    depth_m[10:60] = 0
    completed = ip_basic(depth_m, IpBasicConfig(True, "none", False))
    assert not completed[28:42].any()
    assert (completed[:28] == 20).all()
    assert (completed[42:] == 20).all()


@pytest.mark.parametrize("multiscale", [False, True])
def test_extrapolation_fills_columns_and_bottoms_without_a_point(multiscale):
    depth_m = points((200, 300))
    depth_m[80:110, 10:40] = 12
    assert (ip_basic(depth_m, IpBasicConfig(multiscale)) > 0).all()


@every_variant
def test_nothing_from_nothing(config):
    empty = np.zeros((40, 50), np.float32)
    assert not ip_basic(empty, config).any()
    assert not ip_basic(empty + 150, config).any()  # beyond max_depth_m


@every_variant
def test_no_depth_beyond_the_range_of_the_input(config):
    for seed in range(3):
        depth_m = sparse(seed)
        before = depth_m.copy()
        completed = ip_basic(depth_m, config)
        np.testing.assert_array_equal(depth_m, before)
        assert completed.dtype == np.float32
        known = completed[completed > 0]
        assert depth_m[depth_m > 0].min() - 1e-4 <= known.min()
        assert known.max() <= depth_m.max() + 1e-4
        if config.extrapolate:
            assert known.size == depth_m.size
        else:
            assert not completed[:4].any()  # boxes reach up to row 25, and at most 21 rows are filled


@every_variant
@pytest.mark.parametrize("z", [99, 100])
def test_depths_up_to_the_largest_stay_and_those_beyond_do_not_count(z, config):
    depth_m = np.where(sparse(0) > 0, np.float32(z), np.float32(0))
    completed = ip_basic(depth_m, config)
    np.testing.assert_allclose(completed[completed > 0], z, rtol=1e-6)
    assert (completed > 0).mean() > 0.4
    beyond = depth_m.copy()
    beyond[0::7, 0::7] = 130
    np.testing.assert_array_equal(ip_basic(beyond, config), ip_basic(np.where(beyond > 100, 0, beyond), config))


@every_variant
def test_mirrored_input_gives_mirrored_output(config):
    depth_m = sparse(4)
    mirrored = ip_basic(np.ascontiguousarray(depth_m[:, ::-1]), config)
    np.testing.assert_allclose(mirrored[:, ::-1], ip_basic(depth_m, config), atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_variant_is_the_papers(seed):
    """The steps as published, on max_depth - depth in float64."""
    depth_m = sparse(seed)
    inverted = np.where(depth_m > 0, 100 - depth_m.astype(float), 0)

    def dilate(x, footprint):
        return ndimage.grey_dilation(x, footprint=footprint, mode="constant", cval=0)

    inverted = dilate(inverted, DIAMOND_5)
    inverted = dilate(inverted, np.ones((5, 5)))
    inverted = ndimage.grey_erosion(inverted, size=(5, 5), mode="constant", cval=np.inf)
    inverted = np.where(inverted > 0, inverted, dilate(inverted, np.ones((7, 7))))
    inverted = ndimage.median_filter(inverted, size=5, mode="nearest")
    expected = np.where(inverted > 0, 100 - inverted, 0)
    np.testing.assert_allclose(ip_basic(depth_m, FAST), expected, atol=1e-4)


@pytest.mark.parametrize("wrong", [np.zeros((4, 5)), np.zeros((2, 4, 5), np.float32), np.zeros((4, 5), np.uint16)])
def test_another_type_or_shape_is_refused(wrong):
    with pytest.raises(ValueError, match=r"float32 \(height,width\)"):
        ip_basic(wrong)


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3)])
def test_any_size_goes(shape):
    depth_m = np.zeros(shape, np.float32)
    depth_m[-1, -1] = 7
    np.testing.assert_allclose(ip_basic(depth_m), 7, rtol=1e-6)


def test_confidence_falls_with_distance():
    depth_m = points((5, 2000), p2_0=30)
    confidence = distance_confidence(depth_m)[2].astype(int)
    assert confidence[0] == 255
    assert abs(confidence[round(2000 * EVEN_CHANCE_AT)] - 127.5) <= 1
    assert (np.diff(confidence) <= 0).all()
    assert confidence[-1] == 0
    half = distance_confidence(points((5, 1000), p2_0=30))[2].astype(int)
    assert np.abs(half - confidence[::2]).max() <= 1  # the same at another scale
    assert not distance_confidence(np.zeros((4, 5), np.float32)).any()
    assert (distance_confidence(np.ones((4, 5), np.float32)) == 255).all()


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (IpBasicConfig(), (1048, 267, 1.61, 0.92)),
        (IpBasicConfig(blur="bilateral"), (1140, 283, 1.67, 0.940)),
        (IpBasicConfig(multiscale=True), (1285, 296, 1.49, 0.859)),
        (IpBasicConfig(multiscale=True, blur="bilateral"), (1395, 326, 1.63, 0.949)),
    ],
    ids=str,
)
def test_kitti_figures_are_the_authors(recorded, config, published):
    """RMSE and MAE in mm, iRMSE and iMAE in 1/km of their own code, means over the 24 images."""
    sparse_paths = sorted(recorded.glob("kitti_depth_completion/data_depth_annotated/*/proj_depth/velodyne_raw/*/*"))
    assert len(sparse_paths) == 24
    figures = []
    for path in sparse_paths:
        truth_path = path.parents[2] / "groundtruth" / path.parent.name / path.name
        depth_m, truth_m = (cv2.imread(str(p), cv2.IMREAD_UNCHANGED) / 256 for p in (path, truth_path))
        at = truth_m > 0
        completed = ip_basic(depth_m.astype(np.float32), config)[at].astype(float)
        mm, per_km = 1e3 * (completed - truth_m[at]), 1e3 * (1 / completed - 1 / truth_m[at])
        figures.append([mean for e in (mm, per_km) for mean in (np.sqrt(np.mean(e**2)), np.abs(e).mean())])
    np.testing.assert_allclose(np.mean(figures, axis=0), published, rtol=0.005)
