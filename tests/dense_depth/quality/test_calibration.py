"""The calibration of completed labels: hand-worked numbers, and the definition written out."""

import json

import numpy as np
import pytest
from conftest import frame_truth, label_of, random_frame

from dense_depth.label import Source
from dense_depth.quality.calibration import calibration
from dense_depth.quality.errors import LabelErrors
from dense_depth.quality.summary import summarise
from dense_depth.quality.truth import compare, reference_depth


def completed_errors(*groups) -> LabelErrors:
    """Errors of completed labels on truth at 10 m, or sky: groups of (how many, confidence, depth, truth)."""
    depth_m, truth_m, confidence = (
        np.array([[group[i] for group in groups for _ in range(group[0])]], dtype)
        for i, dtype in ((2, np.float32), (3, np.float32), (1, np.uint8))
    )
    source = np.full(depth_m.shape, Source.COMPLETED, np.uint8)
    return compare(label_of(depth_m, source, confidence), frame_truth(truth_m))


CALIBRATED = ((80, 51, 11, 10), (20, 51, 10.5, 10), (40, 153, 12, 10), (60, 153, 9.5, 10), (100, 255, 10, 10))


def test_confidence_that_is_right():
    """Of 100 labels each, those that say 20 %, 60 % and 100 % are off by at most 0.5 m as often."""
    figures = calibration(completed_errors(*CALIBRATED).by_confidence)
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
    figures = calibration(errors.by_confidence)
    assert figures["error"] == pytest.approx(0.3) and figures["on_sky"] == pytest.approx(0.1)
    assert figures["within"] == pytest.approx(0.7) and figures["mae_m"] == pytest.approx(20 * 2 / 90)
    assert [tenth["within"] for tenth in figures["tenths"]] == pytest.approx([0.7] * 10)
    # Beside labels that say too little, errors do not cancel: 100 x 0.3 and 300 x (1 - 0.4).
    both = errors + completed_errors((300, 102, 10, 10))
    assert calibration(both.by_confidence)["error"] == pytest.approx((100 * 0.3 + 300 * 0.6) / 400)
    assert json.loads(json.dumps(summarise([both], ["CAM"]), allow_nan=False))["calibration"]["n"] == 400
    all_sky = summarise([completed_errors((10, 200, 50, 0))], ["CAM"])["calibration"]
    assert all_sky["mae_m"] is all_sky["tenths"][0]["mae_m"] is None and all_sky["within"] == 0


def test_confidence_counts_for_completed_labels_alone():
    rng = np.random.default_rng(0)
    depth_m, source, truth = random_frame(rng, (60, 90), (30, 45))
    confidence = rng.integers(1, 256, depth_m.shape).astype(np.uint8)
    measured = compare(label_of(depth_m, source, confidence), truth)
    assert calibration(measured.by_confidence) == measured.origins() == {}
    source[(depth_m > 0) & (rng.random(source.shape) < 0.6)] = Source.COMPLETED
    assert calibration(compare(label_of(depth_m, source), truth).by_confidence) == {}  # nothing is stated
    errors = compare(label_of(depth_m, source, confidence), truth, crop_height=21)

    depth_m, source, confidence = depth_m[9:], source[9:], confidence[9:]
    reference_m = reference_depth(np.vstack([np.zeros((9, 45), np.float32), depth_m]), truth.depth_m)[9:]
    right = (np.abs(depth_m - reference_m) <= 0.5) & (reference_m > 0)
    chosen = source == Source.COMPLETED
    stated, figures = confidence[chosen] / 255, calibration(errors.by_confidence)
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
