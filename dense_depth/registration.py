"""Registration of a sweep to the sweeps before it: generalised ICP, and how far to trust it.

Method: Segal et al., "Generalized-ICP", 2009, in the implementation of Koide, "small_gicp", 2024. A scene may leave
some motions open: along a corridor, say, or across an open field. There GICP slides to wherever the pattern of the
beams repeats itself. Its Hessian tells which motions the surfaces hold; only along these is the result taken (Zhang et
al., "On Degeneracy of Optimization-based State Estimation Problems", 2016).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dense_depth.geometry import SE3, invert, log, transform

# Edges of the voxels whose points become one: of a scan the first one that leaves enough points, and of a target.
# Chosen on the generated city and drive 0005.
SCAN_SAMPLING_M, ENOUGH_POINTS = (0.8, 0.4), 5000
MAP_SAMPLING_M = 0.4
NEIGHBOURS = 10  # that tell the surface around a point
HELD_OUT_EVERY = 5  # points that take no part and judge the result
MAX_DISTANCE_M = 1.0  # between a point and its partner
# Information per point on a motion; a turn about the points' middle counts as the shift of a point this far away, or,
# about the vertical, as far away as the points are. small_gicp takes each point for a disc, so a pair of them gives 0.5
# to any shift: this is what an open motion has, up to 1.1 (walls on both sides; a field). Every motion has 7 and more
# in drive 0005, 9 in the city, and 3.6 in an 80 degree field of view of drive 0005.
TILT_ARM_M, MIN_STIFFNESS = 10.0, 1.5


class Scan(NamedTuple):
    """The points of one sweep, thinned out, in the frame of its sensor.

    Attributes:
        points: Those that take part in registration.
        held_out: Those that judge it.
        cloud: ``points`` as small_gicp wants them, with the surface around each.
        tree: To find the nearest of them.
    """

    points: Float[np.ndarray, "n 3"]
    held_out: Float[np.ndarray, "m 3"]
    cloud: Any
    tree: Any


class Target(NamedTuple):
    """What scans are registered to.

    Attributes:
        world_SE3_target: Its frame.
        cloud: Points with the surface around each.
        tree: To find the nearest of them.
        normals: Of the surfaces.
    """

    world_SE3_target: SE3
    cloud: Any
    tree: Any
    points: Float[np.ndarray, "n 3"]
    normals: Float[np.ndarray, "n 3"]


class Fit(NamedTuple):
    """What a registration found.

    Attributes:
        shift: The correction of the guess in the frame of the sensor, a rotation vector and a translation, along what
            the surfaces hold.
        inliers: Share of the points with a partner.
        n_open: How many of the six motions the surfaces leave open.
    """

    shift: Float[np.ndarray, "6"]
    inliers: float
    n_open: int


def thin_out(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "voxels 3"]:
    """The mean of the points in each voxel of a scan."""
    import small_gicp

    for voxel_m in SCAN_SAMPLING_M:
        thin = small_gicp.voxelgrid_sampling(points, voxel_m).points()[:, :3]
        if len(thin) >= ENOUGH_POINTS:
            break
    return thin


def make_scan(points: Float[np.ndarray, "n 3"]) -> Scan:
    """A scan of thinned out points."""
    import small_gicp

    is_held_out = np.arange(len(points)) % HELD_OUT_EVERY == 0
    kept = points[~is_held_out]
    cloud = small_gicp.PointCloud(kept)
    tree = small_gicp.KdTree(cloud)
    small_gicp.estimate_normals_covariances(cloud, tree, NEIGHBOURS)
    return Scan(kept, points[is_held_out], cloud, tree)


def single(scan: Scan, world_SE3_sensor: SE3) -> Target:
    """A single scan to register to."""
    return Target(world_SE3_sensor, scan.cloud, scan.tree, scan.points, scan.cloud.normals()[:, :3])


def merge(scans: list[tuple[Scan, SE3]], world_SE3_target: SE3) -> Target:
    """Scans with their world_SE3_sensor as one cloud in a frame nearby."""
    import small_gicp

    target_SE3_world = invert(world_SE3_target)
    merged = np.concatenate([transform(target_SE3_world @ pose, scan.points) for scan, pose in scans])
    cloud, tree = small_gicp.preprocess_points(merged, MAP_SAMPLING_M, NEIGHBOURS)
    return Target(world_SE3_target, cloud, tree, cloud.points()[:, :3], cloud.normals()[:, :3])


def register(target: Target, scan: Scan, world_SE3_sensor: SE3, max_distance_m: float = MAX_DISTANCE_M) -> Fit:
    """Aligns a scan, starting from a guess of its pose."""
    import small_gicp

    guess = invert(target.world_SE3_target) @ world_SE3_sensor
    result = small_gicp.align(
        *(target.cloud, scan.cloud, target.tree, guess),
        registration_type="GICP",
        max_correspondence_distance=max_distance_m,
        max_iterations=20,
    )
    motion_of = _motions(scan.points)
    stiffness, motions = np.linalg.eigh(motion_of.T @ result.H @ motion_of / max(result.num_inliers, 1))
    held = motions[:, stiffness >= MIN_STIFFNESS]
    shift = log(invert(guess) @ result.T_target_source)
    shift = motion_of @ held @ held.T @ np.linalg.solve(motion_of, shift)
    return Fit(shift, result.num_inliers / len(scan.points), 6 - held.shape[1])


def _motions(points: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "6 6"]:
    """Motions of the sensor, a rotation vector and a translation each, that move its points by comparable lengths.

    In the columns: turns about axes through the middle of the points, and shifts.
    """
    x, y, z = middle = points.mean(axis=0)
    spread_m = np.sqrt(((points - middle)[:, :2] ** 2).sum(axis=1).mean())
    motions = np.eye(6)
    motions[3:, :3] = [
        [0, -z, y],
        [z, 0, -x],
        [-y, x, 0],
    ]  # a turn about the middle is one about the sensor and a shift
    return motions / np.array([TILT_ARM_M, TILT_ARM_M, spread_m, 1.0, 1.0, 1.0])


def misfit_m(target: Target, points: Float[np.ndarray, "n 3"], world_SE3_sensor: SE3) -> float:
    """Median distance of points from the surfaces of a target; infinite where none is near."""
    moved = transform(invert(target.world_SE3_target) @ world_SE3_sensor, points)
    nearest, distance_sq = (np.array(found) for found in target.tree.batch_nearest_neighbor_search(moved))
    near = distance_sq < MAX_DISTANCE_M**2
    if not near.any():
        return float("inf")
    nearest = nearest[near].astype(np.int64)
    apart = ((moved[near] - target.points[nearest]) * target.normals[nearest]).sum(1)
    return float(np.median(np.abs(apart)))
