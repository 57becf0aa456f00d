"""Which window, visibility test and treatment of moving objects: labels against the exact depth of a generated city.

Visibility tests:

- none: every point that wins its pixel.
- window minimum: a point is dropped if the nearest one in a window around it is nearer by the margins (the usual test).
- key surface: the key sweep's range image as a mesh (neighbouring beams joined where their ranges agree); a point is
  dropped if the mesh hides it.
- quadrants: ours (see ``VisibilityConfig``).

"kept" are right labels (off by at most max(0.5 m, 5 %) from a surface seen in their pixel) relative to those without
a test; "behind" and "in front" are shares of all labels that are off by more; "coverage" is that of the pixels that
show a surface, "x" how many times the key sweep's alone; "trails" are labels in front of the true surface, per
million, that lie where a moving object is at some time of the window.

    python benchmarks/visibility.py [DATAROOT [SCALE ...]] > benchmarks/visibility.txt
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import CameraFrame, Scene, boxes_at
from dense_depth.datasets.truth import read_truth
from dense_depth.geometry import invert, transform, unproject
from dense_depth.label import Label, label_camera
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.quality.errors import LabelErrors, Verdict, judge
from dense_depth.quality.truth import FrameTruth, compare, reference_depth
from dense_depth.sweeps import read_sweep
from dense_depth.synthetic import SynthConfig, generate

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK_RIGHT", "CAM_BACK")
MARGIN_M, MARGIN_RATIO = 0.3, 0.05
UNTESTED = VisibilityConfig(visibility="none")
ONE_SWEEP = AccumulationConfig(past_s=0.0, future_s=0.0, dynamics="none")
Test = VisibilityConfig | Callable[..., np.ndarray]


@dataclasses.dataclass
class Candidate:
    """A way to make labels, and how its labels turned out."""

    name: str
    accumulation: AccumulationConfig
    test: Test
    errors: LabelErrors = dataclasses.field(default_factory=LabelErrors)
    trails: int = 0
    seconds: float = 0.0

    @property
    def right(self) -> float:
        """Labels that are right."""
        mean = self.errors.means()
        return mean["n"] * (1 - mean["behind"] - mean["in_front"])


def candidates() -> dict[str, list[Candidate]]:
    default = AccumulationConfig()
    tests: dict[str, Test] = {"none": UNTESTED, "key surface": key_surface}
    for height, width in ((3, 3), (7, 5), (11, 7)):  # at 256x704, as usually given; grown with the image
        tests[f"window minimum {height}x{width}"] = window_minimum(height, width)
    sizes = ((4, 0.6, 1.2), (4, 1.2, 1.2), (4, 1.8, 1.8), (4, 2.4, 2.4))
    for quadrants, width, height in (*sizes, (3, 0.6, 0.6), (3, 0.9, 0.9), (3, 1.2, 1.2), (2, 0.6, 0.6)):
        tests[f"quadrants {quadrants}, {width}x{height} deg"] = VisibilityConfig(
            min_quadrants=quadrants, width_deg=width, height_deg=height
        )
    for margin_m, ratio in ((0.2, 0.02), (0.5, 0.05), (0.3, 0.1)):
        tests[f"quadrants, margin {margin_m} m + {ratio:.0%}"] = VisibilityConfig(margin_m=margin_m, margin_ratio=ratio)
    windows = {"key sweep alone": ONE_SWEEP}
    for past_s, future_s in ((0.25, 0.25), (0.5, 0.5), (1.0, 0.0), (1.0, 1.0), (2.0, 2.0), (3.0, 3.0)):
        windows[f"{past_s} s before, {future_s} s after"] = AccumulationConfig(past_s=past_s, future_s=future_s)
    dynamics = {name: dataclasses.replace(default, dynamics=name) for name in ("none", "drop", "boxes")}
    dynamics |= {f"box margin {m} m": dataclasses.replace(default, box_margin_m=m) for m in (0.0, 0.3)}
    return {
        "visibility test, default window": [Candidate(name, default, test) for name, test in tests.items()],
        "window, default test": [
            Candidate("key sweep alone, no test (kind lidar)", ONE_SWEEP, UNTESTED),
            *(Candidate(name, window, VisibilityConfig()) for name, window in windows.items()),
        ],
        "moving objects, default window and test": [
            Candidate(name, config, VisibilityConfig()) for name, config in dynamics.items()
        ],
    }


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    scales = [float(scale) for scale in sys.argv[2:]] or [0.44, 1.0]
    with tempfile.TemporaryDirectory() as folder:
        if root is None:
            root = Path(folder) / "data"
            generate(root, SynthConfig(scenes=4, keyframes=12))
        for scale in scales:
            groups = candidates()
            crop_height = 256 if scale == 0.44 else None  # BEVDepth cuts 704x396 to its lower 704x256
            size, n_labels = measure(root, [c for group in groups.values() for c in group], scale, crop_height)
            print(f"# {n_labels} labels of {size}\n")
            one_sweep = groups["window, default test"][0]
            for title, group in groups.items():
                print_group(title, group, one_sweep, n_labels)
            print_causes(groups["moving objects, default window and test"][2])


def measure(root: Path, found: list[Candidate], scale: float, crop_height: int | None) -> tuple[str, int]:
    """Adds every label that the candidates make."""
    n_labels, size = 0, ""
    accumulations = list(dict.fromkeys(candidate.accumulation for candidate in found))
    for scene, frames, truths in labelled(root):
        clouds = {config: SceneCloud(scene, frames, config) for config in accumulations}
        for frame in frames:
            truth = FrameTruth.read(truths[frame.camera], frame.sample_token)
            height, width, K = label_camera(frame, scale)
            n_labels, size = n_labels + 1, f"{width}x{crop_height or height}"
            keys = new_keys(height, width)
            for candidate in found:
                cloud = clouds[candidate.accumulation]
                config = candidate.test if isinstance(candidate.test, VisibilityConfig) else UNTESTED
                started = time.perf_counter()
                label, _ = render_label(cloud, frame, K, config, keys)
                depth_m = label.depth_m
                if not isinstance(candidate.test, VisibilityConfig):
                    depth_m = candidate.test(depth_m, cloud, scene, frame, K)
                candidate.seconds += time.perf_counter() - started
                names = {"sample_token": label.sample_token, "camera": label.camera}
                kept = Label.from_maps(depth_m, label.source, K=K, timestamp_us=label.timestamp_us, **names)
                candidate.errors += compare(kept, truth, crop_height)
                verdict = judge(depth_m, reference_depth(depth_m, truth.depth_m))
                verdict[: height - (crop_height or height)] = Verdict.NONE
                candidate.trails += trails(verdict, depth_m, scene, frame, K, candidate.accumulation)
    return size, n_labels


def labelled(root: Path) -> Iterator[tuple[Scene, list[CameraFrame], dict]]:
    """Scenes, and the frames in the middle of each that are labelled here: the window ends for none of them."""
    for scene in open_dataset(DatasetConfig("nuscenes", root, "v1.0-synth")).scenes():
        frames = [frame for camera in CAMERAS for frame in scene.frames_of(camera)[2:-2:2]]
        yield scene, frames, {camera: read_truth(root, scene.token, camera) for camera in CAMERAS}


def trails(
    verdict: np.ndarray,
    depth_m: np.ndarray,
    scene: Scene,
    frame: CameraFrame,
    K: np.ndarray,
    config: AccumulationConfig,
    margin_m: float = 0.3,
) -> int:
    """How many labels in front of the true surface lie where a moving object is at some time of the window."""
    v, u = np.nonzero(verdict == Verdict.IN_FRONT)
    points = transform(frame.world_SE3_cam, unproject(K, np.column_stack([u, v]), depth_m[v, u]))
    within = np.zeros(len(points), bool)
    tracks = [track for track in scene.tracks if track.travel_m > config.moving_above_m]
    for sweep in scene.sweeps:
        if -1e6 * config.past_s <= sweep.timestamp_us - frame.timestamp_us <= 1e6 * config.future_s:
            for box in boxes_at(tracks, sweep.timestamp_us, config.extrapolate_s):
                if box is None:
                    continue
                in_box = np.abs(transform(invert(box.world_SE3_box), points)) <= box.size_lwh_m / 2 + margin_m
                within |= in_box.all(axis=1)
    return int(within.sum())


def print_group(title: str, group: list[Candidate], one_sweep: Candidate, n_labels: int) -> None:
    print(
        f"{title:40s}  kept %  behind %  in front %  (by pixel centres: behind, in front %)   MAE m  RMSE m"
        "  coverage %     x  cells 16, 8, 4 %  trails  ms"
    )
    base = one_sweep.errors.means()["coverage"]
    untested = next((c.right for c in group if c.name == "none" and c.test is UNTESTED), np.nan)
    for candidate in group:
        mean = candidate.errors.means()
        cells, centre = mean["coverage_cells"], mean["at_centre"]
        kept = f"{100 * candidate.right / untested:7.2f}" if untested > 0 else "      -"
        print(
            f"{candidate.name:40s} {kept} {100 * mean['behind']:9.3f} {100 * mean['in_front']:11.3f} "
            f"{100 * centre['behind']:27.3f} {100 * centre['in_front']:13.3f} "
            f"{mean['mae_m']:7.3f} {mean['rmse_m']:7.3f} {100 * mean['coverage']:11.2f} {mean['coverage'] / base:5.1f} "
            f"{100 * cells['16']:6.1f} {100 * cells['8']:4.1f} {100 * cells['4']:4.1f} "
            f"{1e6 * candidate.trails / mean['n']:7.0f} {1e3 * candidate.seconds / n_labels:3.0f}"
        )
    print()


def print_causes(candidate: Candidate) -> None:
    """What remains of false labels."""
    print("what remains: class seen in the pixel, place, source   behind  in front  share of all false labels %")
    for cause in candidate.errors.causes()[:14]:
        name = f"{cause['class']}, {cause['place']}, {cause['source']}"
        print(f"{name:55s} {cause['behind']:5d} {cause['in_front']:9d} {100 * cause['share']:27.1f}")
    print()


def window_minimum(rows: int, columns: int):
    """The usual test, by OpenCV."""

    def test(depth_m, cloud, scene, frame, K):
        grow = depth_m.shape[1] / 704
        kernel = np.ones((2 * round((rows // 2) * grow) + 1, 2 * round((columns // 2) * grow) + 1), np.uint8)
        nearest = cv2.erode(np.where(depth_m > 0, depth_m, 1e6).astype(np.float32), kernel, borderValue=1e6)
        return np.where(depth_m <= (1 + MARGIN_RATIO) * nearest + MARGIN_M, depth_m, 0).astype(np.float32)

    return test


def key_surface(depth_m, cloud, scene, frame, K):
    """A mesh over the key sweep's range image, drawn into the camera by ray casting."""
    import open3d as o3d

    sweep = next(sweep for sweep in scene.sweeps if sweep.token == frame.key_sweep)
    points = read_sweep(sweep)
    ring = points[:, 4].astype(int)
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    column = np.floor((azimuth + np.pi) / (2 * np.pi) * 1084).astype(int) % 1084
    grid = np.full((ring.max() + 1, 1084), -1)
    grid[ring, column] = np.arange(len(points))
    ranges = np.append(np.linalg.norm(points[:, :3], axis=1), np.nan)
    corners = np.stack([grid[:-1], grid[1:], np.roll(grid, -1, 1)[:-1], np.roll(grid, -1, 1)[1:]])
    r = ranges[corners]
    joined = np.isfinite(r).all(0) & (r.max(0) - r.min(0) < 0.3 + 0.1 * r.min(0))
    a, b, c, d = corners[:, joined]
    triangles = np.concatenate([np.column_stack([a, b, c]), np.column_stack([b, d, c])]).astype(np.uint32)
    vertices = transform(invert(frame.world_SE3_cam) @ sweep.world_SE3_sensor, points[:, :3].astype(np.float64))
    mesh = o3d.t.geometry.RaycastingScene()
    mesh.add_triangles(o3d.core.Tensor(vertices.astype(np.float32)), o3d.core.Tensor(triangles))
    v, u = np.nonzero(depth_m)
    directions = np.column_stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(len(u))])
    rays = np.column_stack([np.zeros_like(directions), directions]).astype(np.float32)
    hit = mesh.cast_rays(o3d.core.Tensor(rays))["t_hit"].numpy()
    hidden = depth_m[v, u] > (1 + MARGIN_RATIO) * hit + MARGIN_M
    tested = depth_m.copy()
    tested[v[hidden], u[hidden]] = 0
    return tested


if __name__ == "__main__":
    main()
