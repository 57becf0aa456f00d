"""What tests share: a small generated dataset, recorded data where it is at hand, and hand-made scenes and labels.

Tests import the plain functions by ``from conftest import make_scene``.
"""

import dataclasses
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from catalog import Catalog, Version
from catalog.manifest import Row, shard_row
from dense_depth.accumulation import AccumulationConfig, cut_sweep
from dense_depth.datasets.scene import Box, CameraFrame, Crop, Scene, Sweep, Track
from dense_depth.geometry import invert, se3, transform
from dense_depth.instants import Passes
from dense_depth.label import Label
from dense_depth.shards import ShardContent, write_shard

os.environ["RAY_ADDRESS"] = "local"  # never join a cluster that happens to run on this machine

# Processes that tests start import helpers from here too.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])

DATA = Path(os.environ.get("DENSE_DEPTH_DATA", Path(__file__).parents[1].parent / "shared" / "data"))

SHAPE = (4, 24, 32)  # of hand-made labels
CONFIG = AccumulationConfig(ego_crop_m=(0.0, 0.0), min_range_m=0.0)
RECIPE = {"past_s": 1.0, "kind": "accumulated"}  # of shards that are written by hand
K = np.array([[100.0, 0, 49.5], [0, 100.0, 24.5], [0, 0, 1]])


@pytest.fixture(scope="session")
def generated(tmp_path_factory) -> Path:
    """A generated nuScenes-format dataset: two scenes of three keyframes, six 400x225 cameras, no LiDAR noise."""
    from dense_depth.synthetic import SynthConfig, generate

    root = tmp_path_factory.mktemp("generated") / "data"
    generate(root, SynthConfig(scenes=2, keyframes=3, image_width=400, image_height=225, lidar_noise_m=0.0))
    return root


@pytest.fixture(scope="session")
def recorded() -> Path:
    """The folder of recorded data; skips where it is not."""
    if not DATA.is_dir():
        pytest.skip(f"no recorded data in {DATA}; set DENSE_DEPTH_DATA")
    return DATA


def yaw_pose(yaw: float, x: float, y: float, z: float = 0.0) -> np.ndarray:
    return se3(Rotation.from_euler("z", yaw).as_matrix(), np.array([x, y, z]))


def moving_track(times_us, token="car", speed=10.0, yaw_rate=0.4) -> Track:
    boxes = [
        Box(t, yaw_pose(yaw_rate * t / 1e6, 5 + speed * t / 1e6, 8.0, 0.8), np.array([4.0, 2.0, 1.6])) for t in times_us
    ]
    return Track(token, "car", tuple(boxes))


def make_scene(tmp_path, n_sweeps=5, tracks=(), ego_speed=6.0, seed=0):
    """Static points and, per track, points fixed in its box, seen by a LiDAR that drives and turns."""
    rng = np.random.default_rng(seed)
    static_world = rng.uniform([-30, -30, -2], [30, 30, 3], (500, 3))
    static_world = static_world[~((np.abs(static_world[:, 1] - 8) < 3) & (static_world[:, 0] > 0))]
    in_box = rng.uniform(-0.45, 0.45, (60, 3)) * [4.0, 2.0, 1.6]
    sweeps = []
    for i in range(n_sweeps):
        t = 1_000_000 + 100_000 * i
        world_SE3_sensor = yaw_pose(0.05 * i, ego_speed * t / 1e6, 0.3 * i, 1.8)
        world = [static_world] + [transform(track.box_at(t, 1.0).world_SE3_box, in_box) for track in tracks]
        points = transform(invert(world_SE3_sensor), np.concatenate(world))
        path = tmp_path / f"{i}.bin"
        np.column_stack([points, np.zeros((len(points), 2))]).astype(np.float32).tofile(path)
        sweeps.append(Sweep(f"s{i}", path, 5, t, world_SE3_sensor, (Crop((-2, 2), (-1, 1)),)))
    camera_time = 1_230_000
    world_SE3_cam = yaw_pose(0.1, 7.4, 0.7) @ se3(
        np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]]), np.array([0.5, 0, 1.5])
    )
    frame = CameraFrame("k", "CAM", tmp_path / "k.jpg", camera_time, 100, 50, K, world_SE3_cam, "s2")
    scene = Scene("test", "scene", "scene", tuple(sweeps), (frame,), tuple(tracks))
    return scene, frame, static_world, in_box


def cut_points(points, config, ego_crops=(), boxes=(), world_SE3_sensor=None):
    """``cut_sweep`` of points whose times nobody knows."""
    n, pose = len(boxes), np.eye(4) if world_SE3_sensor is None else world_SE3_sensor
    sweep = Sweep("s", Path("s.bin"), points.shape[1], 0, pose, tuple(ego_crops))
    poses = np.array([box.world_SE3_box for box in boxes]).reshape(-1, 4, 4)
    sizes = np.array([box.size_lwh_m for box in boxes]).reshape(-1, 3)
    objects = Passes(np.arange(n), poses, sizes, np.tile([-np.inf, np.inf], (n, 1)), np.zeros(n))
    return cut_sweep(points, None, sweep, objects, config)


def write_poses(path: Path, source: Path, mistake: str) -> Path:
    """Writes KITTI's poses of a drive to another file, with a mistake in each."""
    rows = np.loadtxt(source).reshape(-1, 3, 4)
    rotations, places = rows[..., :3], rows[..., 3:]
    kind, _, amount = mistake.partition(" ")
    if kind == "inverted":
        rotations, places = rotations.swapaxes(1, 2), -rotations.swapaxes(1, 2) @ places
    elif kind == "stretched":
        places = places * float(amount)
    elif kind == "swapped":
        places = places[:, [2, 0, 1]]
    elif kind == "transposed":
        rotations = rotations.swapaxes(1, 2)
    elif kind == "late":
        later = np.minimum(np.arange(len(rows)) + int(amount), len(rows) - 1)
        rotations, places = rotations[later], places[later]
    else:
        assert mistake == "none"
    np.savetxt(path, np.concatenate([rotations, places], axis=2).reshape(-1, 12), fmt="%.17g")
    return path


def content(seed: int = 0, fraction: float = 0.2, confidence: bool = True, **changes) -> ShardContent:
    """Random labels: every pixel is as likely as any other, so a mixed-up frame differs."""
    rng = np.random.default_rng(seed)
    valid = rng.random(SHAPE) < fraction
    depth_m = np.where(valid, rng.integers(1, 65534, SHAPE), 0).astype(np.float32) / 256
    source, confidences, ages = (
        np.where(valid, rng.integers(low, high, SHAPE), 0).astype(np.uint8) for low, high in ((1, 5), (1, 256), (0, 32))
    )
    labels = tuple(
        Label.from_maps(
            *(depth_m[t], source[t], ages[t], confidences[t] if confidence else None),
            K=np.array([[1266.417203046554, 0, 816.2670197447984], [0, 1266.4, 491.5], [0, 0, 1]]),
            sample_token=f"sample{seed}-{t}",
            camera="CAM_FRONT",
            timestamp_us=1_533_151_603_512_404 + 500_000 * t,
        )
        for t in range(SHAPE[0])
    )
    made = ShardContent(
        kind="accumulated",
        dataset="synthetic",
        scene_token=f"scene{seed}",
        camera="CAM_FRONT",
        labels=labels,
        n_sweeps=(9, 8, 7, 6),
        attributes={"note": "test"},
    )
    return dataclasses.replace(made, **changes)


def assert_label(label, expected: ShardContent, t: int) -> None:
    """A label that was read is label ``t`` of what was written."""
    other = expected.labels[t]
    for name in ("depth_m", "source", "age", "confidence"):
        np.testing.assert_array_equal(getattr(label, name), getattr(other, name))
    np.testing.assert_array_equal(label.K, other.K)
    names = ("sample_token", "camera", "timestamp_us", "height", "width")
    assert [getattr(label, name) for name in names] == [getattr(other, name) for name in names]


def add_shard(store, seed: int, **changes) -> Row:
    """Writes a shard; returns its row."""
    labels = content(seed, **changes)
    files = write_shard(store, labels)
    quality = {"n_points": 12.0, "hidden_fraction": 0.25}
    return shard_row(labels, files, RECIPE, quality, shard_id=f"{labels.scene_token}.{labels.camera}")


def commit(cat: Catalog, *rows: Row, **given) -> Version:
    return cat.commit(rows, operation="test", recipe=RECIPE, inputs={"dataset": "synthetic"}, **given)


def paths(folder: Path) -> dict[str, bytes]:
    """All files and what they hold."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def make_old(folder: Path, hours: float) -> None:
    """Sets back the times of all files."""
    then = time.time() - hours * 3600
    for path in [folder, *folder.rglob("*")]:
        os.utime(path, (then, then))


@pytest.fixture
def cat(tmp_path) -> Catalog:
    """A store without versions."""
    return Catalog.create(tmp_path / "store")


@pytest.fixture
def root(cat) -> Path:
    """Its folder."""
    return Path(cat.store.url)


def let_workers_import(monkeypatch, test: str) -> None:
    """Processes that a job starts find what a test's file defines."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(test).parent), os.environ["PYTHONPATH"]]))


def changed(options, **changes):
    """Options of a job or of data with some of them changed, those of the dataset among them."""
    name = "of" if hasattr(options, "of") else "data"
    config = getattr(options, name)
    of_dataset = {option: changes.pop(option) for option in tuple(changes) if hasattr(config, option)}
    return dataclasses.replace(options, **{name: dataclasses.replace(config, **of_dataset)}, **changes)


def die_at(step: int) -> None:
    """Arranges that this process kills itself at its ``step``-th file operation; odd steps are half done."""
    import builtins

    counter = [0]

    def wrap(function):
        def wrapped(*args, **kwargs):
            counter[0] += 1
            if counter[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = function(*args, **kwargs)
            counter[0] += 1
            if counter[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return wrapped

    def torn_open(path, mode="r", *args, **kwargs):
        file = plain_open(path, mode, *args, **kwargs)
        counter[0] += "x" in mode
        if "x" in mode and counter[0] == step:
            os.write(file.fileno(), b"torn")
            os.kill(os.getpid(), signal.SIGKILL)
        return file

    plain_open, builtins.open = builtins.open, torn_open
    for name in ("fsync", "rename", "replace", "link", "mkdir", "utime"):
        setattr(os, name, wrap(getattr(os, name)))


def run_with_deaths(prepare, work, check, limit: int = 400) -> int:
    """Runs ``work`` in forked processes that are killed at the 1st, 2nd, ... file operation, until one survives."""
    for step in range(1, limit):
        prepare(step)
        child = os.fork()
        if child == 0:
            die_at(step)
            try:
                work(step)
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status in (0, signal.SIGKILL), f"step {step}: status {status}"
        check(step)
        if status == 0:
            return step
    raise AssertionError("no process survived")


def frame_truth(depth_m, **others):
    """Truth of ground and sky, unless it is said otherwise."""
    from dense_depth.datasets.truth import Surface
    from dense_depth.quality.truth import FrameTruth

    depth_m = np.asarray(depth_m, np.float32)
    arrays = {
        "instance": np.zeros(depth_m.shape, np.uint16),
        "moving": np.zeros(depth_m.shape, np.uint8),
        "surface": np.where(depth_m > 0, Surface.GROUND, Surface.SKY).astype(np.uint8),
    }
    return FrameTruth(depth_m, **{**arrays, "classes": (), **others})


def label_of(depth_m, source=None, confidence=None) -> Label:
    """A label of no camera in particular, of the key sweep unless it is said otherwise."""
    depth_m = np.asarray(depth_m, np.float32)
    source = (depth_m > 0).astype(np.uint8) if source is None else source
    names = {"sample_token": "k", "camera": "CAM", "timestamp_us": 0}
    return Label.from_maps(depth_m, source, None, confidence, K=K, **names)


def random_frame(rng, native, size, share=0.5):
    """Depths and sources of a label that is often wrong, and random truth with sky and instances."""
    truth_m = np.where(rng.random(native) < 0.2, 0, rng.uniform(1, 90, native)).astype(np.float32)
    truth_m[: native[0] // 3] = 0
    instance = np.where(truth_m > 0, rng.integers(0, 3, native), 0).astype(np.uint16)
    surface = np.where(truth_m == 0, 0, np.where(instance > 0, 5, rng.integers(1, 5, native))).astype(np.uint8)
    moving = (instance == 2).astype(np.uint8)
    truth = frame_truth(truth_m, instance=instance, moving=moving, surface=surface, classes=("car", "pedestrian"))
    near = truth_m[np.ix_(*(np.arange(n) * m // n for n, m in zip(size, native)))]
    depth_m = np.where(near > 0, near * rng.uniform(0.9, 1.1, size), rng.uniform(1, 90, size))
    depth_m = np.where(rng.random(size) < share, depth_m, 0).astype(np.float32)
    source = np.where(depth_m > 0, rng.integers(1, 4, size), 0).astype(np.uint8)
    return depth_m, source, truth
