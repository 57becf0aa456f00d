"""What a job shows: lines, progress, tables."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


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
