"""Which visibility test: see-through labels removed against true labels kept, on exact depth of a generated dataset.

- none: every point that wins its pixel.
- window minimum: a point is dropped if the nearest one in a window around it is nearer by the margins (the usual test).
- key surface: the key sweep's range image as a mesh (neighbouring beams joined where their ranges agree); a point is
  dropped if the mesh hides it.
- quadrants: ours (see ``VisibilityConfig``).

"kept" counts labels within max(0.5 m, 5 %) of the truth, relative to no test; "behind" are labels beyond that.
"""

import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from dense_depth.accumulation import AccumulationConfig, SceneCloud, read_sweep
from dense_depth.datasets import open_dataset
from dense_depth.datasets.synthetic import SynthConfig, generate, read_truth
from dense_depth.geometry import invert, transform
from dense_depth.metrics import DepthErrors
from dense_depth.projection import VisibilityConfig, label_camera, new_keys, render_label
from dense_depth.storage import dequantise

CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK")
MARGIN_M, MARGIN_RATIO = 0.3, 0.05
UNTESTED = VisibilityConfig(visibility="none")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "data"
        if not root.exists():
            generate(root, SynthConfig(scenes=2, keyframes=6))
        for scale in (1.0, 0.44):
            compare(root, scale)


def compare(root: Path, scale: float) -> None:
    tests = {"none": None, "key surface": key_surface}
    for height, width in ((3, 3), (7, 5), (11, 7)):  # at 256x704, as usually given; grown with the image
        tests[f"window minimum {height}x{width}"] = window_minimum(height, width)
    for quadrants, width, height in ((3, 0.3, 0.6), (3, 0.6, 0.6), (4, 0.6, 0.6), (4, 0.6, 1.2), (4, 1.2, 1.2)):
        config = VisibilityConfig(min_quadrants=quadrants, width_deg=width, height_deg=height)
        tests[f"quadrants {quadrants}, {width}x{height} deg"] = config
    errors = {name: DepthErrors() for name in tests}
    true = dict.fromkeys(tests, 0)
    seconds = dict.fromkeys(tests, 0.0)
    size = n_labels = 0
    for scene in open_dataset("nuscenes", root, "v1.0-synth").scenes():
        for camera in CAMERAS:
            frames = scene.frames_of(camera)[1:-1:2]
            cloud = SceneCloud(scene, frames, AccumulationConfig())
            truths = read_truth(root, scene.token, camera)
            for frame in frames:
                truth = at_scale(np.asarray(truths.depth_m[truths.sample_tokens.index(frame.sample_token)]), scale)
                height, width, K = label_camera(frame, scale)
                n_labels, size = n_labels + 1, f"{width}x{height}"
                keys = new_keys(height, width)
                depth, source = np.empty((height, width), np.uint16), np.empty((height, width), np.uint8)
                for name, test in tests.items():
                    config = test if isinstance(test, VisibilityConfig) else UNTESTED
                    started = time.perf_counter()
                    render_label(cloud, frame, K, config, keys, depth, source)
                    depth_m = dequantise(depth)
                    if callable(test):
                        depth_m = test(depth_m, cloud, scene, frame, K)
                    seconds[name] += time.perf_counter() - started
                    errors[name].add(depth_m, truth)
                    close = np.abs(depth_m - truth) <= np.maximum(0.5, 0.05 * truth)
                    true[name] += int((close & (depth_m > 0) & (truth > 0)).sum())
    print(f"{n_labels} labels of {size}, {AccumulationConfig().past_s:.0f} s before and after")
    print("test                        true kept %  behind %  in front %   MAE m  RMSE m  extra ms per label")
    for name in tests:
        mean = errors[name].means()
        extra = 1e3 * (seconds[name] - seconds["none"]) / n_labels
        print(
            f"{name:27s} {100 * true[name] / true['none']:11.2f} {100 * mean['behind']:9.3f} "
            f"{100 * mean['in_front']:11.3f} {mean['mae_m']:7.3f} {mean['rmse_m']:7.3f} {extra:19.1f}"
        )
    print()


def at_scale(truth, scale):
    """Truth at the pixel centres of a smaller image: the nearest native pixel."""
    height, width = (round(side * scale) for side in truth.shape)
    rows = np.round((np.arange(height) + 0.5) * truth.shape[0] / height - 0.5).astype(int)
    columns = np.round((np.arange(width) + 0.5) * truth.shape[1] / width - 0.5).astype(int)
    return truth[np.ix_(np.clip(rows, 0, None), np.clip(columns, 0, None))]


def window_minimum(rows: int, columns: int):
    """The usual test, by OpenCV."""

    def test(depth_m, cloud, scene, frame, K):
        grow = depth_m.shape[1] / 704
        kernel = np.ones((2 * round((rows // 2) * grow) + 1, 2 * round((columns // 2) * grow) + 1), np.uint8)
        nearest = cv2.erode(np.where(depth_m > 0, depth_m, 1e6).astype(np.float32), kernel, borderValue=1e6)
        return np.where(depth_m <= (1 + MARGIN_RATIO) * nearest + MARGIN_M, depth_m, 0)

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
