"""Tracks, refined by the objects' own points: where each moving object was when each sweep saw it.

Boxes are annotated at keyframes, by hand and up to half a second apart. Between them an object is not where a straight
line puts it, and beyond the last of them nobody knows. But every sweep sees the object. Its views are registered to
each other (``pose_graph``), and a pose is taken where points that took no part in that speak for it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dense_depth.datasets.scene import Track, poses_at
from dense_depth.options import check_options
from dense_depth.pose_graph import ENOUGH, Evidence, Graph
from dense_depth.views import Course, SweepPoints, View, points_near, view_of, yaws

SOFT_BODIED = ("human", "pedestrian", "person", "animal")  # categories that begin so, in lower case, are not rigid
COURSE_US = 50_000  # velocities are measured over so long before and after an instant
SLACK_M = 0.5  # objects are looked for so far from where they are expected ...
ACCELERATION_MPS2 = 4.0  # ... and beyond the ends of a track also as far as this takes them
LOST = 3  # an object that so many sweeps in a row do not show is lost


@dataclass(frozen=True)
class RefinementConfig:
    """Which tracks are refined, and what counts as evidence.

    Attributes:
        moving_above_m: A track moves if its centre travels farther than this; the others are left as they are.
        reach_s: How long before the first and after the last box of a track its object is looked for.
        evidence: What it takes for a pose to be found.
    """

    moving_above_m: float = 0.5
    reach_s: float = 1.0
    evidence: Evidence = ENOUGH

    def __post_init__(self) -> None:
        check_options(self, dict.fromkeys(("moving_above_m", "reach_s"), 0))


@dataclass(frozen=True)
class MotionReport:
    """What became of the tracks.

    Attributes:
        still: Tracks that do not move.
        soft: Moving ones that are not rigid.
        unseen: Moving rigid ones of which fewer than three sweeps have enough points.
        unproven: Those whose judging points do not fit better than before; between their boxes they stay as they were.
        refined: Those whose boxes moved.
        views: Sweeps that show a refined object between its first and its last box, over all refined tracks.
        rejected: Those of them whose judges spoke against the pose.
        beyond: Sweeps before the first or after the last box in which an object was found.
        misfit: Mean robust cost of the judging points of the refined tracks, 0 to 1, as annotated and as refined.
    """

    still: int = 0
    soft: int = 0
    unseen: int = 0
    unproven: int = 0
    refined: int = 0
    views: int = 0
    rejected: int = 0
    beyond: int = 0
    misfit: tuple[float, float] = (0.0, 0.0)

    def figures(self) -> dict[str, float | None]:
        """By the names of ``catalog/figures.py``."""
        return {
            "tracks_refined": float(self.refined),
            "tracks_unproven": float(self.unseen + self.unproven + self.soft),
            "views_rejected": self.rejected / self.views if self.views else None,
        }


def refined(
    tracks: Sequence[Track], sweeps: Iterable[SweepPoints], config: RefinementConfig = RefinementConfig()
) -> tuple[tuple[Track, ...], MotionReport]:
    """Tracks whose boxes are where the objects were, one for each sweep that shows the object.

    The others are as they were: those that do not move, are not rigid, have too few points or are not proven to be
    better. ``poses_at`` interpolates the new ones as it does the old; they end where evidence ends.

    Args:
        tracks: With boxes at the times at which the key sweeps hit the objects.
        sweeps: Every sweep in order of time; each is looked at once.
        config: Which tracks, and what counts as evidence.
    """
    candidates = [k for k, t in enumerate(tracks) if t.travel_m > config.moving_above_m and is_rigid(t)]
    n_moving = sum(track.travel_m > config.moving_above_m for track in tracks)
    searches = [Search(tracks[k], config) for k in candidates]
    for sweep in sweeps:
        _look(searches, sweep, config.reach_s)
    out, results = list(tracks), []
    for k, search in zip(candidates, searches):
        results.append(search.result())
        out[k] = results[-1].track
    taken = [result for result in results if result.outcome == "refined"]
    n_judges = max(sum(result.n_judges for result in taken), 1)
    counts = {name: sum(result.outcome == name for result in results) for name in ("unseen", "unproven", "refined")}
    sums = {name: sum(getattr(result, name) for result in results) for name in ("views", "rejected", "beyond")}
    before, after = (sum(result.misfit[i] for result in taken) / n_judges for i in (0, 1))
    still, soft = len(tracks) - n_moving, n_moving - len(candidates)
    return tuple(out), MotionReport(still, soft, **counts, **sums, misfit=(before, after))


def is_rigid(track: Track) -> bool:
    """Whether an object keeps its shape, by its category."""
    return not track.category.lower().startswith(SOFT_BODIED)


def _look(searches: "Sequence[Search]", sweep: SweepPoints, reach_s: float) -> None:
    """Hands a sweep to the searches whose tracks are near in time."""
    if not searches or not len(sweep.times_s):
        return
    mid_us = sweep.timestamp_us + round(5e5 * float(sweep.times_s.min() + sweep.times_s.max()))
    times_us = [mid_us - COURSE_US, mid_us, mid_us + COURSE_US]
    poses, _, known = poses_at([search.track for search in searches], times_us, reach_s + 1e-6 * COURSE_US)
    for k in np.flatnonzero(known.all(0)):
        before, pose, after = poses[:, k]
        turn = np.diff(yaws(np.stack([before, after])))[0]
        span_s = 2e-6 * COURSE_US
        course = Course(mid_us, pose, (after[:3, 3] - before[:3, 3]) / span_s, turn / span_s)
        searches[k].look(sweep, course)


class Result(NamedTuple):
    """What a search found: a track, and what ``MotionReport`` sums."""

    track: Track
    outcome: str
    views: int = 0
    rejected: int = 0
    beyond: int = 0
    misfit: tuple[float, float] = (0.0, 0.0)
    n_judges: int = 0


class Search:
    """The search for one object in the sweeps of a scene."""

    def __init__(self, track: Track, config: RefinementConfig) -> None:
        self.track = track
        self._config = config
        self._box_times_us = np.array(track.times_us)
        self._size = np.median([box.size_lwh_m for box in track.boxes], axis=0)
        self._views: list[View] = []
        self._beyond: tuple[list[tuple[SweepPoints, Course]], list[tuple[SweepPoints, Course]]] = ([], [])

    def look(self, sweep: SweepPoints, course: Course) -> None:
        """Takes a sweep's view of the object; beyond the ends of the track, the points that may be on it."""
        first_us, last_us = self.track.times_us[0], self.track.times_us[-1]
        over_s = 1e-6 * max(first_us - course.time_us, course.time_us - last_us, 0)
        near = points_near(sweep, course, self._size, SLACK_M + ACCELERATION_MPS2 * over_s**2)
        view = view_of(near, course, self._size, self._box_times_us)
        time_us = view.time_us if view else course.time_us
        if first_us <= time_us <= last_us:
            self._views += [view] if view else []
        else:
            self._beyond[int(time_us > last_us)].append((near, course))

    def result(self) -> Result:
        """The refined track, or the old one and why."""
        if len(self._views) < 3:
            return Result(self.track, "unseen")
        graph = Graph([*self._views, *self._unseen_boxes()], self.track)
        graph.solve()
        before, after = graph.judge(graph.initial), graph.judge(graph.poses)
        misfit = float(before.n @ before.misfit), float(after.n @ after.misfit)
        if misfit[1] >= misfit[0]:
            graph.fix()
            beyond = self._extend(graph)
            return Result(graph.track() if beyond else self.track, "unproven", beyond=beyond)
        if rejected := graph.reject(before, after, self._config.evidence.min_matched):
            graph.solve()
        beyond = self._extend(graph)
        return Result(graph.track(), "refined", len(self._views), rejected, beyond, misfit, int(before.n.sum()))

    def _unseen_boxes(self) -> list[View]:
        """The annotated boxes that no view shows, as views without points."""
        seen = {view.box for view in self._views}
        boxes = enumerate(self.track.boxes)
        return [View(box.timestamp_us, box.world_SE3_box, box=i) for i, box in boxes if i not in seen]

    def _extend(self, graph: Graph) -> int:
        """Adds what is found beyond the ends, sweep by sweep; how many views that is."""
        found = 0
        for end, sweeps in enumerate(self._beyond):
            missed = 0
            for near, course in sweeps if end else sweeps[::-1]:
                expected = graph.course(end, course)
                view = view_of(near, expected, self._size, self._box_times_us)
                taken = view is not None and view.box < 0 and graph.extend(end, view, self._config.evidence)
                found, missed = found + taken, 0 if taken else missed + 1
                if missed == LOST:
                    break
        if found:
            graph.solve()
        return found
