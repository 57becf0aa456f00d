"""Classical depth completion: ours against the authors' code, in one process, alternating.

Six generated 256x704 views, 28 to 45 % of their pixels measured. ``--peer FOLDER`` names a checkout of
https://github.com/kujason/ip_basic; without it only ours is timed. Times are medians, for all six views.
"""

import importlib.util
import statistics
import time
from pathlib import Path

import cv2
import numpy as np
import tyro

from dense_depth.completion.classical import IpBasicConfig, ip_basic

HEIGHT, WIDTH = 256, 704
DENSITIES = np.linspace(0.28, 0.45, 6)
VARIANTS = {"fast, gaussian": (False, "gaussian"), "multiscale, bilateral": (True, "bilateral")}
REPEATS = 40


def main(peer: Path | None = None) -> None:
    """Prints milliseconds and, with a peer, the ratio and the largest difference of depths.

    Args:
        peer: Checkout of the authors' code.
    """
    fill = authors(peer) if peer else None
    views = [view(np.random.default_rng(seed), density) for seed, density in enumerate(DENSITIES)]
    if fill is None:
        print("ours only: --peer FOLDER names a checkout of github.com/kujason/ip_basic to compare with")
    print("variant                 threads    ours ms   authors ms   ours / authors   largest difference m")
    for name, (multiscale, blur) in VARIANTS.items():
        config = IpBasicConfig(multiscale, blur)  # type: ignore[arg-type]
        for threads in (1, 2):
            cv2.setNumThreads(threads)
            ours_ms, authors_ms, difference = [], [], 0.0
            for _ in range(REPEATS):
                started = time.perf_counter()
                ours = [ip_basic(depth_m, config) for depth_m in views]
                ours_ms.append(1e3 * (time.perf_counter() - started))
                if fill:
                    inputs = [depth_m.copy() for depth_m in views]  # theirs writes into it
                    started = time.perf_counter()
                    theirs = [fill(depth_m, multiscale, blur) for depth_m in inputs]
                    authors_ms.append(1e3 * (time.perf_counter() - started))
                    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs))
            line = f"{name:23s} {threads:7d} {statistics.median(ours_ms):10.2f}"
            if fill:
                ratio = statistics.median(a / b for a, b in zip(ours_ms, authors_ms))
                line += f" {statistics.median(authors_ms):12.2f} {ratio:16.2f} {difference:22.6f}"
            print(line)


def authors(folder: Path):
    """Their function of (depth, multiscale, blur)."""
    path = folder / "ip_basic" / "depth_map_utils.py"
    if not path.is_file():
        raise SystemExit(f"{path}: no such file; --peer wants a checkout of github.com/kujason/ip_basic")
    np.bool = bool  # type: ignore[misc]  # theirs was written for a numpy that had it
    spec = importlib.util.spec_from_file_location("depth_map_utils", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def fill(depth_m, multiscale, blur):
        if multiscale:
            return module.fill_in_multiscale(depth_m, extrapolate=True, blur_type=blur)[0]
        return module.fill_in_fast(depth_m, extrapolate=True, blur_type=blur)

    return fill


def view(rng: np.random.Generator, density: float) -> np.ndarray:
    """A ground plane up to the horizon and boxes that stand on it, sky above; a share of all pixels is measured."""
    rows = np.arange(HEIGHT)[:, None] * np.ones(WIDTH)
    horizon, focal, camera_height_m = 80, 557.0, 1.5
    depth_m = np.where(rows > horizon + 11, camera_height_m * focal / np.maximum(rows - horizon, 1), np.inf)
    for z in rng.uniform(5, 60, 40):
        left, right, top = rng.integers(0, WIDTH), int(focal * rng.uniform(0.3, 6) / z), rng.uniform(1, 6)
        bottom = horizon + camera_height_m * focal / z
        box = (rows <= bottom) & (rows > bottom - focal * top / z)
        box[:, :left] = box[:, left + right :] = False
        depth_m[box] = np.minimum(depth_m[box], z)
    surface = np.isfinite(depth_m)
    measured = surface & (rng.random(depth_m.shape) < density / surface.mean())
    return np.where(measured, depth_m, 0).astype(np.float32)


if __name__ == "__main__":
    tyro.cli(main)
