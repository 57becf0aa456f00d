"""Measures the quality of a version's labels, keeps the figures in a new version, and names it if they are good enough.

Run as ``python pipelines/evaluate.py``, under ``ray job submit --working-dir .``, or by ``ray submit cluster.yaml``;
the last copies this one file, so it imports installed packages only.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from catalog import Catalog, StaleRows, Version
from catalog.catalog import check_tag
from catalog.manifest import Row, key
from dense_depth import InputError
from dense_depth.accumulation import AccumulationConfig
from dense_depth.datasets import DatasetConfig
from dense_depth.options import check_options, option_name
from dense_depth.projection import VisibilityConfig
from dense_depth.quality.gate import Gate
from dense_depth.quality.summary import row_figures, summarise
from dense_depth.quality.tables import tables
from dense_depth.store import absolute
from pipelines import accumulate
from pipelines.console import JobOptions, check_places, new_table, print_table, run_command, say, write_summary
from pipelines.references import Plan, plan_held_out, plan_truth
from pipelines.runner import Outcome, PlannedShard, attempt, finished

REFUSED = 3  # exit status


@dataclass(frozen=True)
class Arguments(JobOptions):
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
        gate: Limits that the version of the figures must keep to get its tag.
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
    gate: Annotated[Gate, tyro.conf.arg(name="")] = field(default_factory=Gate)
    pictures: Path | None = None
    worst: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, {"crop_height": 1, "worst": 0})
        only_truth = {
            "crop_height": self.crop_height,
            "min_coverage": self.gate.min_coverage,
            "pictures": self.pictures,
        }
        for name, value in only_truth.items():
            if value is not None and not self.truth:
                raise InputError(f"{option_name(name)}: only with --truth")
        if self.tag:
            check_tag(self.tag)


def main() -> int:
    """Entry point; returns the exit status."""
    return run_command("evaluate", Arguments, run, resumes=False)


def run(arguments: Arguments) -> int:
    """Measures, and shows what came of it; returns the exit status."""
    summary = evaluate(arguments)
    if not arguments.dry_run:
        print_summary(summary)
    write_summary(summary, arguments.summary)
    if summary["failed"]:
        return 1
    return REFUSED if summary["refused"] else 0


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """Measures, commits the figures, and tags the version if they pass; returns the summary.

    Raises:
        InputError: An option, the version or the dataset cannot be used; nothing is committed.
    """
    check_places(arguments.summary, arguments.pictures)
    catalog = Catalog(absolute(arguments.store))
    version = catalog.version(arguments.ref)
    rows = version.rows_of(arguments.kind, arguments.data.dataset, arguments.data.cameras)
    if arguments.truth:
        plan = plan_truth(version, rows, arguments.data, arguments.scenes, arguments.crop_height)
    else:
        plan = plan_held_out(version, rows, _made_with(arguments, rows, _made_by(catalog, rows).recipe))
    summary: dict[str, Any] = {
        "operation": "evaluate",
        "store": arguments.store,
        "evaluated": version.number,
        "kind": arguments.kind,
        "reference": "truth" if arguments.truth else "the held-out key sweep",
        "crop_height": arguments.crop_height,
        "shards": len(plan.shards),
        "labels": sum(shard.n_labels for shard in plan.shards),
        "version": None,
        "manifest": None,
        "tag": None,
        "refused": [],
        "failed": {},
        "notes": list(plan.notes),
    }
    for note in plan.notes:
        say(f"note: {note}")
    of_version = f"version {version.number}, {summary['labels']} {arguments.kind} labels"
    say(f"evaluate: {of_version} against {summary['reference']}")
    if arguments.dry_run:
        return summary

    measured, summary["failed"] = _measure(plan, arguments.workers)
    if summary["failed"]:
        return summary
    summary |= summarise([row["errors"] for row in measured.values()], [shard.camera for shard in plan.shards])
    if arguments.pictures:
        summary["pictures"] = _draw(plan, measured, summary["calibration"], arguments.pictures, arguments.worst)
    quality = {
        shard_id: row_figures(row["errors"], arguments.crop_height or plan.rows[shard_id]["height"])
        for shard_id, row in measured.items()
    }
    _record(catalog, version, plan.rows, quality, summary)
    summary["refused"] = arguments.gate.refusals(summary["all"])
    if arguments.tag and not summary["refused"]:
        catalog.tag(arguments.tag, summary["version"])
        summary["tag"] = arguments.tag
    return summary


def _made_with(arguments: Arguments, rows: Sequence[Row], recipe: dict[str, Any]) -> accumulate.Arguments:
    """The arguments that would make the labels again."""
    if arguments.kind != "accumulated":
        raise InputError(f"--kind {arguments.kind}: without --truth only accumulated labels can be measured")
    if len({row["recipe_hash"] for row in rows}) > 1:
        raise InputError(f"version {arguments.ref}: its {arguments.kind} labels have several recipes; use --truth")
    try:
        poses = recipe["poses"]
        if poses == "dataset" and arguments.data.poses_file:
            poses = arguments.data.poses
        return accumulate.Arguments(
            replace(arguments.data, poses=poses, deskew=recipe["deskew"]),
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


def _made_by(catalog: Catalog, rows: Sequence[Row]) -> Version:
    """The newest version with a recipe of these rows."""
    hashes = {row["recipe_hash"] for row in rows}
    return next(version for version in reversed(catalog.versions(expired=True)) if version.recipe_hash in hashes)


def _measure(plan: Plan, workers: int | None) -> tuple[dict[str, Row], dict[str, str]]:
    """Carries out a plan.

    Returns:
        What was measured of each shard by its id, and the errors of those that failed by their name.

    Raises:
        InputError: A label, the truth or the dataset cannot be used.
    """
    failed: dict[str, str] = {}
    rows = finished(plan.shards, plan.load, partial(_attempt, plan.measure), workers, failed)
    found = {row["shard_id"]: row for row in rows}
    # In the order of the plan, whatever the order of the workers: sums of floats depend on it.
    return {shard.shard_id: found[shard.shard_id] for shard in plan.shards if shard.shard_id in found}, failed


def _attempt(
    measure: Callable[[Any, Sequence[PlannedShard]], Iterator[Row]], loaded: Any, shards: Sequence[PlannedShard]
) -> Outcome:
    return attempt(measure(loaded, shards))


def _draw(plan: Plan, measured: dict[str, Row], calibration: dict[str, Any], folder: Path, worst: int) -> list[str]:
    """Draws labels, and the calibration of completed ones, into a folder; returns the names of the files."""
    import cv2

    from dense_depth.quality.charts import calibration_chart
    from dense_depth.quality.pictures import worst_and_ordinary

    assert plan.draw  # see Arguments
    false_labels = {(s.scene, s.camera): measured[s.shard_id]["false_labels"] for s in plan.shards}
    names = []
    for name, (scene, camera, token) in worst_and_ordinary(false_labels, worst).items():
        if not cv2.imwrite(str(folder / name), plan.draw(plan.load(scene), camera, token)):
            raise OSError(f"{folder / name}: cannot be written")
        names.append(name)
    if calibration:
        names.append("calibration.png")
        calibration_chart(calibration).savefig(folder / names[-1])
    return names


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


def print_summary(summary: dict[str, Any]) -> None:
    """Prints the figures as tables, and what became of them."""
    for name, error in summary["failed"].items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    if summary["failed"]:
        print("no version committed")
        return
    for block in tables(summary):
        if isinstance(block, str):
            print(f"{block}\n")
            continue
        table = new_table("", *block.header)
        for row in block.rows:
            table.add_row(*row)
        print(block.title)  # apart: a table would cut it to its own width
        print_table(table)
        print()
    for line in summary["refused"]:
        print(f"evaluate: refused: {line}", file=sys.stderr)
    if summary.get("pictures"):
        print(f"{len(summary['pictures'])} pictures")
    tag = f", tag {summary['tag']}" if summary["tag"] else ""
    print(f"version {summary['version']}{tag}, manifest {summary['manifest']}")


if __name__ == "__main__":
    # The installed module, so that workers import its classes by name.
    from pipelines.evaluate import main as installed_main

    sys.exit(installed_main())
