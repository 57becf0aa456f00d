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
    if not _pack(u, v, depth_m, source, age, given, label.width, *into):
        raise ValueError(
            f"points must lie inside the image, in row order, with a depth in [1/512, {MAX_DEPTH_M}) m, a source of 1 "
            f"to {_LAST_SOURCE}, an age of at most {MAX_AGE} and a confidence above 0"
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
    """Fills the lists, and returns whether the points can be stored. Simple loops, which the compiler vectorises."""
    n, height = len(u), len(row_start) - 1
    bad, at = False, 0
    for row in range(height):
        row_start[row] = start = at
        while at < n and v[at] == row:
            at += 1
        before = np.int32(-1)
        for i in range(start, at):
            column = np.int32(u[i])
            bad |= column <= before  # type: ignore[assignment]  # numba knows one bool
            column_gap[i] = column - before
            before = column
        if at > start:
            bad |= before >= width
            column_gap[start] = u[start]
    row_start[height] = at
    bad |= at != n  # a row that is not in order, or outside
    depths, at_completed = np.empty(n, np.int32), 0
    for i in range(n):
        metres = depth_m[i]
        in_range = (metres > 0) & (metres < MAX_DEPTH_M)  # false for nan
        # Exact in float64, where float32 would round 0.49999997 up.
        depths[i] = np.int32(np.float64(metres if in_range else np.float32(0)) * DEPTH_STEPS_PER_M + 0.5)
        bad |= (depths[i] == 0) | (source[i] < 1) | (source[i] > _LAST_SOURCE) | (age[i] > MAX_AGE)
        code[i] = source[i] << AGE_BITS | age[i]
        at_completed += source[i] != _COMPLETED
    for i in range(len(confidence)):
        bad |= confidence[i] == 0
    if bad:
        return False
    if at_completed < n:
        depths = _measured_first(depths, source, at_completed, np.empty(n, np.int32))
        if len(confidence):
            _measured_first(confidence, source, at_completed, confidence_out)
    else:
        confidence_out[:] = confidence
    half = np.int32(MODULUS // 2)
    for i in range(n):
        step = depths[i] - (depths[i - 1] if i else np.int32(0))
        step += np.int32(MODULUS) * (np.int32(step < -half) - np.int32(step > half))
        depth_step[i] = (step << 1) ^ (step >> 31)
    return True


@numba.njit(cache=True, nogil=True)
def _measured_first(values, source, at_completed, out):  # type: ignore[no-untyped-def]
    """The values of measured points, then those of completed ones."""
    at_measured = 0
    for i in range(len(values)):
        is_completed = source[i] == _COMPLETED
        out[at_completed if is_completed else at_measured] = values[i]
        at_completed += is_completed
        at_measured += not is_completed
    return out


@numba.njit(cache=True, nogil=True)
def _unpack(  # type: ignore[no-untyped-def]
    row_start, column_gap, depth_step, code, stored, width, u, v, depth_m, source, age, confidence
):
    """Fills the points, and returns whether the lists are those of a label."""
    n, height = len(code), len(row_start) - 1
    bad = (row_start[0] != 0) | (row_start[height] != n)
    for row in range(height):
        bad |= row_start[row + 1] < row_start[row]
    if bad:  # only now can offsets be used
        return False
    for row in range(height):
        column = np.int64(-1)
        for i in range(row_start[row], row_start[row + 1]):
            before = column
            column = (before if before > 0 else np.int64(0)) + np.int64(column_gap[i])
            bad |= column <= before
            u[i], v[i] = column, row
        bad |= column >= width
    at_completed = 0
    for i in range(n):
        source[i], age[i] = code[i] >> AGE_BITS, code[i] & MAX_AGE
        bad |= (source[i] < 1) | (source[i] > _LAST_SOURCE)
        at_completed += source[i] != _COMPLETED
    depths, total = np.empty(n, np.float32), np.uint64(0)
    for i in range(n):
        step = np.uint64(depth_step[i])
        bad |= step == MODULUS
        total += (
            np.uint64(MODULUS) - ((step + np.uint64(1)) >> np.uint64(1))
            if step & np.uint64(1)
            else step >> np.uint64(1)
        )
        depth = total % np.uint64(MODULUS)
        bad |= depth == 0
        depths[i] = np.float32(depth) * np.float32(1 / DEPTH_STEPS_PER_M)
    for i in range(len(stored)):
        bad |= stored[i] == 0
    at_measured = 0
    for i in range(n):
        is_completed = source[i] == _COMPLETED
        at = at_completed if is_completed else at_measured
        depth_m[i] = depths[at]
        if len(stored):
            confidence[i] = stored[at]
        at_completed += is_completed
        at_measured += not is_completed
    return not bad
