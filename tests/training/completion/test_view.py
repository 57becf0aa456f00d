"""What a view shows: every map of a frame is cut from the same place, and K says where that is."""

import numpy as np
import pytest

from dense_depth.geometry import pixel_of
from dense_depth.label import Label
from training.completion.view import Frame, ViewConfig, _recoloured, augment

HEIGHT, WIDTH = 112, 200
WHOLE = ViewConfig(HEIGHT, WIDTH, scale=(1.0, 1.0), colour=0.0, flip=0.0)


def coordinates(height=HEIGHT, width=WIDTH):
    """A frame in which every value says where it is; depth is 1 + column + row * width."""
    v, u = np.indices((height, width))
    depth_m = np.float32(1 + u + v * width)
    K = np.array([[150.0, 0.0, 97.3], [0.0, 140.0, 51.8], [0.0, 0.0, 1.0]])
    maps = depth_m, np.uint8(1 + (u + v) % 3), np.uint8((u + 7 * v) % 31)
    label = Label.from_maps(*maps, K=K, sample_token="s", camera="c", timestamp_us=0)
    return Frame(np.stack([v, u, 0 * u], -1).astype(np.uint8), label, label, depth_m + 0.5)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.83])
@pytest.mark.parametrize("view", [(64, 96), (112, 200), (128, 256)])
def test_maps_are_cut_from_the_same_place(view, scale, flip):
    """Also from a frame smaller than the view, where nothing is beyond."""
    frame = coordinates()
    places = set()
    for seed in range(4):
        config = ViewConfig(*view, scale=(scale, scale), colour=0.0, flip=flip)
        out = augment(frame, config, np.random.default_rng(seed))
        depth_m, source, age = out.label
        assert out.image.shape == (*view, 3) and depth_m.shape == view
        filled = depth_m > 0
        size = (
            (HEIGHT, WIDTH) if max(view) == 256 or view == (112, 200) else np.round(np.multiply((HEIGHT, WIDTH), scale))
        )
        assert filled.sum() == np.minimum(view, size).prod()
        assert not any(x[~filled].any() for x in (source, age, out.image))
        assert np.isnan(out.truth_m[~filled]).all() and not np.isnan(out.truth_m[filled]).any()  # not sky: not known
        row, column = np.divmod(depth_m[filled].astype(int) - 1, WIDTH)
        places.add((row[0], column[0]))
        np.testing.assert_array_equal(source[filled], 1 + (row + column) % 3)
        np.testing.assert_array_equal(age[filled], (column + 7 * row) % 31)
        np.testing.assert_array_equal(out.single[0], depth_m)
        true_row, true_column = np.divmod(out.truth_m[filled].astype(int) - 1, WIDTH)
        exact = size[1] == WIDTH
        for x, y in (row, true_row), (column, true_column), (row, out.image[filled, 0]), (column, out.image[filled, 1]):
            assert np.abs(x - y.astype(int)).max() <= (0 if exact else 1)
        v, u = np.nonzero(filled)
        for x, old, axis in (u, column, 0), (v, row, 1):  # the rays of the pixels that they come from
            ray, expected = (
                (x - out.K[axis, 2]) / out.K[axis, axis],
                (old - frame.label.K[axis, 2]) / frame.label.K[axis, axis],
            )
            np.testing.assert_allclose(ray, expected, atol=1e-12 if exact else 1.1 / frame.label.K[axis, axis])
        assert np.sign(np.diff(column[v == 0])).mean() == (-1 if flip else 1)
    if view == (64, 96):
        assert len(places) == 4


def test_scale_lies_in_its_range_and_keeps_the_view_full():
    widths = []
    for seed in range(30):
        out = augment(coordinates(), ViewConfig(64, 96, scale=(0.3, 0.9), colour=0.0), np.random.default_rng(seed))
        widths.append(abs(out.K[0, 0]) / 150)
        assert (out.label[0] > 0).all()
    assert 64 / HEIGHT - 0.01 <= min(widths) < 0.6 and 0.8 < max(widths) < 0.91


def test_colours_change_and_nothing_else():
    frame = coordinates()
    image = frame.image.copy()
    same = augment(frame, WHOLE, np.random.default_rng(0))
    np.testing.assert_array_equal(same.image, image)
    changed = [_recoloured(image, 0.5, np.random.default_rng(seed)) for seed in range(6)]
    assert len({x.tobytes() for x in changed}) == 6
    assert all(x.shape == image.shape and x.dtype == np.uint8 for x in changed)
    np.testing.assert_array_equal(changed[3], _recoloured(image, 0.5, np.random.default_rng(3)))
    np.testing.assert_array_equal(frame.image, image)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 0.83, 0.61])
def test_points_lie_where_k_projects_them(scale, flip):
    """Every pixel that a view shows is the one that K says of the ray of the point in it.

    Cells of a smaller image are larger to both sides: a K that scales pixel centres misses by up to half a pixel.
    Depths are in random order, so that any of the points that fall into a pixel may win it.
    """
    place = np.random.default_rng(0).permutation(HEIGHT * WIDTH)  # by depth
    depth_m = np.empty(HEIGHT * WIDTH, np.float32)
    depth_m[place] = 1 + np.arange(HEIGHT * WIDTH)
    frame = coordinates()
    ones = np.ones((HEIGHT, WIDTH), np.uint8)
    told = dict(K=frame.label.K, sample_token="s", camera="c", timestamp_us=0)
    frame = frame._replace(label=Label.from_maps(depth_m.reshape(HEIGHT, WIDTH), ones, **told), single=None)
    for seed in range(4):
        config = ViewConfig(64, 96, scale=(scale, scale), colour=0.0, flip=flip)
        out = augment(frame, config, np.random.default_rng(seed))
        row, column = np.nonzero(out.label[0])
        v, u = np.divmod(place[out.label[0][row, column].astype(int) - 1], WIDTH)
        rays = np.linalg.solve(frame.label.K, np.stack([u, v, np.ones(len(u))]))
        uv_px = (out.K @ rays)[:2].T
        clear = np.abs((uv_px + 0.5) % 1 - 0.5).max(1) < 0.5 - 1e-6  # not on the border of two pixels
        assert clear.mean() > 0.9 and len(clear) == 64 * 96
        np.testing.assert_array_equal(pixel_of(uv_px[clear]), np.column_stack([column, row])[clear])
