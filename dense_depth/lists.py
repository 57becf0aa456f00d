"""A label as lists, in the order that compresses: what ``shards`` stores of each frame. See docs/format.md."""

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import UInt8, UInt16, UInt32

from dense_depth.label import AGE_BITS, DEPTH_STEPS_PER_M, MAX_AGE, MAX_DEPTH_M, Label, Points, Source

MAX_SIDE_PX = 65535  # columns are below it, so it is never written
MODULUS = 65535  # depths are 1 to 65534 steps, so differences modulo this are never 65535

_COMPLETED = int(Source.COMPLETED)  # compiled code takes plain numbers
_LAST_SOURCE = int(max(Source))
_POINT_DTYPES = (np.uint16, np.uint16, np.float32, np.uint8, np.uint8, np.uint8)


class Lists(NamedTuple):
    """The n points of a label. Points come in row order, or where it says so with the measured before the completed.

    Attributes:
        row_start: Row r holds the points from row_start[r] up to row_start[r + 1].
        column_gap: Columns from the point before in the row; of the first of a row, its column.
        depth_step: Measured before completed: difference to the depth before in the list, in 1/256 m, the smallest of
            its size modulo 65535; 0, -1, 1, -2, ... are 0, 1, 2, 3, ... The first is a difference to 0.
        code: Source code * 32 + age.
        confidence: Measured before completed: as in ``Points``.
    """

    row_start: UInt32[np.ndarray, " rows_and_1"]
    column_gap: UInt16[np.ndarray, " n"]
    depth_step: UInt16[np.ndarray, " n"]
    code: UInt8[np.ndarray, " n"]
    confidence: UInt8[np.ndarray, " n"] | None = None


def pack(label: Label) -> Lists:
    """The lists of a label; depths are rounded half up to 1/256 m.

    Raises:
        ValueError: Its points are not in row order and inside the image, or one of their values cannot be stored.
    """
    points, n = label.points(), len(label.points().u)
    columns = [np.ascontiguousarray(column) for column in points if column is not None]
    if any(column.dtype != dtype or column.shape != (n,) for column, dtype in zip(columns, _POINT_DTYPES)):
        raise ValueError("arrays of points must have one length and the types of Points")
    if not (0 < label.height <= MAX_SIDE_PX and 0 < label.width <= MAX_SIDE_PX):
        raise ValueError(f"{label.height}x{label.width} pixels: sides must be 1 to {MAX_SIDE_PX}")
    given = columns[5] if points.confidence is not None else np.empty(0, np.uint8)
    row_start, confidence = np.empty(label.height + 1, np.uint32), np.empty_like(given)
    column_gap, depth_step, code = np.empty(n, np.uint16), np.empty(n, np.uint16), np.empty(n, np.uint8)
    u, v, depth_m, source, age = columns[:5]
    into = row_start, column_gap, depth_step, code, confidence
    fitting = _pack(u, v, depth_m, source, age, given, label.width, *into)
    if fitting < n:
        values = ", ".join(f"{name} {column[fitting]}" for name, column in zip(Points._fields, columns))
        raise ValueError(
            f"the point with {values} is not inside the image and after the one before in row order, or its depth is "
            f"not in [1/512, {MAX_DEPTH_M}) m, its source not 1 to {_LAST_SOURCE}, its age above {MAX_AGE} or its "
            "confidence 0"
        )
    return Lists(row_start, column_gap, depth_step, code, None if points.confidence is None else confidence)


def unpack(lists: Lists, width: int) -> Points:
    """The points of a label of ``width`` columns.

    Raises:
        ValueError: The lists are not those of a label.
    """
    n = len(lists.column_gap)
    u, v, depth_m = np.empty(n, np.uint16), np.empty(n, np.uint16), np.empty(n, np.float32)
    source, age = np.empty(n, np.uint8), np.empty(n, np.uint8)
    confidence = np.empty(0 if lists.confidence is None else n, np.uint8)
    stored = confidence if lists.confidence is None else lists.confidence
    if not _unpack(*lists[:4], stored, width, u, v, depth_m, source, age, confidence):
        raise ValueError("offsets are not those of rows, or a column, depth, source code or confidence cannot be")
    return Points(u, v, depth_m, source, age, None if lists.confidence is None else confidence)


@numba.njit(cache=True, nogil=True)
def _pack(  # type: ignore[no-untyped-def]
    u, v, depth_m, source, age, confidence, width, row_start, column_gap, depth_step, code, confidence_out
):
    """Fills the lists, and returns how many points fit: all, or the number of those before the first that does not."""
    n, height = len(u), len(row_start) - 1
    at_measured = at_completed = 0
    for i in range(n):
        at_completed += source[i] != _COMPLETED
    row, column = 0, -1
    row_start[0] = 0
    for i in range(n):
        for r in range(row, min(int(v[i]), height - 1)):
            row_start[r + 1] = i
            column = -1
        # Exact in float64, where float32 would round 0.49999997 up. Not a number gives 0.
        depth = int(np.float64(depth_m[i]) * DEPTH_STEPS_PER_M + 0.5) if 0 < depth_m[i] < MAX_DEPTH_M else 0
        in_order = row <= v[i] < height and column < u[i] < width
        known = depth > 0 and 1 <= source[i] <= _LAST_SOURCE and age[i] <= MAX_AGE
        if not (in_order and known and (len(confidence) == 0 or confidence[i] > 0)):
            return i
        row = int(v[i])
        column_gap[i] = int(u[i]) - max(column, 0)
        column = int(u[i])
        code[i] = source[i] << AGE_BITS | age[i]
        if source[i] == _COMPLETED:
            at = at_completed
            at_completed += 1
        else:
            at = at_measured
            at_measured += 1
        depth_step[at] = depth
        if len(confidence):
            confidence_out[at] = confidence[i]
    row_start[row + 1 :] = n
    before = 0
    for i in range(n):
        depth = int(depth_step[i])
        step = depth - before
        before = depth
        if step > MODULUS // 2:
            step -= MODULUS
        elif step < -(MODULUS // 2):
            step += MODULUS
        depth_step[i] = 2 * step if step >= 0 else -2 * step - 1
    return n


@numba.njit(cache=True, nogil=True)
def _unpack(  # type: ignore[no-untyped-def]
    row_start, column_gap, depth_step, code, stored, width, u, v, depth_m, source, age, confidence
):
    """Fills the points, and returns whether the lists are those of a label."""
    n, height = len(code), len(row_start) - 1
    if row_start[0] != 0 or row_start[height] != n:
        return False
    at_measured = at_completed = 0
    for i in range(n):
        at_completed += code[i] >> AGE_BITS != _COMPLETED
    depths = np.empty(n, np.uint16)
    depth = 0
    for i in range(n):
        step = int(depth_step[i])
        if step == MODULUS:
            return False
        depth += -((step + 1) >> 1) if step & 1 else step >> 1
        if depth < 0:
            depth += MODULUS
        elif depth >= MODULUS:
            depth -= MODULUS
        depths[i] = depth
    for row in range(height):
        start, stop = int(row_start[row]), int(row_start[row + 1])
        if stop < start or stop > n:
            return False
        column = -1
        for i in range(start, stop):
            before = column
            column = max(column, 0) + int(column_gap[i])
            source[i], age[i] = code[i] >> AGE_BITS, code[i] & MAX_AGE
            if source[i] == _COMPLETED:
                at = at_completed
                at_completed += 1
            else:
                at = at_measured
                at_measured += 1
            if not (before < column < width and depths[at] > 0 and 1 <= source[i] <= _LAST_SOURCE):
                return False
            u[i], v[i] = column, row
            depth_m[i] = np.float32(depths[at]) * np.float32(1 / DEPTH_STEPS_PER_M)
            if len(stored):
                if stored[at] == 0:
                    return False
                confidence[i] = stored[at]
    return True
