"""The whole chain from sweeps to labels on disk, stage by stage, against a script on nuscenes-devkit.

A generated city, six 1600x900 cameras, one thread, one process, the same files; contenders take turns. The devkit
script is what its users write: ``LidarPointCloud.from_file_multisweep``, then per camera the steps of
``map_pointcloud_to_image`` on the accumulated cloud (as BEVDepth does), where the last point of a pixel wins.

    python benchmarks/chain.py [dataroot]  # a dataset that ``python -m dense_depth synth`` made; else one is generated
"""

import os

for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import dataclasses
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numcodecs
import numpy as np

from catalog import Catalog
from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig
from dense_depth.datasets.scene import CameraFrame, Scene
from dense_depth.geometry import invert
from dense_depth.label import Label, label_camera, quantise
from dense_depth.projection import VisibilityConfig, gather, hide, new_keys, points_of, render_label, splat
from dense_depth.shards import ShardContent, write_shard
from dense_depth.synthetic import SynthConfig, generate
from pipelines.accumulate import Arguments, Loaded, plan

KEYFRAMES = 40  # as in a scene of nuScenes
ROUNDS = 5
WINDOW = 41  # sweeps within a second before and after; the devkit takes as many, from the past
STAGES = ("read and cut", "select", "splat", "gather", "visibility", "points", "check, encode, write")
GOALS_MS, GOAL_RATIO = 55, 40
# The devkit knows no boxes, no future and no range limits; 21 sweeps are those of the last second.
PAST = AccumulationConfig(
    past_s=1.0, future_s=0.0, dynamics="none", ego_crop_m=(1.0, 1.0), min_range_m=0, max_range_m=200
)
NO_TEST = VisibilityConfig(visibility="none")


class Clock:
    """Wall and CPU seconds by name, added up over a round."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = defaultdict(float)
        self.cpu: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Times what it encloses."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] += time.perf_counter() - wall
        self.cpu[name] += time.process_time() - cpu


def main() -> None:
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "data"
        if len(sys.argv) < 2:
            generate(root, SynthConfig(scenes=1, keyframes=KEYFRAMES))
        compare(root, Path(folder))


def compare(root: Path, folder: Path) -> None:
    from nuscenes import NuScenes

    nusc = NuScenes("v1.0-synth", str(root), verbose=False)
    arguments = Arguments(DatasetConfig("nuscenes", root, "v1.0-synth"), str(folder / "store"))
    job, _ = plan(arguments)
    name = job.shards[0].scene
    scene, recipe, _ = job.load(name)
    shards = [shard for shard in job.shards if shard.scene == name]
    # The window of the labels, and the past that the devkit needs for as many sweeps, lie within the scene.
    scene = dataclasses.replace(scene, frames=tuple(f for c in scene.cameras for f in scene.frames_of(c)[4:-2]))
    tokens = [frame.sample_token for frame in scene.frames_of("CAM_FRONT")]

    rounds: list[Clock] = []
    for number in range(ROUNDS + 1):
        clock = Clock()
        job = dataclasses.replace(job, store=str(folder / f"store{number}"))
        Catalog.create(job.store)
        with clock("job"):
            outcome = job.work(Loaded(scene, recipe), shards)
        assert outcome.error is None, outcome.error
        labels, n_bytes = chain(scene, arguments, folder / f"stages{number}", clock)
        devkit_chain(nusc, tokens[-2:], folder / f"devkit{number}", clock)
        project(nusc, scene, tokens, clock)
        if number:  # the first round compiles and warms the page cache
            rounds.append(clock)
    show_chain(rounds, len(tokens))
    show_projection(rounds, len(tokens))
    show_bytes(labels, n_bytes)


def chain(scene: Scene, arguments: Arguments, store: Path, clock: Clock) -> tuple[list[Label], int]:
    """What the job does with a scene, in its order, each stage timed; returns the labels and their bytes on disk."""
    store.mkdir()
    with clock("read and cut"):
        cloud = SceneCloud(scene, scene.frames, arguments.accumulation)
    labels: list[Label] = []
    n_bytes = 0
    for camera in scene.cameras:
        frames = scene.frames_of(camera)
        height, width, _ = label_camera(frames[0], arguments.scale)
        keys, made, n_sweeps = new_keys(height, width), [], []
        for frame in frames:
            *_, K = label_camera(frame, arguments.scale)
            with clock("select"):
                selection = cloud.select(invert(frame.world_SE3_cam), frame.timestamp_us, frame.key_sweep)
            with clock("splat"):
                _, rows = splat(cloud, selection, K, keys)
            with clock("gather"):
                pixels = gather(keys, rows)
            with clock("visibility"):
                visible = hide(pixels, width, K, arguments.visibility)
            with clock("points"):
                points = points_of(visible)
            made.append(Label(points, height, width, K, frame.sample_token, camera, frame.timestamp_us))
            n_sweeps.append(selection.n_sweeps)
        with clock("check, encode, write"):
            content = ShardContent("accumulated", scene.dataset, scene.token, camera, tuple(made), tuple(n_sweeps))
            n_bytes += write_shard(store, content).bytes
        assert set(n_sweeps) <= {WINDOW - 1, WINDOW}, n_sweeps
        labels += made
    return labels, n_bytes


def devkit_chain(nusc, tokens: list[str], folder: Path, clock: Clock) -> None:
    """Keyframes by the devkit, onto disk as 16-bit PNG in 1/256 m."""
    folder.mkdir()
    for token in tokens:
        with clock("devkit: accumulate"):
            cloud = devkit_cloud(nusc, token, WINDOW)
        with clock("devkit: project"):
            maps = devkit_maps(nusc, token, cloud)
        with clock("devkit: PNG16"):
            for i, depth_m in enumerate(maps):
                cv2.imwrite(str(folder / f"{token}-{i}.png"), (depth_m * 256).astype(np.uint16))


def project(nusc, scene: Scene, tokens: list[str], clock: Clock) -> None:
    """Accumulation and projection alone, of the last second, without a visibility test."""
    last = [frame for frame in scene.frames if frame.sample_token == tokens[-1]]
    with clock("devkit"):
        for token in tokens[-2:]:
            devkit_maps(nusc, token, devkit_cloud(nusc, token, 1 + WINDOW // 2))
    with clock("numpy"):
        expected = [image for token in tokens[-2:] for image in numpy_maps(scene, token)][-len(last) :]
    with clock("ours"):
        ours(scene, scene.frames, lambda label: None)
    with clock("ours, as maps"):
        ours(scene, scene.frames, lambda label: label.depth_m is None)
    with clock("ours, one keyframe"):
        images = ours(scene, last, lambda label: label.depth_m)
    differ = sum(int((np.abs(a - b) > 2 / 256).sum()) for a, b in zip(expected, images, strict=True))
    assert differ < 1e-3 * sum(int((image > 0).sum()) for image in expected)  # float32 rounding at pixel borders


def devkit_cloud(nusc, token: str, n_sweeps: int):
    from nuscenes.utils.data_classes import LidarPointCloud

    sample = nusc.get("sample", token)
    return LidarPointCloud.from_file_multisweep(nusc, sample, "LIDAR_TOP", "LIDAR_TOP", n_sweeps, 1.0)[0]


def devkit_maps(nusc, token: str, cloud) -> list[np.ndarray]:
    """Depth maps of the cameras in the order of their names."""
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import view_points
    from pyquaternion import Quaternion

    sample = nusc.get("sample", token)
    lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
    maps = []
    for channel in sorted(name for name in sample["data"] if name.startswith("CAM")):
        camera = nusc.get("sample_data", sample["data"][channel])
        points = LidarPointCloud(cloud.points.copy())
        for table, key in (("calibrated_sensor", "calibrated_sensor_token"), ("ego_pose", "ego_pose_token")):
            pose = nusc.get(table, lidar[key])
            points.rotate(Quaternion(pose["rotation"]).rotation_matrix)
            points.translate(np.array(pose["translation"]))
        for table, key in (("ego_pose", "ego_pose_token"), ("calibrated_sensor", "calibrated_sensor_token")):
            pose = nusc.get(table, camera[key])
            points.translate(-np.array(pose["translation"]))
            points.rotate(Quaternion(pose["rotation"]).rotation_matrix.T)
        depth = points.points[2]
        uv = view_points(points.points[:3], np.array(pose["camera_intrinsic"]), normalize=True)
        keep = (depth > 0) & (uv[0] > 1) & (uv[0] < camera["width"] - 1) & (uv[1] > 1) & (uv[1] < camera["height"] - 1)
        image = np.zeros((camera["height"], camera["width"]), np.float32)
        image[uv[1, keep].astype(int), uv[0, keep].astype(int)] = depth[keep]
        maps.append(image)
    return maps


def numpy_maps(scene: Scene, token: str) -> list[np.ndarray]:
    """Depth maps by whole arrays: a float32 3x4 matrix per sweep and camera, ``np.minimum.at`` as z-buffer."""
    frames = [frame for frame in scene.frames if frame.sample_token == token]
    windows = [
        [s for s in scene.sweeps if 0 <= frame.timestamp_us - s.timestamp_us <= 1e6 or s.token == frame.key_sweep]
        for frame in frames
    ]
    clouds = {}
    for sweep in {sweep.token: sweep for window in windows for sweep in window}.values():
        points = np.fromfile(sweep.path, np.float32).reshape(-1, sweep.n_features)[:, :3]
        clouds[sweep.token] = points[(np.abs(points[:, :2]) >= 1.0).any(1)].T
    maps = []
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


def ours(scene: Scene, frames: list[CameraFrame], use: Callable) -> list:
    """What ``use`` makes of the label of each frame."""
    cloud = SceneCloud(scene, frames, PAST)
    height, width, _ = label_camera(frames[0], 1.0)
    keys = new_keys(height, width)
    return [use(render_label(cloud, frame, frame.K, NO_TEST, keys)[0]) for frame in frames]


def show_chain(rounds: list[Clock], n: int) -> None:
    print(f"{n} keyframes, 6 cameras of 1600x900, {WINDOW} sweeps; medians of {len(rounds)} rounds\n")
    print(f"{'ms per keyframe':34s} {'wall':>8s} {'CPU':>8s}")
    for stage in STAGES:
        print_times(stage, rounds, [stage], n)
    print_times("in all, stage by stage", rounds, STAGES, n)
    print_times(f"in all, as the job runs (goal {GOALS_MS})", rounds, ["job"], n)
    steps = [name for name in rounds[0].wall if name.startswith("devkit: ")]
    for step in steps:
        print_times(step, rounds, [step], 2)
    print_times("devkit in all", rounds, steps, 2)
    ratios = [sum(clock.wall[step] for step in steps) / 2 / (clock.wall["job"] / n) for clock in rounds]
    print(f"{'devkit / ours':34s} {np.median(ratios):8.1f}\n")


def print_times(title: str, rounds: list[Clock], names, n: int) -> None:
    wall, cpu = (
        1e3 / n * np.median([sum(times[name] for name in names) for times in group])
        for group in ([clock.wall for clock in rounds], [clock.cpu for clock in rounds])
    )
    print(f"{title:34s} {wall:8.1f} {cpu:8.1f}")


def show_projection(rounds: list[Clock], n: int) -> None:
    print(f"accumulate {1 + WINDOW // 2} sweeps of the past and project, no visibility test, no files")
    print(f"{'ms per keyframe':34s} {'wall':>8s} {'CPU':>8s} {'devkit/x':>9s} {'numpy/x':>9s}")
    counts = {"devkit": 2, "numpy": 2, "ours": n, "ours, as maps": n, "ours, one keyframe": 1}
    for name, count in counts.items():
        wall, cpu = (
            1e3 / count * np.median([getattr(clock, kind)[name] for clock in rounds]) for kind in ("wall", "cpu")
        )
        ratios = [
            np.median([clock.wall[other] / 2 / (clock.wall[name] / count) for clock in rounds])
            for other in ("devkit", "numpy")
        ]
        goal = f"  (goal {GOAL_RATIO})" if name == "ours" else ""
        print(f"{name:34s} {wall:8.1f} {cpu:8.1f} {ratios[0]:9.1f} {ratios[1]:9.1f}{goal}")
    print()


def show_bytes(labels: list[Label], n_bytes: int) -> None:
    """Lists against whole planes, each with the codec that suits it best, and against depth alone as PNG."""
    planes = png = 0
    for label in labels:
        depth = quantise(label.depth_m)
        png += len(cv2.imencode(".png", depth)[1])
        bitshuffled = numcodecs.Blosc("zstd", clevel=3, shuffle=numcodecs.Blosc.BITSHUFFLE)
        planes += len(numcodecs.Zstd(3).encode(depth)) + len(numcodecs.Zstd(1).encode(label.age))
        planes += len(bitshuffled.encode(label.source))
    points = sum(len(label.points().u) for label in labels)
    print(f"{len(labels)} labels, {points / len(labels):.0f} points each")
    print(f"{'kB a label: lists, on disk':34s} {n_bytes / len(labels) / 1e3:8.0f}")
    print(f"{'planes of depth, source, age':34s} {planes / len(labels) / 1e3:8.0f}")
    print(f"{'PNG16, depth alone':34s} {png / len(labels) / 1e3:8.0f}")


if __name__ == "__main__":
    main()
