"""Labels against truth: hand-worked numbers, and an independent reference that loops over pixels."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from conftest import frame_truth, label_of, random_frame

from dense_depth import InputError
from dense_depth.datasets.truth import Surface
from dense_depth.label import Source
from dense_depth.quality.errors import SPLITS, LabelErrors, Verdict, judge
from dense_depth.quality.truth import compare, depth_edges, footprints, reference_depth

FALSE = ("behind", "in_front")


def errors_of(depth_m, truth, source=None, crop_height=None) -> LabelErrors:
    return compare(label_of(depth_m, source), truth, crop_height)


def slow_edges(depth_m) -> np.ndarray:
    height, width = depth_m.shape
    inverse = [[1 / float(z) if z > 0 else 0.0 for z in row] for row in depth_m]
    jumps = set()
    for v in range(height):
        for u in range(width):
            sides = []
            if 0 < u < width - 1:
                sides.append(inverse[v][u - 1] + inverse[v][u + 1])
            if 0 < v < height - 1:
                sides.append(inverse[v - 1][u] + inverse[v + 1][u])
            if any(abs(both - 2 * inverse[v][u]) > 0.05 * inverse[v][u] for both in sides):
                jumps.add((v, u))
    return np.array(
        [
            [any((v + dv, u + du) in jumps for dv in (-1, 0, 1) for du in (-1, 0, 1)) for u in range(width)]
            for v in range(height)
        ]
    )


def slow_area(i, n_label, n_native) -> list[int]:
    """Native pixels that overlap label pixel i, by exact fractions, and the one nearest to its centre."""
    ratio = Fraction(n_native, n_label)
    inside = [j for j in range(n_native) if j + 1 > i * ratio and j < (i + 1) * ratio]
    middle = min(range(n_native), key=lambda j: (abs(j + Fraction(1, 2) - (i + Fraction(1, 2)) * ratio), -j))
    return inside, middle


def slow_reference(depth_m, source, truth) -> dict:
    """What LabelErrors should say, one pixel at a time."""
    edge = slow_edges(truth.depth_m)
    areas = [[slow_area(i, n, m) for i in range(n)] for n, m in zip(depth_m.shape, truth.depth_m.shape)]
    found = {"labels": [], "centre": Counter(), "pixels": Counter(), "surface": [], "strides": {}}
    cells = {stride: {} for stride in (4, 8, 16)}

    def what(y, x):
        z = truth.depth_m[y, x]
        ends = [end for end in (10, 20, 30, 40, 60) if z > end]
        ranges = ("0-10 m", "10-20 m", "20-30 m", "30-40 m", "40-60 m", "60+ m")
        i = truth.instance[y, x]
        return (
            ranges[len(ends)] if z > 0 else "sky",
            "moving" if truth.moving[y, x] else "static",
            "edge" if edge[y, x] else "interior",
            truth.classes[i - 1] if i else Surface(truth.surface[y, x]).name.lower(),
        )

    def verdict(depth, z):
        if z == 0:
            return "in_front"
        error = depth - z
        return "right" if abs(error) <= max(0.5, 0.05 * z) else "behind" if error > 0 else "in_front"

    for v in range(depth_m.shape[0]):
        for u in range(depth_m.shape[1]):
            (rows, row), (columns, column) = areas[0][v], areas[1][u]
            depth = float(depth_m[v, u])
            pixels = [(y, x) for y in rows for x in columns if truth.depth_m[y, x] > 0]
            found["pixels"][what(row, column)] += 1
            if pixels:
                found["surface"].append(depth > 0)
                for stride in cells:
                    cells[stride].setdefault((v // stride, u // stride), False)
            if depth == 0:
                continue
            found["centre"][verdict(depth, float(truth.depth_m[row, column]))] += 1
            at = min(pixels, key=lambda p: abs(float(truth.depth_m[p]) - depth), default=(row, column))
            z = float(truth.depth_m[at])
            found["labels"].append((*what(*at), Source(source[v, u]).name.lower(), depth, z, verdict(depth, z)))
    for stride in cells:
        has_label = {(v // stride, u // stride) for v, u in zip(*np.nonzero(depth_m))}
        found["strides"][stride] = np.mean([cell in has_label for cell in cells[stride]])
    return found


def expected_means(labels) -> dict:
    seen = np.array([(depth, z) for *_, depth, z, _ in labels if z > 0]).reshape(-1, 2)
    error = seen[:, 0] - seen[:, 1]
    ratio = np.maximum(seen[:, 0] / seen[:, 1], seen[:, 1] / seen[:, 0])
    means = {"n": len(labels), "on_sky": np.mean([label[-2] == 0 for label in labels])}
    if len(seen):
        means |= {"mae_m": np.abs(error).mean(), "rmse_m": np.sqrt((error**2).mean())}
        means |= {"abs_rel": (np.abs(error) / seen[:, 1]).mean(), "delta_125": (ratio < 1.25).mean()}
    return means | {name: np.mean([label[-1] == name for label in labels]) for name in FALSE}


def assert_means(means, labels) -> None:
    for name, value in expected_means(labels).items():
        assert means[name] == pytest.approx(value, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize(
    ("native", "size"), [((27, 48), (12, 21)), ((28, 48), (14, 24)), ((20, 33), (20, 33)), ((9, 16), (14, 24))]
)  # scale 0.44, 0.5, 1, and a label larger than the image
def test_figures_are_those_of_a_loop_over_pixels(native, size):
    depth_m, source, truth = random_frame(np.random.default_rng(native[0]), native, size)
    errors = errors_of(depth_m, truth, source)
    slow = slow_reference(depth_m, source, truth)
    labels, means = slow["labels"], errors.means()
    assert len(labels) > 50 and {label[-1] for label in labels} == {"right", "behind", "in_front"}
    assert_means(means, labels)
    assert means["pixels"] == depth_m.size and means["labelled"] == len(labels) / depth_m.size
    assert means["coverage"] == np.mean(slow["surface"])
    assert means["coverage_cells"] == {str(stride): share for stride, share in slow["strides"].items()}
    assert means["at_centre"]["behind"] == pytest.approx(slow["centre"]["behind"] / len(labels))
    assert means["at_centre"]["in_front"] == pytest.approx(slow["centre"]["in_front"] / len(labels))
    assert errors.n_false() == sum(label[-1] != "right" for label in labels)

    for axis, name in enumerate(SPLITS):
        split = errors.split(name)
        assert set(split) >= {label[axis] for label in labels}
        for group, figures in split.items():
            of_group = [label for label in labels if label[axis] == group]
            assert figures["share"] == len(of_group) / len(labels)
            if of_group:
                assert_means(figures, of_group)
            if name != "source":
                n_pixels = sum(n for kind, n in slow["pixels"].items() if kind[axis] == group)
                assert errors.pixels.sum(tuple({0, 1, 2, 3} - {axis}))[SPLITS[name].index(group)] == n_pixels
        assert sum(figures["n"] for figures in split.values()) == len(labels)

    causes = Counter((label[3], label[2], label[4], label[-1]) for label in labels if label[-1] != "right")
    told = {(c["class"], c["place"], c["source"], name): c[name] for c in errors.causes() for name in FALSE}
    assert {cause: n for cause, n in told.items() if n} == causes
    shares = [cause["share"] for cause in errors.causes()]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("size", [(90, 160), (45, 80), (40, 70)])
def test_a_label_that_is_the_truth_has_no_errors(size):
    v, u = np.mgrid[:90, :160]
    truth = frame_truth(np.where(v < 20, 0, 2000 / (v + 1) + u / 100))
    row, column = (footprints(n, m)[:, 2] for n, m in zip(size, truth.depth_m.shape))
    means = errors_of(truth.depth_m[np.ix_(row, column)], truth).means()
    assert means["mae_m"] == means["rmse_m"] == means["behind"] == means["in_front"] == 0
    assert means["at_centre"]["mae_m"] == means["at_centre"]["in_front"] == 0
    assert means["delta_125"] == 1 and set(means["coverage_cells"].values()) == {1}
    assert means["coverage"] == pytest.approx(1, abs=0.04)  # rows between sky and surface may be sky at their centre


def test_shifted_labels_give_the_exact_shares():
    depth_m = np.full((10, 10), 20.0)  # off by more than 1 m is false
    depth_m[0] += 1.01
    depth_m[1:3] -= 3
    depth_m[3] += 0.99
    depth_m[4, :5] = 26
    truth = np.full((10, 10), 20.0)
    truth[9] = 0
    means = errors_of(depth_m, frame_truth(truth)).means()
    assert means["behind"] == 0.15 and means["on_sky"] == 0.1 and means["in_front"] == 0.3
    assert means["mae_m"] == pytest.approx((10.1 + 60 + 9.9 + 30) / 90, rel=1e-6)
    assert means["rmse_m"] == pytest.approx(np.sqrt((10 * 1.01**2 + 20 * 9 + 10 * 0.99**2 + 5 * 36) / 90), rel=1e-6)
    assert means["abs_rel"] == pytest.approx((10.1 + 60 + 9.9 + 30) / 90 / 20, rel=1e-6)
    assert means["delta_125"] == pytest.approx(1 - 5 / 90)
    assert means["coverage"] == 1 and means["labelled"] == 1


def test_near_labels_may_be_off_by_half_a_metre():
    truth = frame_truth([[5.0, 5.0, 40.0, 40.0]])
    assert errors_of([[5.5, 4.5, 42.0, 38.0]], truth).n_false() == 0
    assert errors_of([[5.51, 4.49, 42.1, 37.9]], truth).n_false() == 4


def test_a_label_pixel_is_right_if_any_surface_in_its_area_has_its_depth():
    truth = np.full((4, 4), 30.0)
    truth[1, 0] = 10  # a pole through the upper left label pixel, away from its centre
    truth[2:, 2:] = 0
    instance = (truth == 10).astype(np.uint16)
    truth = frame_truth(truth, instance=instance, classes=("pedestrian",))
    errors = errors_of([[10.0, 10.0], [30.0, 30.0]], truth)
    means = errors.means()
    assert (means["in_front"], means["on_sky"], means["behind"]) == (0.5, 0.25, 0)
    assert (means["at_centre"]["in_front"], means["at_centre"]["on_sky"]) == (0.75, 0.25)
    assert errors.split("class")["pedestrian"]["n"] == 1
    assert errors.split("range")["sky"]["in_front"] == 1
    assert np.isnan(errors.split("range")["sky"]["mae_m"])


def test_a_cell_counts_once_however_many_labels_it_has():
    truth = np.full((10, 10), 20.0)
    truth[:4] = 0
    depth_m = np.zeros((10, 10))
    depth_m[4, 3] = depth_m[7, 0] = depth_m[7, 4] = 20
    means = errors_of(depth_m, frame_truth(truth)).means()
    assert means["coverage"] == 3 / 60
    assert means["coverage_cells"] == {"4": 2 / 6, "8": 1 / 4, "16": 1}


def test_footprints():
    np.testing.assert_array_equal(footprints(3, 3), [[0, 1, 0], [1, 2, 1], [2, 3, 2]])
    np.testing.assert_array_equal(footprints(2, 4), [[0, 2, 1], [2, 4, 3]])
    np.testing.assert_array_equal(footprints(4, 9), [[0, 3, 1], [2, 5, 3], [4, 7, 5], [6, 9, 7]])  # 2.25 px each
    np.testing.assert_array_equal(footprints(4, 2), [[0, 1, 0], [0, 1, 0], [1, 2, 1], [1, 2, 1]])


@pytest.mark.parametrize("scale", [1.0, 0.44])
def test_a_crop_is_the_bottom_rows(scale):
    native, size = (100, 160), (round(100 * scale), round(160 * scale))
    depth_m, source, truth = random_frame(np.random.default_rng(2), native, size)
    cropped = errors_of(depth_m, truth, source, crop_height=20)
    assert cropped.means()["pixels"] == 20 * size[1]
    above = depth_m.copy()
    above[: size[0] - 20] = 0  # labels above the crop are the only difference
    assert cropped.means()["n"] == np.count_nonzero(above)
    np.testing.assert_array_equal(cropped.errors, errors_of(above, truth, source).errors)


def test_a_slanted_road_is_interior_and_the_outline_of_a_pole_is_an_edge():
    v, u = np.mgrid[:300, :400]
    z = np.where(v > 150, 1.5 * 500 / np.maximum(v - 150, 1), 0) * (1 + 0.001 * u)  # slanted both ways, below sky
    road = depth_edges(z.astype(np.float32))
    assert not road[155:].any()  # 150 m and nearer; its last rows are metres from one to the next
    assert road[150:152].all() and not road[:149].any()

    steep = np.broadcast_to(100 / np.arange(10, 30)[:, None], (20, 20)).astype(np.float32)
    assert not depth_edges(steep).any() and not depth_edges(steep.T.copy()).any()  # up to the border

    z[100:250, 200:203] = 8.0
    edge = depth_edges(z.astype(np.float32))
    assert edge[101:200, 199:204].all() and edge[101:200, 198].all()  # the outline, a pixel around, and a thin middle
    assert not edge[160:, :197].any() and not edge[160:, 206:].any()
    z[160:250, 200:260] = 8.0  # wide: its middle is interior
    assert not depth_edges(z.astype(np.float32))[164:240, 206:255].any()


@pytest.mark.parametrize("seed", range(3))
def test_edges_are_those_of_a_loop(seed):
    depth_m = random_frame(np.random.default_rng(seed), (20, 30), (20, 30))[2].depth_m
    smooth = np.linspace(5, 5.2, 600, dtype=np.float32).reshape(20, 30)
    depth_m = np.where(np.random.default_rng(seed).random((20, 30)) < 0.95, smooth, depth_m)
    expected = slow_edges(depth_m)
    assert 0.05 < expected.mean() < 0.95
    np.testing.assert_array_equal(depth_edges(depth_m), expected)


def test_what_is_judged_in_a_picture_is_what_is_counted():
    depth_m, source, truth = random_frame(np.random.default_rng(5), (60, 90), (30, 45))
    errors, verdict = errors_of(depth_m, truth, source).means(), judge(depth_m, reference_depth(depth_m, truth.depth_m))
    counts = {kind: np.count_nonzero(verdict == kind) for kind in Verdict}
    assert counts[Verdict.NONE] == np.count_nonzero(depth_m == 0)
    assert counts[Verdict.BEHIND] == round(errors["behind"] * errors["n"]) > 0
    assert counts[Verdict.IN_FRONT] == round(errors["in_front"] * errors["n"]) > 0


def test_unknown_codes_are_refused():
    label = np.full((2, 2), 5, np.float32)
    with pytest.raises(InputError, match="tram"):
        errors_of(label, frame_truth(label, classes=("tram",)))
    with pytest.raises(ValueError, match="unknown"):
        errors_of(label, frame_truth(label), np.full((2, 2), 7, np.uint8))
    with pytest.raises(ValueError, match="unknown"):
        errors_of(label, frame_truth(label, surface=np.full((2, 2), 255, np.uint8)))
    with pytest.raises(ValueError, match="NaN"):
        errors_of(label, frame_truth([[1, 2], [np.nan, 3]]))
