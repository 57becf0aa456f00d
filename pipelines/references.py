"""What labels are measured against, exact depth or their key sweep held out: which shards, and what workers do."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from catalog import Version
from catalog.manifest import Row
from dense_depth import InputError
from dense_depth.datasets import DatasetConfig
from dense_depth.datasets.scene import CameraFrame
from dense_depth.datasets.truth import read_truth
from dense_depth.quality.held_out import hold_out_key_sweep
from dense_depth.quality.truth import FrameTruth, compare_labels
from pipelines import accumulate
from pipelines.matching import frames_of_rows
from pipelines.runner import PlannedShard


@dataclass(frozen=True)
class Plan:
    """What to measure, and how.

    Attributes:
        rows: Manifest row of each shard, by shard id.
        shards: The same shards, as tasks.
        load: As in ``runner.outcomes``.
        measure: Called in a worker with what ``load`` returned; yields ``shard_id``, ``errors`` and, against truth,
            ``false_labels`` (their number by sample token) of each shard.
        notes: Lines for the user.
        draw: Draws a label by what ``load`` returned, camera and sample token; None where there is no truth.
    """

    rows: dict[str, Row]
    shards: Sequence[PlannedShard]
    load: Callable[[str], Any]
    measure: Callable[[Any, Sequence[PlannedShard]], Iterator[Row]]
    notes: Sequence[str] = ()
    draw: Callable[[Any, str, str], np.ndarray] | None = None


@dataclass(frozen=True)
class LabelledFrames:
    """The camera frames of a scene that have labels.

    Attributes:
        scene_token: The scene.
        scene_name: Its name.
        of_camera: The frames, by camera.
    """

    scene_token: str
    scene_name: str
    of_camera: dict[str, list[CameraFrame]] = field(default_factory=dict)


@dataclass(frozen=True)
class AgainstTruth:
    """Compares labels with the exact depth of a generated dataset.

    Attributes:
        version: Has the labels.
        kind: Their kind.
        dataroot: Where the truth is.
        crop_height: So many rows at the bottom of each label; all when None.
    """

    version: Version
    kind: str
    dataroot: Path
    crop_height: int | None

    def __call__(self, labelled: LabelledFrames, shards: Sequence[PlannedShard]) -> Iterator[Row]:
        """Measures shards of a scene: see ``Plan.measure``."""
        for shard in shards:
            truth = read_truth(self.dataroot, labelled.scene_token, shard.camera)
            frames = labelled.of_camera[shard.camera]
            errors, false_labels = compare_labels(self.version, self.kind, frames, truth, self.crop_height)
            yield {"shard_id": shard.shard_id, "errors": errors, "false_labels": false_labels}

    def draw(self, labelled: LabelledFrames, camera: str, sample_token: str) -> np.ndarray:
        """A label beside its image and its truth, BGR."""
        from dense_depth.quality import pictures

        frame = next(frame for frame in labelled.of_camera[camera] if frame.sample_token == sample_token)
        shown = FrameTruth.read(read_truth(self.dataroot, labelled.scene_token, camera), sample_token)
        title = f"{labelled.scene_name} {camera} {sample_token[:12]}"
        return pictures.draw(frame, self.version.label_of(frame, self.kind), shown, title, self.crop_height)


def against_key_sweep(loaded: accumulate.Loaded, shards: Sequence[PlannedShard]) -> Iterator[Row]:
    """Makes the labels of shards again without their key sweep: see ``Plan.measure``."""
    scene, recipe, _ = loaded
    cameras = [shard.camera for shard in shards]
    of_cameras = hold_out_key_sweep(scene, cameras, recipe.accumulation, recipe.visibility, recipe.scale)
    for shard, errors in zip(shards, of_cameras):
        yield {"shard_id": shard.shard_id, "errors": errors}


def plan_truth(
    version: Version, rows: Sequence[Row], data: DatasetConfig, scenes: Sequence[str], crop_height: int | None
) -> Plan:
    """To compare labels with the exact depth of a generated dataset.

    Args:
        version: The version.
        rows: Its rows that may be measured, of one kind.
        data: What the labels were made from, with its truth.
        scenes: Names of scenes or splits to measure; all when empty.
        crop_height: So many rows at the bottom of each label; all when None.

    Raises:
        InputError: A label is not of this dataset, has too few rows, or there is no truth for it.
    """
    matched = frames_of_rows(version, rows, data, scenes)
    names, dataroot = matched.scene_names, data.dataroot.resolve()  # workers may stand elsewhere
    labelled: dict[str, LabelledFrames] = {}
    for row, frames in matched.rows:
        token, camera = row["scene_token"], row["camera"]
        if (crop_height or 0) > row["height"]:
            where = f"version {version.number}, scene {token}, {camera}"
            raise InputError(f"--crop-height {crop_height}: the labels of {where} have {row['height']} rows")
        read_truth(dataroot, token, camera)  # before the work, not after it
        labelled.setdefault(names[token], LabelledFrames(token, names[token])).of_camera[camera] = frames
    rows, against = [row for row, _ in matched.rows], AgainstTruth(version, rows[0]["kind"], dataroot, crop_height)
    return Plan(
        {row["shard_id"]: row for row in rows},
        [PlannedShard(r["shard_id"], names[r["scene_token"]], r["camera"], r["n_frames"], r["bytes"]) for r in rows],
        labelled.__getitem__,
        against,
        matched.notes,
        against.draw,
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
    return Plan({row["shard_id"]: row for row in rows}, shards, job.load, against_key_sweep, notes)
