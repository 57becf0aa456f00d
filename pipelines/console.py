"""What a job shows and how it ends: lines, progress, tables, one summary, one exit status."""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from catalog import CommitConflict
from catalog.figures import BY_NAME, COLUMNS
from dense_depth import InputError
from dense_depth.options import check_options

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What every job can be told.

    Attributes:
        tag: Name for the version.
        workers: Worker processes; all cores of the machine or cluster if not given, 0 to work in this process
            without Ray. RAY_ADDRESS names the cluster to use; without it the job starts a Ray of its own.
        dry_run: Say what would be done, and stop.
        summary: Write the final table as JSON to this file.
    """

    tag: str | None = None
    workers: int | None = None
    dry_run: bool = False
    summary: Path | None = None

    def __post_init__(self) -> None:
        check_options(self, {"workers": 0})


@dataclass
class Report:
    """What a run did; written by ``--summary``."""

    operation: str
    store: str
    version: int | None = None
    manifest: str | None = None
    tag: str | None = None
    shards_planned: int = 0
    shards_done_before: int = 0
    shards_made: int = 0
    labels_made: int = 0
    bytes_made: int = 0
    seconds: float = 0.0
    estimated_bytes: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)


def run_command(name: str, arguments: Callable[..., T], body: Callable[[T], int], *, resumes: bool = True) -> int:
    """Reads the command line and runs a job; an error becomes one line on stderr.

    Args:
        name: The command, in a word.
        arguments: Dataclass of the options.
        body: The job; returns its exit status.
        resumes: Whether the same command goes on where an interrupted one stopped.

    Returns:
        The exit status: that of the body, 1 for a failure outside the input, 2 for bad input, 130 for Ctrl-C.
    """
    try:
        return body(tyro.cli(arguments, config=(tyro.conf.FlagCreatePairsOff,)))
    except InputError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (OSError, CommitConflict) as error:  # a full disk, a store that others keep busy
        then = ", the same command continues" if resumes else ""
        print(f"{name}: {error}; nothing was committed{then}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        then = "the same command continues where this one stopped" if resumes else "nothing was committed"
        print(f"{name}: interrupted; {then}", file=sys.stderr)
        return 130


def check_places(summary: Path | None, pictures: Path | None = None) -> None:
    """Requires, before the work and not after it, that what is to be written can be.

    Args:
        summary: File of --summary.
        pictures: Folder of --pictures.

    Raises:
        InputError: A place cannot be written.
    """
    try:
        option, path = "--summary", summary
        if path:
            path.open("a").close()
        option, path = "--pictures", pictures
        if path:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written: {error.strerror}") from error


def write_summary(summary: Mapping[str, Any], path: Path | None) -> None:
    """Writes what a job did as JSON, if there is a file to write."""
    if path:
        path.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")


def say(line: str) -> None:
    """A line that shows at once, in a job log too."""
    print(line, flush=True)


@contextmanager
def progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal, plain lines with an estimate of the time left elsewhere."""
    if sys.stdout.isatty():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        ) as bar:
            task = bar.add_task("shards", total=total)
            yield lambda name: bar.update(task, advance=1, description=name)
        return
    started, done = time.monotonic(), 0

    def advance(name: str) -> None:
        nonlocal done
        done += 1
        left = (time.monotonic() - started) / done * (total - done)
        say(f"[{done}/{total}] {name}, {left:.0f} s left")

    yield advance


def new_table(title: str, *columns: str) -> "Table":
    """A plain table: names on the left, figures on the right."""
    from rich.table import Table

    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i == 0, justify="right" if i else "left")
    return table


def print_table(table: "Table") -> None:
    """A job log has no width of its own, and a cut column says nothing: better a line that wraps."""
    from rich.console import Console

    Console(width=max(Console().width, 80)).print(table)


def print_report(report: Report) -> None:
    """Prints the final table: a row per camera, over all scenes; what failed, and the version."""
    shares = {"valid_fraction": BY_NAME["labelled"]}
    shares |= {name: figure for name, figure in COLUMNS.items() if name.endswith("_fraction")}
    shares = {name: f for name, f in shares.items() if any(s.get(name) is not None for s in report.shards)}
    headers = (figure.header for figure in shares.values())
    table = new_table(f"{report.operation}: {report.store}", "camera", "scenes", "labels", "MB", *headers)
    for camera in sorted({shard["camera"] for shard in report.shards}):
        shards = [shard for shard in report.shards if shard["camera"] == camera]
        labels = sum(shard["n_frames"] for shard in shards)
        size = f"{sum(shard['bytes'] for shard in shards) / 1e6:.2f}"
        means = (figure.text(_mean(shards, name)) for name, figure in shares.items())
        table.add_row(camera, str(len(shards)), str(labels), size, *means)
    print_table(table)
    for name, error in report.failed.items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    rate = report.labels_made / report.seconds if report.seconds else 0.0
    print(
        f"{report.shards_made} shards made ({report.labels_made} labels, {report.bytes_made / 1e6:.2f} MB), "
        f"{report.shards_done_before} done before, {len(report.failed)} failed, "
        f"in {report.seconds:.1f} s ({rate:.1f} labels/s)"
    )
    if report.version is None:
        print("no version committed")
    else:
        tag = f", tag {report.tag}" if report.tag else ""
        print(f"version {report.version}{tag}, manifest {report.manifest}")


def _mean(shards: list[dict[str, Any]], name: str) -> float | None:
    """Mean of a share over labels; None where it is not known of all."""
    shares = [shard.get(name) for shard in shards]
    if None in shares:
        return None
    labels = [shard["n_frames"] for shard in shards]
    return sum(share * n for share, n in zip(shares, labels)) / sum(labels)
