"""Which triangle each pixel of a camera shows, exactly at the pixel's centre.

Ray casting says the same (a test compares them) and takes ten times longer on twice the threads: neighbouring pixels
share a triangle, whose inverse depth is linear in pixel coordinates, so a row of it is one SIMD loop.
"""

import numba
import numpy as np
from jaxtyping import Float, UInt16

from dense_depth.geometry import SE3

NEAR_M = 0.05  # nothing nearer to a camera is drawn


class Canvas:
    """What the pixels of an image show.

    Attributes:
        inverse_depth: 1 / depth of the nearest surface through the pixel's centre, 1/m; 0 where there is none.
        triangle: Its triangle, -1 where there is none.
        pixels_on: How many pixels would show each instance if it were alone.
    """

    def __init__(self, height: int, width: int, n_instances: int) -> None:
        self.inverse_depth = np.zeros((height, width), np.float32)
        self.triangle = np.full((height, width), -1, np.int32)
        self.pixels_on = np.zeros(n_instances, np.int64)
        self._last_instance = np.zeros((height, width), np.uint16)

    def draw(
        self,
        corners_m: Float[np.ndarray, "t 3 3"],
        instances: UInt16[np.ndarray, " t"],
        cam_SE3_world: SE3,
        K: Float[np.ndarray, "3 3"],
    ) -> None:
        """Draws triangles; those of an instance other than 0 should follow each other.

        Args:
            corners_m: World frame, float32.
            instances: Instance of each triangle, 0 for the background.
            cam_SE3_world: Pose of the camera.
            K: Intrinsics without skew; integer coordinates are pixel centres.
        """
        _draw(
            corners_m,
            instances,
            cam_SE3_world,
            K,
            self.inverse_depth,
            self.triangle,
            self._last_instance,
            self.pixels_on,
        )


def draw_heights(
    corners_m: Float[np.ndarray, "t 3 3"],
    map_T_world: Float[np.ndarray, "3 4"],
    heights: Float[np.ndarray, "rows cols"],
) -> None:
    """Keeps the greatest height of triangles over a plane, as a shadow map needs it.

    Args:
        corners_m: World frame, float32.
        map_T_world: Affine map to (column, row, height).
        heights: Changed in place, float32.
    """
    _draw_heights(corners_m, map_T_world, heights, np.zeros((1, 1), np.int32))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _draw(corners, instances, cam_T_world, K, inverse_depth, triangle, last, pixels_on):  # type: ignore[no-untyped-def]
    height, width = inverse_depth.shape
    fx, fy, cx, cy = K[0, 0], K[1, 1], K[0, 2], K[1, 2]
    T = cam_T_world
    p = np.empty((3, 3))
    xs, ys, edges = np.empty(4), np.empty(4), np.empty((2, 4, 2))
    for t in range(len(corners)):
        n_near = 0
        left = right = top = bottom = True
        for k in range(3):
            x, y, z = np.float64(corners[t, k, 0]), np.float64(corners[t, k, 1]), np.float64(corners[t, k, 2])
            for axis in range(3):
                p[k, axis] = T[axis, 0] * x + T[axis, 1] * y + T[axis, 2] * z + T[axis, 3]
            depth = p[k, 2]
            n_near += depth < NEAR_M
            u, v = fx * p[k, 0] + cx * depth, fy * p[k, 1] + cy * depth
            left &= u < 0.0
            right &= u > (width - 1) * depth
            top &= v < 0.0
            bottom &= v > (height - 1) * depth
        if n_near == 3 or left or right or top or bottom:
            continue
        # The plane n . P = d, so 1/z = n . ray / d, linear in pixel coordinates.
        ax, ay, az = p[1, 0] - p[0, 0], p[1, 1] - p[0, 1], p[1, 2] - p[0, 2]
        bx, by, bz = p[2, 0] - p[0, 0], p[2, 1] - p[0, 1], p[2, 2] - p[0, 2]
        nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
        d = nx * p[0, 0] + ny * p[0, 1] + nz * p[0, 2]
        if abs(d) < 1e-12:  # seen edge-on
            continue
        a, b = nx / (fx * d), ny / (fy * d)
        c = nz / d - a * cx - b * cy
        n = 0
        for k in range(3):  # the part beyond the near plane has three or four corners
            q = (k + 1) % 3
            if p[k, 2] >= NEAR_M:
                xs[n], ys[n] = fx * p[k, 0] / p[k, 2] + cx, fy * p[k, 1] / p[k, 2] + cy
                n += 1
            if (p[k, 2] >= NEAR_M) != (p[q, 2] >= NEAR_M):
                s = (NEAR_M - p[k, 2]) / (p[q, 2] - p[k, 2])
                xs[n] = fx * (p[k, 0] + s * (p[q, 0] - p[k, 0])) / NEAR_M + cx
                ys[n] = fy * (p[k, 1] + s * (p[q, 1] - p[k, 1])) / NEAR_M + cy
                n += 1
        instance = instances[t]
        _fill(xs, ys, n, edges, a, b, c, np.int32(t), inverse_depth, triangle)
        if instance:
            pixels_on[instance] += _mark(xs, ys, n, edges, instance, last)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _draw_heights(corners, T, heights, unused):  # type: ignore[no-untyped-def]
    xs, ys, zs, edges = np.empty(4), np.empty(4), np.empty(3), np.empty((2, 4, 2))
    for t in range(len(corners)):
        for k in range(3):
            x, y, z = np.float64(corners[t, k, 0]), np.float64(corners[t, k, 1]), np.float64(corners[t, k, 2])
            xs[k] = T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]
            ys[k] = T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]
            zs[k] = T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]
        area = (xs[1] - xs[0]) * (ys[2] - ys[0]) - (xs[2] - xs[0]) * (ys[1] - ys[0])
        if abs(area) < 1e-9:
            continue
        a = ((zs[1] - zs[0]) * (ys[2] - ys[0]) - (zs[2] - zs[0]) * (ys[1] - ys[0])) / area
        b = ((xs[1] - xs[0]) * (zs[2] - zs[0]) - (xs[2] - xs[0]) * (zs[1] - zs[0])) / area
        _fill(xs, ys, 3, edges, a, b, zs[0] - a * xs[0] - b * ys[0], np.int32(t), heights, unused)


@numba.njit(cache=True, nogil=True, inline="always")
def _rows(ys, n, height):  # type: ignore[no-untyped-def]
    lowest, highest = ys[0], ys[0]
    for k in range(1, n):
        lowest, highest = min(lowest, ys[k]), max(highest, ys[k])
    return int(np.ceil(max(lowest, 0.0))), int(np.floor(min(highest, height - 1.0)))


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _edges(xs, ys, n, edges):  # type: ignore[no-untyped-def]
    """The lines u = slope * row + start that bound a convex polygon on the left [0] and right [1], and their numbers.

    The slope and start of an edge are exactly the same when its ends are swapped, so triangles that share an edge leave
    no pixel between them.
    """
    area = 0.0
    for k in range(n):
        q = (k + 1) % n
        area += xs[k] * ys[q] - xs[q] * ys[k]
    n_left = n_right = 0
    for k in range(n):
        q = (k + 1) % n
        fall = ys[k] - ys[q]
        if abs(fall) < 1e-9:  # bounds rows, not columns
            continue
        slope, start = (xs[k] - xs[q]) / fall, (xs[q] * ys[k] - xs[k] * ys[q]) / fall
        if fall * area > 0:
            edges[0, n_left, 0], edges[0, n_left, 1] = slope, start
            n_left += 1
        else:
            edges[1, n_right, 0], edges[1, n_right, 1] = slope, start
            n_right += 1
    return n_left, n_right


@numba.njit(cache=True, nogil=True, inline="always")
def _span(edges, n_left, n_right, row, width):  # type: ignore[no-untyped-def]
    """First and last column of a convex polygon in a row."""
    first, last = 0.0, width - 1.0
    for k in range(n_left):
        first = max(first, edges[0, k, 0] * row + edges[0, k, 1])
    for k in range(n_right):
        last = min(last, edges[1, k, 0] * row + edges[1, k, 1])
    return int(np.ceil(first)), int(np.floor(last))


@numba.njit(cache=True, nogil=True)
def _fill(xs, ys, n, edges, a, b, c, index, values, indices):  # type: ignore[no-untyped-def]
    """Keeps the greatest of a u + b v + c over the pixels of a convex polygon, and whose it is."""
    height, width = values.shape
    top, bottom = _rows(ys, n, height)
    if bottom < top:
        return
    n_left, n_right = _edges(xs, ys, n, edges)
    keep_index = indices.shape == values.shape
    for row in range(top, bottom + 1):
        first, last = _span(edges, n_left, n_right, row, width)
        if last < first:
            continue
        start, slope = a * first + b * row + c, a
        line = values[row, first : last + 1]
        if keep_index:
            owner = indices[row, first : last + 1]
            for i in range(len(line)):
                value = np.float32(start + slope * i)
                nearer = value > line[i]
                line[i] = value if nearer else line[i]
                owner[i] = index if nearer else owner[i]
        else:
            for i in range(len(line)):
                value = np.float32(start + slope * i)
                line[i] = value if value > line[i] else line[i]


@numba.njit(cache=True, nogil=True)
def _mark(xs, ys, n, edges, instance, last_instance):  # type: ignore[no-untyped-def]
    """How many pixels of a polygon its instance had not covered yet."""
    height, width = last_instance.shape
    top, bottom = _rows(ys, n, height)
    if bottom < top:
        return 0
    n_left, n_right = _edges(xs, ys, n, edges)
    fresh = 0
    for row in range(top, bottom + 1):
        first, last = _span(edges, n_left, n_right, row, width)
        if last < first:
            continue
        line = last_instance[row, first : last + 1]
        in_row = np.uint16(0)
        for i in range(len(line)):
            in_row += np.uint16(line[i] != instance)
            line[i] = instance
        fresh += in_row
    return fresh
