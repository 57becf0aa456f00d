"""When the beam of a spinning LiDAR met an object, and so where the object was.

A sweep takes a revolution. An object that moves is hit where it is when the beam passes, and whoever annotates draws
its box around those points. So a box belongs to that instant, not to the sweep's timestamp, and the points of another
sweep on the object to the instant at which that sweep met it.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Float32, Int
from numpy.typing import ArrayLike

from dense_depth import InputError
from dense_depth.datasets.scene import Box, Sweep, Track, TrackTable
from dense_depth.deskew import moved
from dense_depth.geometry import SE3, invert, transform
from dense_depth.sweeps import read_timed, twist_at

N_SAMPLES = 500  # of the points of a sweep, to find which way it turns
MIN_CONCENTRATION = 0.5  # of the sampled directions around an even turn: 0.95 and more of real sweeps, 0 of random ones
MIN_IN_BOX = 5  # points in a box that tell when it was drawn
BLOCK = 128  # points that are looked at together: neighbours in the file are neighbours in space
SLICE_M = 0.05  # an object that moves further while the beam passes is cut into parts, each at its own time


@dataclass(frozen=True)
class Revolution:
    """Which way a beam looks when: it turns evenly, once around.

    Attributes:
        start_s: When it starts, in seconds from the sweep's timestamp.
        duration_s: How long it takes.
        first_azimuth: Direction at the start, in radians from x towards y of the sensor.
        clockwise: Whether the azimuth falls with time.
    """

    start_s: float
    duration_s: float
    first_azimuth: float
    clockwise: bool

    def share(self, xy: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """Which share of the revolution, in [0, 1), is over when the beam looks at points of the sensor frame."""
        return np.remainder(self._turn(np.arctan2(xy[:, 1], xy[:, 0], dtype=np.float64) - self.first_azimuth), 1.0)

    def spans(self, corners: Float[np.ndarray, "n 8 3"]) -> Float[np.ndarray, "n 2"]:
        """Shares of the revolution at which the beam enters and leaves convex bodies.

        The middle of each lies in [0, 1): a span below 0 or beyond 1 says that the start cuts the body in two.

        Args:
            corners: In the sensor frame.
        """
        middle = corners[:, :, :2].mean(1)
        azimuth = np.arctan2(corners[:, :, 1], corners[:, :, 0]) - np.arctan2(middle[:, 1:], middle[:, :1])
        turns = self._turn(np.remainder(azimuth + np.pi, 2 * np.pi) - np.pi)
        share = self.share(middle)
        return np.stack([share + turns.min(1), share + turns.max(1)], axis=1)

    def time_s(self, share: ArrayLike) -> np.ndarray:
        """Seconds from the sweep's timestamp at shares of the revolution."""
        return self.start_s + self.duration_s * np.asarray(share)

    def _turn(self, azimuth: np.ndarray) -> np.ndarray:
        return (-azimuth if self.clockwise else azimuth) / (2 * np.pi)


def revolution_of(
    sweep: Sweep, points: Float32[np.ndarray, "n features"], times_s: Float32[np.ndarray, " n"] | None
) -> Revolution | None:
    """How the beam of a sweep turned; None where points have no times, or do not follow a turn.

    Args:
        sweep: The sweep.
        points: As read.
        times_s: From ``point_times``.
    """
    timing = sweep.timing
    if times_s is None or not len(points):
        return None
    if timing.rule == "azimuth":
        return Revolution(timing.start_s, timing.end_s - timing.start_s, timing.first_azimuth, timing.clockwise)
    start_s, end_s = timing.start_s, timing.end_s
    if timing.rule == "column":
        start_s, end_s = float(times_s.min()), float(times_s.max())
    if not end_s > start_s:
        return None
    some = slice(None, None, max(len(points) // N_SAMPLES, 1))
    azimuth = np.arctan2(points[some, 1], points[some, 0]).astype(np.float64)
    turned = 2 * np.pi * (times_s[some].astype(np.float64) - start_s) / (end_s - start_s)
    # The azimuth at the start, if it falls and if it rises: the right one is the same for all points.
    falling, rising = np.nanmean(np.exp(1j * (azimuth + turned))), np.nanmean(np.exp(1j * (azimuth - turned)))
    clockwise = abs(falling) >= abs(rising)
    mean = falling if clockwise else rising
    if not abs(mean) > MIN_CONCENTRATION:
        return None
    return Revolution(start_s, end_s - start_s, float(np.angle(mean)), bool(clockwise))


class Passes(NamedTuple):
    """The moving objects that a sweep met, some in parts; one row per part.

    Attributes:
        track: Index of the track.
        world_SE3_box: Where the object was when the beam passed the part.
        size_lwh_m: Its size.
        span_s: Between which times, in seconds from the sweep's timestamp, points belong to the part.
        beyond_s: How far that instant is outside the time in which the track is known.
    """

    track: Int[np.ndarray, " parts"]
    world_SE3_box: Float[np.ndarray, "parts 4 4"]
    size_lwh_m: Float[np.ndarray, "parts 3"]
    span_s: Float[np.ndarray, "parts 2"]
    beyond_s: Float[np.ndarray, " parts"]


def passes(table: TrackTable, sweep: Sweep, revolution: Revolution | None, reach_s: float) -> Passes:
    """Where the objects were when the beam of a sweep passed them.

    Args:
        table: The tracks, timed as by ``timed_tracks``.
        sweep: The sweep.
        revolution: How its beam turned; None takes all objects at the sweep's timestamp.
        reach_s: Tracks are continued so far beyond their ends.
    """
    stamp_us, reach_us = sweep.timestamp_us, round(1e6 * reach_s)
    half_us = round(5e5 * revolution.duration_s) if revolution else 0
    middle_us = stamp_us + _us(revolution.time_s(0.5)) if revolution else stamp_us
    every = np.arange(len(table))
    track = every[table.beyond_us(np.full(len(every), middle_us), every) <= reach_us + half_us]
    times_us, span_s = np.full(len(track), middle_us), np.tile([-np.inf, np.inf], (len(track), 1))
    sensor_SE3_world = invert(sweep.world_SE3_sensor)
    # The object moves on while the beam turns towards it: the second look is exact to a millimetre.
    for turn in (revolution, revolution):
        if turn:
            centres = transform(sensor_SE3_world, table.centres_at(times_us, track))
            times_us = stamp_us + _us(turn.time_s(turn.share(centres[:, :2])))
    poses, sizes = table.at(times_us, track)
    if revolution and len(track):
        spans = revolution.spans(_corners(poses, sizes, sensor_SE3_world))
        row, middle, shares = _parts(spans, _n_parts(table, track, times_us, spans, revolution))
        track, span_s = track[row], revolution.time_s(shares)
        if len(row) > len(times_us) or (row != np.arange(len(row))).any():  # some are cut
            times_us = stamp_us + _us(revolution.time_s(middle))
            poses, sizes = table.at(times_us, track)
    beyond_us = table.beyond_us(times_us, track)
    found = Passes(track, poses, sizes, span_s, 1e-6 * beyond_us)
    return Passes(*(values[beyond_us <= reach_us] for values in found))


def _n_parts(
    table: TrackTable,
    track: Int[np.ndarray, " n"],
    times_us: Int[np.ndarray, " n"],
    spans: Float[np.ndarray, "n 2"],
    revolution: Revolution,
) -> Int[np.ndarray, " n"]:
    """Into how many parts objects are cut, so that none moves further than ``SLICE_M`` while the beam passes."""
    passing_us, n = np.maximum(_us(revolution.duration_s * (spans[:, 1] - spans[:, 0])), 1), len(track)
    ends_us = np.concatenate([times_us - passing_us // 2, times_us + passing_us // 2])
    centres = table.centres_at(ends_us, np.concatenate([track, track]))
    travel_m = np.sqrt(((centres[n:] - centres[:n]) ** 2).sum(1))
    return np.maximum(np.ceil(travel_m / SLICE_M), 1).astype(np.int64)


def _parts(
    spans: Float[np.ndarray, "n 2"], n_parts: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " parts"], Float[np.ndarray, " parts"], Float[np.ndarray, "parts 2"]]:
    """Cuts spans, from ``Revolution.spans``, into equal parts, and where the revolution ends.

    The outermost parts reach on over the rest of the revolution, so that no point of a body is between two parts.

    Returns:
        The row of the span, the middle, and the shares between which each part lies.
    """
    row, middle = np.arange(len(spans)), spans.mean(1)
    shares = np.tile([-np.inf, np.inf], (len(spans), 1))
    whole = (n_parts == 1) & (spans[:, 0] >= 0) & (spans[:, 1] <= 1)
    if whole.all():
        return row, middle, shares
    found = []
    for i in row[~whole]:
        low, high = spans[i] + (spans[i, 0] < 0)
        edges = np.linspace(low, high, n_parts[i] + 1)
        is_split = high > 1
        edges = np.unique(np.append(edges, 1.0)) if is_split else edges
        late = edges[:-1] >= 1  # after the start of the revolution, which is before its end in time
        begin, end = edges[:-1] - late, edges[1:] - late
        between = begin + (end - begin) / 2
        # A body at the seam is seen at both ends of the revolution; they meet where the beam looks away.
        away = (low + high - 1) / 2
        begin[0], end[-1] = (away, away) if is_split else (-np.inf, np.inf)
        begin[edges[:-1] == 1], end[edges[1:] == 1] = (-np.inf, np.inf) if is_split else (begin[0], end[-1])
        found.append((np.full(len(begin), i), between, np.stack([begin, end], axis=1)))
    rows, middles, borders = (np.concatenate(values) for values in zip(*found))
    return (
        np.concatenate([row[whole], rows]),
        np.concatenate([middle[whole], middles]),
        np.concatenate([shares[whole], borders]),
    )


def timed_tracks(tracks: Sequence[Track], sweeps: Sequence[Sweep]) -> list[Track]:
    """Tracks whose boxes have the time, and the place, at which the beam met the object.

    A box was drawn around the points of the sweep nearest to its time: the median time of the points in it is its own,
    or, where they are few, the time at which the beam passed its centre. In a sweep that is not compensated these
    points are in the frame of the sensor at their own time, and so is the box.

    Args:
        tracks: As annotated.
        sweeps: Of the scene, ordered by time.
    """
    timed: list[list[Box]] = [[] for _ in tracks]
    drawn: dict[int, list[tuple[int, Box]]] = defaultdict(list)
    for k, indices in enumerate(_drawn_on(tracks, sweeps)):
        for box, i in zip(tracks[k].boxes, indices):
            drawn[i].append((k, box))
    for i, boxes in drawn.items():
        twist = twist_at(sweeps, i)
        sensor_SE3_box = invert(sweeps[i].world_SE3_sensor) @ np.stack([box.world_SE3_box for _, box in boxes])
        times_s = _drawn_at(sweeps[i], sensor_SE3_box, np.stack([box.size_lwh_m for _, box in boxes]))
        for (k, box), time_s, pose in zip(boxes, times_s.tolist(), sensor_SE3_box):
            if not sweeps[i].compensated:
                box = replace(box, world_SE3_box=sweeps[i].world_SE3_sensor @ moved(twist, time_s) @ pose)
            timed[k].append(replace(box, timestamp_us=sweeps[i].timestamp_us + round(1e6 * time_s)) if time_s else box)
    by_time = [tuple(sorted(boxes, key=lambda box: box.timestamp_us)) for boxes in timed]
    return [replace(track, boxes=boxes) for track, boxes in zip(tracks, by_time)]


def _drawn_at(
    sweep: Sweep, sensor_SE3_box: Float[np.ndarray, "n 4 4"], sizes: Float[np.ndarray, "n 3"]
) -> Float[np.ndarray, " n"]:
    """When the beam met what boxes were drawn around, in seconds from the sweep's timestamp; 0 where nobody knows."""
    try:
        points, times_s = read_timed(sweep)
    except InputError:  # whoever needs its points will say so
        return np.zeros(len(sizes))
    revolution = revolution_of(sweep, points, times_s)
    if times_s is None or revolution is None:
        return np.zeros(len(sizes))
    by_centre = revolution.time_s(revolution.share(sensor_SE3_box[:, :2, 3]))
    xyz, box_SE3_sensor = np.ascontiguousarray(points[:, :3].T), invert(sensor_SE3_box)[:, :3].astype(np.float32)
    centres, halves = sensor_SE3_box[:, :3, 3].astype(np.float32), (sizes / 2).astype(np.float32)
    by_points = _median_times(xyz, np.ascontiguousarray(times_s), box_SE3_sensor, centres, halves)
    return np.where(np.isnan(by_points), by_centre, by_points)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _median_times(points, times, box_SE3_sensor, centre, half):  # type: ignore[no-untyped-def]
    """Median time of the points in each box; NaN where they are fewer than ``MIN_IN_BOX``."""
    n = points.shape[1]
    found = np.empty(n, np.float32)
    out = np.full(len(half), np.nan)
    xs, ys, zs = points[0], points[1], points[2]
    for b in range(len(half)):
        T, m = box_SE3_sensor[b], 0
        radius_sq = (half[b, 0] ** 2 + half[b, 1] ** 2 + half[b, 2] ** 2) * np.float32(1.0001)
        for block in range(0, n, BLOCK):
            end = min(block + BLOCK, n)
            if not comes_near(xs[block:end], ys[block:end], zs[block:end], centre[b], radius_sq):
                continue
            for i in range(block, end):
                inside = True
                for axis in range(3):
                    p = T[axis, 0] * xs[i] + T[axis, 1] * ys[i] + T[axis, 2] * zs[i] + T[axis, 3]
                    inside = inside and abs(p) <= half[b, axis]
                found[m] = times[i]
                m += 1 if inside else 0
        if m >= MIN_IN_BOX:
            out[b] = np.median(found[:m])
    return out


@numba.njit(cache=True, nogil=True)
def comes_near(xs, ys, zs, centre, radius_sq):  # type: ignore[no-untyped-def]
    """Whether some point lies within a sphere; counts them all, since that compiles to SIMD."""
    n = np.int32(0)
    for i in range(len(xs)):
        x, y, z = xs[i] - centre[0], ys[i] - centre[1], zs[i] - centre[2]
        n += np.int32(x * x + y * y + z * z <= radius_sq)
    return n > 0


def _drawn_on(tracks: Sequence[Track], sweeps: Sequence[Sweep]) -> list[Int[np.ndarray, " boxes"]]:
    """Index of the sweep whose points each box of each track was drawn around: the nearest in time."""
    times_us = np.array([sweep.timestamp_us for sweep in sweeps], np.int64)
    middles_us = (times_us[1:] + times_us[:-1]) // 2
    return [np.searchsorted(middles_us, track.times_us) for track in tracks]


def _us(seconds: np.ndarray) -> Int[np.ndarray, " n"]:
    return np.round(1e6 * np.asarray(seconds)).astype(np.int64)


def _corners(
    world_SE3_box: Float[np.ndarray, "n 4 4"], sizes: Float[np.ndarray, "n 3"], sensor_SE3_world: SE3
) -> Float[np.ndarray, "n 8 3"]:
    """Corners of boxes in the sensor frame."""
    signs = np.array([[(i >> axis & 1) - 0.5 for axis in range(3)] for i in range(8)])
    return transform(sensor_SE3_world @ world_SE3_box, sizes[:, None] * signs)
