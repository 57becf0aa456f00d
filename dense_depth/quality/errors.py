"""How far labels are from a reference: truth where a dataset has it, else a sweep that was held out.

A label is behind (seen through a surface) or in front (a ghost) if it is off by more than
max(OUTLIER_M, OUTLIER_RATIO * reference).
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import cv2
import numba
import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8, UInt16

from dense_depth import InputError
from dense_depth.datasets.truth import Surface, Truth
from dense_depth.label import CERTAIN, Source

OUTLIER_M = 0.5
OUTLIER_RATIO = 0.05
EDGE_RATIO = 0.05  # as OUTLIER_RATIO: beyond half a metre, a smaller jump in depth makes no label false
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
N_BINS = 10  # of confidence

# The range of a depth by the metre it ends in; 0 is sky.
_RANGE_OF_METRE = np.digitize(range(256), RANGE_ENDS_M, right=True)
_RANGE_OF_METRE[0] = SPLITS["range"].index("sky")
_COMPLETED = int(Source.COMPLETED)  # compiled code takes plain numbers


class Verdict(enum.IntEnum):
    """What a label is, compared with its reference."""

    NONE = 0  # no label
    RIGHT = 1
    BEHIND = 2
    IN_FRONT = 3


@numba.njit(cache=True, nogil=True)
def _tally(sums, depth, reference):  # type: ignore[no-untyped-def]
    """Adds one label to its ``SUMS``. A reference of 0 is sky: in front of nothing, without an error in metres."""
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
def _tally_both(sums, depth_m, reference_m):  # type: ignore[no-untyped-def]
    for v in range(depth_m.shape[0]):
        for u in range(depth_m.shape[1]):
            if depth_m[v, u] > 0 and reference_m[v, u] > 0:
                _tally(sums, np.float64(depth_m[v, u]), np.float64(reference_m[v, u]))


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
        _tally_both(self.sums, depth_m, reference_m)
        self.n_references += int(np.count_nonzero(reference_m))

    def means(self) -> dict[str, float]:
        """See ``mean_errors``; and ``compared``, the share of the references where there was a label."""
        means = mean_errors(self.sums) | {"compared": float(self.sums[0]) / (self.n_references or np.nan)}
        del means["on_sky"]  # no reference is
        return means


def depth_edges(depth_m: Float32[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Where depth jumps along x or y, and the pixels around.

    Inverse depth is linear in pixel coordinates on a plane, however slanted, so a jump is a second difference of it:
    one above ``EDGE_RATIO`` of the pixel's own inverse depth. Sky (0) has inverse depth 0. A crease, such as a kerb or
    the foot of a wall, stays below that unless depth changes by more than 5 % from one pixel to the next.
    """
    inverse = np.divide(1, depth_m, out=np.zeros_like(depth_m), where=depth_m > 0)
    along_x, along_y = (cv2.Sobel(inverse, -1, dx, dy, ksize=1) for dx, dy in ((2, 0), (0, 2)))  # [1, -2, 1]
    along_x[:, [0, -1]] = 0  # there is nothing beyond the border
    along_y[[0, -1]] = 0
    edge = np.maximum(np.abs(along_x), np.abs(along_y)) > EDGE_RATIO * inverse
    return cv2.dilate(edge.view(np.uint8), np.ones((3, 3), np.uint8)).view(bool)


@dataclass(frozen=True)
class FrameTruth:
    """What one image shows, at its own size.

    Attributes:
        depth_m: Depth through each pixel's centre, 0 = sky.
        instance: 0 = background, i = the instance whose class is ``classes[i - 1]``.
        moving: 1 on moving objects.
        surface: ``Surface`` codes.
        classes: Detection classes of the instances.
    """

    depth_m: Float32[np.ndarray, "height width"]
    instance: UInt16[np.ndarray, "height width"]
    moving: UInt8[np.ndarray, "height width"]
    surface: UInt8[np.ndarray, "height width"]
    classes: tuple[str, ...]

    @classmethod
    def read(cls, truth: Truth, sample_token: str) -> "FrameTruth":
        """Reads one frame; raises InputError when there is no truth for the sample."""
        if sample_token not in truth.sample_tokens:
            raise InputError(f"sample {sample_token}: the dataset has no truth for it")
        at = truth.sample_tokens.index(sample_token)
        arrays = truth.depth_m, truth.instance, truth.moving, truth.surface
        depth_m, instance, moving, surface = (np.asarray(array[at]) for array in arrays)
        return cls(depth_m, instance, moving, surface, truth.classes)


def footprints(n_label: int, n_native: int) -> Int[np.ndarray, "n_label 3"]:
    """The native pixels of each label pixel along one side of the image: first, one after the last, and the middle one.

    They are those that the label pixel's area touches, since a point in it lies in one of them; the middle one is the
    nearest to its centre. Pixel borders scale, as in ``geometry.resize_K``.
    """
    border = np.arange(n_label + 1) * n_native  # in native pixels, times n_label
    middle = (2 * np.arange(n_label) + 1) * n_native // (2 * n_label)
    return np.column_stack([border[:-1] // n_label, -(-border[1:] // n_label), middle])


@numba.njit(cache=True, nogil=True)
def _reference(depth, truth_m, row, column):  # type: ignore[no-untyped-def]
    """The native pixel of a footprint whose surface is nearest to a depth; the middle one wins ties, and on sky."""
    best_y, best_x = row[2], column[2]
    gap = abs(truth_m[best_y, best_x] - depth) if truth_m[best_y, best_x] > 0 else np.inf
    for y in range(row[0], row[1]):
        for x in range(column[0], column[1]):
            if truth_m[y, x] > 0 and abs(truth_m[y, x] - depth) < gap:
                best_y, best_x, gap = y, x, abs(truth_m[y, x] - depth)
    return best_y, best_x


@numba.njit(cache=True, nogil=True)
def _reference_depth(depth_m, truth_m, rows, columns):  # type: ignore[no-untyped-def]
    reference_m = np.zeros_like(depth_m)
    for v in range(depth_m.shape[0]):
        for u in range(depth_m.shape[1]):
            if depth_m[v, u] > 0:
                reference_m[v, u] = truth_m[_reference(depth_m[v, u], truth_m, rows[v], columns[u])]
    return reference_m


def reference_depth(
    depth_m: Float32[np.ndarray, "height width"], truth_m: Float32[np.ndarray, "native_height native_width"]
) -> Float32[np.ndarray, "height width"]:
    """What each label is compared with: the depth in its pixel's area nearest to its own; 0 on sky or without label."""
    rows, columns = map(footprints, depth_m.shape, truth_m.shape)
    return _reference_depth(depth_m, truth_m, rows, columns)


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


@numba.njit(cache=True, nogil=True)
def _group(truth_m, moving, edge, kind, y, x):  # type: ignore[no-untyped-def]
    """Index of what a native pixel shows into the axes of ``SHAPE`` but the last."""
    # Ranges end at whole metres, so the metre in which a depth ends tells its range.
    in_range = _RANGE_OF_METRE[int(np.ceil(min(truth_m[y, x], np.float32(255))))]
    return ((in_range * SHAPE[1] + moving[y, x]) * SHAPE[2] + edge[y, x]) * SHAPE[3] + kind[y, x]


@numba.njit(cache=True, nogil=True)
def _compare(  # type: ignore[no-untyped-def]
    depth_m, source, confidence, truth_m, moving, edge, kind, rows, columns, errors, errors_at_centre, by_confidence, px
):
    for v in range(depth_m.shape[0]):
        for u in range(depth_m.shape[1]):
            y, x = rows[v, 2], columns[u, 2]
            shown = _group(truth_m, moving, edge, kind, y, x)
            px[shown] += 1
            if depth_m[v, u] > 0:
                depth, code = np.float64(depth_m[v, u]), source[v, u]
                _tally(errors_at_centre[shown, code], depth, np.float64(truth_m[y, x]))
                y, x = _reference(depth_m[v, u], truth_m, rows[v], columns[u])
                group = _group(truth_m, moving, edge, kind, y, x)
                _tally(errors[group, code], depth, np.float64(truth_m[y, x]))
                if code == _COMPLETED:
                    _tally(by_confidence[confidence[v, u]], depth, np.float64(truth_m[y, x]))


@dataclass
class LabelErrors:
    """Labels against truth: sums over frames, split by ``SPLITS``; ``a + b`` is as if all frames had gone to one.

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

    def add(
        self,
        depth_m: Float32[np.ndarray, "height width"],
        source: UInt8[np.ndarray, "height width"],
        truth: FrameTruth,
        crop_height: int | None = None,
        confidence: UInt8[np.ndarray, "height width"] | None = None,
    ) -> None:
        """Adds one frame.

        Args:
            depth_m: The label, 0 = none; the whole image at any size.
            source: ``Source`` codes of the label.
            truth: What the image shows.
            crop_height: Count only so many rows at the bottom of the label.
            confidence: Of the label, 255 = certain; completed labels without one count in no ``by_confidence``.

        Raises:
            InputError: The truth has a detection class that is not among ``CLASSES``.
            ValueError: A code is unknown, or a depth of the truth is negative or NaN.
        """
        if unknown := set(truth.classes) - set(CLASSES):
            raise InputError(f"truth: detection class {min(unknown)!r} is none of {', '.join(CLASSES)}")
        class_of = np.array([0, *map(CLASSES.index, truth.classes)], np.uint8)
        kind = np.where(truth.instance == 0, truth.surface, class_of.take(truth.instance))
        # Compiled code does not check its indices.
        if kind.max() >= len(CLASSES) or source.max() > max(Source) or not truth.depth_m.min() >= 0:
            raise ValueError("a surface or source code is unknown, or a depth of the truth is negative or NaN")
        bottom = slice(-(crop_height or len(depth_m)), None)
        rows, columns = map(footprints, depth_m.shape, truth.depth_m.shape)
        rows, depth_m, source = rows[bottom], depth_m[bottom], source[bottom]
        _compare(
            depth_m,
            source,
            source if confidence is None else confidence[bottom],
            truth.depth_m,
            truth.moving > 0,
            depth_edges(truth.depth_m),
            kind,
            rows,
            columns,
            self.errors.reshape(-1, SHAPE[-1], len(SUMS)),
            self.errors_at_centre.reshape(-1, SHAPE[-1], len(SUMS)),
            np.zeros_like(self.by_confidence) if confidence is None else self.by_confidence,
            self.pixels.reshape(-1),
        )
        is_surface, is_labelled = _any_in_areas(truth.depth_m > 0, rows, columns), depth_m > 0
        self.surface_pixels += _count(is_surface, is_labelled)
        for i, stride in enumerate(STRIDES):
            self.surface_cells[i] += _count(_any_in_cells(is_surface, stride), _any_in_cells(is_labelled, stride))

    def means(self) -> dict[str, Any]:
        """Shares of pixels and cells with a label, and ``mean_errors`` by both rules."""
        n_labels = self.errors[..., SUMS.index("labels")].sum()
        cells = {str(stride): _ratio(*cells[::-1]) for stride, cells in zip(STRIDES, self.surface_cells)}
        return {
            "pixels": int(self.pixels.sum()),
            "labelled": _ratio(n_labels, self.pixels.sum()),
            "coverage": _ratio(*self.surface_pixels[::-1]),
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
                share, coverage = _ratio(errors[i, 0], errors[:, 0].sum()), _ratio(at_centre[i, 0], pixels)
                groups[group] = {"share": share, "coverage": coverage, **mean_errors(errors[i])}
        return groups

    def origins(self) -> dict[str, dict[str, float]]:
        """``mean_errors`` of measured and of completed labels, with their share of all; {} if none is completed."""
        by_source = _marginal(self.errors, list(SPLITS).index("source"))
        sums = {"measured": by_source[:_COMPLETED].sum(0), "completed": by_source[_COMPLETED]}
        if not sums["completed"].any():
            return {}
        n = by_source[:, 0].sum()
        return {name: {"share": _ratio(own[0], n), **mean_errors(own)} for name, own in sums.items()}

    def calibration(self) -> dict[str, Any]:
        """Whether the confidence of completed labels is the share of them that is ``within``; {} if none has one.

        Returns:
            The mean ``stated`` confidence (0 to 1) of completed labels, ``within`` and other means; the same by "bins"
            of stated confidence, equally wide, those without labels left out; and by "tenths" of equally many labels,
            the least confident first (where labels of one confidence fall into two tenths, their sums are divided in
            proportion). ``error`` is the expected calibration error (Guo et al., "On calibration of modern neural
            networks", ICML 2017): the mean over labels of how far stated and within are apart in their bin.
        """
        stated = np.arange(CERTAIN + 1) / CERTAIN
        sums = np.column_stack([self.by_confidence, self.by_confidence[:, 0] * stated])
        n = sums[:, 0].sum()
        if not n:
            return {}
        bin_of = np.minimum(np.arange(CERTAIN + 1) * N_BINS // CERTAIN, N_BINS - 1)
        bins = [(i / N_BINS, sums[bin_of == i].sum(0)) for i in range(N_BINS)]
        up_to = np.vstack([np.zeros(sums.shape[1]), sums.cumsum(0)])
        ends = np.linspace(0, n, N_BINS + 1)
        tenths = np.diff([np.interp(ends, up_to[:, 0], column) for column in up_to.T]).T

        def figures(own: np.ndarray) -> dict[str, float]:
            means = mean_errors(own[:-1])
            kept = {name: means[name] for name in ("mae_m", "within", "on_sky")}
            return {"share": float(own[0] / n), "stated": float(own[-1] / own[0]), **kept}

        curve = [{"from": lowest, **figures(own)} for lowest, own in bins if own[0]]
        return {
            "n": n,
            "error": sum(own["share"] * abs(own["stated"] - own["within"]) for own in curve),
            **figures(sums.sum(0)),
            "bins": curve,
            "tenths": [figures(own) for own in tenths],
        }

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


def summarise(errors: Sequence[LabelErrors] | Sequence[DepthErrors], cameras: Sequence[str]) -> dict[str, Any]:
    """The figures of a whole version: over all of it, by camera, and, against truth, by ``SPLITS`` and causes.

    Args:
        errors: One or more; sums of floats depend on their order.
        cameras: The camera that each is of.

    Returns:
        ``means`` under "all" and, by camera, under "cameras", with the share of all labels; for ``LabelErrors`` also
        ``split`` under each name of ``SPLITS``, ``causes``, ``origins`` and ``calibration``. Figures as by ``known``.
    """
    by_camera = {camera: _sum([e for e, of in zip(errors, cameras) if of == camera]) for camera in sorted({*cameras})}
    overall = _sum(errors)
    means = {"all": overall.means()} | {camera: own.means() for camera, own in by_camera.items()}
    shares = {name: {"share": _ratio(own["n"], means["all"]["n"])} | own for name, own in means.items()}
    figures: dict[str, Any] = {"all": shares.pop("all"), "cameras": shares}
    if isinstance(overall, LabelErrors):
        figures |= {name: overall.split(name) for name in SPLITS} | {"causes": overall.causes()}
        figures |= {"origins": overall.origins(), "calibration": overall.calibration()}
    return known(figures)


def known(figures: Any) -> Any:
    """NaN, where there was nothing to compare, as None in nested dicts and lists: JSON and manifests have no NaN."""
    if isinstance(figures, dict):
        return {name: known(value) for name, value in figures.items()}
    if isinstance(figures, list):
        return [known(value) for value in figures]
    return None if isinstance(figures, float) and np.isnan(figures) else figures


def _sum(errors: Sequence[Any]) -> Any:
    return sum(errors[1:], start=errors[0])


def _marginal(table: np.ndarray, *axes: int) -> np.ndarray:
    """Sums over all axes of ``SPLITS`` but these; their order stays."""
    return table.sum(tuple(axis for axis in range(min(table.ndim, len(SHAPE))) if axis not in axes))


def _total(errors: np.ndarray) -> Float[np.ndarray, " sums"]:
    return errors.reshape(-1, len(SUMS)).sum(0)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else np.nan


def _any_in_areas(mask: Bool[np.ndarray, "native_height native_width"], *sides: np.ndarray) -> np.ndarray:
    """Whether any native pixel in the area of each label pixel is set; (label rows, label columns)."""
    for side in sides:
        steps = range(int((side[:, 1] - side[:, 0]).max()))
        mask = np.logical_or.reduce([mask[np.minimum(side[:, 0] + step, side[:, 1] - 1)] for step in steps]).T
    return mask


def _any_in_cells(mask: Bool[np.ndarray, "height width"], stride: int) -> Bool[np.ndarray, "rows columns"]:
    """Whether any pixel of each square cell is set; cells at the right and the bottom may be cut short."""
    reaching = cv2.dilate(mask.astype(np.uint8), np.ones((stride, stride), np.uint8), anchor=(0, 0))  # right and down
    return reaching[::stride, ::stride] > 0


def _count(is_surface: np.ndarray, is_labelled: np.ndarray) -> tuple[int, int]:
    return int(np.count_nonzero(is_surface)), int(np.count_nonzero(is_surface & is_labelled))
