"""What a label takes from a completion, and how it is rounded."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dense_depth.completion.fill import MAX_ROUNDING_M, fill, round_confidence, round_depth
from dense_depth.completion.predict import Completion
from dense_depth.label import Label


def small_label() -> Label:
    depth_m = np.array([[7.50390625, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    source, age = (depth_m > 0).astype(np.uint8), (depth_m > 0) * np.uint8(3)
    return Label.from_maps(depth_m, source, age, K=np.eye(3), sample_token="t", camera="c", timestamp_us=0)


def test_keeps_measurements_and_drops_what_is_unsure_or_no_depth():
    depth_m = np.array([[9, 9.01, 9, np.nan], [np.inf, 255.99, -1, 1e-4]], np.float32)
    confidence = np.array([[0, 128, 127, 255], [255, 255, 255, 255]], np.uint8)
    done = fill(small_label(), Completion(depth_m, confidence), 0.5)
    assert done.depth_m.tolist() == [[7.50390625, 9, 0, 0], [0, 0, 0, 0]]
    assert done.source.tolist() == [[1, 4, 0, 0], [0, 0, 0, 0]]
    assert done.confidence.tolist() == [[255, 130, 0, 0], [0, 0, 0, 0]]
    assert done.age.tolist() == [[3, 0, 0, 0], [0, 0, 0, 0]]
    assert done.depth_m.dtype == np.float32 and done.source.dtype == done.confidence.dtype == np.uint8


@pytest.mark.parametrize(("min_confidence", "kept"), [(0, 3), (0.2, 2), (51.01 / 255, 1), (1, 0)])
def test_min_confidence_is_a_share_of_255(min_confidence, kept):
    depth_m = np.full((2, 4), 9, np.float32)
    confidence = np.zeros((2, 4), np.uint8)
    confidence[0, 1], confidence[0, 2] = 51, 254
    depth_m[1] = depth_m[0, 0] = 0
    done = fill(small_label(), Completion(depth_m, confidence), min_confidence)
    assert np.count_nonzero(done.source == 4) == kept


def test_what_is_rounded_past_the_largest_depth_is_too_far():
    depth_m = np.zeros((2, 4), np.float32)
    depth_m[1] = [255.95, 255.98, 255.989, 255.99]
    done = fill(small_label(), Completion(depth_m, np.full((2, 4), 200, np.uint8)), 0.5)
    assert done.depth_m[1].tolist() == [255.9375, 255.96875, 0, 0]


@given(st.floats(0.001953125, 255.9375, width=32))
def test_depths_are_rounded_as_stated(depth_m):
    """To a multiple of a step, which doubles at 2, 4 and 8 m, and to the nearest one."""
    rounded = Fraction(float(round_depth(np.array([depth_m], np.float32))[0]))
    step = Fraction(1, 256) * (1 + (depth_m >= 2)) * (1 + (depth_m >= 4)) * (1 + (depth_m >= 8))
    assert (rounded / step).denominator == 1
    error = abs(rounded - Fraction(depth_m))
    assert error <= step / 2 and error <= MAX_ROUNDING_M
    assert depth_m < 1 or error <= Fraction(depth_m) / 512


def test_confidence_is_rounded_by_two_and_never_says_none_or_measured():
    before = np.arange(256, dtype=np.uint8)
    after = round_confidence(before)
    assert after.dtype == np.uint8 and len(set(after.tolist())) == 64
    assert np.abs(after.astype(int) - before).max() == 2
    assert (after.min(), after.max()) == (2, 254)
    assert (np.diff(after.astype(int)) >= 0).all()
