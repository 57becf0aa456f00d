"""Completes depth labels with a network or a classical method and commits them as a catalog version.

Run as ``python pipelines/complete.py``, under ``ray job submit --working-dir .``, or by ``ray submit cluster.yaml``;
the last copies this one file, so it imports installed packages only.
"""

import dataclasses
import functools
import hashlib
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import UInt8

from catalog import Catalog, Version
from catalog.manifest import Row, json_sha256
from dense_depth import InputError
from dense_depth.completion.fill import fill
from dense_depth.datasets import DatasetConfig
from dense_depth.datasets.scene import CameraFrame
from dense_depth.images import read_image
from dense_depth.label import Label, Source, label_camera
from dense_depth.options import check_options
from dense_depth.shards import ShardContent
from dense_depth.store import absolute
from pipelines.console import JobOptions, run_command, say
from pipelines.matching import frames_of_rows
from pipelines.runner import Job, Made, PlannedShard, ahead, run_job, start_ray

if TYPE_CHECKING:
    from dense_depth.completion.predict import Completer

# Raised when the labels of the same input change, whatever the method: older shards are then made again. Each method
# has a number of its own beside it (``Completer.identity``).
ALGORITHM = 2
BYTES_PER_PIXEL = 0.75  # of a completed label on disk; the network on the demo takes 0.73
READERS = 8  # threads of a GPU worker that read images and labels; each holds some megabytes
COMPLETERS = 2  # threads that compute: one has its GPU while the other is between GPU and label


@dataclass(frozen=True)
class Arguments(JobOptions):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, {"min_confidence": 0}, above={"scale": 0}, most={"scale": 1, "min_confidence": 1})


@dataclass(frozen=True)
class Recipe:
    """All that determines a label apart from the data: equal bytes are promised on equal hardware only."""

    input_kind: Literal["accumulated", "lidar"]
    completer: Mapping[str, str | int]
    scale: float
    min_confidence: float
    hardware: str
    kind: str = "completed"
    algorithm: int = ALGORITHM


class Given(NamedTuple):
    """What a shard is made from.

    Attributes:
        row: Manifest row of the shard with the labels to complete.
        frames: Their camera frames.
    """

    row: Row
    frames: Sequence[CameraFrame]


def main() -> int:
    """Entry point; returns the exit status."""
    return run_command("complete", Arguments, lambda arguments: run_job(arguments, plan))


def plan(arguments: Arguments) -> tuple[Job, list[str]]:
    """Opens the version, the dataset and the method, hashes every image, and lists the shards to make.

    Returns:
        The job, and notes about the input.

    Raises:
        InputError: An option, the version, the dataset or the checkpoint cannot be used, or they do not go together.
    """
    version = Catalog(absolute(arguments.store)).version(arguments.ref)
    rows = version.rows_of(arguments.kind, arguments.data.dataset, arguments.data.cameras)
    matched = frames_of_rows(version, rows, arguments.data, arguments.scenes)
    givens, notes = [Given(*pair) for pair in matched.rows], list(matched.notes)
    for given in givens:
        _check_sizes(given.frames)

    from dense_depth.completion.predict import open_completer  # here, since torch takes its time

    checkpoint = arguments.checkpoint.resolve() if arguments.checkpoint else None
    open_model = partial(open_completer, arguments.method, checkpoint)
    identity = open_model("cpu").identity
    device, hardware = _place(arguments)
    on_gpus = device == "cuda"
    recipe = Recipe(arguments.kind, identity, arguments.scale, arguments.min_confidence, hardware)

    image_sha256 = _hash_images([frame for given in givens for frame in given.frames])
    shards: list[PlannedShard] = []
    by_scene: dict[str, dict[str, Given]] = {}
    for given in givens:
        shard = _plan_shard(recipe, matched.scene_names[given.row["scene_token"]], given, image_sha256)
        shards.append(shard)
        by_scene.setdefault(shard.scene, {})[shard.shard_id] = given
        notes += _notes_on_size(recipe, given)
    job = Job(
        operation="complete",
        store=version.store.url,
        recipe=dataclasses.asdict(recipe),
        inputs={
            "dataset": arguments.data.dataset,
            "dataset_version": arguments.data.version,
            "scenes": sorted(by_scene),
            "labels_version": version.number,
            "labels_manifest": version.manifest,
        },
        shards=shards,
        load=by_scene.__getitem__,
        make=LabelMaker(version, recipe, device, open_model, *((READERS, COMPLETERS) if on_gpus else ())),
        tag=arguments.tag,
        on_gpus=on_gpus,
    )
    return job, list(dict.fromkeys(notes))


def _check_sizes(frames: Sequence[CameraFrame]) -> None:
    """Raises InputError unless the images of a shard are of one size."""
    for frame in frames:
        if (frame.width, frame.height) != (frames[0].width, frames[0].height):
            raise InputError(f"{frame.path}: {frame.width}x{frame.height} pixels, unlike {frames[0].path.name}")


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


def _hash_images(frames: Sequence[CameraFrame]) -> dict[Path, str]:
    say(f"complete: reading {len(frames)} images, to tell whether they change")
    with ThreadPoolExecutor(8) as pool:
        return dict(zip((frame.path for frame in frames), pool.map(_image_sha256, frames)))


def _image_sha256(frame: CameraFrame) -> str:
    try:
        with frame.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{frame.path}: no such image; sample {frame.sample_token} needs it") from error


def _plan_shard(recipe: Recipe, scene: str, given: Given, image_sha256: Mapping[Path, str]) -> PlannedShard:
    """The shard, under a readable name that ends in a hash of all that determines it."""
    row, frames = given
    digest = hashlib.sha256(f"{json_sha256(dataclasses.asdict(recipe))} {row['sha256']}".encode())
    for frame in frames:
        digest.update(f"{frame.sample_token} {frame.width} {frame.height} {image_sha256[frame.path]}".encode())
        digest.update(frame.K.tobytes())
    height, width = _output_size(frames[0], row, recipe.scale)
    return PlannedShard(
        shard_id=f"{row['scene_token']}.{row['camera']}.{digest.hexdigest()[:16]}",
        scene=scene,
        camera=row["camera"],
        n_labels=len(frames),
        estimated_bytes=round(len(frames) * height * width * BYTES_PER_PIXEL),
    )


def _output_size(frame: CameraFrame, row: Row, scale: float) -> tuple[int, int]:
    """Height and width of the completed label: at most those of the label to complete."""
    height, width, _ = label_camera(frame, scale)
    if row["height"] < height or row["width"] < width:
        return row["height"], row["width"]
    return height, width


def _notes_on_size(recipe: Recipe, given: Given) -> list[str]:
    height, width = _output_size(given.frames[0], given.row, recipe.scale)
    if (height, width) == label_camera(given.frames[0], recipe.scale)[:2]:
        return []
    return [f"{given.row['camera']}: the labels keep their size of {width}x{height} pixels, less than --scale asks for"]


@dataclass(frozen=True)
class LabelMaker:
    """Makes completed labels; sent to a process, it opens the model once.

    On a GPU threads read ahead of it. Reading processes beside the actor would need a core and a copy of every frame
    each; decoding, shrinking and unpacking all leave Python's lock.

    Attributes:
        version: Has the labels to complete.
        recipe: How to make them.
        device: Where the model runs.
        open_model: Opens it there.
        readers: Threads that read images and labels; 0 reads when it is needed.
        completers: Threads that compute; 0 computes in the thread that asks.
    """

    version: Version
    recipe: Recipe
    device: str
    open_model: "Callable[[str], Completer]"
    readers: int = 0
    completers: int = 0

    def __call__(self, loaded: Mapping[str, Given], shards: Sequence[PlannedShard]) -> Iterator[Made]:
        """Makes shards one after the other."""
        complete = partial(self._complete, self._model)  # opened before any thread asks for it
        givens = [loaded[shard.shard_id] for shard in shards]
        examples = ahead(self._read, ((given.row, frame) for given in givens for frame in given.frames), self.readers)
        labels = ahead(complete, examples, self.completers)
        for shard, given in zip(shards, givens):
            yield self._assemble(shard.shard_id, given, [next(labels) for _ in given.frames])

    def _read(self, wanted: tuple[Row, CameraFrame]) -> tuple[UInt8[np.ndarray, "height width 3"], Label]:
        """Image and label of a frame, at the size of the completed label.

        Raises:
            InputError: The label is damaged or not of its image, or the image cannot be decoded to its last pixel.
        """
        row, frame = wanted
        label = self.version.label_of(frame, self.recipe.input_kind)
        height, width = _output_size(frame, row, self.recipe.scale)
        return read_image(frame, height, width), label.shrunk(height, width)

    def _complete(self, model: "Completer", example: tuple[UInt8[np.ndarray, "height width 3"], Label]) -> Label:
        image, label = example
        return fill(label, model.complete(image, label), self.recipe.min_confidence)

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

    def _assemble(self, shard_id: str, given: Given, labels: Sequence[Label]) -> Made:
        n_sweeps = (
            self.version.n_sweeps(frame.sample_token, frame.camera, self.recipe.input_kind) for frame in given.frames
        )
        content = ShardContent(
            kind=self.recipe.kind,
            dataset=given.row["dataset"],
            scene_token=given.row["scene_token"],
            camera=given.row["camera"],
            labels=tuple(labels),
            n_sweeps=tuple(n_sweeps),
        )
        return Made(shard_id, content, _quality(labels), (given.row["path"],))


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


if __name__ == "__main__":
    # The installed module, so that workers import its classes by name.
    from pipelines.complete import main as installed_main

    sys.exit(installed_main())
