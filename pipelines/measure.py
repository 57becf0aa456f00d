"""Two ways to measure the labels of a version: against exact depth, and against their own key sweep, held out."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from catalog import Version
from catalog.manifest import Row
from dense_depth import InputError
from dense_depth.accumulation import SceneCloud
from dense_depth.datasets import Dataset
from dense_depth.datasets.scene import Scene
from dense_depth.datasets.truth import read_truth
from dense_depth.label import label_camera
from dense_depth.projection import VisibilityConfig, new_keys, render_label
from dense_depth.quality.errors import DepthErrors, FrameTruth, LabelErrors
from pipelines import accumulate
from pipelines.runner import PlannedShard


@dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    Attributes:
        rows: Manifest row of each shard, by shard id.
        shards: The same shards, as tasks.
        load: As in ``runner.outcomes``.
        measure: Called in a worker with what ``load`` returned; yields ``shard_id``, ``errors`` and ``false_labels``
            (their number by sample token, where pictures may be asked for) of each shard.
        notes: Lines for the user.
        picture: Draws a label of a scene, by camera and sample token; None where there is no truth.
    """

    rows: dict[str, Row]
    shards: Sequence[PlannedShard]
    load: Callable[[str], Any]
    measure: Callable[[Any, Sequence[PlannedShard]], Iterator[Row]]
    notes: Sequence[str] = ()
    picture: Callable[[Scene, str, str], np.ndarray] | None = None


def plan_truth(
    version: Version,
    rows: Sequence[Row],
    dataset: Dataset,
    dataroot: Path,
    scenes: Sequence[str],
    crop_height: int | None,
) -> Plan:
    """To compare labels with the exact depth of a generated dataset.

    Args:
        version: The version.
        rows: Its rows that may be measured.
        dataset: What the labels were made from.
        dataroot: Where that and its truth are.
        scenes: Names of scenes or splits to measure; all when empty.
        crop_height: So many rows at the bottom of each label; all when None.

    Raises:
        InputError: A label is not of this dataset, has too few rows, or there is no truth for it.
    """
    names, unlabelled = {}, 0
    tokens: dict[tuple[str, str], set[str]] = {}
    for scene in dataset.scenes(scenes):
        names[scene.token] = scene.name
        for frame in scene.frames:
            tokens.setdefault((scene.token, frame.camera), set()).add(frame.sample_token)
    if scenes:
        rows = [row for row in rows if row["scene_token"] in names]
    for row in rows:
        where = f"version {version.number}, scene {row['scene_token']}, {row['camera']}"
        there = tokens.pop((row["scene_token"], row["camera"]), set())
        if missing := [token for token in row["sample_tokens"] if token not in there]:
            raise InputError(f"{where}: sample {missing[0]} is not in {dataroot}; is it the dataset of these labels?")
        unlabelled += len(there) - row["n_frames"]
        if (crop_height or 0) > row["height"]:
            raise InputError(f"--crop-height {crop_height}: the labels of {where} have {row['height']} rows")
        read_truth(dataroot, row["scene_token"], row["camera"])  # before the work, not after it
    if not rows:
        raise InputError(f"version {version.number}: no labels of the scenes and cameras asked for")
    unlabelled += sum(len(frames) for frames in tokens.values())
    labelled = {(row["scene_token"], row["camera"]): {*row["sample_tokens"]} for row in rows}

    def load(name: str) -> Scene:
        scene = next(iter(dataset.scenes([name])))
        frames = (f for f in scene.frames if f.sample_token in labelled.get((scene.token, f.camera), ()))
        return replace(scene, sweeps=(), tracks=(), frames=tuple(frames))

    return Plan(
        {row["shard_id"]: row for row in rows},
        [PlannedShard(r["shard_id"], names[r["scene_token"]], r["camera"], r["n_frames"], r["bytes"]) for r in rows],
        load,
        partial(compare_with_truth, version, rows[0]["kind"], dataroot, crop_height),
        [f"{unlabelled} camera frames of the dataset have no label in this version"] if unlabelled else [],
        partial(picture_of, version, rows[0]["kind"], dataroot, crop_height),
    )


def plan_held_out(version: Version, rows: Sequence[Row], made_with: accumulate.Arguments) -> Plan:
    """To make accumulated labels again without their key sweep, and compare them on its pixels.

    Args:
        version: The version.
        rows: Its rows that may be measured.
        made_with: The arguments that would make the labels now. The ids of the shards tell whether they would.

    Raises:
        InputError: The labels were made from something else.
    """
    job, notes = accumulate.plan(made_with)
    planned = {shard.shard_id: shard for shard in job.shards}
    if made_with.scenes:
        places = {shard_id.rpartition(".")[0] for shard_id in planned}
        rows = [row for row in rows if f"{row['scene_token']}.{row['camera']}" in places]
    if not rows:
        raise InputError(f"version {version.number}: no labels of the scenes and cameras asked for")
    for row in rows:
        if row["shard_id"] not in planned:
            raise InputError(
                f"version {version.number}, scene {row['scene_token']}, {row['camera']}: these labels were not made "
                f"from {made_with.data.dataroot} as it is, with these poses and tracks, by this program"
            )
    shards = [planned[row["shard_id"]] for row in rows]
    return Plan({row["shard_id"]: row for row in rows}, shards, job.load, hold_out_key_sweep, notes)


def compare_with_truth(
    version: Version,
    kind: str,
    dataroot: Path,
    crop_height: int | None,
    scene: Scene,
    shards: Sequence[PlannedShard],
) -> Iterator[Row]:
    """Runs in a worker: measures shards of a scene against exact depth; see ``Plan.measure``."""
    for shard in shards:
        truth = read_truth(dataroot, scene.token, shard.camera)
        total, false_labels = LabelErrors(), {}
        for frame in scene.frames_of(shard.camera):
            label, shown = version.label_of(frame, kind), FrameTruth.read(truth, frame.sample_token)
            if shown.depth_m.shape != (frame.height, frame.width):
                size = "x".join(map(str, shown.depth_m.shape[::-1]))
                raise InputError(f"{frame.path}: {frame.width}x{frame.height} pixels, but its truth has {size}")
            errors = LabelErrors()
            errors.add(label.depth_m, label.source, shown, crop_height, label.confidence)
            false_labels[frame.sample_token] = errors.n_false()
            total = total + errors
        yield {"shard_id": shard.shard_id, "errors": total, "false_labels": false_labels}


def picture_of(
    version: Version, kind: str, dataroot: Path, crop_height: int | None, scene: Scene, camera: str, sample_token: str
) -> np.ndarray:
    """A label beside its image and its truth, BGR; see ``pictures.panels``."""
    import cv2

    from dense_depth.quality.pictures import panels

    frame = next(frame for frame in scene.frames_of(camera) if frame.sample_token == sample_token)
    image = cv2.imread(str(frame.path)) if frame.path.is_file() else None
    if image is None or image.shape[:2] != (frame.height, frame.width):
        raise InputError(f"{frame.path}: no image of {frame.width}x{frame.height} pixels")
    shown = FrameTruth.read(read_truth(dataroot, scene.token, camera), sample_token)
    title = f"{scene.name} {camera} {sample_token[:12]}"
    label = version.label_of(frame, kind)
    return panels(image, label.depth_m, shown.depth_m, title, crop_height, label.source, label.confidence)


def draw_pictures(plan: Plan, false_labels: dict[str, dict[str, int]], folder: Path, worst: int) -> list[str]:
    """Draws the labels with most false pixels, and of each camera the one with the median number.

    Args:
        plan: What was measured, with a way to draw it.
        false_labels: Their number by sample token, by shard id.
        folder: Where the pictures go; there already.
        worst: How many of the worst to draw; those without any are left out.

    Returns:
        The names of the files.
    """
    import cv2

    assert plan.picture
    labels = sorted(
        (-n_false, shard.scene, shard.camera, token)
        for shard in plan.shards
        for token, n_false in false_labels[shard.shard_id].items()
    )
    chosen = {f"worst-{i:02d}.png": label for i, label in enumerate(labels[:worst], start=1) if label[0]}
    for camera in sorted({shard.camera for shard in plan.shards}):
        of_camera = [label for label in labels if label[2] == camera]
        chosen[f"ordinary-{camera}.png"] = of_camera[len(of_camera) // 2]
    for name, (_, scene, camera, token) in chosen.items():
        if not cv2.imwrite(str(folder / name), plan.picture(plan.load(scene), camera, token)):
            raise OSError(f"{folder / name}: cannot be written")
    return list(chosen)


def draw_calibration(figures: dict[str, Any], folder: Path) -> str:
    """Draws what ``LabelErrors.calibration`` says into a folder; returns the name of the file."""
    import cv2

    from dense_depth.quality.pictures import calibration

    path = folder / "calibration.png"
    if not cv2.imwrite(str(path), calibration(figures)):
        raise OSError(f"{path}: cannot be written")
    return path.name


def hold_out_key_sweep(loaded: tuple[Scene, accumulate.Recipe], shards: Sequence[PlannedShard]) -> Iterator[Row]:
    """Runs in a worker: makes labels without their key sweep and compares them on its pixels; see ``Plan.measure``.

    The key sweep looks from almost the same place as the others, so this sees ghosts and pose errors, but hardly any
    see-through labels.
    """
    scene, recipe = loaded
    frames = [frame for shard in shards for frame in scene.frames_of(shard.camera)]
    cloud = SceneCloud(scene, frames, recipe.accumulation)
    alone = SceneCloud(scene, frames, replace(recipe.accumulation, past_s=0.0, future_s=0.0, dynamics="none"))
    as_seen = VisibilityConfig(visibility="none")
    for shard in shards:
        errors = DepthErrors()
        for frame in scene.frames_of(shard.camera):
            height, width, K = label_camera(frame, recipe.scale)
            keys = new_keys(height, width)
            reference, _ = render_label(alone, frame, K, as_seen, keys)
            label, _ = render_label(cloud, frame, K, recipe.visibility, keys, without=[frame.key_sweep])
            errors.add(label.depth_m, reference.depth_m)
        yield {"shard_id": shard.shard_id, "errors": errors}
