"""Sweeps to points at a camera's time: ego motion, object motion, and a reason code for every point.

Every sweep of a scene is read and cut once into segments. A segment is a run of points that move as one rigid body:
an azimuth sector of the static world, kept in the sensor frame of its sweep, or the points on one moving object, kept
in the frame of its box. Bringing a sweep to a camera's time is then one transform per segment:

    static:  cam_SE3_world(t_cam) @ world_SE3_sensor(t_sweep)
    object:  cam_SE3_world(t_cam) @ world_SE3_box(t_cam)

The points of a sweep that is not compensated are first brought to its timestamp. Points on an object are taken out of a
sweep by the box at the time when the beam met the object.
"""

import enum
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Float32, Int, UInt8
from numpy.typing import ArrayLike

from dense_depth import InputError
from dense_depth.datasets.scene import CameraFrame, Crop, Scene, Sweep, Track, TrackTable
from dense_depth.geometry import SE3, invert, transform
from dense_depth.instants import BLOCK, Passes, comes_near, passes, revolution_of, timed_tracks
from dense_depth.label import AGE_BITS, Source, age_of
from dense_depth.motion import MotionReport, RefinementConfig, refined
from dense_depth.options import check_options
from dense_depth.sweeps import compensated, read_timed, survey, twist_at
from dense_depth.views import points_of

N_SECTORS = 64  # static points are grouped by azimuth, so that a camera skips the sectors it does not see
LOST_MPS = 1.0  # how fast an object may leave the box that is continued from its last two
FAR_AWAY_M = 1e3  # a coordinate beyond this is a broken record, not a measurement


class Reason(enum.IntEnum):
    """What became of a point of a sweep."""

    STATIC = 0  # kept, static world
    MOVING = 1  # kept, carried along a track
    EGO = 2  # on the ego vehicle
    RANGE = 3  # nearer or farther than the range limits
    NONFINITE = 4  # NaN, infinite or beyond FAR_AWAY_M
    DROPPED_MOVING = 5  # on a moving object, which ``dynamics`` says to drop


# Compiled code takes plain numbers.
_STATIC, _MOVING, _EGO, _RANGE, _NONFINITE, _DROPPED_MOVING = map(int, Reason)
_N_REASONS = len(Reason)


@dataclass(frozen=True)
class AccumulationConfig:
    """Which points of which sweeps make a label, and how they are moved.

    Attributes:
        past_s: Use sweeps up to this long before the camera's time.
        future_s: Use sweeps up to this long after the camera's time.
        dynamics: Points on moving objects are carried along the object's boxes to the camera's time ("boxes"),
            dropped with all that lies behind the boxes ("drop"), or left where the sweep saw them ("none").
        ego_crop_m: Points nearer to the sensor than this both along its x and its y axis lie on the ego vehicle; if not
            given, what the dataset says of its vehicle (``Sweep``).
        min_range_m: Nearest range from the sensor.
        max_range_m: Farthest range from the sensor.
        box_margin_m: Boxes grow by this on all sides but the bottom, where the ground is.
        refine: Moving objects are found in every sweep by registration of their points, in place of interpolation
            between their boxes. Takes two to four times as long.
        moving_above_m: A track moves if its centre travels farther than this; the others are static world, which
            spares them the jitter of their boxes.
        extrapolate_s: How long a track is continued before its first and after its last box.
        lost_s: How long it is looked for there: points in its box, continued further and further out of date, are
            neither static world nor carried anywhere, but left out.
        max_bad_points: Greatest share of non-finite points in a sweep; above it the sweep is bad.
        bad_sweeps: A sweep that is missing, truncated or bad is an input error ("fail"), or left out, counted and
            listed ("drop").
    """

    past_s: float = 1.0
    future_s: float = 1.0
    dynamics: Literal["boxes", "drop", "none"] = "boxes"
    refine: bool = False
    ego_crop_m: tuple[float, float] | None = None
    min_range_m: float = 1.0
    max_range_m: float = 80.0
    box_margin_m: float = 0.1
    moving_above_m: float = 0.5
    extrapolate_s: float = 0.1
    lost_s: float = 0.5
    max_bad_points: float = 0.0
    bad_sweeps: Literal["fail", "drop"] = "fail"

    def __post_init__(self) -> None:
        names = ("past_s", "future_s", "ego_crop_m", "min_range_m", "box_margin_m", "moving_above_m", "extrapolate_s")
        check_options(self, dict.fromkeys((*names, "lost_s", "max_bad_points"), 0), most={"max_bad_points": 1})
        # Labels hold depths below 256 m.
        check_options(self, above={"max_range_m": self.min_range_m}, most={"max_range_m": 200})


@dataclass(frozen=True)
class Cut:
    """One sweep, cut into segments: first the azimuth sectors of the static world, then one per part of an object.

    Attributes:
        reason: Reason code of every point, in file order.
        reason_counts: How many points got each code.
        xyz: Kept points, segment after segment; sensor frame, or box frame on moving objects.
        start: First column of each segment in xyz, and the number of kept points at the end.
        bounds: Per sector (r_min, r_max, z_min, z_max) around the sensor's z axis; zeros if empty.
        box_corners: Per box: the corners of the space whose points belong to it, in its frame.
    """

    reason: UInt8[np.ndarray, " n"]
    reason_counts: Int[np.ndarray, " reasons"]
    xyz: Float[np.ndarray, "3 kept"]
    start: Int[np.ndarray, " borders"]
    bounds: Float[np.ndarray, "sectors 4"]
    box_corners: Float[np.ndarray, "boxes 8 3"]


def cut_sweep(
    points: Float[np.ndarray, "n features"],
    times_s: Float32[np.ndarray, " n"] | None,
    sweep: Sweep,
    objects: Passes,
    config: AccumulationConfig,
    out: Float[np.ndarray, "3 n"] | None = None,
) -> Cut:
    """Sorts the points of a sweep into segments: static by azimuth sector, then one per part of a moving object.

    Args:
        points: Sensor frame at the sweep's time; x, y, z first.
        times_s: When each was measured, in seconds from the sweep's timestamp; None if nobody knows.
        sweep: Where they come from.
        objects: The moving objects; a point in two of them belongs to the first.
        config: Crops, margins and what to do with moving objects.
        out: Room for the kept points, at least as many columns as points; new if not given.
    """
    if out is None:
        out = np.empty((3, len(points)), np.float32)
    sensor_SE3_box = invert(sweep.world_SE3_sensor) @ objects.world_SE3_box
    lower, upper = _bounds(objects.size_lwh_m, config.box_margin_m + LOST_MPS * objects.beyond_s)
    ego_crops = sweep.ego_crops
    if config.ego_crop_m is not None:
        x_m, y_m = config.ego_crop_m
        ego_crops = (Crop((-x_m, x_m), (-y_m, y_m)),)
    reason, reason_counts, start, bounds = _cut(
        np.ascontiguousarray(points[:, :3].T),
        np.zeros(len(points), np.float32) if times_s is None else times_s,
        np.array(ego_crops, np.float32).reshape(-1, 6),
        np.float32(config.min_range_m),
        np.float32(config.max_range_m),
        invert(sensor_SE3_box)[:, :3].astype(np.float32),
        sensor_SE3_box[:, :3, 3].astype(np.float32),
        lower,
        upper,
        objects.span_s.astype(np.float32),
        config.dynamics == "drop",
        out,
    )
    return Cut(reason, reason_counts, out[:, : start[-1]], start, bounds, box_corners(lower, upper))


def _bounds(
    sizes_lwh_m: Float[np.ndarray, "boxes 3"], margin_m: ArrayLike
) -> tuple[Float[np.ndarray, "boxes 3"], Float[np.ndarray, "boxes 3"]]:
    """Lowest and highest coordinates of what belongs to each box, in its frame, float32."""
    half, margin = sizes_lwh_m.astype(np.float32) / 2, np.asarray(margin_m, np.float32).reshape(-1, 1)
    lower, upper = -half - margin, half + margin
    lower[:, 2] = -half[:, 2]
    return lower, upper


def box_corners(lower: np.ndarray, upper: np.ndarray) -> Float[np.ndarray, "boxes 8 3"]:
    """The corners of boxes with these lowest and highest coordinates."""
    picks = np.array([[(i >> axis) & 1 for axis in range(3)] for i in range(8)], bool)
    return np.where(picks, upper[:, None], lower[:, None])


@functools.cache
def _sector_edges() -> tuple[Float[np.ndarray, "borders 2"], Float[np.ndarray, " sectors"]]:
    """Unit vectors along the borders of the sectors, and the cosines of the half angles between them."""
    # The inverse of the pseudo-angle in _cut: points of the diamond |x| + |y| = 1.
    edges = np.linspace(0.0, 4.0, N_SECTORS + 1)
    y = np.where(edges <= 2, edges - 1, 3 - edges)
    x = np.where(edges <= 2, 1 - np.abs(y), np.abs(y) - 1)
    directions = np.column_stack([x, y]) / np.hypot(x, y)[:, None]
    return directions, np.sqrt((1 + (directions[:-1] * directions[1:]).sum(1)) / 2)


def _sector_corners(bounds: Float[np.ndarray, "sweeps sectors 4"]) -> Float[np.ndarray, "sweeps sectors 8 3"]:
    """Corners of the wedges that hold the points of static sectors; bounds as in ``Cut``."""
    directions, cos_half = _sector_edges()
    r_min, r_max, z_min, z_max = np.moveaxis(bounds, -1, 0)
    corners = np.empty((*bounds.shape[:2], 8, 3), np.float32)
    for i in range(8):
        radius = r_max / cos_half if i & 1 else r_min  # the outer chord must lie beyond the arc
        corners[:, :, i, :2] = radius[..., None] * (directions[1:] if i & 2 else directions[:-1])
        corners[:, :, i, 2] = z_max if i & 4 else z_min
    return corners


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cut(points, times, crops, min_range, max_range, box_SE3_sensor, centre, lower, upper, span, drop, out):  # type: ignore[no-untyped-def]
    """Reason and segment of every point, then a stable counting sort by segment into ``out``.

    Points are (3, n) and contiguous; ``out`` has room for all, and those not kept come after all others.
    """
    n, n_boxes = points.shape[1], len(box_SE3_sensor)
    xs, ys, zs = points[0], points[1], points[2]
    n_segments = N_SECTORS + n_boxes
    not_kept, last_sector = np.int32(n_segments), np.int32(N_SECTORS - 1)
    zero, one, three, far_away = np.float32(0.0), np.float32(1.0), np.float32(3.0), np.float32(FAR_AWAY_M)
    sectors_per_unit = np.float32(N_SECTORS / 4)
    min_sq, max_sq = min_range * min_range, max_range * max_range
    reason = np.empty(n, np.uint8)
    segment = np.empty(n, np.int32)
    ego = np.zeros(n, np.bool_)
    for x_min, x_max, y_min, y_max, z_min, z_max in crops:
        for i in range(n):
            x, y, z = xs[i], ys[i], zs[i]
            ego[i] |= (x_min < x) & (x < x_max) & (y_min < y) & (y < y_max) & (z_min < z) & (z < z_max)
    for i in range(n):  # selects in place of branches: compiles to SIMD, and nothing is mispredicted
        x, y, z = xs[i], ys[i], zs[i]
        finite = (abs(x) < far_away) & (abs(y) < far_away) & (abs(z) < far_away)
        range_sq = x * x + y * y + z * z
        beyond = (range_sq < min_sq) | (range_sq > max_sq)
        code = np.int32(_RANGE) if beyond else np.int32(_STATIC)
        code = np.int32(_EGO) if ego[i] else code
        code = code if finite else np.int32(_NONFINITE)
        # A pseudo-angle in [0, 4], monotone in azimuth, without atan2.
        norm = abs(x) + abs(y)
        p = y / (norm if norm > zero else one)
        q = one + p if x >= zero else three - p
        sector = np.int32((q if code == _STATIC else zero) * sectors_per_unit)
        sector = sector if sector < last_sector else last_sector
        segment[i] = sector if code == _STATIC else not_kept
        reason[i] = code
    for b in range(n_boxes):
        T = box_SE3_sensor[b]
        radius_sq = (upper[b, 0] ** 2 + upper[b, 1] ** 2 + upper[b, 2] ** 2) * np.float32(1.0001)
        for block in range(0, n, BLOCK):
            end = min(block + BLOCK, n)
            if not comes_near(xs[block:end], ys[block:end], zs[block:end], centre[b], radius_sq):
                continue
            for i in range(block, end):
                if segment[i] > last_sector or times[i] < span[b, 0] or times[i] >= span[b, 1]:
                    continue
                x, y, z = xs[i], ys[i], zs[i]
                inside = True
                for axis in range(3):
                    p = T[axis, 0] * x + T[axis, 1] * y + T[axis, 2] * z + T[axis, 3]
                    inside = inside and lower[b, axis] <= p <= upper[b, axis]
                if inside:
                    reason[i] = _DROPPED_MOVING if drop else _MOVING
                    segment[i] = not_kept if drop else N_SECTORS + b
    reason_counts = np.zeros(_N_REASONS, np.int64)
    for which in range(_N_REASONS):
        count = np.int32(0)
        for i in range(n):
            count += np.int32(reason[i] == which)
        reason_counts[which] = count
    # Sweeps are stored in order of azimuth or ring, so neighbours share a segment: count and copy runs, not points.
    start = np.zeros(n_segments + 2, np.int64)
    i = 0
    while i < n:
        first, s = i, segment[i]
        while i < n and segment[i] == s:
            i += 1
        start[s + 1] += i - first
    for s in range(n_segments + 1):
        start[s + 1] += start[s]
    cursor = start.copy()
    i = 0
    while i < n:
        first, s = i, segment[i]
        while i < n and segment[i] == s:
            i += 1
        at = cursor[s]
        cursor[s] += i - first
        for axis in range(3):
            out[axis, at : at + i - first] = points[axis, first:i]
    bounds = np.zeros((N_SECTORS, 4), np.float32)
    for s in range(N_SECTORS):
        if start[s + 1] > start[s]:
            x, y, z = out[0, start[s] : start[s + 1]], out[1, start[s] : start[s + 1]], out[2, start[s] : start[s + 1]]
            r_min = r_max = x[0] * x[0] + y[0] * y[0]
            z_min = z_max = z[0]
            for i in range(len(x)):
                r = x[i] * x[i] + y[i] * y[i]
                r_min, r_max = r if r < r_min else r_min, r if r > r_max else r_max
                z_min, z_max = z[i] if z[i] < z_min else z_min, z[i] if z[i] > z_max else z_max
            bounds[s, 0], bounds[s, 1], bounds[s, 2], bounds[s, 3] = np.sqrt(r_min), np.sqrt(r_max), z_min, z_max
    for b in range(n_boxes):
        T = box_SE3_sensor[b]
        for at in range(start[N_SECTORS + b], start[N_SECTORS + b + 1]):
            x, y, z = out[0, at], out[1, at], out[2, at]
            for axis in range(3):
                out[axis, at] = T[axis, 0] * x + T[axis, 1] * y + T[axis, 2] * z + T[axis, 3]
    return reason, reason_counts, start[:-1], bounds


class Occluders(NamedTuple):
    """The boxes of dropped objects at the time of a label: what lies behind them is not seen.

    Attributes:
        ref_SE3_box: Of each box.
        lower: Lowest coordinates in each box's frame, with the margin of ``AccumulationConfig``.
        upper: Highest ones.
    """

    ref_SE3_box: Float[np.ndarray, "boxes 4 4"]
    lower: Float[np.ndarray, "boxes 3"]
    upper: Float[np.ndarray, "boxes 3"]


@dataclass(frozen=True)
class Selection:
    """Segments that make one label, and how each gets into the camera.

    Attributes:
        segments: Indices into the segments of a SceneCloud.
        ref_SE3_body: Of the bodies that the segments lie on: the world as each sweep saw it, and moving objects.
        body: Per selected segment: which of them.
        source: Per selected segment: a code of ``Source``.
        age: Per selected segment: time between its sweep and this label, see ``age_of``.
        n_sweeps: How many sweeps are in the window.
        n_unknown_pose: Points on objects that have no pose at this time; they are left out.
        occluders: Boxes of the objects whose points were dropped; none where nobody knows the box at this time.
    """

    segments: Int[np.ndarray, " selected"]
    ref_SE3_body: Float[np.ndarray, "bodies 4 4"]
    body: Int[np.ndarray, " selected"]
    source: UInt8[np.ndarray, " selected"]
    age: UInt8[np.ndarray, " selected"]
    n_sweeps: int
    n_unknown_pose: int
    occluders: Occluders

    @property
    def code(self) -> UInt8[np.ndarray, " selected"]:
        """Low byte of z-buffer keys: of equal depths the smaller source code wins, then the fresher sweep."""
        return self.source << np.uint8(AGE_BITS) | self.age


class SceneCloud:
    """The points of a scene, read and cut once, ready to be brought to any time.

    Attributes:
        xyz: Points of all segments, (3, n) float32; the columns of dropped points at the end are undefined.
        start: Per segment: its first column in xyz.
        stop: Per segment: the column after its last one.
        corners: Per segment: (8, 3) float32, hull of its points in their frame.
        reason_counts: Per sweep of the scene: how many points got each ``Reason``; zero for sweeps not needed.
        dropped: Token and error of each bad sweep that was left out.
        motion: What refinement made of the tracks.
    """

    def __init__(self, scene: Scene, frames: Sequence[CameraFrame], config: AccumulationConfig) -> None:
        """Reads the sweeps that these frames need.

        Raises:
            InputError: A sweep is bad and the config does not say to drop it, or none is left.
        """
        self._config = config
        self._tokens = [sweep.token for sweep in scene.sweeps]
        self._index = {token: i for i, token in enumerate(self._tokens)}
        self._times_us = np.array([sweep.timestamp_us for sweep in scene.sweeps], np.int64)
        self._world_SE3_sensor = np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps])
        self._tracks, self.motion = self._timed(moving_tracks(scene.tracks, config), scene.sweeps)
        self._table = TrackTable(self._tracks)
        self.reason_counts = np.zeros((len(scene.sweeps), len(Reason)), np.int64)

        needed = self._used(frames)
        self._is_read = np.isin(np.arange(len(scene.sweeps)), needed)
        n_points, self.dropped = survey([scene.sweeps[i] for i in needed], config.bad_sweeps == "drop")
        # One array of full length: a shorter view of it would not be contiguous, and SIMD needs that.
        self.xyz = np.empty((3, sum(n_points)), np.float32)
        cuts, objects = [], []
        n_kept = 0
        for i in needed:
            made = None if scene.sweeps[i].token in self.dropped else self._cut(scene.sweeps, i, n_kept)
            if made is None:
                continue
            cut, found = made
            self.reason_counts[i] = cut.reason_counts
            cuts.append((i, cut, n_kept))
            objects.append(found)
            n_kept += cut.xyz.shape[1]
        if not cuts:
            raise InputError(f"{scene.name}: every sweep is bad; the first: {next(iter(self.dropped.values()))}")

        start = np.concatenate([cut.start[:-1] + offset for _, cut, offset in cuts])
        stop = np.concatenate([cut.start[1:] + offset for _, cut, offset in cuts])
        sector_corners = _sector_corners(np.stack([cut.bounds for _, cut, _ in cuts]))
        pairs = [(sectors, cut.box_corners) for sectors, (_, cut, _) in zip(sector_corners, cuts)]
        corners = np.concatenate([part for pair in pairs for part in pair])
        sweep_of = np.concatenate([np.full(len(cut.start) - 1, i) for i, cut, _ in cuts])
        track_of = np.concatenate([[*[-1] * N_SECTORS, *found.track] for found in objects])
        beyond_s = np.concatenate([[*[0.0] * N_SECTORS, *found.beyond_s] for found in objects])
        filled = np.flatnonzero(stop > start)
        self.start, self.stop, self.corners = start[filled], stop[filled], corners[filled]
        self._sweep_of, self._track_of = sweep_of[filled], track_of[filled]
        self._is_lost = beyond_s[filled] > config.extrapolate_s

    def _timed(self, tracks: list[Track], sweeps: Sequence[Sweep]) -> tuple[Sequence[Track], MotionReport]:
        """Tracks by the time at which the beam met their objects, refined if the config says so."""
        timed = timed_tracks(tracks, sweeps)
        if not self._config.refine or not timed:
            return timed, MotionReport()
        _, bad = survey(sweeps, drop_bad=True)  # one that is needed is refused or dropped when it is cut
        good = [sweep for sweep in sweeps if sweep.token not in bad]
        return refined(timed, points_of(good), RefinementConfig(self._config.moving_above_m))

    def _cut(self, sweeps: Sequence[Sweep], i: int, n_kept: int) -> tuple[Cut, Passes] | None:
        """Reads and cuts sweep ``i`` into the columns from n_kept on; None if it is dropped."""
        sweep = sweeps[i]
        points, times_s = read_timed(sweep)
        revolution = revolution_of(sweep, points, times_s)
        objects = passes(self._table, sweep, revolution, self._config.lost_s)
        points = compensated(sweep, points, times_s, twist_at(sweeps, i))
        cut = cut_sweep(points, times_s, sweep, objects, self._config, self.xyz[:, n_kept:])
        n_bad = cut.reason_counts[Reason.NONFINITE]
        if n_bad > self._config.max_bad_points * len(points):
            message = (
                f"{sweep.path}: {n_bad} of {len(points)} points are NaN, infinite or beyond {FAR_AWAY_M:.0f} m; "
                "restore the file, or allow a share with --max-bad-points"
            )
            if self._config.bad_sweeps == "fail":
                raise InputError(message)
            self.dropped[sweep.token] = message
            return None
        return cut, objects

    def dropped_of(self, frames: Sequence[CameraFrame]) -> dict[str, str]:
        """Token and error of the bad sweeps that the windows of these frames miss."""
        tokens = {self._tokens[i] for i in self._used(frames)}
        return {token: error for token, error in self.dropped.items() if token in tokens}

    def _used(self, frames: Sequence[CameraFrame]) -> list[int]:
        """Indices of the sweeps in the windows of these frames."""
        return sorted({i for frame in frames for i in self._window(frame.timestamp_us, frame.key_sweep)})

    def _window(self, timestamp_us: int, key_sweep: str) -> list[int]:
        """Indices of the sweeps in the time window, and of the key sweep."""
        first = np.searchsorted(self._times_us, timestamp_us - round(self._config.past_s * 1e6), "left")
        last = np.searchsorted(self._times_us, timestamp_us + round(self._config.future_s * 1e6), "right")
        return sorted({*range(first, last), self._index[key_sweep]})

    def select(self, ref_SE3_world: SE3, timestamp_us: int, key_sweep: str, without: Sequence[str] = ()) -> Selection:
        """Brings the sweeps around a time to a reference frame at that time.

        Args:
            ref_SE3_world: The reference frame, usually a camera.
            timestamp_us: The time to which moving objects are carried.
            key_sweep: Token of the sweep whose points get ``Source.KEY_SWEEP``.
            without: Tokens of sweeps to leave out, for held-out checks.

        Raises:
            ValueError: The window reaches sweeps that none of the frames given at the start needs.
        """
        left_out = {self._index[token] for token in (*without, *self.dropped)}
        window = [i for i in self._window(timestamp_us, key_sweep) if i not in left_out]
        if missing := [i for i in window if not self._is_read[i]]:
            raise ValueError(f"{len(missing)} sweeps of the window around {timestamp_us} us have not been read")
        tracks = np.arange(len(self._tracks))
        times_us = np.full(len(tracks), timestamp_us)
        world_SE3_box, sizes = self._table.at(times_us, tracks)
        beyond_us = self._table.beyond_us(times_us, tracks)
        is_known = beyond_us <= round(1e6 * self._config.extrapolate_s)
        occludes = (beyond_us <= round(1e6 * self._config.lost_s)) & (self._config.dynamics == "drop")

        position = np.full(len(self._times_us), -1)  # of each sweep in the window
        position[window] = np.arange(len(window))
        segments = np.flatnonzero(position[self._sweep_of] >= 0)
        known = np.append(is_known, True)[self._track_of[segments]]  # -1, the last one, is the static world
        known &= ~self._is_lost[segments]
        unknown, segments = segments[~known], segments[known]
        sweep, track = position[self._sweep_of[segments]], self._track_of[segments]

        world_SE3_body = np.concatenate([self._world_SE3_sensor[window], world_SE3_box])
        source = np.where(track >= 0, np.uint8(Source.MOVING), np.uint8(Source.STATIC))
        source[sweep == position[self._index[key_sweep]]] = Source.KEY_SWEEP
        return Selection(
            segments,
            ref_SE3_world @ world_SE3_body,
            np.where(track >= 0, len(window) + track, sweep),
            source,
            age_of(self._times_us[window] - timestamp_us)[sweep],
            len(window),
            int((self.stop - self.start)[unknown].sum()),
            Occluders(ref_SE3_world @ world_SE3_box[occludes], *_bounds(sizes[occludes], self._config.box_margin_m)),
        )

    def count_reasons(self, frames: Sequence[CameraFrame]) -> Int[np.ndarray, " reasons"]:
        """How many points of the sweeps that these frames use got each ``Reason``."""
        return self.reason_counts[self._used(frames)].sum(0)

    def points(self, selection: Selection) -> tuple[Float[np.ndarray, "n 3"], UInt8[np.ndarray, " n"]]:
        """The selected points in the reference frame (float64), and the source code of each.

        For those who want a point cloud and no label, such as a comparison with another program's accumulation.
        """
        clouds = [
            transform(ref_SE3_body, self.xyz[:, self.start[s] : self.stop[s]].T.astype(np.float64))
            for s, ref_SE3_body in zip(selection.segments, selection.ref_SE3_body[selection.body])
        ]
        lengths = self.stop[selection.segments] - self.start[selection.segments]
        return np.concatenate([np.empty((0, 3)), *clouds]), np.repeat(selection.source, lengths)


def moving_tracks(tracks: Sequence[Track], config: AccumulationConfig) -> list[Track]:
    """The tracks whose points are treated apart from the static world."""
    if config.dynamics == "none":
        return []
    return [track for track in tracks if track.travel_m > config.moving_above_m]
