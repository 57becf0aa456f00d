"""Where one object was in each of its views: registered pairs, annotated boxes and smooth motion in one problem.

Pairs of views are registered to each other, distribution to distribution (Generalized-ICP: Segal, Haehnel, Thrun, RSS
2009), and one least-squares problem joins all pairs of an object with its annotated boxes and with a velocity and a
turn rate that change at random. It estimates x, y and yaw; the annotators' mean is the anchor. A third of the points of
each view takes no part and judges what comes out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float, Int

from dense_depth.datasets.scene import Track
from dense_depth.views import NOISE_M, Course, View, seen_from, turned, yaws

HELD_OUT = 3  # every third point judges
PAIRED = (1, 2, 5)  # a view is registered to those so many views later: near ones match best, far ones stop drift
REACHES_M = (1.0, 0.6, 0.4, 0.3)  # how far a point may be from its match, by iteration
JUDGED_M = 0.5  # the same for the judges
WEIGHT = 30.0  # the points of a pair tell no more than so many independent ones
BOX_SIGMA = np.array([0.1, 0.1, 0.02])  # of an annotated box: m, m, radians
FOUND_SIGMA = np.array([0.02, 0.02, 0.005])  # of a pose that was found, for the next one beyond the end of a track
MOTION_SIGMA = np.array([1.0, 1.0, 0.15])  # change of velocity (m/s) and turn rate (rad/s) in a second
COURSE_US = 500_000  # of a track, before its end, tell where it goes
DAMPING = 1e-6  # a pose of which nothing is known stays where it is


class Evidence(NamedTuple):
    """What it takes for a pose to be found.

    Attributes:
        min_matched: Share of the held-out points of a view that must find their like in other views.
        max_surprise_m: Beyond the ends of a track: greatest distance from where smooth motion expects the object.
        max_spread_m: The same: greatest standard deviation of its place. Along a wall-like side, as of a bus, the place
            is not known.
    """

    min_matched: float = 0.7
    max_surprise_m: float = 0.5
    max_spread_m: float = 0.3


ENOUGH = Evidence()


class Verdict(NamedTuple):
    """What the held-out points of each view say.

    Attributes:
        misfit: Mean robust cost, 0 to 1.
        matched: Share that lies within three sigma of its match.
        n: How many, each counted once for each pair.
    """

    misfit: Float[np.ndarray, " views"]
    matched: Float[np.ndarray, " views"]
    n: Float[np.ndarray, " views"]


class Graph:
    """The views of one object and the least-squares problem that joins them.

    Attributes:
        initial: world_SE3_box of each view before the refinement.
        poses: The same after it.
    """

    def __init__(self, views: Sequence[View], track: Track) -> None:
        self._views = sorted(views, key=lambda view: view.time_us)
        self._track = track
        self.initial = np.stack(
            [view.world_SE3_box if view.box < 0 else track.boxes[view.box].world_SE3_box for view in self._views]
        )
        self.poses = self.initial.copy()
        annotated = np.array([view.box >= 0 for view in self._views])
        self._info = np.where(annotated[:, None], BOX_SIGMA**-2.0, 0.0)  # how well the initial poses are known

    @property
    def seen(self) -> Bool[np.ndarray, " views"]:
        """Which views have points."""
        return np.array([len(view.xyz) > 0 for view in self._views])

    def reject(self, before: Verdict, after: Verdict, min_matched: float) -> int:
        """Takes the points from the views whose judges speak against the new pose; how many those are.

        A view that no annotated box holds goes altogether.
        """
        bad = self.seen & ((after.matched < min_matched) | (after.misfit > before.misfit))
        kept = [i for i, view in enumerate(self._views) if view.box >= 0 or not bad[i]]
        self._views = [
            self._views[i]._replace(xyz=np.empty((0, 3)), cov=np.empty((0, 3))) if bad[i] else self._views[i]
            for i in kept
        ]
        self.initial, self.poses, self._info = self.initial[kept], self.poses[kept], self._info[kept]
        return int(bad.sum())

    def judge(self, poses: Float[np.ndarray, "views 4 4"]) -> Verdict:
        """How well the held-out points of each view fit the other views."""
        pairs = self._pairs()
        *_, misfit, n, matched = self._linearise(poses, pairs, JUDGED_M, held_out=True)
        sums = [np.bincount(pairs[:, 0], values, len(self._views)) for values in (misfit, matched, n)]
        per_point = np.maximum(sums[2], 1)
        return Verdict(sums[0] / per_point, sums[1] / per_point, sums[2])

    def solve(self) -> None:
        """Finds the poses by Gauss-Newton, with new matches in every iteration."""
        pairs = self._pairs()
        for reach_m in REACHES_M:
            self._step(pairs, reach_m)

    def fix(self) -> None:
        """Puts all views back to where they were before, for good."""
        self.poses = self.initial.copy()
        self._info = np.tile(FOUND_SIGMA**-2.0, (len(self.poses), 1))

    def _pairs(self) -> Int[np.ndarray, "pairs 2"]:
        """Both ways, the views that are registered to each other."""
        seen = np.flatnonzero(self.seen)
        pairs = np.concatenate([np.column_stack([seen[:-apart], seen[apart:]]) for apart in PAIRED])
        return np.concatenate([pairs, pairs[:, ::-1]])

    def _linearise(
        self, poses: Float[np.ndarray, "views 4 4"], pairs: Int[np.ndarray, "pairs 2"], reach_m: float, held_out: bool
    ) -> tuple[np.ndarray, ...]:
        """Normal equations and robust costs of pairs: see ``_normal_equations``."""
        xyz = np.concatenate([seen_from(view, pose) for view, pose in zip(self._views, poses)])
        cov = np.concatenate([view.cov for view in self._views])
        start = np.cumsum([0, *[len(view.xyz) for view in self._views]])
        yaw = yaws(poses)
        axes = np.column_stack([np.cos(yaw), np.sin(yaw)])
        return _normal_equations(xyz, cov, start, axes, pairs, held_out, reach_m)

    def _equations(self, pairs: Int[np.ndarray, "pairs 2"], reach_m: float) -> tuple[np.ndarray, np.ndarray]:
        """Hessians (pairs, 6, 6) and gradients (pairs, 6) of pairs, weighted."""
        H, b, _, n, _ = self._linearise(self.poses, pairs, reach_m, held_out=False)
        weight = np.minimum(1, WEIGHT / np.maximum(n, 1)) / (2 * len(PAIRED))
        return H * weight[:, None, None], b * weight[:, None]

    def _spread_m(self, view: int, pairs: Int[np.ndarray, "pairs 2"]) -> float:
        """Standard deviation of the place of a view along its least certain direction, by its pairs alone."""
        H, _ = self._equations(pairs, REACHES_M[-1])
        information = H[pairs[:, 0] == view, :3, :3].sum(0) + H[pairs[:, 1] == view, 3:, 3:].sum(0)
        covariance = np.linalg.inv(information + DAMPING * np.eye(3))
        return float(np.sqrt(np.linalg.eigvalsh(covariance[:2, :2])[-1]))

    def _step(self, pairs: Int[np.ndarray, "pairs 2"], reach_m: float) -> None:
        """One step of Gauss-Newton: pairs, initial poses as far as they are known, and smooth motion."""
        H, b = self._equations(pairs, reach_m)
        state = _planar(self.poses)
        every = np.arange(len(state))[:, None]
        terms = [
            (pairs, H, b),
            (every, (self._info + DAMPING)[:, :, None] * np.eye(3), self._info * (state - _planar(self.initial))),
            _smoothness(state, 1e-6 * np.array([view.time_us for view in self._views])),
        ]
        step = -_solved(terms, len(state))
        self.poses = turned(self.poses, step[:, 2])
        self.poses[:, :2, 3] += step[:, :2]

    def course(self, end: int, like: Course) -> Course:
        """The course in a sweep after the last view (end 1) or before the first one (0), by the nearest ones.

        Height comes from another course, ``like``, of that sweep.
        """
        times_us = np.array([view.time_us for view in self._views])
        n_near = max(int((np.abs(times_us - times_us[-end]) <= COURSE_US).sum()), 3)
        near = slice(-n_near, None) if end else slice(0, n_near)
        times_s, poses = 1e-6 * (times_us[near] - like.time_us), self.poses[near]
        velocity_x, velocity_y, turn = np.polyfit(times_s, _planar(poses), 1)[0]
        gap_s = -times_s[-end]
        # The fit tells the velocity in the middle of the views; until the middle of the gap it turns with the object.
        angle = turn * (-gap_s / 2 - times_s.mean())
        cosine, sine = np.cos(angle), np.sin(angle)
        velocity = like.velocity_mps.copy()
        velocity[:2] = cosine * velocity_x - sine * velocity_y, sine * velocity_x + cosine * velocity_y
        pose = turned(poses[[-end]], np.array([turn * gap_s]))[0]
        pose[:2, 3] += velocity[:2] * gap_s
        pose[2, 3] = like.world_SE3_box[2, 3]
        return Course(like.time_us, pose, velocity, turn)

    def extend(self, end: int, view: View, evidence: Evidence) -> bool:
        """Adds a view beyond an end if there is evidence for where it is; whether there is."""
        few = max(PAIRED) + 1
        near = slice(-few, None) if end else slice(0, few)
        part = Graph([*self._views[near], view], self._track)
        new = len(part.poses) - 1 if end else 0
        part.initial = np.insert(self.poses[near], new, view.world_SE3_box, axis=0)
        part.fix()
        part._info[new] = 0
        pairs = part._pairs()
        pairs = pairs[(pairs == new).any(1)]
        for reach_m in REACHES_M:
            part._step(pairs, reach_m)
        surprise_m = np.linalg.norm(part.poses[new, :2, 3] - view.world_SE3_box[:2, 3])
        matched = part.judge(part.poses).matched[new]
        if (
            matched < evidence.min_matched
            or surprise_m > evidence.max_surprise_m
            or part._spread_m(new, pairs) > evidence.max_spread_m
        ):
            return False
        at = len(self._views) if end else 0
        self._views.insert(at, view)
        self.initial = np.insert(self.initial, at, part.poses[new], axis=0)
        self.poses = np.insert(self.poses, at, part.poses[new], axis=0)
        self._info = np.insert(self._info, at, 0, axis=0)
        return True

    def track(self) -> Track:
        """The track with a box for each view; sizes and attributes are those of the annotated box nearest in time."""
        boxes = {}
        box_times_us = np.array(self._track.times_us)
        for view, pose in zip(self._views, self.poses):
            box = replace(
                self._track.boxes[np.abs(box_times_us - view.time_us).argmin()],
                timestamp_us=view.time_us,
                world_SE3_box=pose,
            )
            boxes[view.time_us] = box if view.box >= 0 else replace(box, velocity_mps=None, n_points=None)
        return replace(self._track, boxes=tuple(boxes.values()))


def _planar(poses: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 3"]:
    """x, y and yaw of poses."""
    return np.column_stack([poses[:, :2, 3], yaws(poses)])


def _smoothness(
    state: Float[np.ndarray, "views 3"], times_s: Float[np.ndarray, " views"]
) -> tuple[Int[np.ndarray, "n 3"], Float[np.ndarray, "n 9 9"], Float[np.ndarray, "n 9"]]:
    """The term of a velocity and a turn rate that change at random: three views in a row, Hessian and gradient."""
    gaps_s = np.maximum(np.diff(times_s), 1e-3)
    before, after = gaps_s[:-1], gaps_s[1:]
    change = np.column_stack([1 / before, -1 / before - 1 / after, 1 / after])  # of velocity, per view
    info = 2 / (MOTION_SIGMA**2 * (before + after)[:, None])
    views = np.arange(len(change))[:, None] + np.arange(3)
    residual = np.einsum("nv,nvk->nk", change, state[views])
    hessian = np.einsum("na,nb,nk,kl->nakbl", change, change, info, np.eye(3)).reshape(-1, 9, 9)
    return views, hessian, np.einsum("na,nk->nak", change, info * residual).reshape(-1, 9)


def _solved(terms: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], n_views: int) -> Float[np.ndarray, "views 3"]:
    """Solves the sum of terms, each the views (n, k), Hessians (n, 3k, 3k) and gradients (n, 3k) of small problems."""
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import spsolve

    rows, columns, values, gradient = [], [], [], np.zeros(3 * n_views)
    for views, hessian, slope in terms:
        index = (3 * views[:, :, None] + np.arange(3)).reshape(len(views), 3 * views.shape[1])
        rows.append(np.repeat(index, index.shape[1], axis=1).ravel())
        columns.append(np.tile(index, index.shape[1]).ravel())
        values.append(hessian.ravel())
        np.add.at(gradient, index, slope)
    matrix = coo_array((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))))
    return spsolve(matrix.tocsc(), gradient).reshape(-1, 3)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _normal_equations(xyz, cov, start, axes, pairs, held_out, reach):  # type: ignore[no-untyped-def]
    """Registers pairs of views: Hessians (6, 6), gradients (6,), robust costs, points and matches.

    A point of the first view of a pair looks for the nearest one of the second, both in the frame of the box as it is
    taken to be at the time of each. The state is x, y and yaw of both in the world; ``axes`` are cosine and sine of
    their yaws. Held-out points match others, but nothing matches them.
    """
    m = len(pairs)
    hessian, gradient = np.zeros((m, 6, 6)), np.zeros((m, 6))
    cost, n, matched = np.zeros(m), np.zeros(m), np.zeros(m)
    J, MJ = np.zeros((2, 6)), np.zeros((2, 6))
    for p in range(m):
        s, t = pairs[p]
        for i in range(start[s], start[s + 1]):
            if ((i - start[s]) % HELD_OUT == HELD_OUT - 1) != held_out:
                continue
            n[p] += 1
            nearest, at = reach * reach, -1
            for j in range(start[t], start[t + 1]):
                dx, dy, dz = xyz[i, 0] - xyz[j, 0], xyz[i, 1] - xyz[j, 1], xyz[i, 2] - xyz[j, 2]
                square = dx * dx + dy * dy + dz * dz
                if square < nearest and (j - start[t]) % HELD_OUT != HELD_OUT - 1:
                    nearest, at = square, j
            if at < 0:
                cost[p] += 1
                continue
            xx = cov[i, 0] + cov[at, 0] + NOISE_M * NOISE_M
            xy = cov[i, 1] + cov[at, 1]
            yy = cov[i, 2] + cov[at, 2] + NOISE_M * NOISE_M
            determinant = xx * yy - xy * xy
            a, b, c = yy / determinant, -xy / determinant, xx / determinant  # information [[a, b], [b, c]]
            rx, ry = xyz[i, 0] - xyz[at, 0], xyz[i, 1] - xyz[at, 1]
            square = a * rx * rx + 2 * b * rx * ry + c * ry * ry
            scale = 9.0  # Geman-McClure at three sigma
            weight = (scale / (scale + square)) ** 2
            cost[p] += square / (scale + square)
            matched[p] += square < scale
            J[0, 0], J[0, 1], J[1, 0], J[1, 1] = -axes[s, 0], -axes[s, 1], axes[s, 1], -axes[s, 0]
            J[0, 3], J[0, 4], J[1, 3], J[1, 4] = axes[t, 0], axes[t, 1], -axes[t, 1], axes[t, 0]
            J[0, 2], J[1, 2] = xyz[i, 1], -xyz[i, 0]
            J[0, 5], J[1, 5] = -xyz[at, 1], xyz[at, 0]
            for k in range(6):
                MJ[0, k] = weight * (a * J[0, k] + b * J[1, k])
                MJ[1, k] = weight * (b * J[0, k] + c * J[1, k])
            for k in range(6):
                gradient[p, k] += MJ[0, k] * rx + MJ[1, k] * ry
                for q in range(6):
                    hessian[p, k, q] += J[0, k] * MJ[0, q] + J[1, k] * MJ[1, q]
    return hessian, gradient, cost, n, matched
