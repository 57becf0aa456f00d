"""Puts a completion into a label."""

import math
from typing import TYPE_CHECKING

import numpy as np

from dense_depth.label import CERTAIN, MAX_DEPTH_M, Label, Source, dequantise, quantise

if TYPE_CHECKING:
    from dense_depth.completion.predict import Completion


def fill(label: Label, completion: "Completion", min_confidence: float) -> Label:
    """A label with what it lacks taken from a completion of its size; what was measured stays as it is.

    Args:
        label: The label to complete.
        completion: Depth and confidence; a depth that is not finite or too far counts as none.
        min_confidence: A completed pixel with less, in [0, 1], gets no label.
    """
    depth_m, confidence = completion
    usable = (depth_m > 0) & (depth_m < MAX_DEPTH_M) & (confidence >= math.ceil(255 * min_confidence))  # nan: false
    depth_m = dequantise(quantise(np.where(usable, depth_m, 0)))
    measured, completed = label.depth_m > 0, depth_m > 0
    return Label.from_maps(
        np.where(measured, label.depth_m, depth_m),
        np.where(measured, label.source, completed * np.uint8(Source.COMPLETED)),
        label.age,
        np.where(measured, np.uint8(CERTAIN), completed * confidence),
        K=label.K,
        sample_token=label.sample_token,
        camera=label.camera,
        timestamp_us=label.timestamp_us,
    )
