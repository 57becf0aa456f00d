"""Labels of moving objects with the instant of every point, and by timestamps alone, as they were before.

PandaSet, recorded: key-sweep points on objects faster than 3 m/s, in labels of the key sweep alone. How many have a
label within 2 pixels and 0.15 m of where they were recorded; and of where they belong when the camera looks, by the
measured time of each point and the annotated velocity.

The generated city: false labels in the paths of moving objects, 704x256, a second of sweeps each way; with exact boxes,
and with boxes that are off by 0.1 m and 2 degrees.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import visibility
from _recorded import recorded

from dense_depth.accumulation import AccumulationConfig, SceneCloud
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import UNTIMED, CameraFrame, Scene
from dense_depth.geometry import in_image, invert, pixel_of, project, transform
from dense_depth.label import Source
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.sweeps import read_sweep
from dense_depth.synthetic import Faults, SynthConfig, generate

FAST_MPS, NEAR_PX, NEAR_M = 3.0, 2, 0.15
BY_STAMPS = {"extrapolate_s": 0.5}
Targets = list[tuple[np.ndarray, np.ndarray]]  # per frame: (u, v) and depth of points


def untimed(scene: Scene) -> Scene:
    """The scene as if nobody knew when points were measured."""
    return replace(scene, sweeps=tuple(replace(sweep, timing=UNTIMED) for sweep in scene.sweeps))


def main() -> None:
    on_recorded_cars()
    on_the_city("exact boxes", Faults())
    on_the_city("boxes off by 0.1 m, 2 degrees", Faults(annotation_noise_m=0.1, annotation_noise_deg=2.0))


def on_recorded_cars() -> None:
    root = recorded("pandaset_as_nuscenes")
    (scene,) = open_dataset(DatasetConfig("nuscenes", root, "v1.0-mini")).scenes()
    recorded_at, belongs_at = (targets(scene, root, carried) for carried in (False, True))
    alone = AccumulationConfig(past_s=0, future_s=0)
    rows = {
        "as recorded": (scene, replace(alone, dynamics="none")),
        "carried from stamp to stamp": (untimed(scene), replace(alone, **BY_STAMPS)),
        "carried by instants": (scene, alone),
    }
    print(f"{len(np.concatenate([d for _, d in recorded_at]))} points on recorded cars; labels near, %")
    print(f"{'key-sweep label':30s} {'recorded place':>15s} {'where they belong':>18s}   by camera")
    for name, (given, config) in rows.items():
        a, b = near_labels(given, config, recorded_at), near_labels(given, config, belongs_at)
        cameras = ", ".join(f"{camera} {100 * near / n:.1f}" for camera, (near, n) in b.items() if n)
        print(f"{name:30s} {100 * total(a):15.1f} {100 * total(b):18.1f}   {cameras}")


def total(counts: dict[str, np.ndarray]) -> float:
    near, n = np.sum(list(counts.values()), axis=0)
    return near / n


def targets(scene: Scene, root: Path, carried: bool) -> Targets:
    """Where points on fast objects were recorded in each frame, or belong when the camera looks."""
    sweeps, keyframes = {s.token: s for s in scene.sweeps}, {k.sample_token: k for k in scene.keyframes}
    found = []
    for frame in scene.frames:
        sweep = sweeps[frame.key_sweep]
        world = transform(sweep.world_SE3_sensor, read_sweep(sweep)[:, :3].astype(np.float64))
        hit_s = 1e-5 * np.load(root / "point_times" / sweep.path.name.replace(".pcd.bin", ".npy"))
        late_s = 1e-6 * (frame.timestamp_us - sweep.timestamp_us) - hit_s
        points = [np.empty((0, 3))]
        for _, box in scene.boxes_of(keyframes[frame.sample_token]):
            if np.linalg.norm(box.velocity_mps) > FAST_MPS:
                on = (np.abs(transform(invert(box.world_SE3_box), world)) <= box.size_lwh_m / 2).all(1)
                points.append(world[on] + carried * box.velocity_mps * late_s[on, None])
        uv, depth_m = project(frame.K, transform(invert(frame.world_SE3_cam), np.concatenate(points)))
        inside = in_image(uv, depth_m, frame.width, frame.height)
        found.append((uv[inside], depth_m[inside]))
    return found


def near_labels(scene: Scene, config: AccumulationConfig, places: Targets) -> dict[str, np.ndarray]:
    """Per camera: how many points have a label of the key sweep near, and how many there are."""
    cloud = SceneCloud(scene, scene.frames, config)
    counts = {camera: np.zeros(2, int) for camera in scene.cameras}
    for frame, (uv, depth_m) in zip(scene.frames, places):
        labelled = key_depth(cloud, frame)
        u, v = pixel_of(uv).T
        near = np.zeros(len(u), bool)
        for dv, du in np.ndindex(2 * NEAR_PX + 1, 2 * NEAR_PX + 1):
            du, dv = du - NEAR_PX, dv - NEAR_PX
            if du * du + dv * dv <= NEAR_PX**2:
                there = labelled[(v + dv).clip(0, frame.height - 1), (u + du).clip(0, frame.width - 1)]
                near |= (there > 0) & (np.abs(there - depth_m) < NEAR_M)
        counts[frame.camera] += near.sum(), len(near)
    return counts


def key_depth(cloud: SceneCloud, frame: CameraFrame) -> np.ndarray:
    untested = VisibilityConfig(visibility="none")
    label, _ = render_label(cloud, frame, frame.K, untested, new_keys(frame.height, frame.width))
    return np.where(label.source == Source.KEY_SWEEP, label.depth_m, 0)


def on_the_city(title: str, faults: Faults) -> None:
    configs = {
        "left where they are": (AccumulationConfig(dynamics="none"), False),
        "carried from stamp to stamp": (AccumulationConfig(**BY_STAMPS), False),
        "carried by instants": (AccumulationConfig(), True),
        "the same, refined": (AccumulationConfig(refine=True), True),
        "dropped": (AccumulationConfig(dynamics="drop"), True),
    }
    labelled = visibility.labelled
    print(f"\nthe city, {title}\n{'moving objects':30s} in their paths per million   behind %  in front %   MAE m")
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "data", SynthConfig(scenes=4, keyframes=12, faults=faults))
        for name, (config, timed) in configs.items():
            visibility.labelled = (
                labelled if timed else lambda root: ((untimed(s), *rest) for s, *rest in labelled(root))
            )
            candidate = visibility.Candidate(name, config, VisibilityConfig())
            visibility.measure(Path(folder) / "data", [candidate], 0.44, 256)
            mean = candidate.errors.means()
            print(
                f"{name:30s} {1e6 * candidate.trails / mean['n']:26.0f} {100 * mean['behind']:10.3f} "
                f"{100 * mean['in_front']:11.3f} {mean['mae_m']:7.4f}",
                flush=True,
            )
    visibility.labelled = labelled


if __name__ == "__main__":
    main()
