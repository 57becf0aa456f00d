"""Look at, name, check and clean the versions of a label store: ``python -m catalog --store S log``."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dense_depth import InputError
from dense_depth.options import check_options

if TYPE_CHECKING:
    from rich.table import Table

    from catalog import Catalog
    from catalog.manifest import Row


@dataclass(frozen=True)
class Log:
    """List the versions, newest first."""

    def run(self, catalog: "Catalog") -> int:
        """Prints a table."""
        tags = catalog.tags()
        versions, n_all = catalog.versions(), len(catalog.versions(expired=True))
        table = _table("version", "time (UTC)", "operation", "tags", "manifest", "recipe", "code")
        for v in reversed(versions):
            names = ", ".join(name for name, number in tags.items() if number == v.number)
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(v.timestamp_ms / 1000))
            table.add_row(str(v.number), when, v.operation, names, v.manifest[:12], v.recipe_hash[:12], v.code_version)
        _print(table)
        if len(versions) < n_all:
            print(f"{n_all - len(versions)} more have expired")
        return 0


@dataclass(frozen=True)
class Show:
    """Show one version: its record and its shards."""

    ref: tyro.conf.Positional[str] = "latest"
    """Number, tag or "latest"."""

    def run(self, catalog: "Catalog") -> int:
        """Prints the record and a table."""
        from catalog.manifest import canonical_json, key

        version = catalog.version(self.ref)
        rows = version.rows()
        for name in ("number", "parent", "operation", "manifest", "recipe_hash", "code_version"):
            print(f"{name:13}{getattr(version, name)}")
        for name in ("recipe", "inputs", "summary"):
            print(f"{name:13}{canonical_json(getattr(version, name)).strip()}")
        table = _table("kind", "dataset", "scene", "camera", "frames", "valid %", "MB", "depth m", "sweeps", "path")
        for row in rows:
            depth = "-" if row["depth_min_m"] is None else f"{row['depth_min_m']:.1f}-{row['depth_max_m']:.1f}"
            table.add_row(*key(row), *_figures(row), depth, f">= {row['n_sweeps_min']}", row["path"])
        _print(table)
        megabytes = sum(row["bytes"] for row in rows) / 1e6
        print(f"{len(rows)} shards, {sum(row['n_frames'] for row in rows)} labels, {megabytes:.1f} MB")
        _print_means(rows)
        return 0


@dataclass(frozen=True)
class Diff:
    """List the shards that differ between two versions; "measured" ones hold the same labels with other figures."""

    a: tyro.conf.Positional[str]
    """The old version."""
    b: tyro.conf.Positional[str]
    """The new version."""

    def run(self, catalog: "Catalog") -> int:
        """Prints a table."""
        from catalog.manifest import key

        diff = catalog.diff(self.a, self.b)
        table = _table("change", "kind", "dataset", "scene", "camera", "frames", "valid %", "MB")
        pairs = [("added", row, row) for row in diff.added] + [("removed", row, row) for row in diff.removed]
        pairs += [("changed", *pair) for pair in diff.changed] + [("measured", *pair) for pair in diff.measured]
        for change, old, new in pairs:
            table.add_row(change, *key(new), *(_arrow(x, y) for x, y in zip(_figures(old), _figures(new))))
        _print(table)
        counts = f"{len(diff.removed)} removed, {len(diff.changed)} changed, {len(diff.measured)} measured"
        print(f"{len(diff.added)} shards added, {counts}")
        _print_changes([*diff.changed, *diff.measured])
        return 0


@dataclass(frozen=True)
class Tag:
    """Name a version; an existing tag moves."""

    name: tyro.conf.Positional[str]
    """The tag."""
    ref: tyro.conf.Positional[str]
    """The version to name."""

    def run(self, catalog: "Catalog") -> int:
        """Sets the tag."""
        number = catalog.version(self.ref).number
        catalog.tag(self.name, number)
        print(f"tag {self.name} names version {number}")
        return 0


@dataclass(frozen=True)
class Verify:
    """Re-hash every file of a version and list what is wrong (then exit status 1)."""

    ref: tyro.conf.Positional[str] = "latest"
    """Number, tag or "latest"."""

    def run(self, catalog: "Catalog") -> int:
        """Prints the problems."""
        problems = catalog.verify(self.ref)
        print(*problems, sep="\n", end="\n" if problems else "")
        print(f"{self.ref}: {len(problems)} problems")
        return 1 if problems else 0


@dataclass(frozen=True)
class Expire:
    """Let old versions go, all but those with a tag and the newest; "gc" then deletes what only they needed."""

    keep_last: int = 10
    """Keep so many of the newest versions."""
    older_than_days: float = 0.0
    """Keep what was committed in the last so many days."""
    dry_run: bool = False
    """Only list what would go."""

    def __post_init__(self) -> None:
        check_options(self, {"keep_last": 1, "older_than_days": 0})

    def run(self, catalog: "Catalog") -> int:
        """Marks the versions, and lists them."""
        age_s = self.older_than_days * 24 * 3600
        numbers = catalog.expire(keep_last=self.keep_last, older_than_s=age_s, dry_run=self.dry_run)
        print(*(f"version {number}" for number in numbers), sep="\n", end="\n" if numbers else "")
        print(f"{len(numbers)} {'would expire' if self.dry_run else 'expired; gc deletes what only they needed'}")
        return 0


@dataclass(frozen=True)
class Gc:
    """Delete shards that no version and no running job needs, and what stopped jobs left.

    Receipts of a stopped job go at once, its shards with the next call.
    """

    dry_run: bool = False
    """Only list what would go."""
    older_than_h: float = 24.0
    """Keep what was written in the last so many hours; more than any job takes from one shard to the next."""

    def __post_init__(self) -> None:
        check_options(self, {"older_than_h": 0})

    def run(self, catalog: "Catalog") -> int:
        """Deletes, and lists what was deleted."""
        paths = catalog.gc(older_than_s=self.older_than_h * 3600, dry_run=self.dry_run)
        print(*paths, sep="\n", end="\n" if paths else "")
        print(f"{len(paths)} {'would be deleted' if self.dry_run else 'deleted'} (older than {self.older_than_h:g} h)")
        return 0


@dataclass(frozen=True)
class Arguments:
    """Versions of a label store."""

    store: str
    """Folder or bucket URL."""
    command: Annotated[Log | Show | Diff | Tag | Verify | Expire | Gc, tyro.conf.arg(name="")]


def main() -> int:
    """Runs one command; returns the exit status."""
    try:
        arguments = tyro.cli(Arguments, prog="python -m catalog", config=(tyro.conf.CascadeSubcommandArgs,))
        from catalog import Catalog

        return arguments.command.run(Catalog(arguments.store))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _figures(row: dict[str, Any]) -> tuple[str, str, str]:
    return str(row["n_frames"]), f"{100 * row['valid_fraction']:.1f}", f"{row['bytes'] / 1e6:.2f}"


def _arrow(old: str, new: str) -> str:
    return new if old == new else f"{old} -> {new}"


def _print_means(rows: "Sequence[Row]") -> None:
    """The figures of each kind: means over its shards."""
    from catalog.figures import COLUMNS, means

    kinds = sorted({f"{row['kind']} ({row['dataset']})" for row in rows})
    found = [means(row["quality"] for row in rows if f"{row['kind']} ({row['dataset']})" == kind) for kind in kinds]
    table = _table("mean over shards", "unit", *kinds)
    for name, figure in COLUMNS.items():
        if any(name in own for own in found):
            table.add_row(name, figure.unit, *(figure.text(own.get(name)) for own in found))
    _print(table)


def _print_changes(pairs: "Sequence[tuple[Row, Row]]") -> None:
    """The figures that differ between the rows of pairs: means over the shards where both are known."""
    from catalog.figures import changes

    found = changes([(old["quality"], new["quality"]) for old, new in pairs])
    if found:
        table = _table("mean over shards", "unit", "old", "new", "shards better", "worse")
        for figure_row in found:
            table.add_row(*figure_row)
        _print(table)


def _table(*columns: str) -> "Table":
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column in ("frames", "valid %", "MB") else "left")
    return table


def _print(table: "Table") -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 200).print(table)


if __name__ == "__main__":
    sys.exit(main())
