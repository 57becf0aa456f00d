"""Labels of a recorded drive against KITTI's official depth: drive 0001, without poses and whole sweeps.

The sparse depth images that KITTI gives as input are unprojected into the part of each sweep that the camera sees. They
and the official depth are of sweeps as they were recorded, with the vehicle's motion during a revolution in them; so
sweeps are taken as they are, and once more deskewed. Poses come from odometry on these sweeps alone. The official depth
was made of eleven sweeps and cleaned by stereo (Uhrig et al., "Sparsity Invariant CNNs", 2017). A label is false if it
is off by more than max(1 m, 5 %). Nothing in this project was tuned on these frames.

    python benchmarks/kitti_truth.py > benchmarks/kitti_truth.txt
"""

import itertools
import tempfile
from pathlib import Path

import cv2
import numpy as np
from _recorded import kitti_raw

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets.kitti import EGO_CROPS
from dense_depth.datasets.kitti_files import read_calib, read_rigid, read_rotation
from dense_depth.datasets.scene import CameraFrame, Scene, Sweep, Timing
from dense_depth.geometry import invert, se3, transform, unproject
from dense_depth.label import label_camera
from dense_depth.poses import by_odometry
from dense_depth.projection import VisibilityConfig, new_keys, render_label

DRIVE = "2011_09_26_drive_0001_sync"
FRAMES = range(5, 17)
JUDGED = (10, 11)  # their window of half a second each way is whole
HALF_S = 0.05  # of a revolution
WINDOW = AccumulationConfig(past_s=0.5, future_s=0.5)
WAYS = {
    "one sweep": (AccumulationConfig(past_s=0, future_s=0, dynamics="none"), VisibilityConfig(visibility="none")),
    "all sweeps, no test": (WINDOW, VisibilityConfig(visibility="none")),
    "default": (WINDOW, VisibilityConfig()),
}


def main() -> None:
    root = kitti_raw()
    depths = root.parent / "kitti_depth_completion" / "data_depth_annotated" / DRIVE / "proj_depth"
    print("                               labelled %   MAE m  RMSE m   behind %   in front %")
    with tempfile.TemporaryDirectory() as folder:
        for camera, as_they_are in itertools.product(("image_02", "image_03"), (True, False)):
            scene, report = by_odometry(read_scene(root / DRIVE[:10], depths, camera, Path(folder), as_they_are))
            sweeps = "sweeps as they are" if as_they_are else "deskewed sweeps"
            misfit_m = report.figures()["pose_misfit_m"]
            print(f"{camera}, {sweeps}: misfit over ten sweeps {misfit_m:.3f} m; sweeps: {verdicts(report)}")
            for name, (accumulation, visibility) in WAYS.items():
                measured = [measure(scene, camera, i, depths, accumulation, visibility) for i in JUDGED]
                errors = np.concatenate([errors for errors, *_ in measured])
                limits = np.concatenate([limits for _, limits, _ in measured])
                labelled = np.mean([labelled for *_, labelled in measured])
                print(
                    f"  {name:28s}{100 * labelled:10.1f} {np.abs(errors).mean():7.3f} "
                    f"{np.sqrt((errors**2).mean()):7.3f} {100 * (errors > limits).mean():10.2f} "
                    f"{100 * (errors < -limits).mean():12.2f}"
                )


def verdicts(report) -> str:
    found = [step.verdict for step in report.steps]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in sorted(set(found)))


def read_scene(calibration: Path, depths: Path, camera: str, folder: Path, compensated: bool) -> Scene:
    """Sweeps of what a camera sees, all at one pose."""
    path = calibration / "calib_cam_to_cam.txt"
    P = read_calib(path, f"P_rect_{camera[-2:]}", (3, 4))
    cam_SE3_velo = se3(np.eye(3), np.linalg.solve(P[:, :3], P[:, 3])) @ se3(
        read_rotation(path, "R_rect_00"), np.zeros(3)
    )
    cam_SE3_velo = cam_SE3_velo @ read_rigid(calibration / "calib_velo_to_cam.txt")
    timing = Timing("azimuth", -HALF_S, HALF_S, first_azimuth=np.pi, clockwise=True)
    sweeps, frames = [], []
    for i in FRAMES:
        depth_m = read_depth(depths / "velodyne_raw" / camera / f"{i:010d}.png")
        v, u = np.nonzero(depth_m)
        points = transform(invert(cam_SE3_velo), unproject(P[:, :3], np.column_stack([u, v]), depth_m[v, u]))
        file = folder / f"{camera}_{i}.bin"
        np.column_stack([points, np.zeros(len(points))]).astype(np.float32).tofile(file)
        token, time_us = f"{i:010d}", 1_000_000 + 100_000 * i
        sweeps.append(Sweep(token, file, 4, time_us, np.eye(4), EGO_CROPS, timing=timing, compensated=compensated))
        size = depth_m.shape[::-1]
        frames.append(CameraFrame(token, camera, file, time_us, *size, P[:, :3], invert(cam_SE3_velo), token))
    return Scene("kitti-raw", DRIVE, DRIVE, tuple(sweeps), tuple(frames), ())


def read_depth(path: Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.float64) / 256


def measure(scene, camera, i, depths, accumulation, visibility) -> tuple[np.ndarray, np.ndarray, float]:
    """Errors and their limits where there is a label and official depth, and the share of the image with a label."""
    frame = next(frame for frame in scene.frames if frame.sample_token == f"{i:010d}")
    height, width, K = label_camera(frame, 1.0)
    cloud = SceneCloud(scene, [frame], accumulation)
    depth_m = render_label(cloud, frame, K, visibility, new_keys(height, width))[0].depth_m.astype(np.float64)
    truth_m = read_depth(depths / "groundtruth" / camera / f"{i:010d}.png")
    both = (depth_m > 0) & (truth_m > 0)
    return (depth_m - truth_m)[both], np.maximum(1.0, 0.05 * truth_m[both]), float((depth_m > 0).mean())


if __name__ == "__main__":
    main()
