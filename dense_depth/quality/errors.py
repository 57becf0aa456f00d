"""How far depths are from a reference: sums over pixels, and the means that follow from them.

A label is behind (seen through a surface) or in front (a ghost) if it is off by more than
max(OUTLIER_M, OUTLIER_RATIO * reference).
"""

import enum
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numba
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

from dense_depth.datasets.truth import Surface
from dense_depth.label import CERTAIN, OUTLIER_M, Source

OUTLIER_RATIO = 0.05
STRIDES = (4, 8, 16)  # of the feature maps that detectors supervise
RANGE_ENDS_M = (10, 20, 30, 40, 60)
CLASSES = (
    *(surface.name.lower() for surface in Surface),
    *("car", "truck", "bus", "trailer", "construction_vehicle", "pedestrian", "motorcycle", "bicycle"),
    *("traffic_cone", "barrier", "other"),
)
SPLITS = {
    "range": ("0-10 m", "10-20 m", "20-30 m", "30-40 m", "40-60 m", "60+ m", "sky"),  # ends belong to the nearer
    "motion": ("static", "moving"),
    "place": ("interior", "edge"),
    "class": CLASSES,
    "source": tuple(source.name.lower() for source in Source),
}
SHAPE = tuple(len(names) for names in SPLITS.values())
SUMS = ("labels", "compared", "absolute", "squared", "relative", "within_125", "behind", "in_front", "within")
TABLE = (*SHAPE, len(SUMS))


class Verdict(enum.IntEnum):
    """What a label is, compared with its reference."""

    NONE = 0  # no label
    RIGHT = 1
    BEHIND = 2
    IN_FRONT = 3


@numba.njit(cache=True, nogil=True)
def _add(sums, depth, reference):  # type: ignore[no-untyped-def]
    sums[0] += 1
    if reference == 0:
        sums[7] += 1
        return
    error, margin = depth - reference, max(OUTLIER_M, OUTLIER_RATIO * reference)
    sums[1] += 1
    sums[2] += abs(error)
    sums[3] += error * error
    sums[4] += abs(error) / reference
    sums[5] += max(depth / reference, reference / depth) < 1.25
    sums[6] += error > margin
    sums[7] += error < -margin
    sums[8] += abs(error) <= OUTLIER_M


@numba.njit(cache=True, nogil=True)
def tally(table, groups, depth_m, reference_m):  # type: ignore[no-untyped-def]
    """Adds each depth to the ``SUMS`` of its group.

    Args:
        table: (groups, sums) float64, changed in place.
        groups: (n,) rows of the table; nothing checks that it has them.
        depth_m: (n,) depths.
        reference_m: (n,) what they are compared with; 0 is sky: a depth is in front of it, without an error in metres.
    """
    for i in range(len(groups)):
        _add(table[groups[i]], np.float64(depth_m[i]), np.float64(reference_m[i]))


def judge(
    depth_m: Float32[np.ndarray, "height width"], reference_m: Float32[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width"]:
    """The ``Verdict`` on each label; a reference of 0 is sky."""
    reference_m = reference_m.astype(np.float64)
    error, margin = depth_m - reference_m, np.maximum(OUTLIER_M, OUTLIER_RATIO * reference_m)
    verdict = np.select(
        [depth_m == 0, (reference_m == 0) | (error < -margin), error > margin],
        [Verdict.NONE, Verdict.IN_FRONT, Verdict.BEHIND],
        Verdict.RIGHT,
    )
    return verdict.astype(np.uint8)


def mean_errors(sums: Float[np.ndarray, " sums"]) -> dict[str, float]:
    """MAE and RMSE in metres, AbsRel, and shares of labels; NaN where there was nothing to compare.

    A label is ``within`` if it is off by at most ``OUTLIER_M``; one on sky never is.
    """
    total = dict(zip(SUMS, sums.tolist()))
    labels, compared = total["labels"] or np.nan, total["compared"] or np.nan
    return {
        "n": total["labels"],
        "mae_m": total["absolute"] / compared,
        "rmse_m": float(np.sqrt(total["squared"] / compared)),
        "abs_rel": total["relative"] / compared,
        "delta_125": total["within_125"] / compared,
        "behind": total["behind"] / labels,
        "in_front": total["in_front"] / labels,
        "on_sky": (total["labels"] - total["compared"]) / labels,
        "within": total["within"] / labels,
    }


@dataclass
class DepthErrors:
    """Sums over pixels that have both a label and a reference; add frame after frame, then ask for the means.

    Attributes:
        sums: The ``SUMS``.
        n_references: Pixels that have a reference.
    """

    sums: Float[np.ndarray, " sums"] = field(default_factory=partial(np.zeros, len(SUMS)))
    n_references: int = 0

    def __add__(self, other: "DepthErrors") -> "DepthErrors":
        return DepthErrors(self.sums + other.sums, self.n_references + other.n_references)

    def add(self, depth_m: Float[np.ndarray, "height width"], reference_m: Float[np.ndarray, "height width"]) -> None:
        """Adds the pixels where both are above 0; metres."""
        both = (depth_m > 0) & (reference_m > 0)
        tally(self.sums[None], np.zeros(np.count_nonzero(both), int), depth_m[both], reference_m[both])
        self.n_references += int(np.count_nonzero(reference_m))

    def means(self) -> dict[str, float]:
        """See ``mean_errors``; and ``compared``, the share of the references where there was a label."""
        means = mean_errors(self.sums) | {"compared": float(self.sums[0]) / (self.n_references or np.nan)}
        del means["on_sky"]  # no reference is
        return means


@dataclass
class LabelErrors:
    """Labels against truth: sums over frames, split by ``SPLITS``; ``a + b`` is of the frames of both.

    A label pixel covers an area of native pixels, and a point in it is false only if no surface seen there has its
    depth. So a label's reference is the native pixel in its area whose depth is nearest to its own; range, motion,
    place and class are that pixel's. A label on an area of sky alone is in front of nothing: it counts as in front,
    and apart, and has no error in metres.

    Attributes:
        errors: (*SHAPE, sums).
        errors_at_centre: The same by a stricter rule: the reference is the native pixel at the label pixel's centre.
        by_confidence: The sums of ``errors`` of completed labels alone, by their confidence; (256, sums).
        pixels: (*SHAPE[:-1]) all pixels of the labels, by what their centre shows.
        surface_pixels: Pixels in whose area a surface is seen, and how many of them have a label.
        surface_cells: The same of square cells of ``STRIDES`` pixels; (strides, 2).
    """

    errors: Float[np.ndarray, "range motion place class source sums"] = field(default_factory=partial(np.zeros, TABLE))
    errors_at_centre: Float[np.ndarray, "range motion place class source sums"] = field(
        default_factory=partial(np.zeros, TABLE)
    )
    by_confidence: Float[np.ndarray, "confidences sums"] = field(
        default_factory=partial(np.zeros, (CERTAIN + 1, len(SUMS)))
    )
    pixels: Int[np.ndarray, "range motion place class"] = field(default_factory=partial(np.zeros, SHAPE[:-1], int))
    surface_pixels: Int[np.ndarray, " 2"] = field(default_factory=partial(np.zeros, 2, int))
    surface_cells: Int[np.ndarray, "strides 2"] = field(default_factory=partial(np.zeros, (len(STRIDES), 2), int))

    def __add__(self, other: "LabelErrors") -> "LabelErrors":
        return LabelErrors(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def means(self) -> dict[str, Any]:
        """Shares of pixels and cells with a label, and ``mean_errors`` by both rules."""
        n_labels = self.errors[..., SUMS.index("labels")].sum()
        cells = {str(stride): ratio(*cells[::-1]) for stride, cells in zip(STRIDES, self.surface_cells)}
        return {
            "pixels": int(self.pixels.sum()),
            "labelled": ratio(n_labels, self.pixels.sum()),
            "coverage": ratio(*self.surface_pixels[::-1]),
            "coverage_cells": cells,
            **mean_errors(_total(self.errors)),
            "at_centre": mean_errors(_total(self.errors_at_centre)),
        }

    def n_false(self) -> int:
        """Labels behind or in front."""
        return int(_total(self.errors)[[SUMS.index("behind"), SUMS.index("in_front")]].sum())

    def split(self, name: str) -> dict[str, dict[str, float]]:
        """``mean_errors`` by one of ``SPLITS``, with the share of all labels and, but by source, the coverage.

        Coverage here is by pixel centres: of the pixels whose centre shows such a thing, those with a label.
        """
        axis = list(SPLITS).index(name)
        errors, at_centre = (_marginal(errors, axis) for errors in (self.errors, self.errors_at_centre))
        groups = {}
        for i, group in enumerate(SPLITS[name]):
            pixels = _marginal(self.pixels, axis)[i] if name != "source" else np.nan
            if errors[i, 0] or pixels > 0:
                share, coverage = ratio(errors[i, 0], errors[:, 0].sum()), ratio(at_centre[i, 0], pixels)
                groups[group] = {"share": share, "coverage": coverage, **mean_errors(errors[i])}
        return groups

    def origins(self) -> dict[str, dict[str, float]]:
        """``mean_errors`` of measured and of completed labels, with their share of all; {} if none is completed."""
        by_source = _marginal(self.errors, list(SPLITS).index("source"))
        sums = {"measured": by_source[: Source.COMPLETED].sum(0), "completed": by_source[Source.COMPLETED]}
        if not sums["completed"].any():
            return {}
        n = by_source[:, 0].sum()
        return {name: {"share": ratio(own[0], n), **mean_errors(own)} for name, own in sums.items()}

    def causes(self) -> list[dict[str, Any]]:
        """What remains: false labels by class, place and source, most first, with their share of all false labels."""
        cause = ("place", "class", "source")  # in the order of SPLITS
        axes = [list(SPLITS).index(name) for name in cause]
        behind, in_front = (_marginal(self.errors[..., SUMS.index(name)], *axes) for name in ("behind", "in_front"))
        wrong = behind + in_front
        causes = []
        for at in np.argsort(-wrong, axis=None, kind="stable")[: np.count_nonzero(wrong)]:
            index = np.unravel_index(at, wrong.shape)
            names = {name: SPLITS[name][i] for name, i in zip(cause, index)}
            counts = {"behind": int(behind[index]), "in_front": int(in_front[index])}
            causes.append(names | counts | {"share": float(wrong[index] / wrong.sum())})
        return causes


def _marginal(table: np.ndarray, *axes: int) -> np.ndarray:
    """Sums over all axes of ``SPLITS`` but these; their order stays."""
    return table.sum(tuple(axis for axis in range(min(table.ndim, len(SHAPE))) if axis not in axes))


def _total(errors: np.ndarray) -> Float[np.ndarray, " sums"]:
    return errors.reshape(-1, len(SUMS)).sum(0)


def ratio(part: float, whole: float) -> float:
    """A share; NaN of nothing."""
    return float(part / whole) if whole else np.nan
