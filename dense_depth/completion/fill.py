"""A label filled with a completion: measured pixels stay as they are, completed ones are rounded to what they know."""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32, UInt8

from dense_depth.label import CERTAIN, DEPTH_STEPS_PER_M, MAX_DEPTH_M, Label, Source

if TYPE_CHECKING:
    from dense_depth.completion.predict import Completion

# A completed depth keeps 9 bits, so it is off by at most 1/512 of itself: 2 in 1000, where its own mean error is 8 in
# 1000; and by at most 1.6 cm, from 8 m on, where its own mean error is 15 cm and more. See docs/format.md.
KEPT_BITS = 9
MAX_ROUNDING_M = 1 / 64
CONFIDENCE_STEP = 4


def fill(label: Label, completion: "Completion", min_confidence: float) -> Label:
    """A label with what it lacks taken from a completion of its size; what was measured stays as it is.

    Args:
        label: The label to complete.
        completion: Depth and confidence; a depth that is not finite or too far counts as none.
        min_confidence: A completed pixel with less, in [0, 1], gets no label.
    """
    depth_m, confidence = completion
    usable = (depth_m > 0) & (depth_m < MAX_DEPTH_M) & (confidence >= math.ceil(255 * min_confidence))  # nan: false
    depth_m = round_depth(np.where(usable, depth_m, 0))
    measured, completed = label.depth_m > 0, (depth_m > 0) & (depth_m < MAX_DEPTH_M)
    return Label.from_maps(
        np.where(measured, label.depth_m, completed * depth_m),
        np.where(measured, label.source, completed * np.uint8(Source.COMPLETED)),
        label.age,
        np.where(measured, np.uint8(CERTAIN), completed * round_confidence(confidence)),
        K=label.K,
        sample_token=label.sample_token,
        camera=label.camera,
        timestamp_us=label.timestamp_us,
    )


def round_depth(depth_m: Float32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Rounds to ``KEPT_BITS`` significant bits, but by at most ``MAX_ROUNDING_M``, and to whole depth steps."""
    exponent = np.frexp(depth_m)[1]
    step_m = np.ldexp(np.float32(1), exponent - KEPT_BITS)
    step_m = np.clip(step_m, np.float32(1 / DEPTH_STEPS_PER_M), np.float32(2 * MAX_ROUNDING_M))
    return np.rint(depth_m / step_m) * step_m  # exact but for the rounding: steps are powers of two


def round_confidence(confidence: UInt8[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """The middle of steps of ``CONFIDENCE_STEP``: never 0, which is no label, nor ``CERTAIN``, which is measured."""
    return confidence // CONFIDENCE_STEP * np.uint8(CONFIDENCE_STEP) + np.uint8(CONFIDENCE_STEP // 2)
