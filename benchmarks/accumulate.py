"""21 sweeps into six 1600x900 cameras: ours against nuscenes-devkit and against plain vectorised numpy.

One process, one thread each, the same files, alternating. Every contender ends with six depth maps per keyframe.

- devkit: ``LidarPointCloud.from_file_multisweep``, then per camera the steps of ``map_pointcloud_to_image`` on the
  accumulated cloud (as BEVDepth does), the last writer of a pixel wins.
- numpy: files read once per keyframe, one fused 3x4 float32 matrix per sweep and camera, ``np.minimum.at`` z-buffer.
- ours: a whole scene, where each sweep is read and cut once; also one keyframe alone, where nothing is shared.
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import tempfile
import time
from pathlib import Path

import numpy as np

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.geometry import invert
from dense_depth.label import label_camera
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.synthetic import SynthConfig, generate

N_SWEEPS = 21
KEYFRAMES = 10
REPEATS = 5
CONFIG = AccumulationConfig(
    past_s=1.0, future_s=0.0, dynamics="none", ego_crop_m=(1.0, 1.0), min_range_m=0, max_range_m=200
)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        generate(root, SynthConfig(scenes=1, keyframes=KEYFRAMES + 3))
        scene = next(iter(open_dataset(DatasetConfig("nuscenes", root, "v1.0-synth")).scenes()))
        compare(root, scene)


def compare(root, scene) -> None:
    from nuscenes import NuScenes

    nusc = NuScenes("v1.0-synth", str(root), verbose=False)
    samples = [frame.sample_token for frame in scene.frames_of("CAM_FRONT")][-KEYFRAMES:]
    frames = [frame for frame in scene.frames if frame.sample_token in samples]
    contenders = {
        "devkit": lambda: [devkit(nusc, token) for token in samples[-2:]],
        "numpy": lambda: [vectorised(scene, frames, token) for token in samples[-2:]],
        "ours, scene": lambda: ours(scene, frames, VisibilityConfig(visibility="none")),
        "ours, one keyframe": lambda: ours(
            scene, [f for f in frames if f.sample_token == samples[-1]], VisibilityConfig(visibility="none")
        ),
        "ours, scene, with visibility": lambda: ours(scene, frames, VisibilityConfig()),
    }
    per_run = {"devkit": 2, "numpy": 2, "ours, one keyframe": 1}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    maps = {}
    for repeat in range(REPEATS + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            maps[name] = run()
            if repeat:  # the first run compiles and warms the page cache
                times[name].append((time.perf_counter() - started) / per_run.get(name, len(samples)))

    same = maps["numpy"][-1], maps["ours, one keyframe"]
    filled = sum(int((a > 0).sum()) for a in same[0])
    differ = sum(int((np.abs(a - b) > 2 / 256).sum()) for a, b in zip(*same))
    print(f"{len(frames) // len(samples)} cameras, {N_SWEEPS} sweeps, {filled} pixels labelled by numpy; "
          f"ours differs by more than 2/256 m in {differ} (float32 rounding at pixel borders)")  # fmt: skip
    median = {name: float(np.median(values)) for name, values in times.items()}
    print(f"{'ms per keyframe, one thread':32s} {'median':>8s} {'min':>8s} {'devkit/x':>9s} {'numpy/x':>9s}")
    for name, value in median.items():
        print(
            f"{name:32s} {1e3 * value:8.1f} {1e3 * min(times[name]):8.1f} "
            f"{median['devkit'] / value:9.1f} {median['numpy'] / value:9.1f}"
        )


def devkit(nusc, sample_token):
    """Depth maps the way a devkit user makes them."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import view_points
    from pyquaternion import Quaternion

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


def vectorised(scene, frames, sample_token):
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


def ours(scene, frames, visibility):
    """Labels of the frames; returns those of the last keyframe in metres."""
    cloud = SceneCloud(scene, frames, CONFIG)
    height, width, _ = label_camera(frames[0], 1.0)
    keys = new_keys(height, width)
    cameras = sorted({frame.camera for frame in frames})
    depth_m = np.empty((len(cameras), height, width), np.float32)
    for frame in sorted(frames, key=lambda frame: frame.timestamp_us):
        i = cameras.index(frame.camera)
        depth_m[i] = render_label(cloud, frame, frame.K, visibility, keys)[0].depth_m
    return depth_m


if __name__ == "__main__":
    main()
