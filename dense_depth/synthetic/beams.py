"""Beams of a scanner that turns, cast at things that move meanwhile."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt16

from dense_depth.geometry import invert, quaternion_from_rotation, rotation_from_quaternion, slerp, transform
from dense_depth.synthetic.mesh import Mesh

CULL_MARGIN_M = 0.02  # on the spheres around parts: their centres are interpolated along straight lines


class Poses:
    """Poses of many frames at some instants, and between them: along a line, turning at a constant rate."""

    def __init__(
        self, times_s: Float[np.ndarray, " instants"], world_SE3_frame: Float[np.ndarray, "instants frames 4 4"]
    ) -> None:
        self.times_s, self.world_SE3_frame = times_s, world_SE3_frame

    @cached_property
    def quaternions(self) -> Float[np.ndarray, "instants frames 4"]:
        """Rotations world_SE3_frame."""
        return quaternion_from_rotation(self.world_SE3_frame[..., :3, :3])

    def between(
        self, times_s: Float[np.ndarray, " n"]
    ) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """The instants before and after each time, and how far it is on the way from one to the other."""
        last = len(self.times_s) - 1
        right = np.clip(np.searchsorted(self.times_s, times_s), min(1, last), last)
        left = np.maximum(right - 1, 0)
        gap_s = self.times_s[right] - self.times_s[left]
        return left, right, (times_s - self.times_s[left]) / np.where(gap_s > 0, gap_s, 1.0)

    def at(self, times_s: Float[np.ndarray, " n"], frame: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n 4 4"]:
        """The pose of a frame at a time, for many of both; a single instant stands for all times."""
        if len(self.times_s) == 1:
            return self.world_SE3_frame[0, frame]
        left, right, share = self.between(times_s)
        poses = np.zeros((len(frame), 4, 4))
        wxyz = slerp(self.quaternions[left, frame], self.quaternions[right, frame], share)
        poses[:, :3, :3] = rotation_from_quaternion(wxyz)
        known_m, share = self.world_SE3_frame[..., :3, 3], share[:, None]
        poses[:, :3, 3] = (1 - share) * known_m[left, frame] + share * known_m[right, frame]
        poses[:, 3, 3] = 1.0
        return poses


@dataclass(frozen=True)
class Firings:
    """What a scanner fires in one revolution, each time a fan of beams in one vertical plane.

    Attributes:
        times_s: When.
        world_SE3_sensor: From where.
        rays: Unit directions in the sensor frame.
    """

    times_s: Float[np.ndarray, " firings"]
    world_SE3_sensor: Float[np.ndarray, "firings 4 4"]
    rays: Float[np.ndarray, "firings beams 3"]

    @cached_property
    def directions(self) -> Float[np.ndarray, "firings beams 3"]:
        """Unit directions in the world frame."""
        return self.rays @ np.swapaxes(self.world_SE3_sensor[:, :3, :3], 1, 2)


class Hits(NamedTuple):
    """The nearest hits of rays.

    Attributes:
        distance_m: Along each ray, infinite if it hits nothing.
        triangle: Which triangle of the mesh is hit; -1 for none.
        cosine: Of the angle between the ray and the surface's normal.
    """

    distance_m: Float[np.ndarray, " n"]
    triangle: Int[np.ndarray, " n"]
    cosine: Float[np.ndarray, " n"]


def cast_at_still(mesh: Mesh, firings: Firings) -> Hits:
    """Casts all beams at a mesh in the world frame."""
    directions = firings.directions.reshape(-1, 3).astype(np.float32)
    origins_m = np.repeat(firings.world_SE3_sensor[:, :3, 3], firings.rays.shape[1], axis=0)
    distance_m, triangle = mesh.cast(origins_m, directions)
    return Hits(distance_m, triangle, np.abs((mesh.normals[triangle] * directions).sum(1)))


@dataclass(frozen=True)
class Parts:
    """Rigid parts of things that move, each in its own frame.

    Attributes:
        mesh: All their triangles.
        part: The part of each triangle, ascending.
        instances: The instance of each triangle.
    """

    mesh: Mesh
    part: UInt16[np.ndarray, " t"]
    instances: UInt16[np.ndarray, " t"]

    @cached_property
    def spheres(self) -> tuple[Float[np.ndarray, "parts 3"], Float[np.ndarray, " parts"]]:
        """Centre and radius of a sphere around each part."""
        n = int(self.part[-1]) + 1 if len(self.part) else 0
        centres_m, radii_m = np.zeros((n, 3)), np.zeros(n)
        for part in range(len(radii_m)):
            corners_m = self.mesh.corners_m[self.part == part].reshape(-1, 3)
            centres_m[part] = (corners_m.min(axis=0) + corners_m.max(axis=0)) / 2
            radii_m[part] = np.linalg.norm(corners_m - centres_m[part], axis=1).max()
        return centres_m, radii_m

    @cached_property
    def spread(self) -> tuple[Mesh, Float[np.ndarray, "parts 3"]]:
        """All parts in one mesh, far enough apart that their spheres do not meet, and the place of each one's origin.

        So one search tree serves all of them, wherever they are in the world.
        """
        centres_m, radii_m = self.spheres
        grid = np.stack(np.divmod(np.arange(len(radii_m)), int(np.ceil(np.sqrt(len(radii_m))))), axis=1)
        origins_m = np.column_stack([(2 * radii_m.max() + 1) * grid, np.zeros(len(grid))]) - centres_m
        places = np.tile(np.eye(4), (len(radii_m), 1, 1))
        places[:, :3, 3] = origins_m
        return self.mesh.moved(places[self.part]).float32, origins_m

    def cast(self, poses: Poses, firings: Firings) -> Hits:
        """Casts all beams, each at the parts where they are when it is fired.

        Args:
            poses: world_SE3_part.
            firings: The beams.
        """
        n_beams = firings.rays.shape[1]
        n = len(firings.times_s) * n_beams
        found = Hits(np.full(n, np.inf, np.float32), np.full(n, -1, np.int32), np.zeros(n, np.float32))
        firing, beam, part = self._candidates(poses, firings)
        if not len(part):
            return found
        part_SE3_world = invert(poses.at(firings.times_s[firing], part))
        origins_m = transform(part_SE3_world, firings.world_SE3_sensor[firing, None, :3, 3])[:, 0]
        directions = (part_SE3_world[:, :3, :3] @ firings.directions[firing, beam, :, None])[..., 0]
        # From where the ray enters the part's sphere: it meets no other part within the sphere, if it starts outside.
        centres_m, radii_m = self.spheres
        start_m = np.maximum(((centres_m[part] - origins_m) * directions).sum(1) - radii_m[part], 0.0)
        mesh, places_m = self.spread
        distance_m, triangle = mesh.cast(places_m[part] + origins_m + start_m[:, None] * directions, directions)
        hit = np.flatnonzero((triangle >= 0) & (self.part[triangle] == part))
        hit = hit[np.argsort(-(start_m + distance_m)[hit], kind="stable")]  # of a ray's hits the nearest comes last
        ray = firing[hit] * n_beams + beam[hit]
        found.distance_m[ray] = (start_m + distance_m)[hit]
        found.triangle[ray] = triangle[hit]
        found.cosine[ray] = np.abs((mesh.normals[triangle[hit]] * directions[hit]).sum(1))
        return found

    def _candidates(self, poses: Poses, firings: Firings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Firing, beam and part of each ray that passes through the sphere around a part."""
        centres_m, radii_m = self.spheres
        reach_m = radii_m + CULL_MARGIN_M
        places_m = transform(poses.world_SE3_frame, centres_m[:, None])[..., 0, :]
        left, right, share = poses.between(firings.times_s)
        at_m = (1 - share)[:, None, None] * places_m[left] + share[:, None, None] * places_m[right]
        at_m = transform(invert(firings.world_SE3_sensor), at_m)  # sensor frame
        ahead = firings.rays[:, 0, :2] / np.linalg.norm(firings.rays[:, 0, :2], axis=1, keepdims=True)
        along_m = (at_m[..., :2] * ahead[:, None]).sum(-1)
        across_m = at_m[..., 1] * ahead[:, None, 0] - at_m[..., 0] * ahead[:, None, 1]
        firing, part = np.nonzero((np.abs(across_m) <= reach_m) & (along_m >= -reach_m))
        centre_m = at_m[firing, part][:, None]
        along_m = (centre_m * firings.rays[firing]).sum(-1)
        passes = (centre_m**2).sum(-1) - along_m**2 <= reach_m[part, None] ** 2
        pair, beam = np.nonzero(passes & (along_m >= -reach_m[part, None]))
        return firing[pair], beam, part[pair]
