"""Runs a label job: planned shards, minus those done, sent to workers that write them, and one commit at the end.

A shard is a pure function of its inputs and the recipe, and its id is a hash of both. So a shard that the latest
version or a receipt of an interrupted run has is not made again, and a retry writes the same bytes.
"""

import functools
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

from catalog import Catalog
from catalog.catalog import check_tag
from catalog.manifest import Key, Row, json_sha256, shard_row
from dense_depth import InputError
from dense_depth.shards import ShardContent, write_shard
from pipelines.console import JobOptions, Report, check_places, print_report, progress, say, write_summary

A = TypeVar("A")
B = TypeVar("B")
Options = TypeVar("Options", bound=JobOptions)

TRIES = 3  # of a task that raises an error or kills its worker


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


class Outcome(NamedTuple):
    """What a task came to: a row, with ``shard_id``, per shard that it finished, and an error if not all."""

    rows: list[Row]
    error: str | None = None
    is_input_error: bool = False


Make = Callable[[Any, Sequence[PlannedShard]], Iterator[Made]]


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
        make: Called in a worker with that and some planned shards of the scene; yields each shard when it is made.
        tag: Name for the version.
        on_gpus: Each worker has a GPU to itself, and threads that read for it and write behind it.
        check: Called with the row of each shard, those done before too; returns a note if its figures are suspicious,
            and raises InputError, so that nothing is committed, if they cannot be of good input.
        prepare: Called in the driver, before shards are made, with the names of their scenes and the number of workers;
            returns the error of each scene that failed.
    """

    operation: str
    store: str
    recipe: dict[str, Any]
    inputs: dict[str, Any]
    shards: Sequence[PlannedShard]
    load: Callable[[str], Any]
    make: Make
    tag: str | None = None
    on_gpus: bool = False
    check: Callable[[Row], str | None] | None = None
    prepare: Callable[[Collection[str], int | None], dict[str, str]] | None = None

    @property
    def name(self) -> str:
        """Names the folder of receipts: runs with the same recipe share them."""
        return f"{self.operation}-{json_sha256(self.recipe)[:16]}"

    @property
    def work(self) -> "Work":
        """What a worker is sent of the job, once."""
        return Work(self.store, self.name, self.recipe, self.make, int(self.on_gpus))


@dataclass(frozen=True)
class Work:
    """The part of a job that a worker does: shards are made, and published where they are made.

    Attributes:
        store: Folder or URL of the label store.
        name: Of the job.
        recipe: What determines the labels apart from the data.
        make: As in ``Job``.
        behind: Shards that a thread writes while the next one is made.
    """

    store: str
    name: str
    recipe: dict[str, Any]
    make: Make
    behind: int = 0

    def __call__(self, loaded: Any, shards: Sequence[PlannedShard]) -> Outcome:
        """Makes and publishes shards, a receipt for each."""
        return attempt(self._publish(self.make(loaded, shards)))

    def _publish(self, shards: Iterable[Made]) -> Iterator[Row]:
        yield from ahead(functools.partial(self._write, Catalog(self.store)), shards, self.behind)

    def _write(self, catalog: Catalog, made: Made) -> Row:
        shard_id, content, quality, source_shards = made
        files = write_shard(catalog.store, content)
        row = shard_row(content, files, self.recipe, quality, shard_id=shard_id, source_shards=source_shards)
        catalog.receipts(self.name).write(row)
        return row


def ahead(function: Callable[[A], B], items: Iterable[A], n: int) -> Iterator[B]:
    """The results of a function, in order, worked out by n threads before they are asked for; by none if n is 0.

    At most n + 1 items are under way. An error of the items comes after the results of those before it.
    """
    if n == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(n) as pool:
        waiting: deque[Future[B]] = deque()
        for future in _submit(pool, function, items):
            waiting.append(future)
            if len(waiting) > n:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _submit(pool: ThreadPoolExecutor, function: Callable[[A], B], items: Iterable[A]) -> Iterator["Future[B]"]:
    """A future per item, and one that failed for an error of the items."""
    try:
        for item in items:
            yield pool.submit(function, item)
    except Exception as error:
        failed: Future[B] = Future()
        failed.set_exception(error)
        yield failed


def attempt(rows: Iterable[Row]) -> Outcome:
    """Takes rows until they end, or an error ends them."""
    done = []
    try:
        for row in rows:
            done.append(row)
    except InputError as error:
        return Outcome(done, str(error), is_input_error=True)
    except Exception as error:
        return Outcome(done, f"{type(error).__name__}: {error}")
    return Outcome(done)


def run_job(options: Options, plan: Callable[[Options], tuple[Job, list[str]]]) -> int:
    """Plans a job, carries it out as its options say, and shows what came of it; returns the exit status."""
    check_places(options.summary)
    job, notes = plan(options)
    report = run(job, workers=options.workers, dry_run=options.dry_run, notes=notes)
    if not options.dry_run:
        print_report(report)
    write_summary(asdict(report), options.summary)
    return 1 if report.failed else 0


def run(job: Job, *, workers: int | None, dry_run: bool = False, notes: Sequence[str] = ()) -> Report:
    """Makes the missing shards and commits them as one version, in place of the labels that there were at its start.

    Args:
        job: The plan and how to make a shard.
        workers: Processes; 0 works in this process, without Ray; None takes what the cluster or machine has.
        dry_run: Only say what would be made.
        notes: Lines for the user about the input.

    Raises:
        InputError: The input of a shard cannot be used; nothing is committed, finished shards keep their receipts.
        StaleRows: Others have replaced labels of these scenes and cameras since the job started. Nothing is committed,
            and the receipts stay: the same job, run again, replaces what it finds then.
    """
    if job.tag:
        check_tag(job.tag)  # before the work, not after it
    started = time.monotonic()
    catalog = Catalog.find(job.store) if dry_run else Catalog.create(job.store)
    latest = catalog.latest() if catalog else None
    seen = latest.rows_by_key() if latest else {}
    rows = _done_before(catalog, job, seen.values(), renew=not dry_run)
    todo = [shard for shard in job.shards if shard.shard_id not in rows]
    report = Report(job.operation, job.store, tag=job.tag, notes=list(notes))
    report.shards_planned, report.shards_done_before = len(job.shards), len(rows)
    report.estimated_bytes = sum(shard.estimated_bytes for shard in todo)
    for note in notes:
        say(f"note: {note}")
    say(
        f"{job.operation}: {len(job.shards)} shards planned, {len(rows)} done before, {len(todo)} to make: "
        f"{sum(shard.n_labels for shard in todo)} labels, about {report.estimated_bytes / 1e6:.2f} MB"
    )
    if dry_run or catalog is None:
        return report

    for row in rows.values():
        _check(job, row, report)
    if job.prepare and todo:
        report.failed |= job.prepare({shard.scene for shard in todo}, workers)
    if not report.failed:
        _make(job, todo, workers, rows, report)
    if not report.failed:
        _commit(catalog, job, [rows[shard.shard_id] for shard in job.shards], seen, report)
    report.seconds = time.monotonic() - started
    made = {shard.shard_id for shard in todo}
    report.shards = [
        {name: row[name] for name in ("scene_token", "camera", "n_frames", "bytes", "valid_fraction")}
        | {"made": row["shard_id"] in made, **row["quality"]}
        for row in (rows[shard.shard_id] for shard in job.shards if shard.shard_id in rows)
    ]
    return report


def _done_before(catalog: Catalog | None, job: Job, committed: Iterable[Row], renew: bool) -> dict[str, Row]:
    """Rows of planned shards that the latest version or an interrupted run has, by shard id.

    Less those whose shard is lost or cut short: it is made again.
    """
    if catalog is None:
        return {}
    receipts = catalog.receipts(job.name)
    if renew:
        receipts.renew()
    planned = {shard.shard_id for shard in job.shards}
    done = [row for row in (*receipts.rows(), *committed) if row["shard_id"] in planned]
    return {row["shard_id"]: row for row in catalog.intact(done)}


def _make(job: Job, todo: Sequence[PlannedShard], workers: int | None, rows: dict[str, Row], report: Report) -> None:
    """Makes shards; adds their rows to ``rows``, and to the report what was made and what failed."""
    try:
        for row in finished(todo, job.load, job.work, workers, report.failed, job.on_gpus):
            rows[row["shard_id"]] = row
            report.shards_made += 1
            report.labels_made += row["n_frames"]
            report.bytes_made += row["bytes"]
            _check(job, row, report)
    except InputError as error:
        raise InputError(f"{error} (no version; {len(rows)} of {len(job.shards)} shards are done and kept)") from error


def _check(job: Job, row: Row, report: Report) -> None:
    """Takes down what is suspicious about a shard; see ``Job.check``."""
    if job.check and (note := job.check(row)):
        report.notes.append(note)
        say(f"note: {note}")


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


Task = tuple[list[PlannedShard], int]  # shards of one scene, and how often they have been tried


def finished(
    todo: Sequence[PlannedShard],
    load: Callable[[str], Any],
    work: Callable[[Any, Sequence[PlannedShard]], Outcome],
    workers: int | None,
    failed: dict[str, str],
    on_gpus: bool = False,
) -> Iterator[Row]:
    """Runs tasks as ``outcomes`` does and shows their progress; yields the row of each shard that is finished.

    Args:
        todo: The shards.
        load: As in ``outcomes``.
        work: As in ``outcomes``.
        workers: As in ``outcomes``.
        failed: Gets the error of each shard that failed, by the names of its scene and camera.
        on_gpus: As in ``Job``.

    Raises:
        InputError: The input of a shard cannot be used.
    """
    names = {shard.shard_id: f"{shard.scene} {shard.camera}" for shard in todo}
    with progress(len(todo)) as advance:
        for shards, outcome in outcomes(todo, load, work, workers, on_gpus):
            left = [shard.shard_id for shard in shards]
            for row in outcome.rows:
                left.remove(row["shard_id"])
                advance(names[row["shard_id"]])
                yield row
            if outcome.is_input_error:
                raise InputError(str(outcome.error))
            if outcome.error:
                failed.update((names[shard_id], outcome.error) for shard_id in left)


def outcomes(
    todo: Sequence[PlannedShard],
    load: Callable[[str], Any],
    work: Callable[[Any, Sequence[PlannedShard]], Outcome],
    workers: int | None,
    on_gpus: bool = False,
) -> Iterator[tuple[list[PlannedShard], Outcome]]:
    """Runs tasks; of one that fails, what it left undone is tried again, shard by shard.

    Args:
        todo: The shards to work on, all of a scene or one in a task.
        load: Called in the driver with the name of a scene; returns what ``work`` needs, small enough to send.
        work: Called in a worker with that and the shards of a task; can be sent to it, once for all tasks.
        workers: As in ``run``.
        on_gpus: As in ``Job``.
    """
    if not todo:
        return
    if workers == 0:
        load = functools.lru_cache(1)(load)
        queue = _tasks(todo, 0)
        while queue:
            shards, tries = queue.pop()
            yield from _settle(queue, shards, tries, work(load(shards[0].scene), shards))
        return
    ray = start_ray(workers)
    try:
        yield from _outcomes_of_ray(
            ray, todo, load, _GpuWorkers(ray, work) if on_gpus else _Workers(ray, work, workers)
        )
    finally:
        ray.shutdown()  # ends what is still running


def _tasks(todo: Sequence[PlannedShard], workers: int) -> list[Task]:
    """Groups shards into tasks, the first one last: a scene's cameras, unless that leaves workers without work."""
    scenes: dict[str, list[PlannedShard]] = {}
    for shard in todo:
        scenes.setdefault(shard.scene, []).append(shard)
    groups = list(scenes.values()) if len(scenes) >= workers else [[shard] for shard in todo]
    return [(shards, 1) for shards in reversed(groups)]


def _settle(
    queue: list[Task], shards: list[PlannedShard], tries: int, outcome: Outcome
) -> Iterator[tuple[list[PlannedShard], Outcome]]:
    """Hands on what a task came to; while it has tries left, each shard that it left undone becomes a task."""
    finished = {row["shard_id"] for row in outcome.rows}
    if outcome.error and not outcome.is_input_error and tries < TRIES:
        say(f"retry {tries} of {TRIES - 1}: {shards[0].scene}: {outcome.error}")
        queue += [([shard], tries + 1) for shard in reversed(shards) if shard.shard_id not in finished]
        outcome = Outcome(outcome.rows)
    yield shards, outcome


def _outcomes_of_ray(
    ray: Any, todo: Sequence[PlannedShard], load: Callable[[str], Any], workers: "_Workers | _GpuWorkers"
) -> Iterator[tuple[list[PlannedShard], Outcome]]:
    """Keeps workers busy; see ``outcomes``."""
    put = functools.lru_cache(1)(lambda scene: ray.put(load(scene)))  # tasks of one scene follow each other
    queue = _tasks(todo, workers.n)
    running: dict[Any, tuple[list[PlannedShard], int, Any]] = {}
    while queue or running:
        while queue and len(running) < workers.most_tasks:
            shards, tries = queue.pop()
            result, worker = workers.send(put(shards[0].scene), shards)
            running[result] = shards, tries, worker
        (done,), _ = ray.wait(list(running), num_returns=1)
        shards, tries, worker = running.pop(done)
        try:
            outcome = ray.get(done)
            workers.take_back(worker)
        except ray.exceptions.RayError as error:  # the worker died, or could not unpack what it was sent
            lines = str(error).strip().splitlines()
            reason = lines[-1 if isinstance(error, ray.exceptions.RayTaskError) else 0]
            outcome = Outcome([], f"{type(error).__name__}: {reason}")
        yield from _settle(queue, shards, tries, outcome)


class _Workers:
    """Ray's own processes, one per core, at most two tasks each: one is at hand when the other ends."""

    def __init__(self, ray: Any, work: Any, workers: int | None):
        self.n = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        self.most_tasks = 2 * self.n
        self._call = ray.remote(num_cpus=1, max_retries=0)(_call)  # a task that kills its worker is tried again above
        self._work = ray.put(work)

    def send(self, loaded: Any, shards: list[PlannedShard]) -> tuple[Any, None]:
        return self._call.remote([self._work], loaded, shards), None

    def take_back(self, worker: None) -> None:
        pass


class _GpuWorkers:
    """An actor per GPU, which keeps what it has put there; one that dies is replaced when the next task needs it."""

    def __init__(self, ray: Any, work: Any):
        self.n = self.most_tasks = int(ray.cluster_resources()["GPU"])
        self._start = functools.partial(ray.remote(num_cpus=0, num_gpus=1)(_Actor).remote, ray.put(work))
        self._idle: list[Any] = []

    def send(self, loaded: Any, shards: list[PlannedShard]) -> tuple[Any, Any]:
        worker = self._idle.pop() if self._idle else self._start()
        return worker.call.remote(loaded, shards), worker

    def take_back(self, worker: Any) -> None:
        self._idle.append(worker)


class _Actor:
    def __init__(self, work: Any):
        self._work = work

    def call(self, loaded: Any, shards: Sequence[PlannedShard]) -> Outcome:
        return self._work(loaded, shards)


def _call(work_ref: Sequence[Any], loaded: Any, shards: Sequence[PlannedShard]) -> Outcome:
    return _received(work_ref[0])(loaded, shards)


@functools.lru_cache(1)
def _received(work_ref: Any) -> Callable[[Any, Sequence[PlannedShard]], Outcome]:
    """The work of a job, unpacked once per process: it may hold an open model."""
    import ray

    return ray.get(work_ref)


def start_ray(workers: int | None) -> Any:
    """Connects to the cluster that RAY_ADDRESS names, as it does in a Ray job, or starts a Ray of its own.

    A cluster that merely runs on this machine is not joined: it may be somebody else's, or a stale address that hangs.
    """
    address = os.environ.get("RAY_ADDRESS") or "local"
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        # Who may write to a Ray may run programs. With the first line, which Ray means for desktops, its servers listen
        # to this machine alone; of its users, those who are not this one lack the token that Ray then asks for.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # read when Ray is imported
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ.pop("RAY_AUTH_MODE", None)
        import ray

        ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
        return ray
    import ray

    try:
        ray.init(address=address, **quiet)
    except (ValueError, ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"RAY_ADDRESS={address}: {reason} (unset it to use a Ray of this machine)") from error
    return ray
