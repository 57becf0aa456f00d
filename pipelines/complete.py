"""Completes depth labels with a network or a classical method and commits them as a catalog version.

Run as ``python pipelines/complete.py``, under ``ray job submit --working-dir .``, or by ``ray submit cluster.yaml``;
the last copies this one file, so it imports installed packages only.
"""

import dataclasses
import functools
import hashlib
import itertools
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from jaxtyping import UInt8

from catalog import Catalog, CommitConflict, Version
from catalog.manifest import Row, json_sha256
from dense_depth import InputError, __version__
from dense_depth.completion.fill import fill
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import CameraFrame
from dense_depth.images import read_image
from dense_depth.label import Label, Source, label_camera
from dense_depth.shards import ShardContent
from dense_depth.store import absolute
from pipelines.console import say
from pipelines.runner import (
    TRIES,
    Job,
    Made,
    Outcome,
    PlannedShard,
    attempt,
    failed,
    print_report,
    publish,
    run,
    run_tasks,
    start_ray,
    write_summary,
)

if TYPE_CHECKING:
    from dense_depth.completion.predict import Completer

BYTES_PER_PIXEL = 1.3  # of a completed label on disk; ip-basic on the demo takes 1.31
FRAMES_PER_TASK = 4  # some milliseconds of Ray per task, some megabytes per frame


@dataclass(frozen=True)
class Arguments:
    """Completes depth labels: fills the pixels that no sweep saw.

    Attributes:
        store: Folder or URL of the label store.
        ref: The version with the labels to complete: number, tag or "latest".
        data: The dataset that the labels were made from; of its cameras, those with labels.
        kind: Kind of the labels to complete.
        method: "network", or "ip-basic" for the classical method, which needs no checkpoint.
        checkpoint: Weights of the network; those that ship with the program if not given.
        scenes: Names of scenes or splits; all scenes with labels if none is given.
        scale: Size of the completed labels as a fraction of the image size.
        min_confidence: A completed pixel with less confidence gets no label.
        tag: Name for the version.
        workers: Worker processes; all cores of the machine or cluster if not given, 0 to work in this process
            without Ray. The network runs on every GPU that Ray has, else in the workers. RAY_ADDRESS names the
            cluster to use; without it the job starts a Ray of its own.
        dry_run: Say what would be made, and stop.
        summary: Write the final table as JSON to this file.
    """

    store: str
    ref: str
    data: Annotated[DatasetConfig, tyro.conf.arg(name="")]
    kind: Literal["accumulated", "lidar"] = "accumulated"
    method: Literal["network", "ip-basic"] = "network"
    checkpoint: Path | None = None
    scenes: tuple[str, ...] = ()
    scale: float = 0.5
    min_confidence: float = 0.5
    tag: str | None = None
    workers: int | None = None
    dry_run: bool = False
    summary: Path | None = None


@dataclass(frozen=True)
class Recipe:
    """All that determines a label apart from the data: equal bytes are promised on equal hardware only."""

    input_kind: Literal["accumulated", "lidar"]
    completer: Mapping[str, str]
    scale: float
    min_confidence: float
    hardware: str
    kind: str = "completed"
    code_version: str = __version__


@dataclass(frozen=True)
class Piece:
    """Some frames of a shard, with the labels to complete: what a task takes.

    Attributes:
        row: Manifest row of the shard that holds the labels.
        frames: Their camera frames.
    """

    row: Row
    frames: Sequence[CameraFrame]


def main() -> int:
    """Entry point; returns the exit status."""
    try:
        arguments = tyro.cli(Arguments, config=(tyro.conf.FlagCreatePairsOff,))
        job, notes = plan(arguments)
        report = run(job, workers=arguments.workers, dry_run=arguments.dry_run, notes=notes, carry_out=run_stages)
    except InputError as error:
        print(f"complete: {error}", file=sys.stderr)
        return 2
    except (OSError, CommitConflict) as error:  # a full disk, a store that others keep busy
        print(f"complete: {error}; nothing was committed, the same command continues", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("complete: interrupted; the same command continues where this one stopped", file=sys.stderr)
        return 130
    if not arguments.dry_run:
        print_report(report)
    if arguments.summary:
        write_summary(report, arguments.summary)
    return 1 if report.failed else 0


def plan(arguments: Arguments) -> tuple[Job, list[str]]:
    """Opens the version, the dataset and the method, hashes every image, and lists the shards to make.

    Returns:
        The job, and notes about the input.

    Raises:
        InputError: An option, the version, the dataset or the checkpoint cannot be used, or they do not go together.
    """
    _check(arguments)
    catalog = Catalog(absolute(arguments.store))
    version = catalog.version(arguments.ref)
    rows = version.rows_of(arguments.kind, arguments.data.dataset, arguments.data.cameras)
    scene_names, inputs, notes = _join(arguments, version, rows)

    from dense_depth.completion.predict import open_completer  # here, since torch takes its time

    checkpoint = arguments.checkpoint.resolve() if arguments.checkpoint else None
    open_model = partial(open_completer, arguments.method, checkpoint)
    identity = open_model("cpu").identity
    device, hardware = _place(arguments)
    recipe = Recipe(arguments.kind, identity, arguments.scale, arguments.min_confidence, hardware)

    frames = [frame for _, frames in inputs for frame in frames]
    say(f"complete: reading {len(frames)} images, to tell whether they change")
    with ThreadPoolExecutor(8) as pool:
        image_sha256 = dict(zip((frame.path for frame in frames), pool.map(_image_sha256, frames)))

    shards, pieces = [], {}
    for row, frames in inputs:
        shard_id = _shard_id(recipe, row, frames, image_sha256)
        height, width = _output_size(frames[0], row, recipe.scale)
        if (height, width) != label_camera(frames[0], recipe.scale)[:2]:
            notes.append(
                f"{row['camera']}: the labels keep their size of {width}x{height} pixels, less than --scale asks for"
            )
        shards.append(
            PlannedShard(
                shard_id=shard_id,
                scene=scene_names[row["scene_token"]],
                camera=row["camera"],
                n_labels=len(frames),
                estimated_bytes=round(len(frames) * height * width * BYTES_PER_PIXEL),
            )
        )
        starts = range(0, len(frames), FRAMES_PER_TASK)
        pieces[shard_id] = [Piece(row, frames[start : start + FRAMES_PER_TASK]) for start in starts]
    job = Job(
        operation="complete",
        store=version.store.url,
        recipe=dataclasses.asdict(recipe),
        inputs={
            "dataset": arguments.data.dataset,
            "dataset_version": arguments.data.version,
            "scenes": sorted({shard.scene for shard in shards}),
            "labels_version": version.number,
            "labels_manifest": version.manifest,
        },
        shards=shards,
        load=lambda scene: pieces,
        make=LabelMaker(version, recipe, device, open_model),
        tag=arguments.tag,
    )
    return job, list(dict.fromkeys(notes))


def _check(arguments: Arguments) -> None:
    """Refuses options that make no sense, before any work."""
    if arguments.workers is not None and arguments.workers < 0:
        raise InputError(f"--workers {arguments.workers}: must be zero or more")
    if not 0 < arguments.scale <= 1:
        raise InputError(f"--scale {arguments.scale}: must lie in (0, 1]")
    if not 0 <= arguments.min_confidence <= 1:
        raise InputError(f"--min-confidence {arguments.min_confidence}: must lie in [0, 1]")


def _join(
    arguments: Arguments, version: Version, rows: Sequence[Row]
) -> tuple[dict[str, str], list[tuple[Row, list[CameraFrame]]], list[str]]:
    """Finds the camera frames of the labels; returns scene names by token, rows with their frames, and notes."""
    dataset = open_dataset(arguments.data)
    names: dict[str, str] = {}
    frames_of: dict[tuple[str, str], dict[str, CameraFrame]] = {}
    for scene in dataset.scenes(arguments.scenes):
        names[scene.token] = scene.name
        for frame in scene.frames:
            frames_of.setdefault((scene.token, frame.camera), {})[frame.sample_token] = frame
    if arguments.scenes:
        rows = [row for row in rows if row["scene_token"] in names]
    if not rows:
        raise InputError(f"version {version.number}: no labels of the scenes and cameras asked for")
    joined = []
    for row in rows:
        there = frames_of.get((row["scene_token"], row["camera"]), {})
        if missing := [token for token in row["sample_tokens"] if token not in there]:
            raise InputError(
                f"version {version.number}, scene {row['scene_token']}, {row['camera']}: sample {missing[0]} is not in "
                f"{arguments.data.dataroot}; is it the dataset of these labels?"
            )
        frames = [there[token] for token in row["sample_tokens"]]
        for frame in frames:
            if (frame.width, frame.height) != (frames[0].width, frames[0].height):
                raise InputError(f"{frame.path}: {frame.width}x{frame.height} pixels, unlike {frames[0].path.name}")
        joined.append((row, frames))
    unlabelled = sum(map(len, frames_of.values())) - sum(len(frames) for _, frames in joined)
    notes = [f"{unlabelled} camera frames of the dataset have no label in this version"] if unlabelled else []
    return names, joined, notes


def _place(arguments: Arguments) -> tuple[str, str]:
    """The device that models run on, and the hardware behind it: of the cluster if there is one."""
    import torch

    wants_gpu = arguments.method == "network"
    if arguments.workers == 0 or os.environ.get("RAY_ADDRESS", "local") == "local":
        device = "cuda" if wants_gpu and torch.cuda.is_available() else "cpu"
        return device, describe_hardware(device)
    ray = start_ray(arguments.workers)
    try:
        device = "cuda" if wants_gpu and ray.cluster_resources().get("GPU") else "cpu"
        describe = ray.remote(num_cpus=device == "cpu", num_gpus=device == "cuda")(describe_hardware)
        return device, ray.get(describe.remote(device))
    finally:
        ray.shutdown()


def describe_hardware(device: str) -> str:
    """What numbers depend on beside the program: the GPU or the CPU with its instruction set, and torch."""
    import torch

    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        info = Path("/proc/cpuinfo")
        model = re.search(r"model name\s*:\s*(.+)", info.read_text() if info.exists() else "")
        name = f"{model[1] if model else platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return f"{name}, torch {torch.__version__}"


def _image_sha256(frame: CameraFrame) -> str:
    try:
        with frame.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{frame.path}: no such image; sample {frame.sample_token} needs it") from error


def _shard_id(recipe: Recipe, row: Row, frames: Sequence[CameraFrame], image_sha256: Mapping[Path, str]) -> str:
    """A readable name that ends in a hash of all that determines the shard."""
    digest = hashlib.sha256(f"{json_sha256(dataclasses.asdict(recipe))} {row['sha256']}".encode())
    for frame in frames:
        digest.update(f"{frame.sample_token} {frame.width} {frame.height} {image_sha256[frame.path]}".encode())
        digest.update(frame.K.tobytes())
    return f"{row['scene_token']}.{row['camera']}.{digest.hexdigest()[:16]}"


def _output_size(frame: CameraFrame, row: Row, scale: float) -> tuple[int, int]:
    """Height and width of the completed label: at most those of the label to complete."""
    height, width, _ = label_camera(frame, scale)
    if row["height"] < height or row["width"] < width:
        return row["height"], row["width"]
    return height, width


@dataclass(frozen=True)
class LabelMaker:
    """Makes completed labels, in steps that may run in different processes; a process opens the model once.

    Attributes:
        version: Has the labels to complete.
        recipe: How to make them.
        device: Where the model runs.
        open_model: Opens it there.
    """

    version: Version
    recipe: Recipe
    device: str
    open_model: "Callable[[str], Completer]"

    def __call__(self, pieces: Mapping[str, Sequence[Piece]], shards: Sequence[PlannedShard]) -> Iterator[Made]:
        """Makes shards one after the other in this process, from the pieces of each."""
        for shard in shards:
            labels = [label for piece in pieces[shard.shard_id] for label in self.complete(self.read(piece))]
            yield self.assemble(shard.shard_id, pieces[shard.shard_id][0].row, labels)

    def read(self, piece: Piece) -> list[tuple[UInt8[np.ndarray, "height width 3"], Label]]:
        """Images and labels of the frames, at the size of the completed labels.

        Raises:
            InputError: A label is damaged or not of its image, or an image cannot be decoded to its last pixel.
        """
        examples = []
        for frame in piece.frames:
            label = self.version.label_of(frame, self.recipe.input_kind)
            height, width = _output_size(frame, piece.row, self.recipe.scale)
            examples.append((read_image(frame, height, width), label.shrunk(height, width)))
        return examples

    def complete(self, examples: Sequence[tuple[UInt8[np.ndarray, "height width 3"], Label]]) -> list[Label]:
        """Completed labels."""
        complete, min_confidence = self._model.complete, self.recipe.min_confidence
        return [fill(label, complete(image, label), min_confidence) for image, label in examples]

    @functools.cached_property
    def _model(self) -> "Completer":
        import cv2
        import torch

        cv2.setNumThreads(1)  # a worker has one core, and sums must not depend on the number of threads
        torch.set_num_threads(1)
        model, hardware = self.open_model(self.device), describe_hardware(self.device)
        planned = self.recipe.completer, self.recipe.hardware
        if (model.identity, hardware) != planned:
            raise InputError(
                f"{platform.node()}: a version is made with one model on hardware of one kind; this node has "
                f"{model.identity} on {hardware}, the plan {planned[0]} on {planned[1]}"
            )
        return model

    def assemble(self, shard_id: str, row: Row, labels: Sequence[Label]) -> Made:
        """A shard of completed labels, made from the shard of a manifest row."""
        content = ShardContent(
            kind=self.recipe.kind,
            dataset=row["dataset"],
            scene_token=row["scene_token"],
            camera=row["camera"],
            labels=tuple(labels),
            n_sweeps=(row["n_sweeps_min"],) * len(labels),
        )
        return Made(shard_id, content, _quality(labels), (row["path"],))


def _quality(labels: Sequence[Label]) -> dict[str, float | None]:
    """The figures of a manifest row: what the labels are made of, and how sure the completed ones are."""
    source, confidence = (np.concatenate([label.points()[i] for label in labels]) for i in (3, 5))
    pixels = np.bincount(source, minlength=len(Source))
    labelled, completed = max(len(source), 1), pixels[Source.COMPLETED]
    return {
        "key_fraction": pixels[Source.KEY_SWEEP] / labelled,
        "static_fraction": pixels[Source.STATIC] / labelled,
        "moving_fraction": pixels[Source.MOVING] / labelled,
        "completed_fraction": completed / labelled,
        "mean_confidence": float(confidence[source == Source.COMPLETED].mean()) / 255 if completed else None,
    }


def run_stages(
    job: Job, todo: Sequence[PlannedShard], workers: int | None
) -> Iterator[tuple[list[PlannedShard], Outcome]]:
    """Carries out the job as a stream of Ray Data; in this process if there are to be no workers.

    A dead worker ends the stream, and the next one takes what is left, as long as each finishes something.
    """
    if workers == 0 or not todo:
        yield from run_tasks(job, todo, workers)
        return
    ray = start_ray(workers)
    try:
        left = {shard.shard_id: shard for shard in todo}
        tries = 0
        while left and tries < TRIES:
            before, errors, lost = len(left), {}, ""
            try:
                for shard_id, outcome in _one_pass(ray, job, list(left), workers):
                    if outcome.error and not outcome.is_input_error:
                        errors[shard_id] = outcome.error
                    else:
                        yield [left.pop(shard_id)], outcome
            except ray.exceptions.RayError as error:
                lost = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            tries = 0 if len(left) < before else tries + 1
            if left and tries < TRIES:
                say(f"retry: {len(left)} shards are left: {next(iter(errors.values()), lost)}")
        for shard_id, shard in left.items():
            yield [shard], Outcome([], errors.get(shard_id, lost))
    finally:
        ray.shutdown()  # ends what is still running


def _one_pass(ray: Any, job: Job, shard_ids: Sequence[str], workers: int | None) -> Iterator[tuple[str, Outcome]]:
    """Streams the pieces of shards through the stages, in order, and hands each full shard to a task that writes it."""
    maker, pieces = job.make, job.load("")
    assert isinstance(maker, LabelMaker)
    items = [{"shard_id": shard_id, "work": piece} for shard_id in shard_ids for piece in pieces[shard_id]]
    write = ray.remote(num_cpus=0, max_retries=TRIES, scheduling_strategy="SPREAD")(_write)
    sent_job = ray.put(job.for_workers())
    writing: dict[Any, str] = {}

    def written(most: int) -> Iterator[tuple[str, Outcome]]:
        while len(writing) > most:
            done, _ = ray.wait(list(writing), num_returns=1)
            yield writing.pop(done[0]), ray.get(done[0])

    stream = _stages(ray, maker, items, workers).iter_rows()
    for shard_id, rows in itertools.groupby(stream, key=lambda row: row["shard_id"]):
        labels: list[Label] = []
        failure: Outcome | None = None
        for row in rows:
            if isinstance(row["work"], Outcome):
                failure = failure or row["work"]
            else:
                labels += row["work"]
        if failure:
            yield shard_id, failure
        else:
            writing[write.remote(sent_job, shard_id, pieces[shard_id][0].row, labels)] = shard_id
        yield from written(1)  # one shard is written while the next is made
    yield from written(0)


def _stages(ray: Any, maker: LabelMaker, items: Sequence[dict[str, Any]], workers: int | None) -> Any:
    """The stream: on GPUs, processes read for actors that compute; else an actor per core does both in turn."""
    import logging

    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    resources = ray.cluster_resources()
    stream = ray.data.from_items(items, override_num_blocks=len(items))
    actors = max(1, workers or int(resources.get("CPU", 1)))
    share: dict[str, float] = {"num_cpus": 1}
    if maker.device == "cuda":
        stream = stream.map(_step, fn_args=(maker.read,))
        actors, share = int(resources["GPU"]), {"num_cpus": 0, "num_gpus": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of max_restarts; what Ray names instead has no limit
        return stream.map(
            _Actor,
            fn_constructor_args=(maker,),
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
            max_restarts=0,  # see run_stages: a piece that kills its worker must not do so for ever
            **share,
        )


class _Actor:
    """Holds an open model."""

    def __init__(self, maker: LabelMaker):
        self._maker = maker

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if isinstance(row["work"], Piece):
            row = _step(row, self._maker.read)
        return _step(row, self._maker.complete)


def _step(row: dict[str, Any], step: Callable[[Any], Any]) -> dict[str, Any]:
    """Takes the work of a row one step further; an error takes its place, and further steps leave it there."""
    if isinstance(row["work"], Outcome):
        return row
    try:
        return row | {"work": step(row["work"])}
    except Exception as error:
        return row | {"work": failed(error)}


def _write(job: Job, shard_id: str, row: Row, labels: Sequence[Label]) -> Outcome:
    """Writes a shard."""
    assert isinstance(job.make, LabelMaker)
    maker = job.make
    return attempt(publish(job, (maker.assemble(shard_id, row, frames) for frames in [labels])))


if __name__ == "__main__":
    # The installed module, so that workers import its classes by name.
    from pipelines.complete import main as installed_main

    sys.exit(installed_main())
