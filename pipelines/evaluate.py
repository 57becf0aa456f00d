"""Measures the quality of a version's labels, keeps the figures in a new version, and names it if they are good enough.

Run as ``python pipelines/evaluate.py``, under ``ray job submit --working-dir .``, or by ``ray submit cluster.yaml``;
the last copies this one file, so it imports installed packages only.
"""

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from catalog import Catalog, CommitConflict, StaleRows, Version
from catalog.catalog import check_tag
from catalog.manifest import Row, key
from dense_depth import InputError
from dense_depth.accumulation import AccumulationConfig
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.projection import VisibilityConfig
from dense_depth.quality.errors import DepthErrors, LabelErrors, known, summarise
from dense_depth.store import absolute
from pipelines import accumulate
from pipelines.console import progress, say
from pipelines.figures import print_summary
from pipelines.measure import draw_calibration, draw_pictures, plan_held_out, plan_truth
from pipelines.runner import Outcome, PlannedShard, attempt, outcomes

MEANS = ("mae_m", "rmse_m", "abs_rel", "delta_125", "behind", "in_front")
REFUSED = 3  # exit status


@dataclass(frozen=True)
class Arguments:
    """Measures the quality of a version's labels, and keeps the figures in a new version.

    With --truth labels are compared with the exact depth of a generated dataset, and the confidence of completed ones
    with their errors. Without it each label of an accumulation is made again without its key sweep and compared on that
    sweep's pixels.

    Attributes:
        store: Folder or URL of the label store.
        ref: The version: number, tag or "latest".
        data: The dataset that the labels were made from; of its cameras, those with labels.
        kind: Kind of the labels.
        truth: Compare with exact depth.
        scenes: Names of scenes or splits; all scenes with labels if none is given.
        crop_height: Look at so many rows at the bottom of each label, as BEVDepth crops 704x396 to 256 rows.
        max_see_through: Largest share of labels behind the surface.
        max_ghosts: Largest share of labels in front of it.
        min_coverage: Smallest share of the pixels that show a surface with a label.
        tag: Name for the version that holds the figures, if these limits are kept.
        workers: Worker processes; all cores of the machine or cluster if not given, 0 to work in this process
            without Ray. RAY_ADDRESS names the cluster to use; without it the job starts a Ray of its own.
        summary: Write the figures as JSON to this file.
        pictures: Draw the frames with most false labels, an ordinary one of each camera, and of completed labels the
            calibration of their confidence, into this folder.
        worst: How many frames with most false labels to draw.
    """

    store: str
    ref: str
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")]
    kind: str = "accumulated"
    truth: bool = False
    scenes: tuple[str, ...] = ()
    crop_height: int | None = None
    max_see_through: float | None = None
    max_ghosts: float | None = None
    min_coverage: float | None = None
    tag: str | None = None
    workers: int | None = None
    summary: Path | None = None
    pictures: Path | None = None
    worst: int = 6


def main() -> int:
    """Entry point; returns the exit status."""
    try:
        arguments = tyro.cli(Arguments, config=(tyro.conf.FlagCreatePairsOff,))
        summary = evaluate(arguments)
    except InputError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return 2
    except (OSError, CommitConflict) as error:
        print(f"evaluate: {error}; nothing was committed", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("evaluate: interrupted; nothing was committed", file=sys.stderr)
        return 130
    print_summary(summary)
    if arguments.summary:
        arguments.summary.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    if summary["failed"]:
        return 1
    return REFUSED if summary["refused"] else 0


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """Measures, commits the figures, and tags the version if they pass; returns the summary.

    Raises:
        InputError: An option, the version or the dataset cannot be used; nothing is committed.
    """
    _check(arguments)
    catalog = Catalog(absolute(arguments.store))
    version = catalog.version(arguments.ref)
    rows = version.rows_of(arguments.kind, arguments.data.dataset, arguments.data.cameras)
    if arguments.truth:
        dataset = open_dataset(arguments.data)
        dataroot = arguments.data.dataroot.resolve()
        plan = plan_truth(version, rows, dataset, dataroot, arguments.scenes, arguments.crop_height)
    else:
        plan = plan_held_out(version, rows, _made_with(arguments, rows, _made_by(catalog, rows).recipe))
    _try_files(arguments)
    for note in plan.notes:
        say(f"note: {note}")
    reference = "truth" if arguments.truth else "the held-out key sweep"
    n_labels = sum(shard.n_labels for shard in plan.shards)
    say(f"evaluate: version {version.number}, {n_labels} {arguments.kind} labels against {reference}")

    measured: dict[str, Row] = {}
    failed: dict[str, str] = {}
    names = {shard.shard_id: f"{shard.scene} {shard.camera}" for shard in plan.shards}
    with progress(len(plan.shards)) as advance:
        work = partial(_measure, plan.measure)
        for shards, outcome in outcomes(plan.shards, plan.load, work, arguments.workers):
            for row in outcome.rows:
                measured[row["shard_id"]] = row
                advance(names[row["shard_id"]])
            if outcome.is_input_error:
                raise InputError(str(outcome.error))
            for shard in shards if outcome.error else ():
                if shard.shard_id not in measured:
                    failed[names[shard.shard_id]] = str(outcome.error)

    summary: dict[str, Any] = {
        "operation": "evaluate",
        "store": arguments.store,
        "evaluated": version.number,
        "kind": arguments.kind,
        "reference": reference,
        "crop_height": arguments.crop_height,
        "shards": len(plan.shards),
        "labels": n_labels,
        "version": None,
        "manifest": None,
        "tag": None,
        "refused": [],
        "failed": failed,
        "notes": list(plan.notes),
    }
    if failed:
        return summary
    # In the order of the plan, whatever the order of the workers: sums of floats depend on it.
    errors = {shard.shard_id: measured[shard.shard_id]["errors"] for shard in plan.shards}
    summary |= summarise(list(errors.values()), [shard.camera for shard in plan.shards])
    if arguments.pictures:
        false_labels = {shard_id: row["false_labels"] for shard_id, row in measured.items()}
        summary["pictures"] = draw_pictures(plan, false_labels, arguments.pictures, arguments.worst)
        if summary["calibration"]:
            summary["pictures"].append(draw_calibration(summary["calibration"], arguments.pictures))
    quality = {
        shard_id: _quality(figures, arguments.crop_height or plan.rows[shard_id]["height"])
        for shard_id, figures in errors.items()
    }
    _record(catalog, version, plan.rows, quality, summary)
    summary["refused"] = refusals(arguments, summary["all"])
    if arguments.tag and not summary["refused"]:
        catalog.tag(arguments.tag, summary["version"])
        summary["tag"] = arguments.tag
    return summary


def _check(arguments: Arguments) -> None:
    """Refuses options that make no sense, before any work."""
    if arguments.workers is not None and arguments.workers < 0:
        raise InputError(f"--workers {arguments.workers}: must be zero or more")
    for name in ("crop_height", "worst"):
        if (value := getattr(arguments, name)) is not None and value < (name == "crop_height"):
            raise InputError(f"--{name.replace('_', '-')} {value}: is too small")
    for name in ("max_see_through", "max_ghosts", "min_coverage"):
        if (limit := getattr(arguments, name)) is not None and not 0 <= limit <= 1:
            raise InputError(f"--{name.replace('_', '-')} {limit}: is a share, from 0 to 1")
    for name in ("crop_height", "min_coverage", "pictures"):
        if getattr(arguments, name) is not None and not arguments.truth:
            raise InputError(f"--{name.replace('_', '-')}: only with --truth")
    if arguments.tag:
        check_tag(arguments.tag)


def _try_files(arguments: Arguments) -> None:
    """Refuses places that cannot be written, before the work and not after it."""
    try:
        option, path = "--summary", arguments.summary
        if path:
            path.open("a").close()
        option, path = "--pictures", arguments.pictures
        if path:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written: {error.strerror}") from error


def _measure(
    measure: Callable[[Any, Sequence[PlannedShard]], Iterator[Row]], loaded: Any, shards: Sequence[PlannedShard]
) -> Outcome:
    return attempt(measure(loaded, shards))


def _made_with(arguments: Arguments, rows: Sequence[Row], recipe: dict[str, Any]) -> accumulate.Arguments:
    """The arguments that would make the labels again."""
    if arguments.kind != "accumulated":
        raise InputError(f"--kind {arguments.kind}: without --truth only accumulated labels can be measured")
    if len({row["recipe_hash"] for row in rows}) > 1:
        raise InputError(f"version {arguments.ref}: its {arguments.kind} labels have several recipes; use --truth")
    try:
        return accumulate.Arguments(
            arguments.data,
            arguments.store,
            arguments.scenes,
            scale=recipe["scale"],
            accumulation=AccumulationConfig(**_tuples(recipe["accumulation"])),
            visibility=VisibilityConfig(**_tuples(recipe["visibility"])),
            min_sweeps=recipe["min_sweeps"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"version {arguments.ref}: its recipe is not of this program: {error}") from error


def _tuples(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they were before JSON, which has no tuples; the ids of the shards depend on it."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}


def _quality(errors: LabelErrors | DepthErrors, n_rows: int) -> dict[str, float | None]:
    """The figures of a manifest row."""
    figures = known(errors.means())
    if isinstance(errors, LabelErrors):
        quality = {"evaluated_rows": float(n_rows)} | {name: figures[name] for name in ("coverage", *MEANS, "on_sky")}
        completed, calibration = errors.origins().get("completed", {}), errors.calibration()
        quality |= {f"completed_{name}": completed[name] for name in ("mae_m", "within") if completed}
        return known(quality | ({"calibration_error": calibration["error"]} if calibration else {}))
    return {f"held_out_{name}": figures[name] for name in ("compared", *MEANS)}


def _made_by(catalog: Catalog, rows: Sequence[Row]) -> Version:
    """The newest version with a recipe of these rows."""
    hashes = {row["recipe_hash"] for row in rows}
    return next(version for version in reversed(catalog.versions(expired=True)) if version.recipe_hash in hashes)


def _record(
    catalog: Catalog,
    version: Version,
    rows: dict[str, Row],
    quality: dict[str, dict[str, float | None]],
    summary: dict[str, Any],
) -> None:
    """Commits the figures of the shards that the latest version still has; the recipe is that of the labels."""
    made_by = _made_by(catalog, list(rows.values()))
    told = ("evaluated", "kind", "reference", "crop_height", "shards", "labels", "all")
    while True:
        latest = catalog.version("latest").rows_by_key()
        now = {shard_id: latest.get(key(row)) for shard_id, row in rows.items()}
        same = {name: row for name, row in now.items() if row and row["sha256"] == rows[name]["sha256"]}
        measured = [row | {"quality": row["quality"] | quality[name]} for name, row in same.items()]
        try:
            committed = catalog.commit(
                measured,
                operation="evaluate",
                recipe=made_by.recipe,
                inputs=made_by.inputs,
                summary={name: summary[name] for name in told},
                expected=latest,
            )
            break
        except StaleRows:  # others have measured or replaced some of them since
            continue
    named = committed
    if left_out := len(rows) - len(measured):
        named = version
        summary["notes"].append(
            f"{left_out} of the {len(rows)} shards are not in the latest version: their figures are not recorded"
        )
        say(f"note: {summary['notes'][-1]}")
    summary["version"], summary["manifest"] = named.number, named.manifest


def refusals(arguments: Arguments, figures: dict[str, Any]) -> list[str]:
    """The limits that the figures break, one line each; a figure that is not known keeps none."""
    limits = [
        ("see-through", figures["behind"], "--max-see-through", arguments.max_see_through, 1),
        ("ghosts", figures["in_front"], "--max-ghosts", arguments.max_ghosts, 1),
        ("coverage", figures.get("coverage"), "--min-coverage", arguments.min_coverage, -1),
    ]
    return [
        f"{name} {'not known' if figure is None else f'{100 * figure:.3f} %'}, {option} is {100 * limit:g} %"
        for name, figure, option, limit, sign in limits
        if limit is not None and (figure is None or sign * figure > sign * limit)
    ]


if __name__ == "__main__":
    # The installed module, so that workers import its classes by name.
    from pipelines.evaluate import main as installed_main

    sys.exit(installed_main())
