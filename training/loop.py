"""What the training loops share: processes, schedule, averaged weights, batches, and a state to resume from."""

import os
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from dense_depth import InputError
from dense_depth.options import check_options

LEAST: dict[str, float] = {  # of the options that both trainers have
    **dict.fromkeys(("steps", "batch", "threads"), 1),
    **dict.fromkeys(("lr", "weight_decay", "warmup", "clip", "ema", "workers"), 0),
}


class Place(NamedTuple):
    """This process among those that train together."""

    device: torch.device
    rank: int
    n_ranks: int


def join(wanted: str | None, threads: int | None) -> Place:
    """Finds the device, and joins the other processes under torchrun.

    Args:
        wanted: "cpu" or "cuda"; a GPU if there is one, when not given.
        threads: Threads of torch; its own choice if not given.

    Raises:
        InputError: There is no GPU.
    """
    rank, n_ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if threads:
        torch.set_num_threads(threads)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here")
    device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if n_ranks > 1 and not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Place(device, rank, n_ranks)


def begin(options: Any, least: Mapping[str, float]) -> Place:
    """Checks a trainer's options and joins the other processes.

    Args:
        options: With those of ``LEAST``, ``device`` and ``ema`` as attributes.
        least: By name, the least that others may be.

    Raises:
        InputError: An option is out of range, the batch cannot be shared, or there is no GPU.
    """
    check_options(options, {**LEAST, **least}, {"ema": 1})
    place = join(options.device, options.threads)
    if options.batch % place.n_ranks:
        raise InputError(f"--batch {options.batch}: must be a multiple of the {place.n_ranks} processes")
    return place


def run_command(name: str, body: Callable[[], Any], *, resumes: bool = True) -> int:
    """Runs a command; an error becomes one line on stderr.

    Args:
        name: The command, in a word.
        body: Reads the command line, and does the work.
        resumes: Whether the same command goes on where it stopped.

    Returns:
        The exit status: 0, 1 for a failure outside the input, 2 for bad input, 130 for Ctrl-C.
    """
    then = "; the same command continues" if resumes else ""
    try:
        body()
    except InputError as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{name}: {error}{then}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted{then}", file=sys.stderr)
        return 130
    return 0


def one_line(error: InputError) -> str:
    """Its message; that of a process that reads data comes with a traceback before it."""
    return str(error).rpartition("dense_depth.InputError: ")[2].strip()


def mean_over_processes(counts: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Counts averaged over processes, at least 1 in total."""
    processes = 1
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(counts)
        processes = distributed.get_world_size()
    return counts.clamp(min=1) / processes


def warm_cosine(step: int, warmup: int, steps: int) -> float:
    """Share of the highest learning rate: a linear warm-up, then half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    along = (step - warmup) / max(steps - warmup, 1)
    return 0.5 * (1 + float(np.cos(np.pi * min(along, 1.0))))


def step_decay(step: int, warmup: int, steps: int) -> float:
    """Share of the highest learning rate: a linear warm-up, a tenth from 19 of 24 epochs on, a hundredth from 23."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 ** sum(step >= steps * epochs / 24 for epochs in (19, 23))


def running_average(most: float, average: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
    """Exponential average of weights, over the last steps alone in the beginning: the first weights are random."""
    keep = min(most, (1 + float(n_averaged)) / (10 + float(n_averaged)))
    return average.lerp(current, 1 - keep) if average.is_floating_point() else current


class Draws(Sampler[tuple[int, int]]):
    """An endless walk over all items, each epoch in a new order; starts anywhere, so that training can go on.

    Yields (item, draw). With several processes each takes every n-th draw.
    """

    def __init__(self, n_items: int, seed: int, first: int = 0, rank: int = 0, n_ranks: int = 1):
        self._n, self._seed, self._first, self._rank, self._n_ranks = n_items, seed, first, rank, n_ranks

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, np.empty(0, int)
        draw = self._first + self._rank
        while True:
            if draw // self._n != epoch:
                epoch = draw // self._n
                order = np.random.default_rng([self._seed, epoch]).permutation(self._n)
            yield int(order[draw % self._n]), draw
            draw += self._n_ranks


def batches(
    data: Dataset[Any],
    draws: Iterable[tuple[int, int]],
    size: int,
    workers: int,
    collate: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Batches in the order of the draws, whatever the number of workers."""
    loader: DataLoader[Any] = DataLoader(
        data,
        size,
        sampler=draws,
        num_workers=workers,
        collate_fn=collate,
        multiprocessing_context="forkserver" if workers else None,  # by spawn they can abort as they end
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=one_thread,
    )
    return iter(loader)


def one_thread(_: int) -> None:
    """For processes that read data: the cores are for training."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def save_state(path: Path, config: dict[str, Any], step: int, *parts: Any) -> None:
    """All that training needs to go on as if nothing had happened; whole or not at all."""
    state = {"config": config, "step": step, "parts": [part.state_dict() for part in parts]}
    torch.save(state, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def resume(path: Path, config: dict[str, Any], free: Collection[str], *parts: Any) -> int:
    """Loads what ``save_state`` wrote, of the same options but for the free ones; returns the step.

    Raises:
        InputError: The file is damaged, or an option was another.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: damaged: {str(error).splitlines()[0]}; delete it to start anew") from error
    check_same(path, state["config"], config, free)
    for part, saved in zip(parts, state["parts"]):
        part.load_state_dict(saved)
    return int(state["step"])


def check_same(path: Path, before: dict[str, Any], now: dict[str, Any], free: Collection[str]) -> None:
    """Refuses to go on with what other options made; the free ones may differ.

    Raises:
        InputError: Naming ``path`` and the first option that differs.
    """
    before, now = _flat(before), _flat(now)
    if changed := [name for name in now if name.split(".")[0] not in free and before.get(name) != now[name]]:
        raise InputError(f"{path}: was trained with another {changed[0]}; choose another --out")


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by their dotted names."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
