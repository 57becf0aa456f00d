"""How fast the completion network is on a CPU, as a share of what the machine's convolutions reach.

One view of 704x256 at a time, as a worker of the job does it. The yardstick is a 3x3 convolution of 64 channels at
176x64 (torch, channels last), run in turn with the network. FLOPs are counted by torch, two per multiply-add,
convolutions only. ip-basic is timed beside it. "workers" are as the job runs them: one thread each, side by side.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin disturb whatever else runs

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dense_depth.completion.classical import ip_basic
from dense_depth.completion.network import SIZES, CompletionNetwork
from dense_depth.completion.predict import for_inference

HEIGHT, WIDTH, VIEWS, ROUNDS, CALLS = 256, 704, 6, 20, 3


def main() -> None:
    """Prints a line per number of workers."""
    rng = np.random.default_rng(0)
    depth_m = np.where(rng.uniform(size=(HEIGHT, WIDTH)) < 0.35, rng.uniform(2, 60, (HEIGHT, WIDTH)), 0)
    maps = [torch.from_numpy(x.astype(np.float32))[None] for x in (depth_m, depth_m > 0, 5 * (depth_m > 0))]
    inputs = [torch.rand(1, 3, HEIGHT, WIDTH), *maps]
    network = for_inference(CompletionNetwork(SIZES["small"]), "cpu")
    convolution = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    features = torch.rand(1, 64, 64, 176).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            network(*inputs)
        work = counter.get_total_flops()
        print(f"small network: {VIEWS * work / 1e9:.1f} GFLOP for {VIEWS} views of {WIDTH}x{HEIGHT}")
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        functions = (
            lambda: network(*inputs),
            lambda: convolution(features),
            lambda: ip_basic(depth_m.astype(np.float32)),
        )
        for workers in sorted({1, min(2, os.cpu_count() or 1)}):
            of_network, of_convolution, of_classical = medians(functions, workers)
            rate = work / of_network
            machine = 2 * 64 * 64 * 9 * 64 * 176 / of_convolution
            print(
                f"{workers} workers: {VIEWS} views {1e3 * VIEWS * of_network:.0f} ms, {rate / 1e9:.0f} GFLOPS, "
                f"{100 * rate / machine:.0f} % of the convolution's {machine / 1e9:.0f}; "
                f"ip-basic {1e3 * VIEWS * of_classical:.1f} ms"
            )


def medians(functions: Sequence[Callable[[], object]], workers: int) -> list[float]:
    """Median seconds of each, run in turn; with several workers, of all of them at once, per call."""
    seconds = np.empty((ROUNDS, len(functions)))
    with ThreadPoolExecutor(workers, initializer=torch.inference_mode().__enter__) as pool:
        for i in range(-3, ROUNDS):  # the first rounds warm up
            for j, function in enumerate(functions):
                started = time.perf_counter()
                list(pool.map(lambda _, call=function: [call() for _ in range(CALLS)], range(workers)))
                if i >= 0:
                    seconds[i, j] = (time.perf_counter() - started) / (CALLS * workers)
    return np.median(seconds, axis=0).tolist()


if __name__ == "__main__":
    main()
