"""Compares depth sources: the same detector, steps, seeds and supervised weight, several seeds, and intervals.

    python training/compare.py --dataset nuscenes --dataroot D --version V --store S --ref T --out runs/compare

A difference counts only if its 95 % interval excludes zero.
"""

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from scipy import stats

from catalog import Catalog
from dense_depth import InputError
from dense_depth.datasets import open_dataset
from training.depth.targets import depth_targets
from training.detection.data import DepthKind, DetectionData
from training.evaluate import RANGES
from training.loop import check_same, run_command
from training.models.bevdepth import STRIDE
from training.train import FREE, detector_config, recorded, train
from training.train import Arguments as TrainArguments

Figures = dict[str, list[float]]  # by name, one value a seed
LOOK_AT = 16  # samples, to see how dense a source is


@dataclass(frozen=True)
class Arguments:
    """Trains a detector on each source with each seed, and prints one table.

    Attributes:
        train: As training/train.py; its depth source and seed are varied, and --out holds all runs, the table as JSON
            and the plot. A comparison that was stopped goes on.
        sources: Depth sources to compare; the others are compared with the first.
        seeds: How many seeds.
        jobs: Trainings at a time, each in a process of its own; with several GPUs, each on its own.
        demo: Say that this is a demonstration: too few steps to mean anything.
    """

    train: Annotated[TrainArguments, tyro.conf.arg(name="")]
    sources: tuple[DepthKind, ...] = ("lidar", "none", "accumulated", "completed")
    seeds: int = 3
    jobs: int = 1
    demo: bool = False


def main() -> int:
    """Entry point; returns the exit status."""
    return run_command("compare", lambda: compare(tyro.cli(Arguments)))


def compare(arguments: Arguments) -> dict[str, Any]:
    """Trains all, and returns what the table shows.

    Raises:
        InputError: As ``train``; there are too few seeds, sources or jobs; or a run in --out had other options.
    """
    if arguments.seeds < 1 or len(set(arguments.sources)) < 2 or arguments.jobs < 1:
        raise InputError(
            f"--seeds {arguments.seeds} --sources {' '.join(arguments.sources)} --jobs {arguments.jobs}: "
            "give at least 1, 2 and 1"
        )
    out, data = arguments.train.out, arguments.train.data
    if data.store is not None:  # a version that is committed meanwhile changes nothing
        data = replace(data, ref=str(Catalog(data.store).version(data.ref).number))
    per_sample = arguments.train.cells_per_sample or sparsest(arguments)
    print(f"every source supervises cells of a weight of at most {per_sample:.1f} in each sample", flush=True)
    runs = {
        (source, seed): replace(
            arguments.train,
            data=replace(data, depth_source=source),
            seed=seed,
            out=out / f"{source}-{seed}",
            cells_per_sample=per_sample,
        )
        for seed in range(arguments.seeds)
        for source in arguments.sources
    }
    scores = train_all(runs, arguments.jobs)
    figures: dict[str, Figures] = {source: {} for source in arguments.sources}
    for source, seed in runs:
        for name, value in figures_of(scores[source, seed]).items():
            figures[source].setdefault(name, []).append(value)
    summary: dict[str, Any] = {"demo": arguments.demo, "steps": arguments.train.steps, "seeds": arguments.seeds}
    summary |= {"figures": figures, "differences": differences(figures, arguments.sources[0])}
    (out / "comparison.json").write_text(json.dumps(summary, indent=1) + "\n")
    print_comparison(summary)
    plot(summary, out / "comparison.png")
    return summary


Run = tuple[DepthKind, int]  # and seed


def train_all(runs: dict[Run, TrainArguments], jobs: int) -> dict[Run, dict[str, Any]]:
    """The scores of all runs; those that are there already are not trained again."""
    scores = {run: done for run, options in runs.items() if (done := scores_of(options)) is not None}
    todo = {run: options for run, options in runs.items() if run not in scores}
    if len(scores):
        print(f"{len(scores)} of {len(runs)} runs are there already", flush=True)
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for i in range(jobs):
        numbers.put(i)
    with ProcessPoolExecutor(jobs, context, _prepare, (numbers,)) as pool:
        running: dict[Future[dict[str, Any]], Run] = {}
        try:
            while todo or running:
                while todo and len(running) < jobs:  # none waits in the pool, where it could not be called off
                    run = next(iter(todo))
                    running[pool.submit(train_logged, todo.pop(run))] = run
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    run = running.pop(future)
                    scores[run] = future.result()
                    print(f"{len(scores)} of {len(runs)}: {run[0]}, seed {run[1]}: {_brief(scores[run])}", flush=True)
        except BaseException:
            for process in multiprocessing.active_children():  # they would train on for hours, and have saved
                process.terminate()
            raise
    return scores


def _prepare(numbers: "multiprocessing.Queue[int]") -> None:
    """A training process takes its GPU, of those there are, in the way that ``loop.join`` is told of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it, by
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which also ends its own processes that read data
    os.environ["LOCAL_RANK"] = str(numbers.get() % max(torch.cuda.device_count(), 1))


def _brief(scores: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in figures_of(scores).items())


def train_logged(options: TrainArguments) -> dict[str, Any]:
    """Trains, with what it prints in ``log.txt`` beside the run."""
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "log.txt").open("a", buffering=1) as log, redirect_stdout(log):
        return train(options)


def scores_of(options: TrainArguments) -> dict[str, Any] | None:
    """The scores of a run that is complete; None of one that is not.

    Raises:
        InputError: It was trained with other options.
    """
    config, scores = options.out / "config.json", options.out / "scores.json"
    if not scores.exists():
        return None
    check_same(options.out, json.loads(config.read_text()), recorded(options), FREE)
    return dict(json.loads(scores.read_text()))


def sparsest(arguments: Arguments) -> float:
    """The mean weight of a sample's supervised cells, of the source that has least."""
    setup = detector_config(arguments.train)
    least, dataset = np.inf, open_dataset(arguments.train.data.of)
    for source in set(arguments.sources) - {"none"}:
        options = replace(arguments.train.data, depth_source=source, past=0, augmentation=setup.image)
        data = DetectionData(options, dataset.scenes(options.train), augment=False)
        weights = []
        for i in np.linspace(0, len(data) - 1, min(LOOK_AT, len(data))).astype(int).tolist():
            sample = data[i, 0]
            labels = sample.depth_m, STRIDE, setup.bins, setup.depth_targets, sample.confidence, sample.source
            weights.append(float(depth_targets(*labels).weight.sum()))
        least = min(least, float(np.mean(weights)))
    return least if np.isfinite(least) else 1.0


def figures_of(scores: dict[str, Any]) -> dict[str, float]:
    """The figures that are compared."""
    figures = {"mAP": scores["mean_ap"], "NDS": scores["nds"]}
    for reference, by_range in scores["depth"].items():
        figures |= {
            f"AbsRel to {reference}": by_range[RANGES[0]]["abs_rel"],
            f"RMSE m to {reference}": by_range[RANGES[0]]["rmse_m"],
        }
    return figures


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval by Student's t; infinite for one value."""
    n = len(values)
    if n < 2:
        return float(np.mean(values)), float("inf")
    return float(np.mean(values)), float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))


def differences(figures: dict[str, Figures], base: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Of each source from the base: mean and half width of the interval, over seeds, each with its own partner."""
    return {
        source: {
            name: interval([a - b for a, b in zip(values, figures[base][name], strict=True)])
            for name, values in own.items()
        }
        for source, own in figures.items()
        if source != base
    }


def print_comparison(summary: dict[str, Any]) -> None:
    """Prints the table: means with intervals, and a verdict where the interval of the difference excludes zero."""
    figures, base = summary["figures"], next(iter(summary["figures"]))
    n_intervals = (len(figures) - 1) * len(figures[base])
    demo = "DEMO, not enough steps to mean anything: " if summary["demo"] else ""
    table = Table(title=f"{demo}{summary['steps']} steps, {summary['seeds']} seeds; +- is a 95 % interval", box=None)
    table.add_column("source", no_wrap=True)
    for name in figures[base]:
        table.add_column(name, justify="right")
    for source, own in figures.items():
        cells = []
        for name, values in own.items():
            mean, half = interval(values)
            mark = ""
            if source != base:
                difference, width = summary["differences"][source][name]
                mark = " *" if abs(difference) > width else ""
            cells.append(f"{mean:.4f}" + (f" +- {half:.4f}" if np.isfinite(half) else "") + mark)
        table.add_row(source, *cells)
    Console(width=max(Console().width, 140)).print(table)
    print(f"* differs from {base}: the 95 % interval of the difference, seed by seed, excludes zero; of {n_intervals}")
    print(f"  such intervals {0.05 * n_intervals:.1f} would by chance alone")
    for source, own in summary["differences"].items():
        sure = [f"{name} {d:+.4f} +- {half:.4f}" for name, (d, half) in own.items() if abs(d) > half]
        print(f"{source} - {base}: " + (", ".join(sure) or "no difference shown"))


def plot(summary: dict[str, Any], path: Path) -> None:
    """Saves a bar of each source for each figure, with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figures = summary["figures"]
    names = list(next(iter(figures.values())))
    figure, axes = pyplot.subplots(1, len(names), figsize=(3 * len(names), 3.2), squeeze=False)
    for axis, name in zip(axes[0], names):
        means, halves = zip(*(interval(own[name]) for own in figures.values()))
        axis.bar(list(figures), means, yerr=np.nan_to_num(halves, posinf=0), capsize=4, color="#4878a8")
        for i, own in enumerate(figures.values()):
            axis.plot([i] * len(own[name]), own[name], "k.", markersize=4)
        axis.set_title(name)
        if max(means) > 5 * min(means) > 0:  # without depth labels errors are tens of times larger
            axis.set_yscale("log")
        axis.tick_params(axis="x", rotation=30)
    figure.suptitle(f"{'demo: ' if summary['demo'] else ''}{summary['steps']} steps, {summary['seeds']} seeds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
