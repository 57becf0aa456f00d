"""Labels as points and as maps."""

import numpy as np
import pytest
from conftest import K

from dense_depth.geometry import resize_K
from dense_depth.label import Label

OF_FRAME = {"sample_token": "s", "camera": "c", "timestamp_us": 0}


def test_points_and_maps_say_the_same():
    rng = np.random.default_rng(0)
    there = rng.random((20, 30)) < 0.3
    depth_m = rng.uniform(1, 60, there.shape).astype(np.float32) * there
    source, age, confidence = (rng.integers(1, n, there.shape).astype(np.uint8) * there for n in (5, 32, 256))
    label = Label.from_maps(depth_m, source, age, confidence, K=K, **OF_FRAME)
    points = label.points()
    assert (np.diff(points.v.astype(int) * 30 + points.u) > 0).all()  # in row order
    assert points.u.shape == points.depth_m.shape == (there.sum(),)
    for i in range(len(points.u)):
        at = points.v[i], points.u[i]
        assert (depth_m[at], source[at], age[at], confidence[at]) == tuple(x[i] for x in points[2:])
    for name, expected in (("depth_m", depth_m), ("source", source), ("age", age), ("confidence", confidence)):
        np.testing.assert_array_equal(getattr(label, name), expected)


@pytest.mark.parametrize("size", [(20, 30), (10, 15), (13, 22), (19, 1), (1, 1)])
@pytest.mark.parametrize("with_age", [True, False])
def test_shrink_equals_points_drawn_one_by_one(size, with_age):
    """Every labelled pixel as a point, projected with the intrinsics of the smaller image."""
    rng = np.random.default_rng(0)
    (height, width), (rows, columns) = size, (20, 30)
    depth_m = rng.integers(4, 9, (rows, columns)).astype(np.float32) * (rng.random((rows, columns)) < 0.5)
    source = rng.integers(1, 5, (rows, columns)).astype(np.uint8) * (depth_m > 0)
    age = rng.integers(0, 32, (rows, columns)).astype(np.uint8) * (depth_m > 0)
    expected = np.zeros((height, width, 3))
    shrunk_K = resize_K(K, width / columns, height / rows)
    for v, u in np.argwhere(depth_m):
        ray = np.linalg.inv(K) @ [u, v, 1.0]
        column, row = np.floor((shrunk_K @ ray)[:2] + 0.5 + 1e-9).astype(int)
        found = depth_m[v, u], source[v, u], age[v, u] * with_age
        if not expected[row, column].any() or found < tuple(expected[row, column]):
            expected[row, column] = found
    label = Label.from_maps(depth_m, source, age if with_age else None, K=K, **OF_FRAME)
    shrunk = label.shrunk(height, width)
    assert (shrunk.depth_m == expected[..., 0]).all() and (shrunk.source == expected[..., 1]).all()
    assert (shrunk.age == expected[..., 2]).all()
    assert [array.dtype for array in shrunk.points()[2:5]] == [np.float32, np.uint8, np.uint8]
    np.testing.assert_allclose(shrunk.K, shrunk_K)


def test_shrink_does_not_enlarge():
    with pytest.raises(ValueError, match="at most 2x3"):
        Label.from_maps(np.ones((2, 3), np.float32), np.ones((2, 3), np.uint8), K=K, **OF_FRAME).shrunk(2, 4)
