"""Poses by registration: generated scenes whose tables have faults, against the truth, and recorded drives.

Generated: error of the motion over a second, and errors of default labels at 704x256 against exact depth. Recorded:
how far what stands in one sweep, 5 to 30 m away, is from that in a sweep a second later (median distance to the nearest
point), and labels without their key sweep on that sweep's pixels. Thresholds were chosen on the generated street and on
drive 0005 with GPS/IMU; PandaSet and drive 0005 with ORB-SLAM3's poses judge them, and benchmarks/kitti_truth.py.

    python benchmarks/poses.py > benchmarks/poses.txt
"""

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from _recorded import kitti_raw
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import Scene
from dense_depth.datasets.truth import read_truth
from dense_depth.geometry import invert, transform
from dense_depth.label import label_camera
from dense_depth.poses import PoseReport, by_odometry, repaired
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.quality.errors import DepthErrors, LabelErrors
from dense_depth.quality.held_out import hold_out_key_sweep
from dense_depth.quality.truth import FrameTruth, compare
from dense_depth.sweeps import compensated, read_timed, twist_at
from dense_depth.synthetic import Faults, SynthConfig, generate

VERSION = "v1.0-synth"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_LEFT", "CAM_BACK")
STREET = {"max_slope_deg": 6.0}
NOISE = Faults(pose_noise_m=0.05, pose_noise_deg=0.2)
GENERATED = (
    ("street, true poses", STREET, Faults()),
    ("street, flat height", STREET, Faults(flat_height=True)),
    ("street, planar poses", STREET, Faults(planar_poses=True)),
    ("street, 5 cm and 0.2 degrees", STREET, NOISE),
    ("highway, true poses", {"place": "highway"}, Faults()),
    ("highway, 5 cm and 0.2 degrees", {"place": "highway"}, NOISE),
    ("field, true poses", {"place": "field"}, Faults()),
    ("field, 5 cm and 0.2 degrees", {"place": "field"}, NOISE),
)


def main() -> None:
    figures = "  behind % in front %     MAE m  ms/sweep"
    print(f"generated                       poses     over 1 s m (95 %)     degrees {figures}")
    for name, place, faults in GENERATED:
        size = {"scenes": 1, "keyframes": 12, "seed": 3, "image_width": 704, "image_height": 396}
        on_generated(name, SynthConfig(faults=faults, **size, **place))
    print(f"\nrecorded                        poses      after 1 s m: all, first {figures}")
    data = kitti_raw().parent
    slam = str(data / "kitti_tracking" / "orbslam3_poses" / "0000.txt")
    kitti = DatasetConfig("kitti-raw", data / "kitti_raw", cameras=("image_02",))
    on_recorded("drive 0005, GPS/IMU", kitti)
    on_recorded("drive 0005, ORB-SLAM3", replace(kitti, poses=slam))
    on_recorded("PandaSet", DatasetConfig("nuscenes", data / "pandaset_as_nuscenes", "v1.0-mini"))


def on_generated(name: str, config: SynthConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        generate(root, config)
        exact = Path(folder) / "exact"
        truth = true_poses(config, exact)
        ways = {"dataset": (read(root, "dataset"), None), "repaired": timed(repaired, read(root, "dataset"))}
        if name == "street, true poses":
            ways["odometry"] = timed(by_odometry, read(root, "odometry"))
        for way, (scene, cost) in ways.items():
            error_m, error_deg = motion_errors(scene, truth)
            mean = label_errors(scene, root)
            print(
                f"{name:31s} {way:9s} {np.median(error_m):9.4f} ({np.percentile(error_m, 95):.4f}) "
                f"{np.median(error_deg):11.3f} {errors_text(mean)} {cost_text(cost)}",
                flush=True,
            )


def true_poses(config: SynthConfig, folder: Path) -> np.ndarray:
    """Of the sweeps, from the same scene generated small and without faults."""
    generate(folder, replace(config, faults=Faults(), image_width=32, image_height=18, lidar_azimuths=8))
    return np.stack([sweep.world_SE3_sensor for sweep in read(folder, "dataset").sweeps])


def read(root: Path, poses: str) -> Scene:
    return next(iter(open_dataset(DatasetConfig("nuscenes", root, VERSION, CAMERAS, poses)).scenes()))


def timed(find: Callable[[Scene], tuple[Scene, PoseReport]], scene: Scene) -> tuple[Scene, float]:
    """What was found, and the milliseconds of processor time for each sweep."""
    started = time.process_time()
    found, _ = find(scene)
    return found, 1e3 * (time.process_time() - started) / len(scene.sweeps)


def motion_errors(scene: Scene, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres and degrees by which motions over a second (20 sweeps) are wrong."""
    found = np.stack([sweep.world_SE3_sensor for sweep in scene.sweeps])
    wrong = invert(invert(truth[:-20]) @ truth[20:]) @ invert(found[:-20]) @ found[20:]
    return np.linalg.norm(wrong[:, :3, 3], axis=1), np.degrees(Rotation.from_matrix(wrong[:, :3, :3]).magnitude())


def label_errors(scene: Scene, root: Path) -> dict[str, float]:
    errors = LabelErrors()
    for camera in scene.cameras:
        frames, truth = scene.frames_of(camera), read_truth(root, scene.token, camera)
        cloud = SceneCloud(scene, frames, AccumulationConfig())
        for frame in frames:
            height, width, K = label_camera(frame, 1.0)
            label, _ = render_label(cloud, frame, K, VisibilityConfig(), new_keys(height, width))
            errors += compare(label, FrameTruth.read(truth, frame.sample_token), 256)
    return errors.means()


def on_recorded(name: str, config: DatasetConfig) -> None:
    scene = next(iter(open_dataset(config).scenes()))
    for way, (posed, cost) in {
        "dataset": (scene, None),
        "repaired": timed(repaired, scene),
        "odometry": timed(by_odometry, scene),
    }.items():
        apart_m = np.mean([structure_m(posed, i, i + 10) for i in range(0, len(scene.sweeps) - 10, 5)])
        held_out = hold_out_key_sweep(posed, posed.cameras, AccumulationConfig(), VisibilityConfig())
        mean = sum(held_out, start=DepthErrors()).means()
        first_m = structure_m(posed, 0, 10)
        print(f"{name:31s} {way:9s} {apart_m:15.3f} {first_m:8.3f} {errors_text(mean)} {cost_text(cost)}", flush=True)


def structure_m(scene: Scene, first: int, last: int) -> float:
    """Median distance of what stands in one sweep from that in another; x, y, z of points in the world."""
    found = []
    for i in (first, last):
        sweep = scene.sweeps[i]
        xyz = compensated(sweep, *read_timed(sweep), twist_at(scene.sweeps, i))[:, :3]
        range_m = np.linalg.norm(xyz, axis=1)
        stands = (range_m > 5) & (range_m < 30) & (xyz[:, 2] > -1.2)
        found.append(transform(sweep.world_SE3_sensor, xyz[stands].astype(np.float64)))
    return float(np.median(cKDTree(found[0]).query(found[1])[0]))


def errors_text(mean: dict[str, float]) -> str:
    return f"{100 * mean['behind']:10.3f} {100 * mean['in_front']:10.3f} {mean['mae_m']:9.3f}"


def cost_text(ms: float | None) -> str:
    return f"{ms:10.0f}" if ms else ""


if __name__ == "__main__":
    main()
