"""Deskewing: points of a moving sensor, brought to where it would have seen them at one instant."""

from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Float32

from dense_depth.geometry import SE3, exp, invert, log


class Twist(NamedTuple):
    """How a sensor moves around an instant, in its own frame at that instant.

    Attributes:
        linear_mps: Velocity of its origin.
        angular_rps: Axis of its turning times radians per second.
    """

    linear_mps: Float[np.ndarray, "3"]
    angular_rps: Float[np.ndarray, "3"]


def twist_of(world_SE3_sensor: Float[np.ndarray, "n 4 4"], times_s: Float[np.ndarray, " n"], i: int) -> Twist:
    """The motion at pose ``i`` of a trajectory, by its neighbours in time; none for a trajectory of one pose."""
    before, after = max(i - 1, 0), min(i + 1, len(world_SE3_sensor) - 1)
    gap_s = times_s[after] - times_s[before]
    if gap_s <= 0:
        return Twist(np.zeros(3), np.zeros(3))
    sensor_SE3_before, sensor_SE3_after = invert(world_SE3_sensor[i]) @ world_SE3_sensor[[before, after]]
    turned = log(sensor_SE3_after @ invert(sensor_SE3_before))[:3]
    return Twist((sensor_SE3_after[:3, 3] - sensor_SE3_before[:3, 3]) / gap_s, turned / gap_s)


def moved(twist: Twist, time_s: float) -> SE3:
    """Where the sensor is a time after the instant: stamp_SE3_sensor."""
    return exp(time_s * np.concatenate([twist.angular_rps, twist.linear_mps]))


def deskew(
    points: Float32[np.ndarray, "n 3"], times_s: Float32[np.ndarray, " n"], twist: Twist
) -> Float32[np.ndarray, "n 3"]:
    """Brings points, each in the frame of the sensor at its own time, to the frame at one instant.

    The sensor moves at constant velocity along a line and turns at a constant rate, as ``moved``.

    Args:
        points: x, y, z; more columns are left alone.
        times_s: Time of each point after the instant.
        twist: Motion of the sensor at the instant.
    """
    linear, angular = (np.asarray(part, np.float32) for part in twist)
    return _deskew(points, times_s, linear, angular)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _deskew(points, times_s, linear, angular):  # type: ignore[no-untyped-def]
    """Rodrigues' formula with the series of sine and cosine: a revolution turns by less than half a radian."""
    out = np.empty((len(points), 3), np.float32)
    wx, wy, wz = angular
    rate_sq = wx * wx + wy * wy + wz * wz
    for i in range(len(points)):
        x, y, z, t = points[i, 0], points[i, 1], points[i, 2], times_s[i]
        a = rate_sq * t * t
        s = t * (np.float32(1) - a * (np.float32(1 / 6) - a * np.float32(1 / 120)))
        c = t * t * (np.float32(0.5) - a * (np.float32(1 / 24) - a * np.float32(1 / 720)))
        ux, uy, uz = wy * z - wz * y, wz * x - wx * z, wx * y - wy * x
        out[i, 0] = x + s * ux + c * (wy * uz - wz * uy) + linear[0] * t
        out[i, 1] = y + s * uy + c * (wz * ux - wx * uz) + linear[1] * t
        out[i, 2] = z + s * uz + c * (wx * uy - wy * ux) + linear[2] * t
    return out
