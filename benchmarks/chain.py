"""From sweeps on disk to labels on disk, six 1600x900 cameras: the chain by stage, and against what users do today.

One process, one thread each, the same files, alternating; milliseconds per keyframe.

- chain: a scene's keyframes with sweeps of a second each way, visibility test, a shard per camera, written and synced.
- devkit + PNG: ``LidarPointCloud.from_file_multisweep`` with half as many sweeps, those before the keyframe, then per
  camera the steps of ``map_pointcloud_to_image`` on the accumulated cloud (as BEVDepth does; the last writer of a pixel
  wins), and a 16-bit PNG per image.
- Without writing, without visibility test and with sweeps of the past second alone: devkit, plain vectorised numpy
  (files read once per keyframe, one fused 3x4 float32 matrix per sweep and camera, ``np.minimum.at``) and ours.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from nuscenes import NuScenes
from nuscenes.utils.data_classes import LidarPointCloud
from nuscenes.utils.geometry_utils import view_points
from pyquaternion import Quaternion

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import CameraFrame, DatasetConfig, Scene, open_dataset
from dense_depth.geometry import invert
from dense_depth.label import Label
from dense_depth.projection import VisibilityConfig, gather, hide, new_keys, points_of, render_label, splat
from dense_depth.shards import ShardContent, write_shard
from dense_depth.synthetic import SynthConfig, generate

STAGES = ("read and cut", "select", "splat", "gather", "visibility", "unpack", "check, encode and write")
cv2.setNumThreads(1)
N_SWEEPS = 21
KEYFRAMES = 10
REPEATS = 5
CONFIG = AccumulationConfig(
    past_s=1.0, future_s=0.0, dynamics="none", ego_crop_m=(1.0, 1.0), min_range_m=0, max_range_m=200
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        generate(root, SynthConfig(scenes=1, keyframes=KEYFRAMES + 4))
        scene = next(iter(open_dataset(DatasetConfig("nuscenes", root, "v1.0-synth")).scenes()))
        nusc = NuScenes("v1.0-synth", str(root), verbose=False)
        samples = [keyframe.sample_token for keyframe in scene.keyframes][2:-2]  # windows are full
        frames = [frame for frame in scene.frames if frame.sample_token in samples]
        compare_chain(nusc, scene, frames, samples, Path(folder))
        compare_projection(nusc, scene, frames, samples)


def compare_chain(nusc: NuScenes, scene: Scene, frames: list[CameraFrame], samples: list[str], folder: Path) -> None:
    """All of it, to files."""
    totals: dict[str, list[float]] = {"chain": [], "devkit + PNG": []}
    stages: dict[str, list[float]] = {}
    for repeat in range(REPEATS + 1):
        started = time.perf_counter()
        seconds, n_bytes = chain(scene, frames, folder / f"labels{repeat}")
        total = (time.perf_counter() - started) / len(samples)
        started = time.perf_counter()
        png_bytes = sum(write_pngs(devkit(nusc, token), folder) for token in samples[-2:])
        theirs = (time.perf_counter() - started) / 2
        if repeat:  # the first run compiles and warms the page cache
            totals["chain"].append(total)
            totals["devkit + PNG"].append(theirs)
            for name, value in seconds.items():
                stages.setdefault(name, []).append(value / len(samples))
    print(f"{'ms per keyframe, one thread':44s} {'median':>8s} {'min':>8s}")
    for name, values in (stages | totals).items():
        print(f"{name:44s} {1e3 * np.median(values):8.1f} {1e3 * min(values):8.1f}")
    ratio = np.median(totals["devkit + PNG"]) / np.median(totals["chain"])
    print(f"chain: {ratio:.1f} times as fast as devkit + PNG")
    print(f"kB per label: {n_bytes / len(frames) / 1e3:.0f}, of the devkit's maps as PNG {png_bytes / 12e3:.0f}\n")


def chain(scene: Scene, frames: list[CameraFrame], store: Path) -> tuple[dict[str, float], int]:
    """Makes and writes the labels of the frames; returns the seconds of each stage, and bytes."""
    seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)

    def timed(stage: str, function: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        seconds[stage] += time.perf_counter() - started
        return result

    store.mkdir()
    test, n_bytes = VisibilityConfig(), 0
    cloud = timed("read and cut", SceneCloud, scene, frames, AccumulationConfig())
    keys = new_keys(frames[0].height, frames[0].width)
    for camera in scene.cameras:
        labels = []
        for frame in (frame for frame in frames if frame.camera == camera):  # as render_label does
            at = invert(frame.world_SE3_cam), frame.timestamp_us, frame.key_sweep
            selection = timed("select", cloud.select, *at)
            _, rows = timed("splat", splat, cloud, selection, frame.K, keys)
            pixels = timed("gather", gather, keys, rows)
            visible = timed("visibility", hide, pixels, keys.shape[1], frame.K, test)
            points = timed("unpack", points_of, visible)
            of_frame = frame.sample_token, camera, frame.timestamp_us
            labels.append(Label(points, *keys.shape, frame.K, *of_frame))
        n_sweeps = (len(scene.sweeps),) * len(labels)
        content = ShardContent("accumulated", "nuscenes", scene.token, camera, tuple(labels), n_sweeps)
        n_bytes += timed("check, encode and write", write_shard, store, content).bytes
    return seconds, n_bytes


def write_pngs(maps: list[np.ndarray], folder: Path) -> int:
    """Writes depth maps in 1/256 m as PNG; returns their bytes."""
    for i, depth_m in enumerate(maps):
        path = str(folder / f"{i}.png")
        cv2.imwrite(path, (256 * np.clip(depth_m, 0, 255)).astype(np.uint16), [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return sum((folder / f"{i}.png").stat().st_size for i in range(len(maps)))


def compare_projection(nusc: NuScenes, scene: Scene, frames: list[CameraFrame], samples: list[str]) -> None:
    """Accumulation and projection alone, to memory."""
    untested, last = VisibilityConfig(visibility="none"), [f for f in frames if f.sample_token == samples[-1]]
    contenders = {
        "devkit": lambda: [devkit(nusc, token) for token in samples[-2:]],
        "numpy": lambda: [vectorised(scene, frames, token) for token in samples[-2:]],
        "ours, scene": lambda: ours(scene, frames, untested),
        "ours, one keyframe": lambda: ours(scene, last, untested),
        "ours, scene, with visibility": lambda: ours(scene, frames, VisibilityConfig()),
    }
    per_run = {"devkit": 2, "numpy": 2, "ours, one keyframe": 1}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    made: dict[str, Any] = {}
    for repeat in range(REPEATS + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            made[name] = run()
            if repeat:
                times[name].append((time.perf_counter() - started) / per_run.get(name, len(samples)))
    same = made["numpy"][-1], [label.depth_m for label in made["ours, one keyframe"]]
    filled = sum(int((a > 0).sum()) for a in same[0])
    differ = sum(int((np.abs(a - b) > 2 / 256).sum()) for a, b in zip(*same))
    print(f"{N_SWEEPS} sweeps, {filled} pixels labelled by numpy; "
          f"ours differs by more than 2/256 m in {differ} (float32 rounding at pixel borders)")  # fmt: skip
    median = {name: float(np.median(values)) for name, values in times.items()}
    print(f"{'ms per keyframe, one thread':32s} {'median':>8s} {'min':>8s} {'devkit/x':>9s} {'numpy/x':>9s}")
    for name, value in median.items():
        ratios = f"{median['devkit'] / value:9.1f} {median['numpy'] / value:9.1f}"
        print(f"{name:32s} {1e3 * value:8.1f} {1e3 * min(times[name]):8.1f} {ratios}")


def devkit(nusc: NuScenes, sample_token: str) -> list[np.ndarray]:
    """Depth maps the way a devkit user makes them."""
    sample = nusc.get("sample", sample_token)
    cloud, _ = LidarPointCloud.from_file_multisweep(nusc, sample, "LIDAR_TOP", "LIDAR_TOP", N_SWEEPS, 1.0)
    lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    maps = []
    for channel in sorted(name for name in sample["data"] if name.startswith("CAM")):
        camera = nusc.get("sample_data", sample["data"][channel])
        points = LidarPointCloud(cloud.points.copy())
        calibration = nusc.get("calibrated_sensor", lidar["calibrated_sensor_token"])
        points.rotate(Quaternion(calibration["rotation"]).rotation_matrix)
        points.translate(np.array(calibration["translation"]))
        pose = nusc.get("ego_pose", lidar["ego_pose_token"])
        points.rotate(Quaternion(pose["rotation"]).rotation_matrix)
        points.translate(np.array(pose["translation"]))
        pose = nusc.get("ego_pose", camera["ego_pose_token"])
        points.translate(-np.array(pose["translation"]))
        points.rotate(Quaternion(pose["rotation"]).rotation_matrix.T)
        calibration = nusc.get("calibrated_sensor", camera["calibrated_sensor_token"])
        points.translate(-np.array(calibration["translation"]))
        points.rotate(Quaternion(calibration["rotation"]).rotation_matrix.T)
        depth = points.points[2]
        uv = view_points(points.points[:3], np.array(calibration["camera_intrinsic"]), normalize=True)
        keep = (depth > 0) & (uv[0] > 1) & (uv[0] < camera["width"] - 1) & (uv[1] > 1) & (uv[1] < camera["height"] - 1)
        image = np.zeros((camera["height"], camera["width"]), np.float32)
        image[uv[1, keep].astype(int), uv[0, keep].astype(int)] = depth[keep]
        maps.append(image)
    return maps


def vectorised(scene: Scene, frames: list[CameraFrame], sample_token: str) -> list[np.ndarray]:
    """Depth maps by whole-array float32 numpy with an exact z-buffer."""
    frames = sorted((frame for frame in frames if frame.sample_token == sample_token), key=lambda frame: frame.camera)
    maps = []
    windows = [
        [s for s in scene.sweeps if 0 <= frame.timestamp_us - s.timestamp_us <= 1e6 or s.token == frame.key_sweep]
        for frame in frames
    ]
    clouds = {}
    for sweep in {sweep.token: sweep for window in windows for sweep in window}.values():
        points = np.fromfile(sweep.path, np.float32).reshape(-1, sweep.n_features)[:, :3]
        clouds[sweep.token] = points[(np.abs(points[:, :2]) >= 1.0).any(1)].T
    for frame, window in zip(frames, windows):
        cam_SE3_world = invert(frame.world_SE3_cam)
        parts = []
        for sweep in window:
            image_T_sensor = (frame.K @ (cam_SE3_world @ sweep.world_SE3_sensor)[:3]).astype(np.float32)
            parts.append(image_T_sensor[:, :3] @ clouds[sweep.token] + image_T_sensor[:, 3:])
        u, v, depth = np.concatenate(parts, axis=1)
        ahead = depth > 0.1
        u, v, depth = u[ahead], v[ahead], depth[ahead]
        u, v = u / depth + np.float32(0.5), v / depth + np.float32(0.5)
        inside = (u >= 0) & (u < frame.width) & (v >= 0) & (v < frame.height) & (depth < 255)
        image = np.full(frame.height * frame.width, np.inf, np.float32)
        np.minimum.at(image, v[inside].astype(np.int32) * frame.width + u[inside].astype(np.int32), depth[inside])
        image[np.isinf(image)] = 0
        maps.append(image.reshape(frame.height, frame.width))
    return maps


def ours(scene: Scene, frames: list[CameraFrame], visibility: VisibilityConfig) -> list[Label]:
    """Labels of the frames; returns those of the last keyframe."""
    cloud = SceneCloud(scene, frames, CONFIG)
    keys = new_keys(frames[0].height, frames[0].width)
    labels = {}
    for frame in sorted(frames, key=lambda frame: (frame.timestamp_us, frame.camera)):
        labels[frame.camera] = render_label(cloud, frame, frame.K, visibility, keys)[0]
    return [labels[camera] for camera in sorted(labels)]


if __name__ == "__main__":
    main()
