"""An object as single sweeps saw it: the points on it, in the frame of its box, at one instant for each sweep."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Float64, Int

from dense_depth.datasets.scene import Sweep
from dense_depth.geometry import SE3, invert, transform
from dense_depth.sweeps import compensated, read_timed, twist_at

GROWN_M = 0.3  # boxes grow by this on all sides: annotators cut corners, and interpolation is off by as much
GROUND_M = 0.25  # points so near to the bottom of a box may be ground
MIN_POINTS = 12  # of a view; fewer do not tell where an object is
MAX_POINTS = 150  # of a view; more do not tell it better
NEIGHBOURS = 10  # of a point, whose spread is its covariance: enough to reach a second ring of a LiDAR of 32 beams
NOISE_M = 0.05  # of a point, across the surface that it lies on
DENSE = 1000  # points among which neighbours are looked for
SAME_INSTANT_US = 20_000  # a view so near in time to an annotated box is a view at the time of that box


class SweepPoints(NamedTuple):
    """All points of one sweep, in the world.

    Attributes:
        timestamp_us: The stamp of the sweep.
        xyz: Points in the world frame.
        times_s: When each was measured, in seconds from the stamp.
    """

    timestamp_us: int
    xyz: Float64[np.ndarray, "n 3"]
    times_s: Float[np.ndarray, " n"]


def points_of(sweeps: Sequence[Sweep]) -> Iterator[SweepPoints]:
    """Reads the points of the sweeps of a scene into the world, each where it was hit.

    Raises:
        InputError: A file is missing or malformed.
    """
    for i, sweep in enumerate(sweeps):
        points, hit_s = read_timed(sweep)
        points = compensated(sweep, points, hit_s, twist_at(sweeps, i))
        xyz = transform(sweep.world_SE3_sensor, points[:, :3].astype(np.float64))
        yield SweepPoints(sweep.timestamp_us, xyz, np.zeros(len(xyz)) if hit_s is None else hit_s)


class Course(NamedTuple):
    """Where an object is during one sweep: it moves straight on and turns at a constant rate.

    Attributes:
        time_us: An instant.
        world_SE3_box: Its pose then.
        velocity_mps: Of its centre, in the world.
        turn_rps: How fast its yaw grows.
    """

    time_us: int
    world_SE3_box: SE3
    velocity_mps: Float[np.ndarray, "3"]
    turn_rps: float

    def at(self, time_us: int) -> SE3:
        """The pose at another time."""
        later_s = 1e-6 * (time_us - self.time_us)
        pose = turned(self.world_SE3_box[None], np.array([self.turn_rps * later_s]))[0]
        pose[:3, 3] += self.velocity_mps * later_s
        return pose


class View(NamedTuple):
    """An object as one sweep saw it.

    Attributes:
        time_us: An instant in the sweep at which the object was hit.
        world_SE3_box: Where its box is taken to be then.
        xyz: Points on the object in the frame of that box, as they lay at that instant.
        cov: Spread of the neighbours of each point in x and y of that frame: xx, xy, yy in m2.
        box: Which annotated box of the object is of this time; -1 for none.
    """

    time_us: int
    world_SE3_box: SE3
    xyz: Float64[np.ndarray, "n 3"] = np.empty((0, 3))
    cov: Float64[np.ndarray, "n 3"] = np.empty((0, 3))
    box: int = -1


def turned(poses: Float[np.ndarray, "n 4 4"], yaw: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 4 4"]:
    """Poses turned around vertical axes through their own origins."""
    out = poses.copy()
    cosine, sine = np.cos(yaw)[:, None], np.sin(yaw)[:, None]
    out[:, 0, :3] = cosine * poses[:, 0, :3] - sine * poses[:, 1, :3]
    out[:, 1, :3] = sine * poses[:, 0, :3] + cosine * poses[:, 1, :3]
    return out


def yaws(poses: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, " n"]:
    """Yaw angles of consecutive poses, without jumps by a full turn."""
    return np.unwrap(np.arctan2(poses[:, 1, 0], poses[:, 0, 0]))


def points_near(sweep: SweepPoints, course: Course, size_lwh_m: Float[np.ndarray, "3"], slack_m: float) -> SweepPoints:
    """The points of a sweep that may lie on an object: in a cylinder around its course, wider by ``slack_m``."""
    swept_m = np.linalg.norm(course.velocity_mps) * np.ptp(sweep.times_s) / 2 if len(sweep.times_s) else 0.0
    radius_m = np.hypot(*size_lwh_m[:2]) / 2 + GROWN_M + swept_m + slack_m
    index = _in_cylinder(sweep.xyz, course.world_SE3_box[:3, 3], radius_m * radius_m)
    return SweepPoints(sweep.timestamp_us, sweep.xyz[index], sweep.times_s[index])


def view_of(
    near: SweepPoints, course: Course, size_lwh_m: Float[np.ndarray, "3"], box_times_us: Int[np.ndarray, " boxes"]
) -> View | None:
    """The view of an object in a sweep; None where the sweep has too few points on it.

    Args:
        near: Points of ``points_near``.
        course: Where the object is taken to be during the sweep.
        size_lwh_m: Of its box.
        box_times_us: Times of its annotated boxes.
    """
    late_s = near.times_s + 1e-6 * (near.timestamp_us - course.time_us)
    xyz = near.xyz - course.world_SE3_box[:3, 3] - course.velocity_mps * late_s[:, None]
    cosine, sine = np.cos(course.turn_rps * late_s), np.sin(course.turn_rps * late_s)
    xyz = np.column_stack([cosine * xyz[:, 0] + sine * xyz[:, 1], cosine * xyz[:, 1] - sine * xyz[:, 0], xyz[:, 2]])
    xyz = xyz @ course.world_SE3_box[:3, :3]
    upper = size_lwh_m / 2 + GROWN_M
    lower = np.array([-upper[0], -upper[1], GROUND_M - size_lwh_m[2] / 2])
    inside = ((xyz > lower) & (xyz < upper)).all(1)
    if inside.sum() < MIN_POINTS:
        return None
    time_us = near.timestamp_us + round(1e6 * float(np.median(near.times_s[inside])))
    box = int(np.abs(box_times_us - time_us).argmin())
    if abs(box_times_us[box] - time_us) < SAME_INSTANT_US:
        time_us = int(box_times_us[box])
    else:
        box = -1
    xyz = _some(xyz[inside], DENSE)
    some = _some(np.arange(len(xyz)), MAX_POINTS)
    return View(time_us, course.at(time_us), xyz[some], _covariances(xyz, some, NEIGHBOURS, NOISE_M**2), box)


def _some(values: np.ndarray, n: int) -> np.ndarray:
    """At most n values, evenly from all."""
    return values[np.linspace(0, len(values) - 1, min(len(values), n)).astype(np.int64)]


def seen_from(view: View, world_SE3_box: SE3) -> Float64[np.ndarray, "n 3"]:
    """The points of a view, which stay where they are in the world, in the frame of another box."""
    return transform(invert(world_SE3_box) @ view.world_SE3_box, view.xyz)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _in_cylinder(xyz, centre, radius_sq):  # type: ignore[no-untyped-def]
    """Indices of the points in a vertical cylinder."""
    x, y = centre[0], centre[1]
    out = np.empty(len(xyz), np.int64)
    n = 0
    for i in range(len(xyz)):
        dx, dy = xyz[i, 0] - x, xyz[i, 1] - y
        out[n] = i
        n += dx * dx + dy * dy < radius_sq
    return out[:n]


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _covariances(xyz, chosen, k, noise_sq):  # type: ignore[no-untyped-def]
    """Spread in x and y of the k nearest neighbours, in space, of each chosen point.

    Of a side or an end of a vehicle that is a line; of a roof, whose rings lie where they happen to, it is round.
    """
    out = np.empty((len(chosen), 3))
    nearest, index = np.empty(k), np.empty(k, np.int64)
    for c in range(len(chosen)):
        i = chosen[c]
        nearest[:] = np.inf
        for j in range(len(xyz)):
            dx, dy, dz = xyz[j, 0] - xyz[i, 0], xyz[j, 1] - xyz[i, 1], xyz[j, 2] - xyz[i, 2]
            square = dx * dx + dy * dy + dz * dz
            if square < nearest[k - 1]:
                at = k - 1
                while at > 0 and nearest[at - 1] > square:
                    nearest[at], index[at] = nearest[at - 1], index[at - 1]
                    at -= 1
                nearest[at], index[at] = square, j
        mean_x = mean_y = mean_z = 0.0
        for a in range(k):
            mean_x += xyz[index[a], 0] / k
            mean_y += xyz[index[a], 1] / k
            mean_z += xyz[index[a], 2] / k
        xx = xy = yy = zz = 0.0
        for a in range(k):
            dx, dy, dz = xyz[index[a], 0] - mean_x, xyz[index[a], 1] - mean_y, xyz[index[a], 2] - mean_z
            xx += dx * dx / k
            xy += dx * dy / k
            yy += dy * dy / k
            zz += dz * dz / k
        middle, radius = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy)
        along, across = middle + radius, middle - radius
        stretched = (
            along * ((along + noise_sq) / (across + noise_sq)) ** 2
        )  # nothing tells where on a wall a point lies
        flat = max(1.0, (across + noise_sq) / (zz + noise_sq))  # nor where on a roof
        angle = np.arctan2(2 * xy, xx - yy) / 2
        cosine, sine = np.cos(angle), np.sin(angle)
        out[c, 0] = flat * (stretched * cosine * cosine + across * sine * sine)
        out[c, 1] = flat * (stretched - across) * cosine * sine
        out[c, 2] = flat * (stretched * sine * sine + across * cosine * cosine)
    return out
