"""Where the sensor really was: poses of sweeps by registration, from the dataset's poses or from nothing.

Each sweep is registered to the ten sweeps before it where they were found to be, not where the dataset has them. What
the surfaces around leave open, and what does not fit better afterwards, follows the dataset's motion (``repaired``) or
a constant velocity (``by_odometry``). In the end the trajectory is laid on the dataset's as a whole.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dense_depth import InputError
from dense_depth.datasets.scene import Scene, Sweep, Track, poses_at
from dense_depth.deskew import Twist, moved, twist_of
from dense_depth.geometry import SE3, exp, invert, log, se3, transform
from dense_depth.registration import Fit, Scan, make_scan, merge, misfit_m, register, single, thin_out
from dense_depth.sweeps import compensated, read_timed
from dense_depth.trajectory import placed

ALGORITHM = 1  # raised when the poses of the same input change

MAP_SWEEPS = 10
MIN_RANGE_M, MAX_RANGE_M = 2.0, 60.0
MIN_POINTS = 100
MOVES_ABOVE_M = 0.5  # a track that travels farther
MOVER_MARGIN_M = 0.5  # around its boxes, which are not exact between keyframes
# A step is not taken if fewer points have a partner, if it is corrected by more, or if it fits worse.
MIN_INLIERS = 0.5
MAX_SHIFT_M, MAX_TURN_DEG = 1.0, 3.0
ALIGNED_ARM_M = 10.0  # at which a turn counts as much as a shift when trajectories are laid on each other
FIRST_SPEEDS_MPS = (0.0, 8.0, 16.0, 24.0, 32.0)

Verdict = Literal["start", "unreadable", "few points", "few inliers", "far", "no better", "open", "partly", "taken"]
REJECTED = ("unreadable", "few points", "few inliers", "far", "no better", "open")


class Step(NamedTuple):
    """What became of one sweep; lengths in metres are of its motion since the sweep ten before, where there is one.

    Attributes:
        verdict: "taken", "partly" where surfaces leave some motions open, or why the step follows the guess.
        before_m: Median distance of points that took no part from the surfaces of that sweep, by the dataset's poses.
        after_m: The same by the new poses.
        shift_m: By how much the motion was corrected.
        turn_deg: By what angle.
    """

    verdict: Verdict
    before_m: float | None = None
    after_m: float | None = None
    shift_m: float | None = None
    turn_deg: float | None = None


class PoseReport(NamedTuple):
    """How the poses of a scene came about.

    Attributes:
        steps: One for each sweep.
        kept: Whether the dataset's poses stayed because the new ones fit no better.
    """

    steps: tuple[Step, ...]
    kept: bool = False

    def figures(self) -> dict[str, float | None]:
        """Medians over the sweeps, by the names of ``catalog/figures.py``."""
        rejected = sum(step.verdict in REJECTED for step in self.steps)
        n_steps = max(len(self.steps) - 1, 1)
        return {
            "pose_misfit_before_m": self._median("before_m"),
            "pose_misfit_m": self._median("after_m"),
            "pose_shift_m": self._median("shift_m"),
            "pose_turn_deg": self._median("turn_deg"),
            "poses_rejected": rejected / n_steps,
            "poses_open": sum(step.verdict == "partly" for step in self.steps) / n_steps,
        }

    def _median(self, name: str) -> float | None:
        values = [value for step in self.steps if (value := getattr(step, name)) is not None]
        return float(np.median(values)) if values else None


def repaired(scene: Scene) -> tuple[Scene, PoseReport]:
    """Corrects the dataset's poses where sweeps fit better, and says how."""
    prior = np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps])
    flat = _flatness(scene)
    start = _with_height(scene, prior) if flat.height else prior
    tracks = [track for track in scene.tracks if track.travel_m > MOVES_ABOVE_M]
    chain, verdicts, scans = _chained(scene, tracks, start)
    found = _laid_on(chain, prior, flat)
    steps = _judged(scans, verdicts, prior, found)
    report = PoseReport(steps)
    figures = report.figures()
    before_m, after_m = figures["pose_misfit_before_m"], figures["pose_misfit_m"]
    if before_m is None or after_m is None or after_m >= before_m:
        return scene, PoseReport(_judged(scans, verdicts, prior, prior), kept=True)
    return placed(scene, found), report


def by_odometry(scene: Scene) -> tuple[Scene, PoseReport]:
    """Poses from the sweeps alone, in a world where the first is where the scene has it.

    The scene says where cameras and boxes are around the sensor, by poses that may all be the same. Whether a track
    moves is not known then, so no tracked object takes part.
    """
    prior = np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps])
    chain, verdicts, scans = _chained(scene, scene.tracks, None)
    found = prior[0] @ chain
    return placed(scene, found), PoseReport(_judged(scans, verdicts, None, found))


class Flatness(NamedTuple):
    """What a dataset's poses leave out: they are the same all the time."""

    height: bool
    tilt: bool


def _flatness(scene: Scene) -> Flatness:
    """By the vehicle's poses at the keyframes."""
    if len(scene.keyframes) < 2:
        return Flatness(False, False)
    poses = np.stack([keyframe.world_SE3_ego for keyframe in scene.keyframes])
    return Flatness(bool(np.ptp(poses[:, 2, 3]) == 0), bool(np.ptp(poses[:, 2, 2]) < 1e-9))


def _with_height(scene: Scene, prior: Float[np.ndarray, "n 4 4"]) -> Float[np.ndarray, "n 4 4"]:
    """Poses without height, raised by that of the path: along it the vehicle rises as it looks up."""
    keyframe = scene.keyframes[0]
    times_us = np.array([sweep.timestamp_us for sweep in scene.sweeps])
    sensor = int(np.abs(times_us - keyframe.timestamp_us).argmin())
    forward = invert(prior[sensor])[:3, :3] @ keyframe.world_SE3_ego[:3, 0]  # of the vehicle, in the sensor's frame
    ahead = prior[:, :3, :3] @ forward
    level = np.linalg.norm(ahead[:, :2], axis=1)
    slope, heading = ahead[:, 2] / level, ahead[:, :2] / level[:, None]
    middle = (heading[1:] + heading[:-1]) / 2
    along_m = (np.diff(prior[:, :2, 3], axis=0) * middle).sum(1)
    raised = prior.copy()
    raised[1:, 2, 3] += np.cumsum(along_m * (slope[1:] + slope[:-1]) / 2)
    return raised


def _chained(
    scene: Scene, tracks: Sequence[Track], start: Float[np.ndarray, "n 4 4"] | None
) -> tuple[Float[np.ndarray, "n 4 4"], list[Verdict], list[Scan | None]]:
    """Registers sweep after sweep to those before it.

    Args:
        scene: The scene.
        tracks: Objects that take no part.
        start: Poses whose motions are the guesses; constant velocity from the origin without them.

    Returns:
        The poses, what was done at each, and the scans; None for one that cannot be used.
    """
    times_s = 1e-6 * np.array([sweep.timestamp_us - scene.sweeps[0].timestamp_us for sweep in scene.sweeps])
    prior = np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps])
    around = _Around(scene.sweeps, tracks, prior)
    velocity = _first_velocity(scene, around, times_s) if start is None else Twist(np.zeros(3), np.zeros(3))
    chain = [np.eye(4) if start is None else start[0]]
    verdicts: list[Verdict] = []
    scans: list[Scan | None] = []
    for i, sweep in enumerate(scene.sweeps):
        gap_s = times_s[i] - times_s[i - 1] if i else 0.0
        if start is not None:
            velocity = twist_of(start, times_s, i)
        if i:
            chain.append(chain[-1] @ (moved(velocity, gap_s) if start is None else invert(start[i - 1]) @ start[i]))
        scan, verdict = _scan(sweep, velocity, around.at(i))
        if scan is not None:
            near = [(s, pose) for s, pose in zip(scans[-MAP_SWEEPS:], chain[-1 - MAP_SWEEPS :]) if s is not None]
            chain[-1], verdict = _step(near, scan, chain[-1]) if near else (chain[-1], "start")
        scans.append(scan)
        verdicts.append(verdict)
        if start is None and i:
            shift = log(invert(chain[-2]) @ chain[-1])
            velocity = Twist(shift[3:] / gap_s, shift[:3] / gap_s)
    return np.stack(chain), verdicts, scans


def _step(near: list[tuple[Scan, SE3]], scan: Scan, guess: SE3) -> tuple[SE3, Verdict]:
    """The pose of a scan by those near it, or the guess and why."""
    target = merge(near, guess)
    fit = register(target, scan, guess)
    pose = guess @ exp(fit.shift)
    verdict = _refusal(fit)
    if verdict is None and misfit_m(target, scan.held_out, pose) >= misfit_m(target, scan.held_out, guess):
        verdict = "no better"
    if verdict:
        return guess, verdict
    return pose, "partly" if fit.n_open else "taken"


def _refusal(fit: Fit) -> Verdict | None:
    """Why a fit is not taken, but for how well it fits."""
    if fit.inliers < MIN_INLIERS:
        return "few inliers"
    if fit.n_open == 6:
        return "open"
    turn_deg = np.degrees(np.linalg.norm(fit.shift[:3]))
    return "far" if turn_deg > MAX_TURN_DEG or np.linalg.norm(fit.shift[3:]) > MAX_SHIFT_M else None


def _first_velocity(scene: Scene, around: "_Around", times_s: Float[np.ndarray, " n"]) -> Twist:
    """The motion from the first sweep to the second: of many starts along both axes the one that fits best."""
    at_rest = Twist(np.zeros(3), np.zeros(3))
    if len(scene.sweeps) < 2:
        return at_rest
    gap_s = times_s[1]
    starts = [np.array([x, y, 0.0]) for v in FIRST_SPEEDS_MPS for x, y in {(v, 0.0), (-v, 0.0), (0.0, v), (0.0, -v)}]
    best = at_rest
    for _ in range(2):  # with points as they are, then deskewed by what that gave
        (first, _), (second, _) = (_scan(scene.sweeps[i], best, around.at(i)) for i in (0, 1))
        if first is None or second is None:
            return at_rest
        target = single(first, np.eye(4))
        fits: list[tuple[float, int, np.ndarray]] = []
        for start in sorted(starts, key=tuple):
            guess = se3(np.eye(3), gap_s * start)
            pose = guess @ exp(register(target, second, guess).shift)
            fits.append((misfit_m(target, second.held_out, pose), len(fits), log(pose)))
        shift = min(fits)[2]
        best = Twist(shift[3:] / gap_s, shift[:3] / gap_s)
        starts = [best.linear_mps]
    return best


class _Around:
    """The boxes of moving objects, as each sweep has them around itself."""

    def __init__(self, sweeps: Sequence[Sweep], tracks: Sequence[Track], world_SE3_sensor: Float[np.ndarray, "n 4 4"]):
        poses, sizes, known = poses_at(tracks, [sweep.timestamp_us for sweep in sweeps], extrapolate_s=0.5)
        box_SE3_sensor = invert(poses) @ world_SE3_sensor[:, None]
        self._boxes = [(pose[k], size[k] / 2 + MOVER_MARGIN_M) for pose, size, k in zip(box_SE3_sensor, sizes, known)]

    def at(self, i: int) -> tuple[Float[np.ndarray, "boxes 4 4"], Float[np.ndarray, "boxes 3"]]:
        """box_SE3_sensor and half the grown size of each box at sweep ``i``."""
        return self._boxes[i]


def _scan(
    sweep: Sweep, velocity: Twist, boxes: tuple[Float[np.ndarray, "boxes 4 4"], Float[np.ndarray, "boxes 3"]]
) -> tuple[Scan | None, Verdict]:
    """The static points of a sweep, free of the sensor's motion; None, and why, if they are too few."""
    try:
        points, times_s = read_timed(sweep)
    except InputError:  # whoever makes labels from it says so
        return None, "unreadable"
    xyz = compensated(sweep, points, times_s, velocity)[:, :3]
    range_sq = xyz[:, 0] ** 2 + xyz[:, 1] ** 2 + xyz[:, 2] ** 2
    kept = (range_sq > MIN_RANGE_M**2) & (range_sq < MAX_RANGE_M**2)  # not NaN, either
    for crop in sweep.ego_crops:
        kept &= ~_between(xyz, *np.array(crop).T)
    if kept.sum() < MIN_POINTS:
        return None, "few points"
    thin = thin_out(xyz[kept].astype(np.float64))
    for box_SE3_sensor, half in zip(*boxes):
        thin = thin[~_between(transform(box_SE3_sensor, thin), -half, half)]
    return (make_scan(thin), "start") if len(thin) >= MIN_POINTS else (None, "few points")


def _between(
    points: Float[np.ndarray, "n 3"], lower: Sequence[float], upper: Sequence[float]
) -> Bool[np.ndarray, " n"]:
    inside = np.ones(len(points), bool)
    for values, low, high in zip(points.T, lower, upper):  # axis by axis: quicker than on rows of three
        inside &= (values > low) & (values < high)
    return inside


def _laid_on(
    chain: Float[np.ndarray, "n 4 4"], prior: Float[np.ndarray, "n 4 4"], flat: Flatness
) -> Float[np.ndarray, "n 4 4"]:
    """A trajectory moved as a rigid whole, so that it lies on another; what that one leaves out does not count."""
    from scipy.optimize import least_squares
    from scipy.spatial.transform import Rotation

    counts = np.array([ALIGNED_ARM_M * (not flat.tilt)] * 2 + [ALIGNED_ARM_M, 1.0, 1.0, not flat.height])
    centre = chain[:, :3, 3].mean(0)

    def whole(shift: Float[np.ndarray, "6"]) -> SE3:
        turn = exp(shift)  # about the middle, so that turn and shift hardly mix
        turn[:3, 3] = centre + shift[3:] - turn[:3, :3] @ centre
        return turn

    def apart(shift: Float[np.ndarray, "6"]) -> Float[np.ndarray, " numbers"]:
        moved_chain = whole(shift) @ chain
        turns = Rotation.from_matrix(prior[:, :3, :3] @ np.swapaxes(moved_chain[:, :3, :3], 1, 2)).as_rotvec()
        return (np.concatenate([turns, prior[:, :3, 3] - moved_chain[:, :3, 3]], axis=1) * counts).ravel()

    return whole(least_squares(apart, np.zeros(6)).x) @ chain


def _judged(
    scans: Sequence[Scan | None],
    verdicts: Sequence[Verdict],
    before: Float[np.ndarray, "n 4 4"] | None,
    after: Float[np.ndarray, "n 4 4"],
) -> tuple[Step, ...]:
    """How sweeps fit on those ten before them, by the poses before and after."""
    steps = []
    for i, (scan, verdict) in enumerate(zip(scans, verdicts)):
        earlier = scans[i - MAP_SWEEPS] if i >= MAP_SWEEPS else None
        if scan is None or earlier is None:
            steps.append(Step(verdict))
            continue
        target, motion = single(earlier, np.eye(4)), invert(after[i - MAP_SWEEPS]) @ after[i]
        step = Step(verdict, after_m=_finite(misfit_m(target, scan.held_out, motion)))
        if before is not None:
            old = invert(before[i - MAP_SWEEPS]) @ before[i]
            change = log(invert(old) @ motion)
            shift_m, turn_deg = np.linalg.norm(change[3:]), np.degrees(np.linalg.norm(change[:3]))
            before_m = _finite(misfit_m(target, scan.held_out, old))
            step = step._replace(before_m=before_m, shift_m=float(shift_m), turn_deg=float(turn_deg))
        steps.append(step)
    return tuple(steps)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
