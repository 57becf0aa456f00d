"""Dataset readers: every format becomes the same frozen dataclasses.

A new format is one file with a reader, and one line in ``READERS``.
"""

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, Protocol, get_args

import tyro

from dense_depth import InputError
from dense_depth.datasets.scene import Box, CameraFrame, Keyframe, Scene, Sweep, Track

__all__ = [
    "READERS",
    "Box",
    "CameraFrame",
    "Dataset",
    "DatasetConfig",
    "Keyframe",
    "PoseSource",
    "Scene",
    "Sweep",
    "Track",
    "open_dataset",
]

# By --dataset; a reader's module is imported when its format is asked for.
READERS = {
    "nuscenes": "dense_depth.datasets.nuscenes:NuScenesDataset",
    "kitti-raw": "dense_depth.datasets.kitti:KittiRawDataset",
}


PoseSource = Literal["auto", "dataset", "repaired", "odometry"]
"""As the dataset has them, corrected by registration, or by registration alone; see ``dense_depth.poses``."""


@dataclass(frozen=True)
class DatasetConfig:
    """Which dataset to read.

    Attributes:
        dataset: Format of the dataset.
        dataroot: Folder of the dataset: it holds samples and the table folder (nuScenes), or the date folders (KITTI).
        version: nuScenes: table folder, such as v1.0-mini; v1.0-trainval if not given.
        cameras: Cameras to read; all if none is given.
        poses: Where the poses of the sweeps come from: "dataset"; "repaired", which corrects these by registering the
            sweeps to each other; "auto", which does so where they are rough (``Scene``); "odometry", by registration
            alone, for recordings without poses; or, kitti-raw, a file of 3x4 world_SE3_cam0rect rows in place of the
            GPS/IMU poses.
        tracks: kitti-raw: KITTI tracking label file in place of tracklet_labels.xml.
        deskew: Whether the points of a sweep are freed of the vehicle's motion during it: "auto" as the format needs
            it, "on" or "off".
    """

    dataset: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(READERS) + "}")]
    dataroot: Path
    version: str | None = None
    cameras: tuple[str, ...] = ()
    poses: Annotated[str, tyro.conf.arg(metavar="{auto,dataset,repaired,odometry,FILE}")] = "auto"
    tracks: Path | None = None
    deskew: Literal["auto", "on", "off"] = "auto"

    def compensated(self, stated: bool, timed: bool) -> bool:
        """Whether sweeps are taken to be free of the sensor's motion.

        Args:
            stated: What the format says.
            timed: Whether it tells when points were measured.

        Raises:
            InputError: Deskewing needs times of points, and there are none.
        """
        compensated = {"auto": stated, "on": False, "off": True}[self.deskew]
        if not compensated and not timed:
            raise InputError("--deskew: nobody knows when the points of these sweeps were measured; use --deskew off")
        return compensated

    @property
    def pose_source(self) -> PoseSource:
        """What is done about the poses that are read."""
        return "dataset" if self.poses_file else self.poses  # type: ignore[return-value]

    @property
    def poses_file(self) -> Path | None:
        """The file in place of the dataset's own poses, if there is one."""
        return None if self.poses in get_args(PoseSource) else Path(self.poses)


class Dataset(Protocol):
    """A dataset on disk, opened by ``Reader(config)``."""

    def __init__(self, config: DatasetConfig) -> None:
        """Opens the dataset; raises InputError when the folder or an option does not fit the format."""

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Names of all scenes."""

    def splits(self) -> dict[str, list[str]]:
        """Names of the scenes of each split that the format knows, whether they are here or not.

        Raises:
            InputError: The dataset's own file of splits is malformed.
        """

    def scenes(self, names: Sequence[str] = ()) -> Iterator[Scene]:
        """Reads the scenes with these names (or the scenes of a split with that name), or all of them.

        Raises:
            InputError: A name is unknown, a table row or file is missing, or a calibration is broken.
        """

    def write_poses(self, scenes: Sequence[Scene], out: Path) -> list[Path]:
        """Writes the poses of scenes that were read here and got others, as the format has them; returns the files.

        Raises:
            InputError: The format cannot hold them, or ``out`` cannot be written.
        """


def open_dataset(config: DatasetConfig) -> Dataset:
    """Opens a dataset by its format.

    Raises:
        InputError: The format is unknown, or the folder or an option does not fit it.
    """
    if config.dataset not in READERS:
        raise InputError(f"--dataset {config.dataset}: not known; use {' or '.join(READERS)}")
    if not config.dataroot.is_dir():
        raise InputError(f"{config.dataroot}: no such folder; pass the dataset's root as --dataroot")
    module, name = READERS[config.dataset].split(":")
    reader: type[Dataset] = getattr(importlib.import_module(module), name)
    return reader(replace(config, dataroot=config.dataroot.resolve()))  # workers may stand elsewhere
