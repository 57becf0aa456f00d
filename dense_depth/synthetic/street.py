"""The ground of a generated scene: a street with curves and slopes, streets that cross it, and paths along them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from jaxtyping import Float

from dense_depth.geometry import SE3, se3
from dense_depth.synthetic.materials import Material
from dense_depth.synthetic.mesh import Mesh
from dense_depth.synthetic.shading import Marks

LANE_M, LANE_EDGE_M, PARKING_M, ROAD_M, PAVEMENT_M = 2.3, 4.6, 5.7, 6.8, 10.4  # lateral, from the middle of a street
CROSSING_ROAD_M, CORNER_M = 5.0, 9.0  # the same of a crossing street: half its road; up to its houses
GROUND_M = 90.0  # the world ends here on both sides
BUMP_WAVE_M = 3.7  # length of the short waves of the ground, over 2 pi
KERB_M, RAMP_M = 0.12, 0.15  # height and width of the step between road and pavement


@dataclass(frozen=True)
class Street:
    """The shape of the ground; the street runs along x, traffic keeps to the right.

    Attributes:
        length_m: Extent in x from 0.
        crossings_m: x where other streets cross.
        bend_m: Amplitude of the curve in y.
        bend_x_m: x of one of its crests.
        slope: Rise per metre in x and y.
        hill_m: Amplitude of the long waves of the ground.
        bump_m: Amplitude of the short ones.
        wave_m: Length of the long waves, over 2 pi.
    """

    length_m: float
    crossings_m: tuple[float, ...]
    bend_m: float
    bend_x_m: float
    slope: tuple[float, float]
    hill_m: float
    bump_m: float
    wave_m: float = 21.0

    def climbing(self, max_slope_deg: float) -> Self:
        """The same street on hills whose steepest slope along it is this."""
        rise = np.tan(np.radians(max_slope_deg)) - self.bump_m / BUMP_WAVE_M
        return replace(self, slope=(0.0, 0.0), hill_m=max(float(rise) * self.wave_m, 0.0))

    def middle(self, x: Any) -> Any:
        """World y of the middle of the street."""
        return GROUND_M + self.bend_m * np.cos((x - self.bend_x_m) / 38.0)

    def terrain(self, x: Any, y: Any) -> Any:
        """World z of the ground without kerbs."""
        long = self.hill_m * np.sin(x / self.wave_m) * np.cos((y - GROUND_M) / 40.0)
        return self.slope[0] * x + self.slope[1] * y + long + self.bump_m * np.sin(x / BUMP_WAVE_M) * np.cos(y / 4.3)

    def height(self, x: Any, y: Any) -> Any:
        """World z of the ground; pavements and grass lie a kerb above the roads."""
        off_street = np.clip((np.abs(y - self.middle(x)) - ROAD_M) / RAMP_M, 0, 1)
        off_crossings = np.ones_like(off_street)
        for crossing_m in self.crossings_m:
            off_crossings *= np.clip((np.abs(x - crossing_m) - CROSSING_ROAD_M) / RAMP_M, 0, 1)
        return self.terrain(x, y) + KERB_M * off_street * off_crossings

    def near_crossing(self, x: float, within_m: float = CORNER_M) -> bool:
        """Whether a place along the street lies on or close to a crossing one."""
        return any(abs(x - crossing_m) < within_m for crossing_m in self.crossings_m)

    def pose(self, x: float, y: float, yaw: float, up_m: float = 0.0) -> SE3:
        """World pose of something that stands on the ground: x forward, y left, z along the terrain's normal."""
        h = 0.8
        rise_x = (self.terrain(x + h, y) - self.terrain(x - h, y)) / (2 * h)
        rise_y = (self.terrain(x, y + h) - self.terrain(x, y - h)) / (2 * h)
        up = np.array([-rise_x, -rise_y, 1.0]) / np.linalg.norm([rise_x, rise_y, 1.0])
        left = np.cross(up, [np.cos(yaw), np.sin(yaw), 0.0])
        left /= np.linalg.norm(left)
        origin = np.array([x, y, float(self.height(np.float64(x), np.float64(y)))])
        return se3(np.column_stack([np.cross(left, up), left, up]), origin) @ se3(np.eye(3), np.array([0, 0, up_m]))

    def beside(self, x: float, lateral_m: float, yaw: float = 0.0) -> SE3:
        """World pose at a distance from the middle, left positive, turned by ``yaw`` from the street's heading."""
        return self.pose(x, self.middle(x) + lateral_m, yaw + self.heading(x))

    def heading(self, x: float) -> float:
        """Direction of the street in radians from x."""
        return float(np.arctan2(self.middle(x + 0.5) - self.middle(x - 0.5), 1.0))

    @cached_property
    def marks(self) -> Marks:
        """What is painted on it."""
        return Marks(ROAD_M, LANE_EDGE_M, PAVEMENT_M, np.array(self.crossings_m), CROSSING_ROAD_M)

    def mesh(self) -> Mesh:
        """The ground as a grid whose lines follow the street and the crossing ones, so that kerbs are straight."""
        half = np.array(
            [0, 2.4, LANE_EDGE_M, ROAD_M, ROAD_M + RAMP_M, 8.5, PAVEMENT_M, 12, 15, 20, 26, 34, 44, 56, 70, GROUND_M]
        )
        lateral = np.concatenate([-half[:0:-1], half])
        lines = np.arange(-60.0, self.length_m + 61.0, 1.5)
        for crossing_m in self.crossings_m:
            edges = np.array([CROSSING_ROAD_M + RAMP_M, CROSSING_ROAD_M])
            lines = lines[np.abs(lines - crossing_m) > 0.5 + edges[0]]
            inside = np.linspace(-CROSSING_ROAD_M, CROSSING_ROAD_M, 8)
            lines = np.concatenate([lines, crossing_m + inside, crossing_m - edges[:1], crossing_m + edges[:1]])
        x, offset = np.meshgrid(np.sort(lines), lateral, indexing="ij")
        y = self.middle(x) + offset
        vertices_m = np.stack([x, y, self.height(x, y)], axis=-1)
        places = np.stack([x, offset], axis=-1)

        def triangles(grid: np.ndarray) -> np.ndarray:
            a, b, c, d = grid[:-1, :-1], grid[1:, :-1], grid[1:, 1:], grid[:-1, 1:]
            return np.stack([[a, b, c], [a, c, d]]).transpose(2, 3, 0, 1, 4).reshape(-1, 3, grid.shape[-1])

        corners_m = triangles(vertices_m)
        n = len(corners_m)
        texture = _affine(corners_m, triangles(places))
        colours = np.full((n, 3), 128, np.uint8)
        return Mesh(corners_m, texture, colours, np.full(n, Material.STREET, np.uint8))


def _affine(corners_m: Float[np.ndarray, "t 3 3"], places: Float[np.ndarray, "t 3 2"]) -> Float[np.ndarray, "t 2 4"]:
    """The map of points of each triangle to (s, t) that has the given values at its corners."""
    edges = corners_m[:, 1:] - corners_m[:, :1]
    # Along the normal nothing changes: a third equation.
    system = np.concatenate([edges, np.cross(edges[:, :1], edges[:, 1:])], axis=1)
    values = np.concatenate([places[:, 1:] - places[:, :1], np.zeros((len(places), 1, 2))], axis=1)
    gradient = np.linalg.solve(system, values).transpose(0, 2, 1)
    offset = places[:, 0, :, None] - gradient @ corners_m[:, 0, :, None]
    return np.concatenate([gradient, offset], axis=2)


class Path:
    """A line on the ground that something follows, by the distance along it."""

    def __init__(self, street: Street, xy_m: Float[np.ndarray, "n 2"]) -> None:
        """Through points less than a metre apart."""
        self.street, self.xy_m = street, xy_m
        steps = np.diff(xy_m, axis=0)
        self.distance_m = np.concatenate([[0.0], np.cumsum(np.linalg.norm(steps, axis=1))])
        self.middles_m = (self.distance_m[:-1] + self.distance_m[1:]) / 2
        self.yaws = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))

    @property
    def length_m(self) -> float:
        """Its whole length."""
        return float(self.distance_m[-1])

    def pose(self, distance_m: float, up_m: float = 0.0) -> SE3:
        """World pose at a distance along the path, facing along it; beyond its ends the path goes straight on."""
        x, y = (float(np.interp(distance_m, self.distance_m, self.xy_m[:, axis])) for axis in (0, 1))
        yaw = float(np.interp(distance_m, self.middles_m, self.yaws))
        beyond_m = distance_m - min(max(distance_m, 0.0), self.length_m)
        return self.street.pose(x + beyond_m * np.cos(yaw), y + beyond_m * np.sin(yaw), yaw, up_m)

    def at_x(self, x: float) -> float:
        """The distance along the path of its first point beyond a world x."""
        ahead = self.xy_m[:, 0] >= x if self.xy_m[-1, 0] > self.xy_m[0, 0] else self.xy_m[:, 0] <= x
        return float(self.distance_m[np.argmax(ahead)])


def along(street: Street, lateral_m: float, start_x: float, end_x: float) -> Path:
    """A path beside the middle of the street, in either direction; left of it is positive."""
    x = np.linspace(start_x, end_x, 2 + int(abs(end_x - start_x) / 0.5))
    return Path(street, np.column_stack([x, street.middle(x) + lateral_m]))


def across(street: Street, x: float, start_m: float, end_m: float) -> Path:
    """A path across the street at one place, between two lateral distances."""
    lateral = np.linspace(start_m, end_m, 2 + int(abs(end_m - start_m) / 0.25))
    return Path(street, np.column_stack([np.full(len(lateral), x), street.middle(x) + lateral]))


def joined(first: Path, second: Path, radius_m: float) -> Path:
    """One path into another that it meets at about a right angle, by an arc.

    The end of the first and the start of the second must be the corner, and both longer than the radius.
    """
    a, b = first.xy_m, second.xy_m
    corner = (a[-1] + b[0]) / 2
    a = a[np.linalg.norm(a - corner, axis=1) > radius_m]
    b = b[np.linalg.norm(b - corner, axis=1) > radius_m]
    u = np.linspace(0, 1, max(8, int(2 * radius_m / 0.3)))[1:-1, None]
    arc = (1 - u) ** 2 * a[-1] + 2 * u * (1 - u) * corner + u**2 * b[0]
    # The parametrisation of the curve is uneven; the distance along the path is measured, so that does not matter.
    return Path(first.street, np.concatenate([a, arc, b]))
