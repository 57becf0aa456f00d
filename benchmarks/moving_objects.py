"""Moving objects on recorded drives: sharp when carried by the instant of each hit along refined tracks.

Points of all sweeps within one second are brought to the instant at which the key sweep hit the object, and compared
with what the key sweep saw there, which is also what a camera sees that fires when the beam passes. Four ways: left
where they are; along the track, boxes and points taken to be of the sweeps' timestamps; boxes and points by the instant
of the hit; the same with tracks refined by registration. PandaSet: all moving objects, 2 Hz boxes. KITTI drive 0005:
the van and the cyclist, 10 Hz boxes.

Then what the refinement knows: boxes that people drew are left out, and compared with interpolation and refinement, or
beyond the ends with a straight line. (Most of PandaSet's boxes between keyframes are interpolated, not drawn: they
judge nothing. So only keyframes are left out.)
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from _recorded import DRIVE, kitti_raw, pictures, recorded
from scipy.spatial import cKDTree

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import Track, TrackTable, poses_at
from dense_depth.geometry import invert, project, transform
from dense_depth.instants import passes, revolution_of, timed_tracks
from dense_depth.label import label_camera
from dense_depth.motion import is_rigid, refined
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.sweeps import read_timed
from dense_depth.views import points_of

PICTURED_FRAME = 15
WINDOW_US = 1_000_000
REACH_S = 0.06  # refined tracks end at a hit; this is for the others, whose last hit may be a moment later
MARGIN_M = 0.1


def main() -> None:
    scenes = {
        "PandaSet": next(iter(open_dataset(_pandaset()).scenes())),
        "KITTI": next(iter(open_dataset(DatasetConfig("kitti-raw", kitti_raw())).scenes([DRIVE]))),
    }
    for name, scene in scenes.items():
        drive = Drive(scene)
        print(f"{name}: {len(drive.stamped)} moving objects; {drive.seconds * 1e3 / len(scene.sweeps):.0f} ms a sweep")
        print(drive.report)
        drive.print_spread()
        if name == "PandaSet":
            drive.print_left_out()
    print(f"picture: {draw(scenes['KITTI'], [track for track in scenes['KITTI'].tracks if track.travel_m > 20])}")


def _pandaset() -> DatasetConfig:
    return DatasetConfig("nuscenes", recorded("pandaset_as_nuscenes"), "v1.0-mini")


class Drive:
    """A scene, its points in the world, and its moving objects: as annotated, timed and refined."""

    def __init__(self, scene) -> None:
        self.scene, self.points = scene, list(points_of(scene.sweeps))
        self.stamped = [track for track in scene.tracks if track.travel_m > 0.5]
        self.turns = {i: revolution_of(sweep, *read_timed(sweep)) for i, sweep in enumerate(scene.sweeps)}
        self.timed = timed_tracks(self.stamped, scene.sweeps)
        refined(self.timed, self.points[:5])  # compile
        start_s = time.perf_counter()
        self.refined, self.report = refined(self.timed, self.points)
        self.seconds = time.perf_counter() - start_s

    def print_spread(self) -> None:
        """Distances of carried points to those of the key sweep."""
        rows: dict[str, list[list[np.ndarray]]] = {}
        for carry in ("nothing", "stamps", "hits", "refined"):
            tracks = {"hits": self.timed, "refined": self.refined}.get(carry, self.stamped)
            rows[carry] = [self._distances(tracks, k, carry) for k in range(len(tracks))]
        names = [track.category for track in self.stamped]
        judged = [k for k in range(len(names)) if all(len(rows[carry][k]) for carry in rows)]
        faster = [k for k in judged if self._speed_mps(k) > 3]
        print("carried by   objects      points   to key sweep m (median, 95 %)   mean over objects (median, 95 %)")
        groups = [("all", judged), ("> 3 m/s", faster)]
        groups += [(names[k], [k]) for k in faster] if len(faster) < 4 else []
        for label, group in groups:
            for carry in rows:
                of_each = [np.concatenate(rows[carry][k]) for k in group]
                each = np.mean([np.percentile(d, [50, 95]) for d in of_each], axis=0)
                d = np.concatenate(of_each)
                print(
                    f"{carry:9s} {label:>10s} {len(group):3d} {len(d):9d} {np.median(d):12.3f} "
                    f"{np.percentile(d, 95):10.3f} {each[0]:20.3f} {each[1]:10.3f}"
                )

    def _speed_mps(self, k: int) -> float:
        track = self.stamped[k]
        return track.travel_m / max(1e-6 * (track.times_us[-1] - track.times_us[0]), 1e-6)

    def _distances(self, tracks: Sequence[Track], k: int, carry: str) -> list[np.ndarray]:
        """For each key sweep, of the points of other sweeps, carried to it, to its own."""
        reference, table, found = TrackTable([self.timed[k]]), TrackTable([tracks[k]]), []
        by_sweep = [self._cut(table, i, None if carry in ("nothing", "stamps") else self.turns[i]) for i in self.turns]
        for i, sweep in enumerate(self.scene.sweeps):
            if sweep.timestamp_us not in self.stamped[k].times_us[:: 5 if len(self.scene.sweeps) > 100 else 1]:
                continue
            key = self._cut(reference, i, self.turns[i])
            others = [j for j in self.turns if j != i and abs(self._gap_us(i, j)) <= WINDOW_US and len(by_sweep[j][0])]
            if len(key[0]) < 20 or not others:
                continue
            body, world, _ = (np.concatenate([by_sweep[j][part] for j in others]) for part in range(3))
            at_key = table.at(np.array([round(float(np.median(key[2])))]), np.array([0]))[0][0]
            found.append(cKDTree(key[1]).query(world if carry == "nothing" else transform(at_key, body))[0])
        return found

    def _gap_us(self, i: int, j: int) -> int:
        return self.scene.sweeps[i].timestamp_us - self.scene.sweeps[j].timestamp_us

    def _cut(self, table: TrackTable, i: int, turn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points of a sweep on the one object of a table: in its box, in the world, and the time of each."""
        sweep, points = self.scene.sweeps[i], self.points[i]
        body, world, times_us = [np.empty((0, 3))], [np.empty((0, 3))], [np.empty(0)]
        parts = passes(table, sweep, turn, REACH_S)
        for pose, size, span in zip(parts.world_SE3_box, parts.size_lwh_m, parts.span_s):
            in_box = transform(invert(pose), points.xyz)
            upper = size / 2 + MARGIN_M
            inside = (np.abs(in_box) < upper).all(1) & (in_box[:, 2] > 0.2 - size[2] / 2)
            inside &= (points.times_s >= span[0]) & (points.times_s < span[1])
            body.append(in_box[inside])
            world.append(points.xyz[inside])
            times_us.append(sweep.timestamp_us + 1e6 * points.times_s[inside])
        return np.concatenate(body), np.concatenate(world), np.concatenate(times_us)

    def print_left_out(self) -> None:
        """Boxes that people drew, not shown to the refinement, and where it puts them."""
        rigid = [track for track in self.timed if is_rigid(track) and len(track.boxes) == 6]
        ways: dict[str, Callable] = {
            "between boxes 1 s apart": lambda boxes: (boxes[::2], boxes[1:-1:2]),
            "the same, the other boxes": lambda boxes: (boxes[1::2], boxes[2:-1:2]),
            "between boxes 2.5 s apart": lambda boxes: (boxes[::5], boxes[1:-1]),
            "0.5 s beyond the ends": lambda boxes: (boxes[1:5], boxes[::5]),
            "1 s beyond the ends": lambda boxes: (boxes[2:4], boxes[::5]),
        }
        print(
            "left-out boxes                 boxes  found  without m (median, 95 %)     refined m   without, of the rest"
        )
        for name, split in ways.items():
            known = [replace(track, boxes=split(track.boxes)[0]) for track in rigid]
            new, _ = refined(known, self.points)
            errors = np.array(
                [
                    [_error_m(old, box, 9.0), _error_m(better, box, REACH_S)]
                    for track, old, better in zip(rigid, known, new)
                    for box in split(track.boxes)[1]
                ]
            )
            before, after = errors[np.isfinite(errors[:, 1])].T
            rest = errors[~np.isfinite(errors[:, 1]), 0]
            print(
                f"{name:28s} {len(errors):7d} {len(after):6d} {_median_95(before):>25s}  {_median_95(after):12s} "
                f"{_median_95(rest):>24s}"
            )


def _median_95(values: np.ndarray) -> str:
    return "{:.3f}, {:.3f}".format(*np.percentile(values, [50, 95])) if len(values) else "-"


def _error_m(track: Track, box, extrapolate_s: float) -> float:
    """Distance of a track from a box in x and y; NaN where the track is not known."""
    poses, _, known = poses_at([track], [box.timestamp_us], extrapolate_s)
    return float(np.linalg.norm((poses[0, 0] - box.world_SE3_box)[:2, 3])) if known[0, 0] else np.nan


def draw(scene, movers) -> str:
    """Label over image around each mover, without and with motion compensation."""
    import cv2

    frame = scene.frames_of("image_02")[PICTURED_FRAME]
    height, width, K = label_camera(frame, 1.0)
    grey = cv2.cvtColor(cv2.imread(str(frame.path), cv2.IMREAD_GRAYSCALE), cv2.COLOR_GRAY2BGR) // 2 + 40
    rows = []
    for dynamics in ("none", "boxes"):
        cloud = SceneCloud(scene, [frame], replace(AccumulationConfig(), dynamics=dynamics))
        untested = VisibilityConfig(visibility="none")
        depth_m = render_label(cloud, frame, K, untested, new_keys(height, width))[0].depth_m
        tone = np.clip(np.log(np.maximum(depth_m, 3) / 3) / np.log(60 / 3), 0, 1)
        colour = cv2.applyColorMap((255 * (1 - tone)).astype(np.uint8), cv2.COLORMAP_TURBO)
        picture = np.where((depth_m > 0)[..., None], colour, grey)
        crops = []
        for track in movers:
            box = track.box_at(frame.timestamp_us)
            centre = transform(invert(frame.world_SE3_cam) @ box.world_SE3_box, np.zeros((1, 3)))
            u, v = project(K, centre)[0][0].astype(int)
            left, top = np.clip(u - 150, 0, width - 300), np.clip(v - 110, 0, height - 220)
            crops.append(picture[top : top + 220, left : left + 300])
        rows.append(np.hstack(crops))
    path = pictures() / "moving_objects.png"
    cv2.imwrite(str(path), cv2.resize(np.vstack(rows), None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST))
    return str(path)


if __name__ == "__main__":
    main()
