"""Labels against the exact depth of a generated dataset: what a label is compared with, and what is seen there."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numba
import numpy as np
from jaxtyping import Bool, Float32, Int, UInt8, UInt16

from catalog import Version
from dense_depth import InputError
from dense_depth.datasets.scene import CameraFrame
from dense_depth.datasets.truth import Truth
from dense_depth.label import Label, Source
from dense_depth.quality.errors import CLASSES, RANGE_ENDS_M, SHAPE, SPLITS, STRIDES, SUMS, LabelErrors, tally

EDGE_RATIO = 0.05  # as errors.OUTLIER_RATIO: beyond half a metre, a smaller jump in depth makes no label false

# The range of a depth by the metre it ends in; 0 is sky.
_RANGE_OF_METRE = np.digitize(range(256), RANGE_ENDS_M, right=True)
_RANGE_OF_METRE[0] = SPLITS["range"].index("sky")


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


def compare_labels(
    version: Version, kind: str, frames: Sequence[CameraFrame], truth: Truth, crop_height: int | None = None
) -> tuple[LabelErrors, dict[str, int]]:
    """Compares the labels of camera frames with their truth.

    Args:
        version: Has the labels.
        kind: Their kind.
        frames: Frames of one camera of one scene.
        truth: The truth of that camera.
        crop_height: As in ``compare``.

    Returns:
        The errors of all, and the number of false labels in each frame by its sample token.

    Raises:
        InputError: A label or the truth is missing, damaged or of another image.
    """
    total, false_labels = LabelErrors(), {}
    for frame in frames:
        label, shown = version.label_of(frame, kind), FrameTruth.read(truth, frame.sample_token)
        if shown.depth_m.shape != (frame.height, frame.width):
            size = "x".join(map(str, shown.depth_m.shape[::-1]))
            raise InputError(f"{frame.path}: {frame.width}x{frame.height} pixels, but its truth has {size}")
        errors = compare(label, shown, crop_height)
        false_labels[frame.sample_token] = errors.n_false()
        total = total + errors
    return total, false_labels


def compare(label: Label, truth: FrameTruth, crop_height: int | None = None) -> LabelErrors:
    """Compares one label with what its image shows; see ``LabelErrors`` for the rule.

    Args:
        label: The whole image at any size.
        truth: What the image shows.
        crop_height: Count only so many rows at the bottom of the label.

    Raises:
        InputError: The truth has a detection class that is not among ``CLASSES``.
        ValueError: A code is unknown, or a depth of the truth is negative or NaN.
    """
    errors, points = LabelErrors(), label.points()
    rows, columns = map(footprints, (label.height, label.width), truth.depth_m.shape)
    top = max(0, label.height - (crop_height or label.height))
    below = slice(int(np.searchsorted(points.v, top)), None)  # points are in row order
    u, v, depth_m, source = (values[below] for values in (points.u, points.v, points.depth_m, points.source))
    if source.max(initial=0) > max(Source):
        raise ValueError("a source code is unknown")
    group = _groups(truth)

    at = rows[v, 2], columns[u, 2]
    tally(_by_group(errors.errors_at_centre), group[at] * len(Source) + source, depth_m, truth.depth_m[at])
    at = _nearest(v, u, depth_m, truth.depth_m, rows, columns)
    reference_m = truth.depth_m[at]
    tally(_by_group(errors.errors), group[at] * len(Source) + source, depth_m, reference_m)
    if points.confidence is not None:
        completed = source == Source.COMPLETED
        tally(errors.by_confidence, points.confidence[below][completed], depth_m[completed], reference_m[completed])

    is_labelled = np.zeros((label.height - top, label.width), bool)
    is_labelled[v - top, u] = True
    is_surface = _any_in_areas(truth.depth_m > 0, rows[top:], columns)
    shown = group[np.ix_(rows[top:, 2], columns[:, 2])]
    errors.pixels += np.bincount(shown.ravel(), minlength=errors.pixels.size).reshape(errors.pixels.shape)
    errors.surface_pixels += _count(is_surface, is_labelled)
    for i, stride in enumerate(STRIDES):
        errors.surface_cells[i] += _count(_any_in_cells(is_surface, stride), _any_in_cells(is_labelled, stride))
    return errors


def reference_depth(
    depth_m: Float32[np.ndarray, "height width"], truth_m: Float32[np.ndarray, "native_height native_width"]
) -> Float32[np.ndarray, "height width"]:
    """What each label is compared with: the depth in its pixel's area nearest to its own; 0 on sky or without label."""
    rows, columns = map(footprints, depth_m.shape, truth_m.shape)
    v, u = np.nonzero(depth_m)
    reference_m = np.zeros_like(depth_m)
    reference_m[v, u] = truth_m[_nearest(v, u, depth_m[v, u], truth_m, rows, columns)]
    return reference_m


def footprints(n_label: int, n_native: int) -> Int[np.ndarray, "n_label 3"]:
    """The native pixels of each label pixel along one side of the image: first, one after the last, and the middle one.

    They are those that the label pixel's area touches, since a point in it lies in one of them; the middle one is the
    nearest to its centre. Pixel borders scale, as in ``geometry.resize_K``.
    """
    border = np.arange(n_label + 1) * n_native  # in native pixels, times n_label
    middle = (2 * np.arange(n_label) + 1) * n_native // (2 * n_label)
    return np.column_stack([border[:-1] // n_label, -(-border[1:] // n_label), middle])


@numba.njit(cache=True, nogil=True)
def _nearest(v, u, depth_m, truth_m, rows, columns):  # type: ignore[no-untyped-def]
    """The native pixel of each footprint whose surface is nearest to its label; on ties and on sky the middle one."""
    at_y, at_x = np.empty(len(v), np.int64), np.empty(len(v), np.int64)
    for i in range(len(v)):
        depth, row, column = depth_m[i], rows[v[i]], columns[u[i]]
        best_y, best_x = row[2], column[2]
        gap = abs(truth_m[best_y, best_x] - depth) if truth_m[best_y, best_x] > 0 else np.inf
        for y in range(row[0], row[1]):
            for x in range(column[0], column[1]):
                if truth_m[y, x] > 0 and abs(truth_m[y, x] - depth) < gap:
                    best_y, best_x, gap = y, x, abs(truth_m[y, x] - depth)
        at_y[i], at_x[i] = best_y, best_x
    return at_y, at_x


def _groups(truth: FrameTruth) -> UInt16[np.ndarray, "native_height native_width"]:
    """What each native pixel shows, as its index into the axes of ``SPLITS`` but the last."""
    if unknown := set(truth.classes) - set(CLASSES):
        raise InputError(f"truth: detection class {min(unknown)!r} is none of {', '.join(CLASSES)}")
    class_of = np.array([0, *map(CLASSES.index, truth.classes)], np.uint8)
    kind = np.where(truth.instance == 0, truth.surface, class_of.take(truth.instance))
    if kind.max() >= len(CLASSES) or not truth.depth_m.min() >= 0:
        raise ValueError("a surface code is unknown, or a depth of the truth is negative or NaN")
    return _index(truth.depth_m, truth.moving > 0, depth_edges(truth.depth_m), kind)


@numba.njit(cache=True, nogil=True)
def _index(truth_m, moving, edge, kind):  # type: ignore[no-untyped-def]
    index = np.empty(truth_m.shape, np.uint16)
    for y in range(truth_m.shape[0]):
        for x in range(truth_m.shape[1]):
            # Ranges end at whole metres, so the metre in which a depth ends tells its range.
            in_range = _RANGE_OF_METRE[int(np.ceil(min(truth_m[y, x], np.float32(255))))]
            index[y, x] = ((in_range * SHAPE[1] + moving[y, x]) * SHAPE[2] + edge[y, x]) * SHAPE[3] + kind[y, x]
    return index


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


def _by_group(table: np.ndarray) -> np.ndarray:
    """A view of a table of ``LabelErrors``, its groups in one axis."""
    return table.reshape(-1, len(SUMS))


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
