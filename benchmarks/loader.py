"""What reading a batch costs at the default size (r50-256x704): six cameras, two keyframes, labels of 1600x900.

CPU time of one process per keyframe by depth source, and what as many processes as this machine has cores read.

    python benchmarks/loader.py [--dataroot demo/data --store demo/store --ref completed]  # make demo makes them
"""

import os
import sys
import time
from pathlib import Path

import tyro

from dense_depth.datasets import DatasetConfig, open_dataset
from training.detection.data import DataConfig, DepthKind, DetectionData, collate
from training.loop import Draws, batches, one_thread
from training.models.sizes import SIZES

SOURCES: tuple[DepthKind, ...] = ("none", "lidar", "accumulated", "completed")
BATCH = 8


def main(
    dataroot: Path = Path("demo/data"), store: str = "demo/store", ref: str = "completed", keyframes: int = 40
) -> None:
    """Prints a line per source.

    Args:
        dataroot: A dataset in nuScenes format, with labels of all kinds.
        store: Its labels.
        ref: Their version.
        keyframes: How many are read for a figure.
    """
    if not dataroot.is_dir():
        sys.exit(f"{dataroot}: no such folder; make demo makes it, or name another by --dataroot and --store")
    one_thread(0)
    config, workers = SIZES["r50-256x704"], os.cpu_count() or 1
    of = DatasetConfig("nuscenes", dataroot, "v1.0-synth")
    scenes = [*open_dataset(of).scenes(("synth_train",))]
    for source in SOURCES:
        options = DataConfig(of, source, store, ref, past=config.model.past, augmentation=config.image)
        data = DetectionData(options, scenes, augment=True)
        data[0, 0]  # compiles, and opens what stays open
        started = time.process_time()
        for i in range(keyframes):
            data[i % len(data), i]
        each = (time.process_time() - started) / keyframes
        stream = batches(data, Draws(len(data), 0), BATCH, workers, collate)
        for _ in range(4 * workers):  # what is read ahead
            next(stream)
        started = time.perf_counter()
        for _ in range(max(2, keyframes // BATCH)):
            next(stream)
        rate = max(2, keyframes // BATCH) * BATCH / (time.perf_counter() - started)
        print(
            f"{source}: {1e3 * each:.0f} ms of one core a keyframe; {workers} workers read {rate:.1f} a second, so a "
            f"step of {BATCH} waits if it takes less than {BATCH / rate:.2f} s"
        )


if __name__ == "__main__":
    tyro.cli(main)
