"""Makes depth labels from LiDAR sweeps and commits them as a catalog version.

Run as ``python pipelines/accumulate.py``, under ``ray job submit --working-dir .``, or by ``ray submit cluster.yaml``;
the last copies this one file, so it imports installed packages only.
"""

import dataclasses
import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal, NamedTuple

import numpy as np
import tyro

from catalog.manifest import Row
from dense_depth import InputError
from dense_depth.accumulation import AccumulationConfig, Reason, SceneCloud
from dense_depth.datasets import DatasetConfig, PoseSource, open_dataset
from dense_depth.datasets.scene import CameraFrame, Scene
from dense_depth.label import Label, Source, label_camera
from dense_depth.options import check_options, option_name
from dense_depth.pose_store import chosen, posed
from dense_depth.poses import ALGORITHM as POSES_ALGORITHM
from dense_depth.poses import PoseReport
from dense_depth.projection import LabelStats, VisibilityConfig, new_keys, render_label
from dense_depth.shards import ShardContent
from dense_depth.store import absolute, open_store
from dense_depth.sweeps import scene_sha256, survey
from pipelines.console import JobOptions, run_command
from pipelines.poses import PoseStep
from pipelines.runner import Job, Made, PlannedShard, run_job

ALGORITHM = 2  # raised when the labels of the same input change: older shards are then made again
BYTES_PER_LABELLED_PIXEL = 1.85  # of a sparse label on disk
# Share of the labelled pixels of a shard that the visibility test hides, as it is by default. Where the poses are right
# it hides 13 % of KITTI with SLAM's poses and 19 % with GPS (25 % of the worst frame, 22 % with three seconds of sweeps
# each way), up to 15 % of PandaSet and up to 23 % of the generated city. With poses stretched by 0.5 or 1.5 it hides
# 31 % and 37 %, late by five frames 38 %, inverted or transposed 57 %, with swapped axes 78 %. Of smaller labels it
# hides less, whatever the poses.
SUSPICIOUS_HIDDEN, REFUSED_HIDDEN = 0.3, 0.5


@dataclass(frozen=True)
class Arguments(JobOptions):
    """Makes depth labels from LiDAR sweeps.

    Attributes:
        data: The dataset.
        store: Folder or URL of the label store; made if absent.
        scenes: Names of scenes or splits; all scenes if none is given.
        kind: "accumulated", or "lidar" for the single-sweep baseline as BEVDepth projects it: the key sweep alone,
            ego motion only, no visibility test.
        scale: Size of the labels as a fraction of the image size.
        accumulation: Which points make a label, and how they are moved.
        visibility: Which points other surfaces hide.
        min_sweeps: Fewest sweeps a label may be made of; fewer is an input error.
    """

    data: Annotated[DatasetConfig, tyro.conf.arg(name="")]
    store: str
    scenes: tuple[str, ...] = ()
    kind: Literal["accumulated", "lidar"] = "accumulated"
    scale: float = 1.0
    accumulation: Annotated[AccumulationConfig, tyro.conf.arg(name="")] = field(default_factory=AccumulationConfig)
    visibility: Annotated[VisibilityConfig, tyro.conf.arg(name="")] = field(default_factory=VisibilityConfig)
    min_sweeps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_options(self, {"min_sweeps": 1}, above={"scale": 0}, most={"scale": 1})


@dataclass(frozen=True)
class Recipe:
    """All that determines a label apart from the data."""

    kind: Literal["accumulated", "lidar"]
    scale: float
    accumulation: AccumulationConfig
    visibility: VisibilityConfig
    min_sweeps: int
    poses: PoseSource = "dataset"
    deskew: Literal["auto", "on", "off"] = "auto"
    algorithm: int = ALGORITHM
    poses_algorithm: int = POSES_ALGORITHM


class Loaded(NamedTuple):
    """What a worker is sent of a scene.

    Attributes:
        scene: With the poses that the labels are made with.
        recipe: How.
        poses: How the poses came about; None for the dataset's own.
    """

    scene: Scene
    recipe: Recipe
    poses: PoseReport | None = None


def main() -> int:
    """Entry point; returns the exit status."""
    return run_command("accumulate", Arguments, lambda arguments: run_job(arguments, plan))


def recipe_of(arguments: Arguments) -> Recipe:
    """The recipe that the arguments ask for.

    Raises:
        InputError: An option does not go with the kind.
    """
    accumulation, visibility = arguments.accumulation, arguments.visibility
    if arguments.kind == "lidar":
        fixed = {"past_s": 0.0, "future_s": 0.0, "dynamics": "none"}
        for config, default in ((accumulation, AccumulationConfig()), (visibility, VisibilityConfig())):
            for name in (*fixed, "visibility"):
                if getattr(config, name, None) != getattr(default, name, None):
                    raise InputError(f"{option_name(name)} does not go with --kind lidar, which fixes it")
        accumulation = dataclasses.replace(accumulation, **fixed)  # type: ignore[arg-type]
        visibility = dataclasses.replace(visibility, visibility="none")
    poses = arguments.data.pose_source
    if arguments.kind == "lidar" and poses == "auto":
        poses = "dataset"  # as BEVDepth has it
    given = (arguments.kind, arguments.scale, accumulation, visibility, arguments.min_sweeps)
    return Recipe(*given, poses, arguments.data.deskew)


def plan(arguments: Arguments) -> tuple[Job, list[str]]:
    """Reads the tables, checks every sweep file's size, and lists the shards to make.

    Returns:
        The job, and notes about the input.

    Raises:
        InputError: An option, a table or a sweep file cannot be used.
    """
    recipe = recipe_of(arguments)
    data, dataset = arguments.data, open_dataset(arguments.data)
    shards: list[PlannedShard] = []
    notes: list[str] = []
    scene_names: list[str] = []
    store = absolute(arguments.store)
    step = PoseStep(store, recipe.poses, lambda name: next(dataset.scenes([name])))
    for scene in dataset.scenes(arguments.scenes):
        scene_names.append(scene.name)
        notes += scene.notes
        n_points, dropped = survey(scene.sweeps, recipe.accumulation.bad_sweeps == "drop")
        notes += [f"{scene.name}: dropped: {error}" for error in dropped.values()]
        scene_digest = repr(recipe).encode() + scene_sha256(scene, n_points)
        if chosen(scene, recipe.poses) != "dataset":
            scene_digest += step.plan(scene).encode()
        for camera in scene.cameras:
            frames = scene.frames_of(camera)
            shards.append(
                PlannedShard(
                    shard_id=_shard_id(scene_digest, scene, frames),
                    scene=scene.name,
                    camera=camera,
                    n_labels=len(frames),
                    estimated_bytes=_estimate_bytes(scene, frames, sum(n_points), recipe),
                )
            )
    if not shards:
        raise InputError(f"{data.dataroot}: no camera frames in the scenes asked for; nothing to label")
    job = Job(
        operation="accumulate",
        store=store,
        recipe=dataclasses.asdict(recipe),
        inputs={"dataset": data.dataset, "dataset_version": data.version, "scenes": scene_names},
        shards=shards,
        load=lambda name: _load(step, name, recipe),
        make=make_labels,
        tag=arguments.tag,
        check=check_hidden if recipe.visibility == VisibilityConfig() else None,  # others hide more or less
        prepare=step.run if step.paths else None,
    )
    return job, notes


def _load(step: PoseStep, name: str, recipe: Recipe) -> Loaded:
    scene = step.load(name)
    if chosen(scene, recipe.poses) == "dataset":
        return Loaded(scene, recipe)
    scene, report = posed(scene, recipe.poses, open_store(step.store))
    return Loaded(scene, recipe, report)


def check_hidden(row: Row) -> str | None:
    """A note if the visibility test hid so much of a shard that its poses may be wrong.

    Raises:
        InputError: It hid so much that they are.
    """
    hidden = row["quality"]["hidden_fraction"]
    if hidden is None or hidden <= SUSPICIOUS_HIDDEN:
        return None
    found = f"{row['scene_token']} {row['camera']}: the visibility test hid {100 * hidden:.0f} % of the labelled pixels"
    if hidden <= REFUSED_HIDDEN:
        return f"{found}; are the poses right?"
    raise InputError(
        f"{found}, more than {100 * REFUSED_HIDDEN:.0f} %: its poses or its calibration are wrong, inverted perhaps; "
        "--visibility none makes the labels all the same"
    )


def make_labels(loaded: Loaded, shards: Sequence[PlannedShard]) -> Iterator[Made]:
    """Makes the labels of a scene, camera by camera; its sweeps are read and cut once."""
    scene, recipe, report = loaded
    poses = report.figures() if report else {}
    frames_of = {shard.camera: scene.frames_of(shard.camera) for shard in shards}
    cloud = SceneCloud(scene, [frame for frames in frames_of.values() for frame in frames], recipe.accumulation)
    tracks = cloud.motion.figures() if recipe.accumulation.refine else {}
    for shard in shards:
        frames = frames_of[shard.camera]
        height, width, _ = label_camera(frames[0], recipe.scale)
        keys = new_keys(height, width)
        labels, stats = [], []
        for frame in frames:
            *size, K = label_camera(frame, recipe.scale)
            if size != [height, width]:
                raise InputError(f"{frame.path}: {frame.width}x{frame.height} pixels, unlike {frames[0].path.name}")
            label, stat = render_label(cloud, frame, K, recipe.visibility, keys)
            labels.append(label)
            stats.append(stat)
            if stat.n_sweeps < recipe.min_sweeps:
                raise InputError(
                    f"{frame.sample_token} {frame.camera}: {stat.n_sweeps} sweeps, --min-sweeps asks for "
                    f"{recipe.min_sweeps}; widen --past-s and --future-s or lower it"
                )
        dropped = cloud.dropped_of(frames)
        content = ShardContent(
            kind=recipe.kind,
            dataset=scene.dataset,
            scene_token=scene.token,
            camera=shard.camera,
            labels=tuple(labels),
            n_sweeps=tuple(stat.n_sweeps for stat in stats),
            attributes=({"dropped_sweeps": sorted(dropped)} if dropped else {})
            | ({"poses": {"source": chosen(scene, recipe.poses), **poses}} if report else {}),
        )
        quality = (
            _quality(labels, stats, cloud.count_reasons(frames))
            | {"dropped_sweeps": float(len(dropped))}
            | poses
            | tracks
        )
        yield Made(shard.shard_id, content, quality)


def _quality(labels: Sequence[Label], stats: Sequence[LabelStats], reasons: np.ndarray) -> dict[str, float | None]:
    """The figures of a manifest row: what the labels are made of, and what was left out and why."""
    pixels = np.sum([np.bincount(label.points().source, minlength=len(Source)) for label in labels], axis=0)
    labelled = max(int(pixels.sum()), 1)
    hidden = sum(stat.n_hidden for stat in stats)
    return {
        "n_points": float(sum(stat.n_points for stat in stats)),
        "key_fraction": pixels[Source.KEY_SWEEP] / labelled,
        "static_fraction": pixels[Source.STATIC] / labelled,
        "moving_fraction": pixels[Source.MOVING] / labelled,
        "hidden_fraction": hidden / (labelled + hidden),
        "dropped_unknown_pose": float(sum(stat.n_unknown_pose for stat in stats)),
        "dropped_moving": float(reasons[Reason.DROPPED_MOVING]),
        "behind_dropped": float(sum(stat.n_behind_dropped for stat in stats)),
        "dropped_ego": float(reasons[Reason.EGO]),
        "dropped_range": float(reasons[Reason.RANGE]),
        "dropped_nonfinite": float(reasons[Reason.NONFINITE]),
    }


def _shard_id(scene_digest: bytes, scene: Scene, frames: Sequence[CameraFrame]) -> str:
    """A readable name that ends in a hash of all that determines the shard."""
    digest = hashlib.sha256(scene_digest)
    for frame in frames:
        digest.update(f"{frame.sample_token} {frame.timestamp_us} {frame.width} {frame.height}".encode())
        digest.update(f"{frame.key_sweep}".encode() + frame.K.tobytes() + frame.world_SE3_cam.tobytes())
    return f"{scene.token}.{frames[0].camera}.{digest.hexdigest()[:16]}"


def _estimate_bytes(scene: Scene, frames: Sequence[CameraFrame], n_points: int, recipe: Recipe) -> int:
    """Rough size of a shard on disk, from the number of points that can fall into its images."""
    span_s = (scene.sweeps[-1].timestamp_us - scene.sweeps[0].timestamp_us) / 1e6
    period_s = span_s / max(len(scene.sweeps) - 1, 1)
    window_s = recipe.accumulation.past_s + recipe.accumulation.future_s
    in_window = min(1 + window_s / period_s, len(scene.sweeps)) if period_s else 1
    height, width, _ = label_camera(frames[0], recipe.scale)
    pixels = height * width
    # Every seventh point of a revolution falls into a camera of 55 degrees; points that share a pixel count once.
    labelled = pixels * (1 - np.exp(-n_points / len(scene.sweeps) * in_window / 7 / pixels))
    return round(len(frames) * BYTES_PER_LABELLED_PIXEL * labelled)


if __name__ == "__main__":
    # The installed module, so that workers import its classes by name.
    from pipelines.accumulate import main as installed_main

    sys.exit(installed_main())
