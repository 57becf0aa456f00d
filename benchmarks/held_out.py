"""Labels made without the key sweep, compared on the key sweep's pixels: recorded KITTI drive 0005.

What this can and cannot see: the held-out sweep looks from almost the same place as the others, so it sees ghosts and
pose errors but hardly any see-through points; benchmarks/visibility.py measures those against exact depth.
"""

from _recorded import DRIVE, kitti_raw

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.label import label_camera
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.quality.errors import DepthErrors

EVERY = 3  # frames; all 40 take three times as long and say the same


def main() -> None:
    root = kitti_raw()
    for name, poses in (
        ("GPS/IMU poses", "dataset"),
        ("ORB-SLAM3 poses", root.parent / "kitti_tracking" / "orbslam3_poses" / "0000.txt"),
    ):
        scene = next(iter(open_dataset(DatasetConfig("kitti-raw", root, poses=poses)).scenes([DRIVE])))
        frames = scene.frames_of("image_02")[::EVERY]
        height, width, _ = label_camera(frames[0], 1.0)
        keys = new_keys(height, width)
        alone = SceneCloud(scene, frames, AccumulationConfig(past_s=0, future_s=0, dynamics="none"))
        untested = VisibilityConfig(visibility="none")
        references = []
        for frame in frames:
            references.append(render_label(alone, frame, frame.K, untested, keys)[0].depth_m)
        print(f"{name}: {len(frames)} labels of {DRIVE} without their key sweep, on the key sweep's pixels")
        print("dynamics visibility   labelled %   compared %    MAE m   AbsRel   behind %   in front %")
        for dynamics in ("none", "drop", "boxes"):
            cloud = SceneCloud(scene, frames, AccumulationConfig(dynamics=dynamics))  # type: ignore[arg-type]
            for visibility in (untested, VisibilityConfig()):
                errors, labelled, compared = DepthErrors(), 0, 0
                for frame, reference in zip(frames, references):
                    label, _ = render_label(cloud, frame, frame.K, visibility, keys, without=[frame.key_sweep])
                    errors.add(label.depth_m, reference)
                    labelled += (label.depth_m > 0).mean() / len(frames)
                    compared += (reference > 0).sum()
                mean = errors.means()
                print(
                    f"{dynamics:8s} {visibility.visibility:10s} {100 * labelled:12.1f} "
                    f"{100 * mean['n'] / compared:12.1f} {mean['mae_m']:8.3f} {mean['abs_rel']:8.4f} "
                    f"{100 * mean['behind']:10.2f} {100 * mean['in_front']:12.2f}"
                )
        print()


if __name__ == "__main__":
    main()
