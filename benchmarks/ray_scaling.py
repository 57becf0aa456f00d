"""Ray against the serial rate: the same job in this process, and with as many workers as there are cores.

The job is a generated scene under many names, so that it lasts a minute or more. Start and end of Ray are counted; what
they take, which does not grow with the job, is measured apart, and the rate without it is told as well. The
serial rate is measured before and after the Ray run and averaged, since the speed of a shared machine drifts. Two plain
processes without Ray, each with half of the scenes, show what the machine itself gives up when all cores are busy.
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from catalog import Catalog
from dense_depth.accumulation import AccumulationConfig
from dense_depth.datasets import DatasetConfig, Scene, open_dataset
from dense_depth.projection import VisibilityConfig
from dense_depth.synthetic import SynthConfig, generate
from pipelines.accumulate import Recipe, make_labels
from pipelines.runner import Job, PlannedShard, run, start_ray

KEYFRAMES = 8
SCENES = 320
RECIPE = Recipe("accumulated", 1.0, AccumulationConfig(), VisibilityConfig(), 1)


def main() -> None:
    os.environ["RAY_ADDRESS"] = "local"
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        generate(root, SynthConfig(scenes=1, keyframes=KEYFRAMES))
        timed(root, folder, "warm-up", 2, workers=0)
        before = timed(root, folder, "serial, before", SCENES // 4, workers=0)
        with_ray = timed(root, folder, f"ray, {cores} workers", SCENES, workers=cores)
        after = timed(root, folder, "serial, after", SCENES // 4, workers=0)
        plain = plain_processes(root, folder, cores)
        all_cores = cores * (before + after) / 2
        n_labels, idle = SCENES * 6 * KEYFRAMES, empty_ray(cores)
        steady = n_labels / (n_labels / with_ray - idle)
        print(f"start and end of Ray   {idle:38.1f} s")
        print(f"efficiency against serial x {cores}: ray {100 * with_ray / all_cores:.1f} %, without its start and end "
              f"{100 * steady / all_cores:.1f} %, plain processes {100 * plain / all_cores:.1f} %")  # fmt: skip


def timed(root: Path, folder: str, name: str, n_scenes: int, workers: int) -> float:
    """Labels per second of a job from nothing to its commit."""
    scene = next(iter(open_dataset(DatasetConfig("nuscenes", root, "v1.0-synth")).scenes()))
    shards = [
        PlannedShard(f"copy-{i:03d}.{camera}", f"copy-{i:03d}", camera, KEYFRAMES, 0)
        for i in range(n_scenes)
        for camera in scene.cameras
    ]
    store = Path(folder) / name.replace(" ", "-").replace(",", "")
    job = Job("accumulate", str(store), asdict(RECIPE), {}, shards, partial(copy_of, scene), make_labels)
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    started = time.perf_counter()
    report = run(job, workers=workers)
    seconds = time.perf_counter() - started
    sys.stdout = stdout
    assert report.version == 1 and report.labels_made == n_scenes * len(scene.cameras) * KEYFRAMES
    assert len(Catalog(store).version(1).rows()) == len(shards)
    rate = report.labels_made / seconds
    print(f"{name:22s} {report.labels_made:6d} labels in {seconds:6.1f} s: {rate:6.1f} labels/s", flush=True)
    return rate


def empty_ray(workers: int) -> float:
    """Seconds that a Ray takes to start, to answer once from each worker, and to end."""
    started = time.perf_counter()
    ray = start_ray(workers)
    ray.get([ray.remote(num_cpus=1)(lambda: None).remote() for _ in range(workers)])
    ray.shutdown()
    return time.perf_counter() - started


def copy_of(scene: Scene, name: str) -> tuple[Scene, Recipe]:
    """The scene under another name."""
    return replace(scene, token=name, name=name), RECIPE


def plain_processes(root: Path, folder: str, cores: int) -> float:
    """Labels per second of independent serial jobs, side by side."""
    n_scenes = SCENES // 4
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import ray_scaling as r\n"
        f"r.timed(Path(sys.argv[2]), sys.argv[3], 'plain', {n_scenes}, 0)"
    )
    started = time.perf_counter()
    processes = []
    for core in range(cores):
        own = Path(folder) / f"process-{core}"
        own.mkdir()
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(root), str(own)]
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
    assert not any(process.wait() for process in processes)
    rate = cores * n_scenes * 6 * KEYFRAMES / (time.perf_counter() - started)
    print(f"{f'{cores} plain processes':22s} {rate:38.1f} labels/s", flush=True)
    return rate


if __name__ == "__main__":
    main()
