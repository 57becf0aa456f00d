"""Look at, name, check and clean the versions of a label store: ``python -m catalog --store S log``."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dense_depth import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from catalog import Catalog
    from catalog.manifest import Row


@dataclass(frozen=True)
class Log:
    """List the versions, newest first."""


@dataclass(frozen=True)
class Show:
    """Show one version: its record and its shards."""

    ref: tyro.conf.Positional[str] = "latest"
    """Number, tag or "latest"."""


@dataclass(frozen=True)
class Diff:
    """List the shards that differ between two versions."""

    a: tyro.conf.Positional[str]
    """The old version."""
    b: tyro.conf.Positional[str]
    """The new version."""


@dataclass(frozen=True)
class Tag:
    """Name a version; an existing tag moves."""

    name: tyro.conf.Positional[str]
    """The tag."""
    ref: tyro.conf.Positional[str]
    """The version to name."""


@dataclass(frozen=True)
class Verify:
    """Re-hash every file of a version and list what is wrong (then exit status 1)."""

    ref: tyro.conf.Positional[str] = "latest"
    """Number, tag or "latest"."""


@dataclass(frozen=True)
class Gc:
    """Delete shards that no version and no running job needs, and what stopped jobs left."""

    dry_run: bool = False
    """Only list what would go."""
    older_than_h: float = 24.0
    """Keep what was written in the last so many hours; more than any job takes."""


@dataclass(frozen=True)
class Arguments:
    """Versions of a label store."""

    store: str
    """Folder or bucket URL."""
    command: Annotated[Log | Show | Diff | Tag | Verify | Gc, tyro.conf.arg(name="")]


def main() -> int:
    """Runs one command; returns the exit status."""
    arguments = tyro.cli(Arguments, prog="python -m catalog", config=(tyro.conf.CascadeSubcommandArgs,))
    try:
        from catalog import Catalog

        return _run(Catalog(arguments.store), arguments.command)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(catalog: "Catalog", command: Any) -> int:
    match command:
        case Log():
            tags = catalog.tags()
            table = _table("version", "time (UTC)", "operation", "tags", "manifest", "recipe", "code")
            for v in reversed(catalog.versions()):
                names = ", ".join(name for name, number in tags.items() if number == v.number)
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(v.timestamp_ms / 1000))
                hashes = v.manifest[:12], v.recipe_hash[:12]
                table.add_row(str(v.number), when, v.operation, names, *hashes, v.code_version)
            _print(table)
        case Show(ref):
            _show(catalog, ref)
        case Diff(a, b):
            from catalog.manifest import key

            diff = catalog.diff(a, b)
            table = _table("change", "kind", "dataset", "scene", "camera", "frames", "valid %", "MB")
            pairs = [("added", row, row) for row in diff.added] + [("removed", row, row) for row in diff.removed]
            for change, old, new in pairs + [("changed", old, new) for old, new in diff.changed]:
                table.add_row(change, *key(new), *(_arrow(x, y) for x, y in zip(_figures(old), _figures(new))))
            _print(table)
            print(f"{len(diff.added)} shards added, {len(diff.removed)} removed, {len(diff.changed)} changed")
            _print_changes(diff.changed)
        case Tag(name, ref):
            number = catalog.version(ref).number
            catalog.tag(name, number)
            print(f"tag {name} names version {number}")
        case Verify(ref):
            problems = catalog.verify(ref)
            print(*problems, sep="\n", end="\n" if problems else "")
            print(f"{ref}: {len(problems)} problems")
            return 1 if problems else 0
        case Gc(dry_run, older_than_h):
            paths = catalog.gc(older_than_s=older_than_h * 3600, dry_run=dry_run)
            print(*paths, sep="\n", end="\n" if paths else "")
            print(f"{len(paths)} {'would be deleted' if dry_run else 'deleted'} (older than {older_than_h:g} h)")
    return 0


def _show(catalog: "Catalog", ref: str) -> None:
    from catalog.manifest import canonical_json, key

    version = catalog.version(ref)
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
