"""A label: the depth of each pixel of a camera frame, where it comes from, how old it is and how sure.

Depth is kept in steps of 1/256 m, age in steps of 0.1 s.
"""

import enum
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numba
import numpy as np
from jaxtyping import Float, Float32, Int, Shaped, UInt8, UInt16

from dense_depth import InputError
from dense_depth.datasets.scene import CameraFrame
from dense_depth.geometry import resize_K

Kind = Literal["lidar", "accumulated", "completed"]

DEPTH_STEPS_PER_M = 256
MAX_DEPTH_M = 255.99
CERTAIN = 255  # confidence of a measured pixel
OUTLIER_M = 0.5  # a depth off by more is wrong; confidence is the chance that it is not
AGE_BITS = 5  # of the low byte of a z-buffer key; the three bits above hold the source code
AGE_STEP_US = 100_000
MAX_AGE = (1 << AGE_BITS) - 1


class Source(enum.IntEnum):
    """Where the depth of a pixel comes from; the smaller code wins between equal depths."""

    NONE = 0
    KEY_SWEEP = 1
    STATIC = 2  # another sweep, static world
    MOVING = 3  # another sweep, moving object
    COMPLETED = 4


class Points(NamedTuple):
    """The labelled pixels of a camera frame, row by row and from left to right.

    Attributes:
        u: Column.
        v: Row.
        depth_m: z in metres, above 0.
        source: ``Source`` codes, never NONE.
        age: Time between camera and sweep in 0.1 s, before or after; 31 stands for 3.1 s and more.
        confidence: 255 x the chance that a depth is right, above 0, ``CERTAIN`` where it was measured; None where a
            kind has none.
    """

    u: UInt16[np.ndarray, " n"]
    v: UInt16[np.ndarray, " n"]
    depth_m: Float32[np.ndarray, " n"]
    source: UInt8[np.ndarray, " n"]
    age: UInt8[np.ndarray, " n"]
    confidence: UInt8[np.ndarray, " n"] | None = None


@dataclass(frozen=True, eq=False)
class Label:
    """The depths of one camera frame, as points or, made when they are first asked for, as maps.

    Attributes:
        labelled: See ``points``.
        height: Rows of the label.
        width: Columns of the label.
        K: Intrinsics at this size; integer coordinates are pixel centres.
        sample_token: The keyframe.
        camera: Channel name.
        timestamp_us: Time of exposure.
    """

    labelled: Points
    height: int
    width: int
    K: Float[np.ndarray, "3 3"]
    sample_token: str
    camera: str
    timestamp_us: int

    @classmethod
    def from_maps(
        cls,
        depth_m: Float32[np.ndarray, "H W"],
        source: UInt8[np.ndarray, "H W"],
        age: UInt8[np.ndarray, "H W"] | None = None,
        confidence: UInt8[np.ndarray, "H W"] | None = None,
        *,
        K: Float[np.ndarray, "3 3"],
        sample_token: str,
        camera: str,
        timestamp_us: int,
    ) -> "Label":
        """A label from maps of its size; 0 = none in all of them, and without ``age`` all sweeps are fresh."""
        v, u = np.nonzero(depth_m)
        ages = np.zeros(len(v), np.uint8) if age is None else age[v, u]
        confidences = None if confidence is None else confidence[v, u]
        points = Points(u.astype(np.uint16), v.astype(np.uint16), depth_m[v, u], source[v, u], ages, confidences)
        height, width = depth_m.shape
        return cls(points, height, width, K, sample_token, camera, timestamp_us)

    def points(self) -> Points:
        """The labelled pixels in row order; nothing of the image's size is made."""
        return self.labelled

    @cached_property
    def depth_m(self) -> Float32[np.ndarray, "H W"]:
        """Depth z in metres, 0 where there is none."""
        return self._map(self.labelled.depth_m)

    @cached_property
    def source(self) -> UInt8[np.ndarray, "H W"]:
        """``Source`` codes, 0 exactly where depth is 0."""
        return self._map(self.labelled.source)

    @cached_property
    def age(self) -> UInt8[np.ndarray, "H W"]:
        """As in ``Points``, 0 where there is no label."""
        return self._map(self.labelled.age)

    @cached_property
    def confidence(self) -> UInt8[np.ndarray, "H W"] | None:
        """As in ``Points``, 0 where there is no label."""
        return None if self.labelled.confidence is None else self._map(self.labelled.confidence)

    def _map(self, values: Shaped[np.ndarray, " n"]) -> Shaped[np.ndarray, "H W"]:
        out = np.zeros((self.height, self.width), values.dtype)
        out[self.labelled.v, self.labelled.u] = values
        return out

    def shrunk(self, height: int, width: int) -> "Label":
        """The label at a smaller size, z-buffered: a pixel takes the nearest of the points that fall into it.

        Points fall where ``geometry.resize_K`` puts their pixels' centres. Of equal depths the smaller source code
        wins, then the smaller age. Confidence is not carried over.

        Raises:
            ValueError: The result would be larger.
        """
        if not (0 < height <= self.height and 0 < width <= self.width):
            raise ValueError(f"{height}x{width}: must be at least 1x1 and at most {self.height}x{self.width}")
        if (height, width) == (self.height, self.width):
            return self
        own = self.labelled
        points = Points(
            *_shrink(own.u, own.v, own.depth_m, own.source, own.age, self.height, self.width, height, width)
        )
        K = resize_K(self.K, width / self.width, height / self.height)
        return replace(self, labelled=points, height=height, width=width, K=K)


@numba.njit(cache=True, nogil=True)
def _shrink(u, v, depth_m, source, age, rows, columns, height, width):  # type: ignore[no-untyped-def]
    # Positive floats sort as their bits do.
    bits = depth_m.view(np.uint32)
    empty = np.uint64(0xFFFFFFFFFFFFFFFF)
    keys = np.full((height, width), empty, np.uint64)
    n = 0
    for i in range(len(u)):
        # floor((v + 0.5) * height / rows), in whole numbers.
        row = (2 * np.int64(v[i]) + 1) * height // (2 * rows)
        column = (2 * np.int64(u[i]) + 1) * width // (2 * columns)
        code = np.uint64(source[i]) << np.uint64(AGE_BITS) | np.uint64(age[i])
        key = np.uint64(bits[i]) << np.uint64(8) | code
        before = keys[row, column]
        n += before == empty
        keys[row, column] = min(key, before)
    out_u, out_v = np.empty(n, np.uint16), np.empty(n, np.uint16)
    out_m, out_source, out_age = np.empty(n, np.float32), np.empty(n, np.uint8), np.empty(n, np.uint8)
    at = 0
    for row in range(height):
        for column in range(width):
            key = keys[row, column]
            if key != empty:
                out_u[at], out_v[at] = column, row
                out_m.view(np.uint32)[at] = np.uint32(key >> np.uint64(8))
                out_source[at] = np.uint8(key & np.uint64(255)) >> np.uint8(AGE_BITS)
                out_age[at] = np.uint8(key & np.uint64(MAX_AGE))
                at += 1
    return out_u, out_v, out_m, out_source, out_age


def quantise(depth_m: Float[np.ndarray, "*shape"]) -> UInt16[np.ndarray, "*shape"]:
    """Rounds metres half up to 1/256 m; 0 stays 0.

    Raises:
        ValueError: A depth is negative, not finite or at least 255.99 m.
    """
    if not np.all((depth_m >= 0) & (depth_m < MAX_DEPTH_M)):  # false for nan too
        raise ValueError(f"depth must be finite, at least 0 and below {MAX_DEPTH_M} m")
    steps = depth_m * DEPTH_STEPS_PER_M  # exact: a power of two
    whole = np.floor(steps)
    whole += steps - whole >= 0.5  # floor(steps + 0.5) would round 0.49999997 up in float32
    return whole.astype(np.uint16)


def dequantise(depth: UInt16[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """Metres of quantised depth, exactly."""
    return depth * np.float32(1 / DEPTH_STEPS_PER_M)


def age_of(between_us: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, " n"]:
    """Times between sweep and camera, either way, in steps of 0.1 s, half up; 31 stands for 3.1 s and more."""
    return np.minimum((np.abs(between_us) + AGE_STEP_US // 2) // AGE_STEP_US, MAX_AGE).astype(np.uint8)


def label_camera(frame: CameraFrame, scale: float) -> tuple[int, int, Float[np.ndarray, "3 3"]]:
    """Height, width and K of the label of a frame at a fraction of the image's size."""
    height, width = max(1, round(frame.height * scale)), max(1, round(frame.width * scale))
    return height, width, resize_K(frame.K, width / frame.width, height / frame.height)


def check_fits(label: Label, frame: CameraFrame) -> None:
    """Requires that a label is of this camera frame: the same keyframe and camera, and its image, resized.

    Raises:
        InputError: It is of another one.
    """
    height, width = label.height, label.width
    where = f"sample {frame.sample_token}, {frame.camera}"
    if (label.sample_token, label.camera) != (frame.sample_token, frame.camera):
        raise InputError(f"{where}: the label is of sample {label.sample_token}, {label.camera}")
    K = resize_K(frame.K, width / frame.width, height / frame.height)
    if not np.allclose(label.K, K, rtol=0, atol=1e-3):
        raise InputError(
            f"{where}: the label of {width}x{height} pixels is not the image of "
            f"{frame.width}x{frame.height} pixels of this dataset, resized: their intrinsics differ"
        )
