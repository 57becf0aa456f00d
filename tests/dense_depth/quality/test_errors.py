"""Errors against truth: hand-worked numbers, and an independent reference that loops over pixels."""

import json
from collections import Counter
from fractions import Fraction

import cv2
import numpy as np
import pytest

from dense_depth import InputError
from dense_depth.datasets.truth import Surface
from dense_depth.label import Source
from dense_depth.quality.errors import (
    SPLITS,
    DepthErrors,
    FrameTruth,
    LabelErrors,
    Verdict,
    depth_edges,
    footprints,
    judge,
    reference_depth,
    summarise,
)
from dense_depth.quality.pictures import BLUE, COLOURS, PANEL_WIDTH, calibration, panels

FALSE = ("behind", "in_front")


def frame_truth(depth_m, **others) -> FrameTruth:
    depth_m = np.asarray(depth_m, np.float32)
    arrays = {
        "instance": np.zeros(depth_m.shape, np.uint16),
        "moving": np.zeros(depth_m.shape, np.uint8),
        "surface": np.where(depth_m > 0, Surface.GROUND, Surface.SKY).astype(np.uint8),
    }
    return FrameTruth(depth_m, **{**arrays, "classes": (), **others})


def errors_of(depth_m, truth, source=None, **kwargs) -> LabelErrors:
    depth_m = np.asarray(depth_m, np.float32)
    errors = LabelErrors()
    errors.add(depth_m, (depth_m > 0).astype(np.uint8) if source is None else source, truth, **kwargs)
    return errors


def random_frame(rng, native, size, share=0.5):
    """Random truth with sky, instances and a label that is often wrong."""
    truth_m = np.where(rng.random(native) < 0.2, 0, rng.uniform(1, 90, native)).astype(np.float32)
    truth_m[: native[0] // 3] = 0
    instance = np.where(truth_m > 0, rng.integers(0, 3, native), 0).astype(np.uint16)
    surface = np.where(instance > 0, Surface.OBJECT, rng.integers(1, 5, native))
    truth = FrameTruth(
        depth_m=truth_m,
        instance=instance,
        moving=(instance == 2).astype(np.uint8),
        surface=np.where(truth_m > 0, surface, Surface.SKY).astype(np.uint8),
        classes=("car", "pedestrian"),
    )
    near = truth_m[np.ix_(*(np.arange(n) * m // n for n, m in zip(size, native)))]
    depth_m = np.where(near > 0, near * rng.uniform(0.9, 1.1, size), rng.uniform(1, 90, size))
    depth_m = np.where(rng.random(size) < share, depth_m, 0).astype(np.float32)
    source = np.where(depth_m > 0, rng.integers(1, 4, size), 0).astype(np.uint8)
    return depth_m, source, truth


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


def test_adding_frames_to_one_or_to_several_is_the_same():
    rng = np.random.default_rng(1)
    frames = [random_frame(rng, (27, 48), (12, 21)) for _ in range(4)]
    together, first, second = LabelErrors(), LabelErrors(), LabelErrors()
    for i, frame in enumerate(frames):
        together.add(*frame)
        (first if i < 2 else second).add(*frame)
    merged = first + second
    for name in ("errors", "errors_at_centre", "pixels", "surface_pixels", "surface_cells"):
        np.testing.assert_allclose(getattr(merged, name), getattr(together, name), rtol=1e-12)
    assert first.means()["n"] < merged.means()["n"] == together.means()["n"]

    depth = [DepthErrors() for _ in range(3)]
    for i, (depth_m, *_) in enumerate(frames):
        for errors in (depth[0], depth[1 + i // 2]):
            errors.add(depth_m, np.full_like(depth_m, 30))
    assert (depth[1] + depth[2]).means() == pytest.approx(depth[0].means(), rel=1e-12)


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


def test_depth_errors_of_a_held_out_sweep():
    errors = DepthErrors()
    errors.add(np.array([[10.0, 0.0, 30.0, 22.0]]), np.array([[10.4, 5.0, 20.0, 0.0]]))
    errors.add(np.array([[4.0]], np.float32), np.array([[8.0]], np.float32))
    means = errors.means()
    assert means["n"] == 3 and means["compared"] == 3 / 4
    assert means["mae_m"] == pytest.approx((0.4 + 10 + 4) / 3)
    assert means["rmse_m"] == pytest.approx(np.sqrt((0.16 + 100 + 16) / 3))
    assert means["abs_rel"] == pytest.approx((0.4 / 10.4 + 0.5 + 0.5) / 3)
    assert means["delta_125"] == means["behind"] == means["in_front"] == pytest.approx(1 / 3)
    assert np.isnan(DepthErrors().means()["mae_m"])


def completed_errors(*groups) -> LabelErrors:
    """Errors of completed labels on truth at 10 m, or sky: groups of (how many, confidence, depth, truth)."""
    depth_m, truth_m, confidence = (
        np.array([[group[i] for group in groups for _ in range(group[0])]], dtype)
        for i, dtype in ((2, np.float32), (3, np.float32), (1, np.uint8))
    )
    source = np.full(depth_m.shape, Source.COMPLETED, np.uint8)
    return errors_of(depth_m, frame_truth(truth_m), source, confidence=confidence)


CALIBRATED = ((80, 51, 11, 10), (20, 51, 10.5, 10), (40, 153, 12, 10), (60, 153, 9.5, 10), (100, 255, 10, 10))


def test_confidence_that_is_right():
    """Of 100 labels each, those that say 20 %, 60 % and 100 % are off by at most 0.5 m as often."""
    figures = completed_errors(*CALIBRATED).calibration()
    assert figures["error"] == pytest.approx(0, abs=1e-12) and figures["n"] == 300
    assert figures["stated"] == figures["within"] == pytest.approx(0.6)
    assert [group["from"] for group in figures["bins"]] == [0.2, 0.6, 0.9]
    assert [group["within"] for group in figures["bins"]] == pytest.approx([0.2, 0.6, 1])
    maes_m = [0.9, (40 * 2 + 60 * 0.5) / 100, 0]
    assert [group["mae_m"] for group in figures["bins"]] == pytest.approx(maes_m)
    # 30 labels each, so the fourth has 10 of the first kind and 20 of the second, the seventh 20 and 10.
    mixed, high = (10 * 0.9 + 20 * 1.1) / 30, 20 * 1.1 / 30
    expected = [0.9] * 3 + [mixed] + [1.1] * 2 + [high] + [0] * 3
    assert [tenth["mae_m"] for tenth in figures["tenths"]] == pytest.approx(expected)
    assert [tenth["stated"] for tenth in figures["tenths"]][3] == pytest.approx((10 * 0.2 + 20 * 0.6) / 30)
    assert [tenth["share"] for tenth in figures["tenths"]] == pytest.approx([0.1] * 10)


def test_confidence_that_says_too_much():
    """All are certain; 70 are right, 20 are off by 2 m, and 10 are on sky: wrong, but not by any metres."""
    errors = completed_errors((70, 255, 10, 10), (20, 255, 8, 10), (10, 255, 50, 0))
    figures = errors.calibration()
    assert figures["error"] == pytest.approx(0.3) and figures["on_sky"] == pytest.approx(0.1)
    assert figures["within"] == pytest.approx(0.7) and figures["mae_m"] == pytest.approx(20 * 2 / 90)
    assert [tenth["within"] for tenth in figures["tenths"]] == pytest.approx([0.7] * 10)
    # Beside labels that say too little, errors do not cancel: 100 x 0.3 and 300 x (1 - 0.4).
    both = errors + completed_errors((300, 102, 10, 10))
    assert both.calibration()["error"] == pytest.approx((100 * 0.3 + 300 * 0.6) / 400)
    assert json.loads(json.dumps(summarise([both], ["CAM"]), allow_nan=False))["calibration"]["n"] == 400
    all_sky = summarise([completed_errors((10, 200, 50, 0))], ["CAM"])["calibration"]
    assert all_sky["mae_m"] is all_sky["tenths"][0]["mae_m"] is None and all_sky["within"] == 0


def test_confidence_counts_for_completed_labels_alone():
    rng = np.random.default_rng(0)
    depth_m, source, truth = random_frame(rng, (60, 90), (30, 45))
    confidence = rng.integers(1, 256, depth_m.shape).astype(np.uint8)
    measured = errors_of(depth_m, truth, source, confidence=confidence)
    assert measured.calibration() == measured.origins() == {}
    source[(depth_m > 0) & (rng.random(source.shape) < 0.6)] = Source.COMPLETED
    assert errors_of(depth_m, truth, source).calibration() == {}  # nothing is stated
    errors = errors_of(depth_m, truth, source, confidence=confidence, crop_height=21)

    depth_m, source, confidence = depth_m[9:], source[9:], confidence[9:]
    reference_m = reference_depth(np.vstack([np.zeros((9, 45), np.float32), depth_m]), truth.depth_m)[9:]
    right = (np.abs(depth_m - reference_m) <= 0.5) & (reference_m > 0)
    chosen = source == Source.COMPLETED
    stated, figures = confidence[chosen] / 255, errors.calibration()
    assert figures["n"] == chosen.sum() > 200
    expected = 0.0
    for group in figures["bins"]:
        own = (stated >= group["from"]) & (stated < group["from"] + 0.1 + (group["from"] == 0.9))
        assert group["share"] == pytest.approx(own.mean()) and group["stated"] == pytest.approx(stated[own].mean())
        assert group["within"] == pytest.approx(right[chosen][own].mean())
        expected += own.mean() * abs(stated[own].mean() - right[chosen][own].mean())
    assert figures["error"] == pytest.approx(expected)
    for name, own in (("measured", (source > 0) & ~chosen), ("completed", chosen)):
        means, on_surface = errors.origins()[name], own & (reference_m > 0)
        assert means["n"] == own.sum() and means["within"] == pytest.approx(right[own].mean())
        assert means["mae_m"] == pytest.approx(np.abs(depth_m - reference_m)[on_surface].mean(), rel=1e-6)


def test_plots_of_the_calibration():
    """Points at (0.2, 0.2), (0.6, 0.6) and (1, 1) on axes from pixel (80, 530) to (670, 60); bars up to 1.155 m."""
    picture = calibration(summarise([completed_errors(*CALIBRATED)], ["CAM"])["calibration"])
    assert picture.shape == (600, 1400, 3)
    for share in (0.2, 0.6, 1):
        assert tuple(picture[round(530 - 470 * share), round(80 + 590 * share)]) == BLUE
    for tenth, mae_m in ((0, 0.9), (4, 1.1), (9, 0)):
        column, top = 700 + 80 + 59 * tenth + 30, round(530 - 470 * mae_m / (1.05 * 1.1))
        assert (picture[top + 3 : 528, column] == BLUE).all() and not (picture[62 : top - 3, column] == BLUE).all(
            1
        ).any()


def test_what_is_judged_in_a_picture_is_what_is_counted():
    depth_m, source, truth = random_frame(np.random.default_rng(5), (60, 90), (30, 45))
    errors, verdict = errors_of(depth_m, truth, source).means(), judge(depth_m, reference_depth(depth_m, truth.depth_m))
    counts = {kind: np.count_nonzero(verdict == kind) for kind in Verdict}
    assert counts[Verdict.NONE] == np.count_nonzero(depth_m == 0)
    assert counts[Verdict.BEHIND] == round(errors["behind"] * errors["n"]) > 0
    assert counts[Verdict.IN_FRONT] == round(errors["in_front"] * errors["n"]) > 0


def test_pictures_show_where_a_label_is_wrong():
    truth = np.full((90, 160), 20, np.float32)
    depth_m = np.zeros((45, 80), np.float32)
    depth_m[10, 20], depth_m[30, 60], depth_m[40, 10] = 20, 40, 5
    picture = panels(np.zeros((90, 160, 3), np.uint8), depth_m, truth, "frame")
    height = picture.shape[0] // 2
    assert picture.shape == (2 * round(PANEL_WIDTH * 90 / 160), 2 * PANEL_WIDTH, 3)
    errors, px = picture[height:, PANEL_WIDTH:], PANEL_WIDTH / 80
    for (v, u), kind in {(10, 20): Verdict.RIGHT, (30, 60): Verdict.BEHIND, (40, 10): Verdict.IN_FRONT}.items():
        assert tuple(errors[round((v + 0.5) * px), round((u + 0.5) * px)]) == COLOURS[kind]
    bottom = panels(np.zeros((90, 160, 3), np.uint8), depth_m, truth, "frame", crop_height=20)
    errors = bottom[bottom.shape[0] // 2 :, PANEL_WIDTH:]
    assert tuple(errors[round(5.5 * px), round(60.5 * px)]) == COLOURS[Verdict.BEHIND]


def test_pictures_of_completed_labels_show_what_was_measured_and_the_confidence():
    depth_m, source = np.full((45, 80), 20, np.float32), np.full((45, 80), Source.COMPLETED, np.uint8)
    confidence = np.full((45, 80), 128, np.uint8)
    source[10, 20], confidence[10, 20] = Source.STATIC, 255
    truth = np.full((90, 160), 20, np.float32)
    picture = panels(np.full((90, 160, 3), 255, np.uint8), depth_m, truth, "frame", None, source, confidence)
    height, px = picture.shape[0] // 3, PANEL_WIDTH / 80
    measured, shown = picture[height : 2 * height, :PANEL_WIDTH], picture[height : 2 * height, PANEL_WIDTH:]
    at, elsewhere = (round(10.5 * px), round(20.5 * px)), (round(30.5 * px), round(60.5 * px))
    assert tuple(measured[at]) == tuple(picture[at[0], at[1] + PANEL_WIDTH]) != tuple(measured[elsewhere])
    assert tuple(measured[elsewhere]) == (89,) * 3  # the image, dimmed
    viridis = cv2.applyColorMap(np.array([[255, 128]], np.uint8), cv2.COLORMAP_VIRIDIS)[0]
    # Of neighbours the least confident is on top, so the measured pixel is seen at its own place alone.
    assert tuple(shown[at]) == tuple(viridis[0]) and tuple(shown[elsewhere]) == tuple(viridis[1])


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


def test_figures_of_no_labels_are_none():
    """JSON has no NaN."""
    for nothing in (LabelErrors(), DepthErrors()):
        figures = summarise([nothing, nothing], ["CAM_A", "CAM_B"])
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures
        for means in (figures["all"], *figures["cameras"].values()):
            assert (means["n"], means["share"], means["mae_m"], means["behind"]) == (0, None, None, None)
    assert figures["cameras"].keys() == {"CAM_A", "CAM_B"}
