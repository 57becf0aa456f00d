"""Points to a depth and source map: an exact z-buffer and a visibility test.

The z-buffer keeps, per pixel, the smallest 32-bit key ``depth << 8 | source << 5 | age`` with depth in steps of 1/256 m
and age in steps of 0.1 s. A minimum of integers does not depend on the order of the points, so neither do the labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Int64, UInt16, UInt32

from dense_depth.accumulation import Occluders, SceneCloud, Selection, box_corners
from dense_depth.datasets.scene import CameraFrame
from dense_depth.geometry import invert, transform
from dense_depth.label import AGE_BITS, DEPTH_STEPS_PER_M, MAX_AGE, Label, Points
from dense_depth.options import check_options

EMPTY_KEY = np.uint32(0xFFFFFFFF)
NEAR_M = 0.1  # nearer than any lens sees sharply; keeps the division by depth safe
FAR_M = 255.0  # depth must fit 16 bits in steps of 1/256 m, below the fill value 65535
BLOCK = 256  # points per block: small enough for L1, long enough for SIMD


@dataclass(frozen=True)
class VisibilityConfig:
    """Which points of a label other surfaces hide.

    LiDAR surfaces are sparse in the image, so points behind them shine through the gaps. A point is hidden if nearer
    points surround it: around each pixel lie four quadrants, and a quadrant occludes if its nearest point is nearer
    than the pixel by more than the margins. One occluding quadrant is the classical window minimum, which also
    removes what is rightly seen beside an edge; asking for all four keeps the background beside a silhouette, and the
    road, whose nearer points all lie below. Related: Pintus et al., "Real-time rendering of massive unstructured raw
    point clouds using screen-space operators", VAST 2011.

    Attributes:
        visibility: "quadrants", or "none" to keep every point that wins its pixel.
        min_quadrants: Occluding quadrants (1-4) that hide a point.
        width_deg: Horizontal reach of a quadrant.
        height_deg: Vertical reach of a quadrant.
        margin_m: Absolute part of the depth margin.
        margin_ratio: Part of the depth margin that grows with depth.
        cell_deg: Quadrant minima are computed on a grid of this pitch (at least a pixel).
    """

    visibility: Literal["quadrants", "none"] = "quadrants"
    min_quadrants: int = 4
    width_deg: float = 1.2
    height_deg: float = 1.2
    margin_m: float = 0.3
    margin_ratio: float = 0.05
    cell_deg: float = 0.12

    def __post_init__(self) -> None:
        check_options(self, {"min_quadrants": 1}, most={"min_quadrants": 4})
        check_options(self, dict.fromkeys(("margin_m", "margin_ratio"), 0))
        angles = ("width_deg", "height_deg", "cell_deg")
        check_options(self, dict.fromkeys(angles, 0), dict.fromkeys(angles, 90))


def new_keys(height: int, width: int) -> UInt32[np.ndarray, "height width"]:
    """An empty z-buffer."""
    return np.full((height, width), EMPTY_KEY, np.uint32)


def splat(
    cloud: SceneCloud,
    selection: Selection,
    K: Float[np.ndarray, "3 3"],
    keys: UInt32[np.ndarray, "height width"],
) -> tuple[int, slice]:
    """Projects the selected points and keeps the smallest key per pixel.

    Args:
        cloud: The points.
        selection: Which of them, with transforms into the camera.
        K: Intrinsics of the label, integer coordinates are pixel centres.
        keys: Z-buffer from ``new_keys``, changed in place; several calls may share one.

    Returns:
        The number of points that fell into the image, and the range of rows that holds them.
    """
    # Composed in float64, cast once: points are in a local frame, so float32 holds them to 0.01 mm.
    image_T_body = (K @ selection.ref_SE3_body[:, :3]).astype(np.float32)
    n_inside, first, last = _splat(
        cloud.xyz,
        cloud.corners,
        selection.segments,
        cloud.start,
        cloud.stop,
        image_T_body,
        selection.body,
        selection.code,
        keys,
    )
    width = keys.shape[1]
    return n_inside, slice(first // width, last // width + 1) if n_inside else slice(0, 0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _splat(xyz, corners, segments, start, stop, image_T_body, body, codes, keys):  # type: ignore[no-untyped-def]
    height, width = np.float32(keys.shape[0]), np.float32(keys.shape[1])
    flat_keys, stride = keys.reshape(-1), np.int32(keys.shape[1])
    zero, half, one = np.float32(0.0), np.float32(0.5), np.float32(1.0)
    near, far, steps = np.float32(NEAR_M), np.float32(FAR_M), np.float32(DEPTH_STEPS_PER_M)
    outside = np.int32(-1)
    pixel = np.empty(BLOCK, np.int32)
    key = np.empty(BLOCK, np.uint32)
    n_inside = 0
    first, last = np.int32(len(flat_keys)), np.int32(0)
    for k in range(len(segments)):
        s, T = segments[k], image_T_body[body[k]]
        if _is_outside(corners[s], T, width, height):
            continue
        a0, a1, a2, a3 = T[0, 0], T[0, 1], T[0, 2], T[0, 3]
        b0, b1, b2, b3 = T[1, 0], T[1, 1], T[1, 2], T[1, 3]
        c0, c1, c2, c3 = T[2, 0], T[2, 1], T[2, 2], T[2, 3]
        code = np.uint32(codes[k])
        for block in range(start[s], stop[s], BLOCK):
            n = min(BLOCK, stop[s] - block)
            xs, ys, zs = xyz[0, block : block + n], xyz[1, block : block + n], xyz[2, block : block + n]
            # Selects in place of branches and of min / max, so that this loop compiles to SIMD (3x faster).
            for i in range(n):
                x, y, z = xs[i], ys[i], zs[i]
                depth = c0 * x + c1 * y + c2 * z + c3
                in_front = (depth >= near) & (depth < far)
                depth = depth if in_front else one
                inverse = one / depth
                u = (a0 * x + a1 * y + a2 * z + a3) * inverse + half
                v = (b0 * x + b1 * y + b2 * z + b3) * inverse + half
                inside = in_front & (u >= zero) & (u < width) & (v >= zero) & (v < height)
                u, v = u if inside else zero, v if inside else zero  # truncation is floor from here on
                pixel[i] = np.int32(v) * stride + np.int32(u) if inside else outside
                key[i] = (np.uint32(np.int32(depth * steps + half)) << np.uint32(8)) | code
            for i in range(n):
                p = pixel[i]
                if p != outside:
                    n_inside += 1
                    first, last = min(first, p), max(last, p)
                    before = flat_keys[p]  # a store without a branch: its outcome hangs on memory, so it would stall
                    flat_keys[p] = key[i] if key[i] < before else before
    return n_inside, first, last


@numba.njit(cache=True, nogil=True, inline="always")
def _is_outside(corners, T, width, height):  # type: ignore[no-untyped-def]
    """Whether a convex hull lies wholly beyond one border plane of the view, with a pixel to spare."""
    left = right = top = bottom = behind = True
    for c in range(8):
        x, y, z = corners[c, 0], corners[c, 1], corners[c, 2]
        u = T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]
        v = T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]
        depth = T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]
        left &= u < -1.5 * depth
        right &= u > (width + 0.5) * depth
        top &= v < -1.5 * depth
        bottom &= v > (height + 0.5) * depth
        behind &= depth < 0.0
    return left | right | top | bottom | behind


class Pixels(NamedTuple):
    """The filled pixels of a z-buffer, row by row and from left to right.

    Attributes:
        start: Per row of the image: where its pixels begin in the lists; at the end the number of pixels.
        u: Column of each pixel.
        key: Key of each pixel.
    """

    start: Int64[np.ndarray, " height+1"]
    u: UInt16[np.ndarray, " n"]
    key: UInt32[np.ndarray, " n"]


def gather(keys: UInt32[np.ndarray, "height width"], rows: slice) -> Pixels:
    """Takes the filled pixels out of a z-buffer, which is empty afterwards.

    An image is larger than a cache, and this is the one pass over it: all that follows works on the lists.

    Args:
        keys: Z-buffer, changed in place.
        rows: The rows that hold pixels, from ``splat``.
    """
    return Pixels(*_gather(keys, rows.start, rows.stop))


# The loops below select in place of branching, so that they compile to SIMD and nothing is mispredicted.


@numba.njit(cache=True, nogil=True)
def _gather(keys, top, bottom):  # type: ignore[no-untyped-def]
    height, width = keys.shape
    start = np.zeros(height + 1, np.int64)
    capacity = (bottom - top) * width + 1  # memory is given by the page, when it is touched
    out_u, out_key = np.empty(capacity, np.uint16), np.empty(capacity, np.uint32)
    filled = np.zeros((width + 7) // 8 * 8, np.uint8)
    eight = filled.view(np.uint64)  # most of an image is empty: eight pixels at a time are skipped
    at = np.int64(0)
    for v in range(top, bottom):
        row, first = keys[v], at
        for u in range(width):
            filled[u] = row[u] != EMPTY_KEY
        for word in range(len(eight)):
            if eight[word] != 0:
                for u in range(8 * word, 8 * word + 8):
                    out_u[at] = u
                    at += np.int64(filled[u])
        for i in range(first, at):
            out_key[i] = row[out_u[i]]
        for u in range(width):
            row[u] = EMPTY_KEY
        start[v + 1] = at
    start[bottom + 1 :] = at
    return start, out_u[:at], out_key[:at]


def hide(pixels: Pixels, width: int, K: Float[np.ndarray, "3 3"], config: VisibilityConfig) -> Pixels:
    """The pixels that no other pixels hide.

    Args:
        pixels: From ``gather``.
        width: Of the image.
        K: Intrinsics of the label.
        config: The method and its thresholds.
    """
    if config.visibility == "none" or not len(pixels.u):
        return pixels
    px_per_deg = float(K[0, 0]) * np.pi / 180  # at the image centre, where pixels are widest in angle
    cell = max(1, round(config.cell_deg * px_per_deg))
    # Rows of cells above the highest and below the lowest point, half an image with a spinning LiDAR, are left out.
    filled = np.flatnonzero(np.diff(pixels.start))
    top, bottom = filled[0] // cell, filled[-1] // cell + 1
    columns = -(-width // cell)
    limit = _occlusion_limit(
        *pixels,
        cell,
        top,
        (bottom - top, columns),
        min(round(config.height_deg * px_per_deg / cell), bottom - top),
        min(round(config.width_deg * px_per_deg / cell), columns),
        config.min_quadrants,
        np.float32(1 + config.margin_ratio),
        np.float32(DEPTH_STEPS_PER_M * config.margin_m),
    )
    return Pixels(*_within(*pixels, cell, top, limit))


@numba.njit(cache=True, nogil=True)
def _occlusion_limit(start, u, key, cell, top, shape, reach_y, reach_x, min_quadrants, ratio, margin):  # type: ignore[no-untyped-def]
    """Per cell of cell x cell pixels, from row ``top`` on, the depth (1/256 m) beyond which enough quadrants occlude.

    A quadrant spans its own cell and the reach to one side and up or down. It occludes what lies beyond its own limit,
    so k quadrants do beyond the k-th smallest limit.
    """
    rows, columns = shape
    # The smallest depth of each cell, 65535 for none, within a border of empty cells as wide as the reach.
    nearest = np.full((rows + 2 * reach_y, columns + 2 * reach_x), np.uint16(65535), np.uint16)
    column_of = _cell_columns(columns, cell)
    for row in range(rows):
        line = nearest[reach_y + row, reach_x:]
        for i in range(start[(top + row) * cell], start[min((top + row + 1) * cell, len(start) - 1)]):
            c, depth = column_of[u[i]], np.uint16(key[i] >> np.uint32(8))
            line[c] = depth if depth < line[c] else line[c]
    # The quadrants of a cell are the four windows that have it in a corner.
    _window_minimum(nearest, reach_y, reach_x)
    limit = np.empty((rows, columns), np.uint16)
    for row in range(rows):
        above, below = nearest[row], nearest[row + reach_y]
        quadrants = above[:columns], above[reach_x:], below[:columns], below[reach_x:]
        _kth_limit(quadrants, min_quadrants, ratio, margin, limit[row])
    return limit


@numba.njit(cache=True, nogil=True)
def _cell_columns(columns, cell):  # type: ignore[no-untyped-def]
    """The cell of each pixel of a row: a table in place of divisions."""
    column_of = np.empty(columns * cell, np.uint16)
    for u in range(len(column_of)):
        column_of[u] = u // cell
    return column_of


@numba.njit(cache=True, nogil=True)
def _window_minimum(values, reach_y, reach_x):  # type: ignore[no-untyped-def]
    """Replaces values by the minimum of those up to ``reach_y`` rows below and ``reach_x`` columns to the right.

    Two windows that overlap make one of up to twice the length, so a few steps lead to any length. The last
    ``reach_y`` rows and ``reach_x`` columns mean nothing afterwards.
    """
    rows, columns = values.shape
    length = 1
    while length <= reach_y:
        step = min(length, reach_y + 1 - length)
        for row in range(rows - step):
            _lower(values[row], values[row + step])
        length += step
    spare = np.empty(columns, np.uint16)
    for row in range(rows):
        line = values[row]
        length = 1
        while length <= reach_x:
            step = min(length, reach_x + 1 - length)
            _smaller(line, line[step:], spare)
            length += step
            step = min(length, reach_x + 1 - length)  # none after the last one: copies
            _smaller(spare, spare[step:], line)
            length += step


# Functions of their own, since the compiler checks that arguments do not overlap, then uses SIMD.


@numba.njit(cache=True, nogil=True)
def _lower(line, other):  # type: ignore[no-untyped-def]
    for i in range(len(line)):
        line[i] = other[i] if other[i] < line[i] else line[i]


@numba.njit(cache=True, nogil=True)
def _smaller(a, b, out):  # type: ignore[no-untyped-def]
    """The smaller of both, as far as ``b`` goes."""
    for i in range(len(b)):
        out[i] = a[i] if a[i] < b[i] else b[i]


@numba.njit(cache=True, nogil=True)
def _kth_limit(quadrants, k, ratio, margin, limit):  # type: ignore[no-untyped-def]
    """The k-th smallest of four depths, with its margins."""
    q0, q1, q2, q3 = quadrants
    for c in range(len(limit)):
        a, b = (q0[c], q1[c]) if q0[c] < q1[c] else (q1[c], q0[c])
        d, e = (q2[c], q3[c]) if q2[c] < q3[c] else (q3[c], q2[c])
        first, f = (a, d) if a < d else (d, a)
        g, fourth = (b, e) if b < e else (e, b)
        second, third = (f, g) if f < g else (g, f)
        kth = second if k == 2 else third if k == 3 else fourth
        kth = first if k == 1 else kth
        depth = np.float32(kth) * ratio + margin
        limit[c] = np.uint16(np.int32(depth if depth < np.float32(65535) else np.float32(65535)))


@numba.njit(cache=True, nogil=True)
def _within(start, u, key, cell, top, limit):  # type: ignore[no-untyped-def]
    """The pixels whose depth is not beyond the limit of their cell."""
    out_start, out_u, out_key = np.zeros_like(start), np.empty_like(u), np.empty_like(key)
    column_of = _cell_columns(limit.shape[1], cell)
    at = np.int64(0)
    for v in range(len(start) - 1):
        line = limit[min(max(v // cell - top, 0), len(limit) - 1)]  # a row without pixels may lie outside
        for i in range(start[v], start[v + 1]):
            out_u[at], out_key[at] = u[i], key[i]
            at += np.int64(key[i] >> np.uint32(8) <= line[column_of[u[i]]])
        out_start[v + 1] = at
    return out_start, out_u[:at], out_key[:at]


def leave_out_behind(pixels: Pixels, K: Float[np.ndarray, "3 3"], occluders: Occluders) -> Pixels:
    """The pixels that lie nearer than where the ray through their centre enters a box, or whose ray meets none.

    Args:
        pixels: From ``gather``.
        K: Intrinsics of the label.
        occluders: The boxes; one that holds the camera hides nothing, since no object does.
    """
    cam_SE3_box, lower, upper = occluders
    if not len(cam_SE3_box):
        return pixels
    box_SE3_cam = invert(cam_SE3_box)
    origin, rays = box_SE3_cam[:, :3, 3], box_SE3_cam[:, :3, :3] @ np.linalg.inv(K)
    image = transform(cam_SE3_box, box_corners(lower, upper).astype(np.float64)) @ K.T
    depth = image[:, :, 2:]
    seen = ((origin < lower) | (origin > upper)).any(1) & (depth > NEAR_M).any((1, 2))
    # The rectangle of pixels that a box can cover: all, if it reaches behind the camera.
    uv = image[:, :, :2] / np.maximum(depth, NEAR_M)
    most = np.iinfo(pixels.u.dtype).max
    reaches_behind = (depth <= NEAR_M).any(1)
    first = np.where(reaches_behind, 0, np.ceil(uv.min(1)).clip(0, most)).astype(np.int64)
    last = np.where(reaches_behind, most, np.floor(uv.max(1)).clip(-1, most)).astype(np.int64)
    is_kept = ~_is_behind(*pixels, origin[seen], rays[seen], lower[seen], upper[seen], first[seen], last[seen])
    n_before = np.append(0, np.cumsum(is_kept))
    return Pixels(n_before[pixels.start], pixels.u[is_kept], pixels.key[is_kept])


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _is_behind(start, u, key, origin, rays, lower, upper, first, last):  # type: ignore[no-untyped-def]
    """Whether each pixel lies beyond where its ray enters a box, within the rectangle from ``first`` to ``last``.

    A box is where three pairs of planes overlap; the ray is inside from the last plane it enters to the first it leaves
    (Kay and Kajiya, "Ray tracing complex scenes", SIGGRAPH 1986). Depth is the parameter along the ray.
    """
    is_behind = np.zeros(len(u), np.bool_)
    for b in range(len(origin)):
        for v in range(first[b, 1], min(last[b, 1] + 1, len(start) - 1)):
            for i in range(start[v], start[v + 1]):
                if is_behind[i] or u[i] < first[b, 0] or u[i] > last[b, 0]:
                    continue
                enter, leave = 0.0, np.float64(key[i] >> np.uint32(8)) / DEPTH_STEPS_PER_M
                for axis in range(3):
                    along = rays[b, axis, 0] * u[i] + rays[b, axis, 1] * v + rays[b, axis, 2]
                    along = along if abs(along) > 1e-30 else 1e-30  # beside the planes, not through them
                    low, high = (lower[b, axis] - origin[b, axis]) / along, (upper[b, axis] - origin[b, axis]) / along
                    enter, leave = max(enter, min(low, high)), min(leave, max(low, high))
                is_behind[i] = enter < leave
    return is_behind


def points_of(pixels: Pixels) -> Points:
    """Pixels as a label holds them."""
    v, depth_m, source, age = _unpack(pixels.start, pixels.key)
    return Points(pixels.u.copy(), v, depth_m, source, age)


@numba.njit(cache=True, nogil=True)
def _unpack(start, key):  # type: ignore[no-untyped-def]
    """Row, depth in metres, source code and age of each pixel."""
    n = len(key)
    v, depth_m = np.empty(n, np.uint16), np.empty(n, np.float32)
    source, age = np.empty(n, np.uint8), np.empty(n, np.uint8)
    for row in range(len(start) - 1):
        for i in range(start[row], start[row + 1]):
            v[i] = row
    for i in range(n):
        depth_m[i] = np.float32(np.int32(key[i] >> np.uint32(8))) * np.float32(1 / DEPTH_STEPS_PER_M)
        source[i] = np.uint8((key[i] & np.uint32(255)) >> np.uint32(AGE_BITS))
        age[i] = np.uint8(key[i] & np.uint32(MAX_AGE))
    return v, depth_m, source, age


@dataclass(frozen=True)
class LabelStats:
    """How one label came about.

    Attributes:
        n_sweeps: Sweeps in the window.
        n_points: Points that fell into the image.
        n_hidden: Pixels emptied by the visibility test.
        n_behind_dropped: Pixels emptied, since they lie behind the box of a dropped object.
        n_unknown_pose: Points left out, since their object has no pose at the camera's time.
    """

    n_sweeps: int
    n_points: int
    n_hidden: int
    n_behind_dropped: int
    n_unknown_pose: int


def render_label(
    cloud: SceneCloud,
    frame: CameraFrame,
    K: Float[np.ndarray, "3 3"],
    config: VisibilityConfig,
    keys: UInt32[np.ndarray, "height width"],
    without: Sequence[str] = (),
) -> tuple[Label, LabelStats]:
    """Makes the label of one camera frame.

    Args:
        cloud: The scene's points.
        frame: The camera frame.
        K: Intrinsics at the size of the label.
        config: The visibility test.
        keys: An empty z-buffer of the label's size, empty again afterwards.
        without: Tokens of sweeps to leave out, for held-out checks.
    """
    selection = cloud.select(invert(frame.world_SE3_cam), frame.timestamp_us, frame.key_sweep, without)
    n_points, rows = splat(cloud, selection, K, keys)
    pixels = gather(keys, rows)
    visible = hide(pixels, keys.shape[1], K, config)
    # After the visibility test: what stands behind a dropped object still hides what lies behind itself.
    left = leave_out_behind(visible, K, selection.occluders)
    height, width = keys.shape
    label = Label(points_of(left), height, width, K, frame.sample_token, frame.camera, frame.timestamp_us)
    n_hidden, n_behind = len(pixels.u) - len(visible.u), len(visible.u) - len(left.u)
    return label, LabelStats(selection.n_sweeps, n_points, n_hidden, n_behind, selection.n_unknown_pose)
