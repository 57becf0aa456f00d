"""Training samples for depth completion: labels with a part hidden, which is what the network has to predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from catalog import Catalog, Version
from dense_depth import InputError
from dense_depth.datasets import READERS, DatasetConfig, open_dataset
from dense_depth.datasets.scene import CameraFrame
from dense_depth.datasets.truth import open_truth
from dense_depth.geometry import SE3, invert
from dense_depth.images import read_image
from dense_depth.quality.truth import footprints
from training.completion.hide import HideConfig, Sample, hide_part
from training.completion.view import Frame, ViewConfig, augment

KEYS = ("dataset", "dataroot", "store", "ref", "version", "scenes", "truth", "poses", "repeat")


@dataclass(frozen=True)
class Data:
    """A dataset and labels of it to train on.

    Attributes:
        of: The dataset.
        store: Folder or URL of the label store.
        ref: The version: number, tag or "latest". It must have accumulated labels; if it has labels of kind lidar too,
            these are what the network sees when it is to complete a single sweep, points seen through surfaces and all.
        scenes: Names of scenes or splits, with a + between; all scenes with labels if none is given.
        truth: Learn from exact depth, which generated datasets have.
        repeat: Show each frame so many times as often as one of a dataset that says 1.
    """

    of: DatasetConfig
    store: str
    ref: str = "latest"
    scenes: tuple[str, ...] = ()
    truth: bool = False
    repeat: int = 1

    def told(self) -> dict[str, Any]:
        """What this is, without where it lies."""
        of = {"dataset": self.of.dataset, "version": self.of.version}
        return of | {name: getattr(self, name) for name in ("ref", "scenes", "truth", "repeat")}

    @classmethod
    def parse(cls, text: str, option: str) -> "Data":
        """From ``key=value,key=value`` of a command line.

        Raises:
            InputError: A key is unknown, or one that is needed is missing.
        """
        parts = [part.partition("=") for part in text.split(",")]
        values: dict[str, Any] = {name.strip(): value.strip() for name, _, value in parts}
        if unknown := values.keys() - set(KEYS):
            raise InputError(f"{option} {text}: {min(unknown)!r} is none of {', '.join(KEYS)}")
        if missing := {"dataset", "dataroot", "store"} - values.keys():
            raise InputError(f"{option} {text}: needs {min(missing)}=...")
        if values["dataset"] not in READERS:
            raise InputError(f"{option} {text}: dataset is one of {', '.join(READERS)}")
        if values.get("truth", "no") not in ("yes", "no"):
            raise InputError(f"{option} {text}: truth is yes or no")
        if not values.get("repeat", "1").isdigit() or int(values.get("repeat", "1")) < 1:
            raise InputError(f"{option} {text}: repeat is 1, 2, ...")
        return cls(
            DatasetConfig(
                values["dataset"],
                Path(values["dataroot"]),
                values.get("version"),
                poses=values.get("poses", "auto"),
            ),
            values["store"],
            values.get("ref", "latest"),
            tuple(filter(None, values.get("scenes", "").split("+"))),
            values.get("truth") == "yes",
            int(values.get("repeat", "1")),
        )


@dataclass(frozen=True)
class _Item:
    version: Version
    frame: CameraFrame
    lidar_SE3_cam: SE3  # the LiDAR at the time of the key sweep
    scene_token: str
    has_single: bool
    truth_root: Path | None


class CompletionData(Dataset[Sample]):
    """Camera frames that have an accumulated label. Index with (frame, draw): equal pairs give equal samples."""

    def __init__(self, data: Sequence[Data], view: ViewConfig, hide: HideConfig, seed: int = 0):
        """Lists the frames.

        Raises:
            InputError: A version, dataset or truth cannot be used.
        """
        self._view, self._hide, self._seed = view, hide, seed
        self.items = [item for one in data for item in _list(one) * one.repeat]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: tuple[int, int]) -> Sample:
        """Sample ``draw`` of frame ``frame``: the randomness depends on the draw and the seed alone."""
        which, draw = index
        item, rng = self.items[which], np.random.default_rng([self._seed, draw])
        maps = augment(read_frame(item), self._view, rng)
        return hide_part(maps, item.lidar_SE3_cam, self._hide, rng)


def _list(data: Data) -> list[_Item]:
    catalog = Catalog(data.store)
    version = catalog.version(data.ref)
    kinds: dict[tuple[str, str], set[str]] = {}
    for row in version.rows():
        for token in row["sample_tokens"] if row["dataset"] == data.of.dataset else ():
            kinds.setdefault((token, row["camera"]), set()).add(row["kind"])
    dataset = open_dataset(data.of)
    items = []
    for scene in dataset.scenes(data.scenes):
        pose_of = {sweep.token: sweep.world_SE3_sensor for sweep in scene.sweeps}
        for frame in scene.frames:
            has = kinds.get((frame.sample_token, frame.camera), set())
            if "accumulated" not in has:
                continue
            if data.truth:
                open_truth(data.of.dataroot, scene.token, frame.camera)  # now, not after hours
            items.append(
                _Item(
                    version,
                    frame,
                    invert(pose_of[frame.key_sweep]) @ frame.world_SE3_cam,
                    scene.token,
                    "lidar" in has,
                    data.of.dataroot if data.truth else None,
                )
            )
    if not items:
        raise InputError(
            f"{data.store} {data.ref}: no accumulated labels of the scenes asked for in {data.of.dataroot}; "
            "make them with pipelines/accumulate.py"
        )
    return items


def read_frame(item: _Item) -> Frame:
    """Reads a frame at the size of its label."""
    frame = item.frame
    label = item.version.label_of(frame, "accumulated")
    single = item.version.label_of(frame, "lidar") if item.has_single else None
    height, width = label.height, label.width
    if single and (single.height, single.width) != (height, width):
        raise InputError(f"{frame.sample_token} {frame.camera}: its lidar label has another size than the accumulated")
    truth_m = None
    if item.truth_root:
        truth = open_truth(item.truth_root, item.scene_token, frame.camera)
        native_m = truth.depth_m[truth.sample_tokens.index(frame.sample_token)]
        rows, columns = footprints(height, native_m.shape[0])[:, 2], footprints(width, native_m.shape[1])[:, 2]
        truth_m = native_m[np.ix_(rows, columns)]
    return Frame(read_image(frame, height, width), label, single, truth_m)
