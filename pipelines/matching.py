"""Which camera frames of a dataset the labels of a version belong to."""

from collections.abc import Sequence
from typing import NamedTuple

from catalog import Version
from catalog.manifest import Row
from dense_depth import InputError
from dense_depth.datasets import DatasetConfig, open_dataset
from dense_depth.datasets.scene import CameraFrame


class Matched(NamedTuple):
    """Rows of a version with the frames of a dataset.

    Attributes:
        rows: The rows, each with the camera frame of each of its labels.
        scene_names: Name of each scene of the dataset, by token.
        notes: Lines for the user.
    """

    rows: list[tuple[Row, list[CameraFrame]]]
    scene_names: dict[str, str]
    notes: list[str]


def frames_of_rows(version: Version, rows: Sequence[Row], data: DatasetConfig, scenes: Sequence[str] = ()) -> Matched:
    """Finds the camera frame of every label.

    Args:
        version: The version.
        rows: Its rows that are asked for.
        data: What the labels were made from.
        scenes: Names of scenes or splits; only rows of these. All when empty.

    Raises:
        InputError: The dataset cannot be read, no row is left, or a label is of a sample that it does not have.
    """
    names: dict[str, str] = {}
    frames: dict[tuple[str, str], dict[str, CameraFrame]] = {}
    for scene in open_dataset(data).scenes(scenes):
        names[scene.token] = scene.name
        for frame in scene.frames:
            frames.setdefault((scene.token, frame.camera), {})[frame.sample_token] = frame
    if scenes:
        rows = [row for row in rows if row["scene_token"] in names]
    if not rows:
        raise InputError(f"version {version.number}: no labels of the scenes and cameras asked for")
    matched = []
    for row in rows:
        there = frames.get((row["scene_token"], row["camera"]), {})
        if missing := [token for token in row["sample_tokens"] if token not in there]:
            raise InputError(
                f"version {version.number}, scene {row['scene_token']}, {row['camera']}: sample {missing[0]} is not in "
                f"{data.dataroot}; is it the dataset of these labels?"
            )
        matched.append((row, [there[token] for token in row["sample_tokens"]]))
    unlabelled = sum(map(len, frames.values())) - sum(row["n_frames"] for row in rows)
    notes = [f"{unlabelled} camera frames of the dataset have no label in this version"] if unlabelled else []
    return Matched(matched, names, notes)
