"""Runs a label job: planned shards, minus those done, streamed to workers, and one commit at the end.

A shard is a pure function of its inputs and the recipe, and its id is a hash of both. So a shard that the latest
version or a receipt of an interrupted run has is not made again, and a retry writes the same bytes.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from catalog import Catalog
from catalog.catalog import check_tag
from catalog.manifest import Key, Row, json_sha256, shard_row
from dense_depth import InputError
from dense_depth.shards import ShardContent, write_shard
from pipelines.console import new_table, print_table, progress, say

if TYPE_CHECKING:
    pass

TRIES = 3  # of a task that raises an error; a worker that dies is retried by Ray


class Made(NamedTuple):
    """One shard as a worker makes it: its plan, its labels, and the rest of its manifest row (see ``shard_row``)."""

    shard_id: str
    content: ShardContent
    quality: dict[str, float | None]
    source_shards: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedShard:
    """One shard that the job is to make.

    Attributes:
        shard_id: Hash of all that determines its bytes.
        scene: Name of the scene.
        camera: Name of the camera.
        n_labels: Labels it will hold.
        estimated_bytes: Rough size on disk.
    """

    shard_id: str
    scene: str
    camera: str
    n_labels: int
    estimated_bytes: int


@dataclass(frozen=True)
class Job:
    """What to make and where to put it.

    Attributes:
        operation: The command, in a word.
        store: Folder or URL of the label store.
        recipe: What determines the labels apart from the data.
        inputs: What they are made from, for the version's lineage.
        shards: The plan.
        load: Called in the driver with the name of a scene; returns what ``make`` needs, small enough to send.
        make: Called in a worker with that and the planned shards of the scene; yields each shard when it is made.
        tag: Name for the version.
    """

    operation: str
    store: str
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    shards: Sequence[PlannedShard]
    load: Callable[[str], Any]
    make: Callable[[Any, Sequence[PlannedShard]], Iterator[Made]]
    tag: str | None = None

    @property
    def name(self) -> str:
        """Names the folder of receipts: runs with the same recipe share it, whatever scenes they take."""
        return f"{self.operation}-{json_sha256(self.recipe)[:16]}"

    def for_workers(self) -> "Job":
        """The recipe and the way to make a shard; the plan stays with the driver."""
        return replace(self, inputs={}, shards=(), load=_nothing)


class Outcome(NamedTuple):
    """What a task came to: a row, with ``shard_id``, per shard that it finished, and an error if not all."""

    rows: list[Row]
    error: str | None = None
    is_input_error: bool = False


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


def run_tasks(
    job: Job, todo: Sequence[PlannedShard], workers: int | None
) -> Iterator[tuple[list[PlannedShard], Outcome]]:
    """Carries out a job task by task; see ``outcomes``."""
    return outcomes(todo, job.load, partial(execute, job.for_workers()), workers)


def run(
    job: Job,
    *,
    workers: int | None,
    dry_run: bool = False,
    notes: Sequence[str] = (),
    carry_out: Callable[
        [Job, Sequence[PlannedShard], int | None], Iterator[tuple[list[PlannedShard], Outcome]]
    ] = run_tasks,
) -> Report:
    """Makes the missing shards and commits them as one version, in place of the labels that there were at its start.

    Args:
        job: The plan and how to make a shard.
        workers: Processes; 0 works in this process, without Ray; None takes what the cluster or machine has.
        dry_run: Only say what would be made.
        notes: Lines for the user about the input.
        carry_out: Makes and publishes shards, given the job, those to make, and ``workers``.

    Raises:
        InputError: The input of a shard cannot be used; nothing is committed, finished shards keep their receipts.
        StaleRows: Others have replaced labels of these scenes and cameras since the job started. Nothing is committed,
            and the receipts stay: the same job, run again, replaces what it finds then.
    """
    if job.tag:
        check_tag(job.tag)  # before the work, not after it
    started = time.monotonic()
    report = Report(job.operation, job.store, tag=job.tag, notes=list(notes))
    report.shards_planned = len(job.shards)
    catalog = Catalog.find(job.store) if dry_run else Catalog.create(job.store)
    latest = catalog.latest() if catalog else None
    seen = latest.rows_by_key() if latest else {}
    committed = _intact(catalog, seen.values())
    if catalog and not dry_run:
        catalog.receipts(job.name).renew()
    receipts = _intact(catalog, catalog.receipts(job.name).rows() if catalog else [])
    planned = {shard.shard_id for shard in job.shards}
    rows = {shard_id: row for shard_id, row in {**receipts, **committed}.items() if shard_id in planned}
    todo = [shard for shard in job.shards if shard.shard_id not in rows]
    report.shards_done_before = len(rows)
    report.estimated_bytes = sum(shard.estimated_bytes for shard in todo)
    for note in notes:
        say(f"note: {note}")
    say(
        f"{job.operation}: {len(job.shards)} shards planned, {len(rows)} done before, {len(todo)} to make: "
        f"{sum(shard.n_labels for shard in todo)} labels, about {report.estimated_bytes / 1e6:.2f} MB"
    )
    if dry_run or catalog is None:
        return report

    with progress(len(todo)) as advance:
        for scene_shards, outcome in carry_out(job, todo, workers):
            for row in outcome.rows:
                rows[row["shard_id"]] = row
                report.shards_made += 1
                report.labels_made += row["n_frames"]
                report.bytes_made += row["bytes"]
                advance(f"{row['scene_token']} {row['camera']}")
            if outcome.is_input_error:
                raise InputError(
                    f"{outcome.error} (no version; {len(rows)} of {len(planned)} shards are done and kept)"
                )
            if outcome.error:
                for shard in scene_shards:
                    if shard.shard_id not in rows:
                        report.failed[f"{shard.scene} {shard.camera}"] = outcome.error
    if not report.failed:
        _commit(catalog, job, [rows[shard.shard_id] for shard in job.shards], seen, report)
    report.seconds = time.monotonic() - started
    report.shards = [
        {name: rows[s.shard_id][name] for name in ("scene_token", "camera", "n_frames", "bytes", "valid_fraction")}
        | {"made": s.shard_id not in committed and s.shard_id not in receipts, **rows[s.shard_id]["quality"]}
        for s in job.shards
        if s.shard_id in rows
    ]
    return report


def _intact(catalog: Catalog | None, rows: Iterable[Row]) -> dict[str, Row]:
    """Rows by shard id, less those whose shard is lost or cut short: it is made again."""
    return {row["shard_id"]: row for row in catalog.intact(list(rows))} if catalog else {}


def _commit(catalog: Catalog, job: Job, rows: list[Row], seen: Mapping[Key, Row], report: Report) -> None:
    summary = {
        "labels": sum(row["n_frames"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
        "shards": len(rows),
        "shards_made": report.shards_made,
    }
    version = catalog.commit(
        rows, operation=job.operation, recipe=job.recipe, inputs=job.inputs, summary=summary, expected=seen
    )
    if job.tag:
        catalog.tag(job.tag, version.number)
    catalog.receipts(job.name).clear(shard.shard_id for shard in job.shards)
    report.version, report.manifest = version.number, version.manifest


def _tasks(todo: Sequence[PlannedShard], workers: int) -> list[list[PlannedShard]]:
    """Groups shards into tasks: a scene's cameras share its sweeps, unless that leaves workers without work."""
    scenes: dict[str, list[PlannedShard]] = {}
    for shard in todo:
        scenes.setdefault(shard.scene, []).append(shard)
    if len(scenes) >= workers:
        return list(scenes.values())
    return [[shard] for shard in todo]


def execute(job: Job, loaded: Any, shards: Sequence[PlannedShard]) -> Outcome:
    """Runs in a worker: makes and publishes shards, a receipt for each."""
    return attempt(publish(job, job.make(loaded, shards)))


def attempt(rows: Iterable[Row]) -> Outcome:
    """Takes rows until they end, or an error ends them."""
    done = []
    try:
        for row in rows:
            done.append(row)
    except Exception as error:
        return failed(error, done)
    return Outcome(done)


def failed(error: Exception, rows: Sequence[Row] = ()) -> Outcome:
    """What a task came to that an error ended after some rows."""
    if isinstance(error, InputError):
        return Outcome(list(rows), str(error), is_input_error=True)
    return Outcome(list(rows), f"{type(error).__name__}: {error}")


def publish(job: Job, shards: Iterable[Made]) -> Iterator[Row]:
    """Writes shards as they are made, a receipt for each; yields their rows."""
    catalog = Catalog(job.store)
    for shard_id, content, quality, source_shards in shards:
        files = write_shard(catalog.store, content)
        row = shard_row(content, files, job.recipe, quality, shard_id=shard_id, source_shards=source_shards)
        catalog.receipts(job.name).write(row)
        yield row


def outcomes(
    todo: Sequence[PlannedShard],
    load: Callable[[str], Any],
    work: Callable[[Any, Sequence[PlannedShard]], Outcome],
    workers: int | None,
) -> Iterator[tuple[list[PlannedShard], Outcome]]:
    """Runs tasks, at most two per worker under way; a task that fails is tried again with what it left undone.

    Args:
        todo: The shards to work on, all of a scene or one in a task.
        load: Called in the driver with the name of a scene; returns what ``work`` needs, small enough to send.
        work: Called in a worker with that and the shards of a task; can be sent to it.
        workers: As in ``run``.
    """
    if not todo:
        return
    if workers == 0:
        queue = [(shards, 1) for shards in _tasks(todo, 0)][::-1]
        while queue:
            shards, tries = queue.pop()
            yield from _settle(queue, shards, tries, work(load(shards[0].scene), shards))
        return
    ray = start_ray(workers)
    try:
        workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        queue = [(shards, 1) for shards in _tasks(todo, workers)][::-1]
        remote = ray.remote(num_cpus=1, max_retries=TRIES)(_work)
        work_ref = ray.put(work)
        running: dict[Any, tuple[list[PlannedShard], int]] = {}
        while queue or running:
            while queue and len(running) < 2 * workers:
                shards, tries = queue.pop()
                running[remote.remote(work_ref, ray.put(load(shards[0].scene)), shards)] = (shards, tries)
            done, _ = ray.wait(list(running), num_returns=1)
            shards, tries = running.pop(done[0])
            try:
                outcome = ray.get(done[0])
            except ray.exceptions.RayError as error:  # the worker died, time after time
                outcome, tries = Outcome([], f"{type(error).__name__}: {str(error).splitlines()[0]}"), TRIES
            yield from _settle(queue, shards, tries, outcome)
    finally:
        ray.shutdown()  # ends what is still running


def _work(
    work: Callable[[Any, Sequence[PlannedShard]], Outcome], loaded: Any, shards: Sequence[PlannedShard]
) -> Outcome:
    """A function, as Ray asks for."""
    return work(loaded, shards)


def _nothing(scene: str) -> None:
    """Stands in for ``Job.load`` in workers, which are sent what it returned."""


def _settle(
    queue: list[tuple[list[PlannedShard], int]], shards: list[PlannedShard], tries: int, outcome: Outcome
) -> Iterator[tuple[list[PlannedShard], Outcome]]:
    """Hands on what a task came to, and queues the rest of a failed one while it has tries left."""
    finished = {row["shard_id"] for row in outcome.rows}
    rest = [shard for shard in shards if shard.shard_id not in finished]
    if outcome.error and not outcome.is_input_error and tries < TRIES:
        say(f"retry {tries} of {TRIES - 1}: {shards[0].scene}: {outcome.error}")
        queue.append((rest, tries + 1))
        outcome = Outcome(outcome.rows)
    yield shards, outcome


def start_ray(workers: int | None) -> Any:
    """Connects to the cluster that RAY_ADDRESS names, as it does in a Ray job, or starts a Ray of its own.

    A cluster that merely runs on this machine is not joined: it may be somebody else's, or a stale address that hangs.
    """
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ValueError, ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"RAY_ADDRESS={address}: {reason} (unset it to use a Ray of this machine)") from error
    return ray


def print_report(report: Report) -> None:
    """Prints the final table: a row per camera, over all scenes."""
    shares = ("valid", "key", "static", "moving", "completed", "hidden")
    known = [name for name in shares if any(shard.get(f"{name}_fraction") is not None for shard in report.shards)]
    names = [name.replace("valid", "labelled") for name in known]
    table = new_table(f"{report.operation}: {report.store} (shares in %)", "camera", "scenes", "labels", "MB", *names)
    for camera in sorted({shard["camera"] for shard in report.shards}):
        shards = [shard for shard in report.shards if shard["camera"] == camera]
        labels = sum(shard["n_frames"] for shard in shards)

        def mean(name: str, shards: list[dict[str, Any]] = shards, labels: int = labels) -> str:
            if any(shard.get(name) is None for shard in shards):
                return ""
            return f"{100 * sum(shard[name] * shard['n_frames'] for shard in shards) / labels:.2f}"

        figures = [mean(f"{name}_fraction") for name in known]
        size = f"{sum(shard['bytes'] for shard in shards) / 1e6:.2f}"
        table.add_row(camera, str(len(shards)), str(labels), size, *figures)
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


def write_summary(report: Report, path: Path) -> None:
    """Writes the report as JSON."""
    path.write_text(json.dumps(asdict(report), indent=1) + "\n")
