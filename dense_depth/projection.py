"""Points to a depth and source map: an exact z-buffer and a visibility test.

The z-buffer keeps, per pixel, the smallest 32-bit key ``depth << 8 | source << 5 | age`` with depth in steps of 1/256 m
and age in steps of 0.1 s. A minimum of integers does not depend on the order of the points, so neither do the labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numba
import numpy as np
from jaxtyping import Float, UInt32

from dense_depth.accumulation import SceneCloud, Selection
from dense_depth.datasets.scene import CameraFrame
from dense_depth.geometry import invert
from dense_depth.label import AGE_BITS, DEPTH_STEPS_PER_M, MAX_AGE, Label, dequantise
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
    image_T_segment = (K @ selection.ref_SE3_segment[:, :3]).astype(np.float32)
    n_inside, first, last = _splat(
        cloud.xyz,
        cloud.corners,
        selection.segments,
        cloud.start,
        cloud.stop,
        image_T_segment,
        selection.code,
        keys,
    )
    width = keys.shape[1]
    return n_inside, slice(first // width, last // width + 1) if n_inside else slice(0, 0)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _splat(xyz, corners, segments, start, stop, image_T_segment, codes, keys):  # type: ignore[no-untyped-def]
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
        s, T = segments[k], image_T_segment[k]
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


def hide(keys: UInt32[np.ndarray, "height width"], K: Float[np.ndarray, "3 3"], config: VisibilityConfig) -> int:
    """Empties the pixels whose point is hidden behind other points.

    Args:
        keys: Z-buffer from ``splat``, changed in place.
        K: Intrinsics of the label.
        config: The method and its thresholds.

    Returns:
        The number of pixels emptied.
    """
    if config.visibility == "none":
        return 0
    px_per_deg = _px_per_deg(K)
    cell = _cell_px(K, config)
    nearest = _cell_minimum(keys, cell)
    limit = _occlusion_limit(
        nearest,
        round(config.width_deg * px_per_deg / cell),
        round(config.height_deg * px_per_deg / cell),
        config.min_quadrants,
        np.float32(1 + config.margin_ratio),
        np.float32(DEPTH_STEPS_PER_M * config.margin_m),
    )
    return _hide_beyond(keys, cell, limit)


def _px_per_deg(K: Float[np.ndarray, "3 3"]) -> float:
    return float(K[0, 0]) * np.pi / 180  # at the image centre, where pixels are widest in angle


def _cell_px(K: Float[np.ndarray, "3 3"], config: VisibilityConfig) -> int:
    return max(1, round(config.cell_deg * _px_per_deg(K)))


# The loops below are written with selects and one row at a time, so that they compile to SIMD.


@numba.njit(cache=True, nogil=True)
def _cell_minimum(keys, cell):  # type: ignore[no-untyped-def]
    """Smallest depth (1/256 m, 65535 for none) in each cell x cell block of the image."""
    height, width = keys.shape
    rows, columns = (height + cell - 1) // cell, (width + cell - 1) // cell
    nearest = np.empty((rows, columns), np.uint16)
    line = np.empty(columns * cell, np.uint32)
    for row in range(rows):
        line[:] = EMPTY_KEY
        for v in range(row * cell, min((row + 1) * cell, height)):
            pixels = keys[v]
            for u in range(width):
                line[u] = pixels[u] if pixels[u] < line[u] else line[u]
        for column in range(columns):
            smallest = line[column * cell]
            for u in range(column * cell + 1, (column + 1) * cell):
                smallest = line[u] if line[u] < smallest else smallest
            nearest[row, column] = min(smallest >> np.uint32(8), np.uint32(65535))
    return nearest


@numba.njit(cache=True, nogil=True)
def _occlusion_limit(nearest, reach_x, reach_y, min_quadrants, ratio, margin):  # type: ignore[no-untyped-def]
    """Per cell, the depth (1/256 m) beyond which enough quadrants occlude.

    A quadrant holds the cell itself and reaches reach_x cells to one side and reach_y cells up or down. It occludes
    what lies beyond its own limit, so k quadrants do beyond the k-th smallest limit.
    """
    rows, columns = nearest.shape
    left, right = nearest.copy(), nearest.copy()
    for row in range(rows):
        for step in range(1, min(reach_x, columns - 1) + 1):
            source, to_left, to_right = nearest[row], left[row], right[row]
            for c in range(columns - step):
                to_left[c + step] = source[c] if source[c] < to_left[c + step] else to_left[c + step]
                to_right[c] = source[c + step] if source[c + step] < to_right[c] else to_right[c]
    limit = np.empty((rows, columns), np.uint16)
    quadrants = np.empty((4, columns), np.uint16)
    for row in range(rows):
        for q in range(4):
            side, minimum = (left if q & 1 else right), quadrants[q]
            minimum[:] = side[row]
            for step in range(1, reach_y + 1):
                other = row + step if q & 2 else row - step
                if 0 <= other < rows:
                    line = side[other]
                    for c in range(columns):
                        minimum[c] = line[c] if line[c] < minimum[c] else minimum[c]
        line = limit[row]
        q0, q1, q2, q3 = quadrants[0], quadrants[1], quadrants[2], quadrants[3]
        for c in range(columns):
            a, b = (q0[c], q1[c]) if q0[c] < q1[c] else (q1[c], q0[c])
            d, e = (q2[c], q3[c]) if q2[c] < q3[c] else (q3[c], q2[c])
            first, f = (a, d) if a < d else (d, a)
            g, fourth = (b, e) if b < e else (e, b)
            second, third = (f, g) if f < g else (g, f)
            kth = second if min_quadrants == 2 else third if min_quadrants == 3 else fourth
            kth = first if min_quadrants == 1 else kth
            depth = np.float32(kth) * ratio + margin
            line[c] = np.uint16(np.int32(depth if depth < np.float32(65535) else np.float32(65535)))
    return limit


@numba.njit(cache=True, nogil=True)
def _hide_beyond(keys, cell, limit):  # type: ignore[no-untyped-def]
    """Empties the pixels whose depth is beyond the limit of their cell, and counts them."""
    height, width = keys.shape
    beyond = np.empty(limit.shape[1] * cell, np.uint32)
    n_hidden = 0
    for row in range(limit.shape[0]):
        for column in range(limit.shape[1]):
            key = (np.uint32(limit[row, column]) << np.uint32(8)) | np.uint32(255)
            for u in range(column * cell, (column + 1) * cell):
                beyond[u] = key
        for v in range(row * cell, min((row + 1) * cell, height)):
            line = keys[v]
            in_row = np.uint32(0)
            for u in range(width):
                key = line[u]
                hidden = (key > beyond[u]) & (key != EMPTY_KEY)
                in_row += np.uint32(hidden)
                line[u] = EMPTY_KEY if hidden else key
            n_hidden += in_row
    return n_hidden


@numba.njit(cache=True, nogil=True)
def _unpack(keys, depth, source, age):  # type: ignore[no-untyped-def]
    """Splits keys into depth, source code and age, and empties the z-buffer."""
    for v in range(keys.shape[0]):
        line, depth_line, source_line, age_line = keys[v], depth[v], source[v], age[v]
        for u in range(keys.shape[1]):
            key = line[u]
            filled = key != EMPTY_KEY
            depth_line[u] = np.uint16(key >> np.uint32(8)) if filled else np.uint16(0)
            source_line[u] = np.uint8((key & np.uint32(255)) >> np.uint32(AGE_BITS)) if filled else np.uint8(0)
            age_line[u] = np.uint8(key & np.uint32(MAX_AGE)) if filled else np.uint8(0)
            line[u] = EMPTY_KEY


@dataclass(frozen=True)
class LabelStats:
    """How one label came about.

    Attributes:
        n_sweeps: Sweeps in the window.
        n_points: Points that fell into the image.
        n_hidden: Pixels emptied by the visibility test.
        n_unknown_pose: Points left out, since their object has no pose at the camera's time.
    """

    n_sweeps: int
    n_points: int
    n_hidden: int
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
    # Rows above the highest and below the lowest point, half the image with a spinning LiDAR, are known to be empty.
    # Cells stay where they are in the whole image, so that the result does not depend on the points.
    top = rows.start - rows.start % _cell_px(K, config)
    n_hidden = hide(keys[top : rows.stop], K, config)
    depth = np.zeros(keys.shape, np.uint16)
    source, age = np.zeros(keys.shape, np.uint8), np.zeros(keys.shape, np.uint8)
    _unpack(keys[rows], depth[rows], source[rows], age[rows])
    label = Label.from_maps(
        *(dequantise(depth), source, age),
        K=K,
        sample_token=frame.sample_token,
        camera=frame.camera,
        timestamp_us=frame.timestamp_us,
    )
    return label, LabelStats(selection.n_sweeps, n_points, n_hidden, selection.n_unknown_pose)
