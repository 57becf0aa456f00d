"""Dataset readers: every format becomes the same frozen dataclasses."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from dense_depth import InputError
from dense_depth.datasets.scene import Box, CameraFrame, Scene, Sweep, Track

__all__ = ["Box", "CameraFrame", "Scene", "Sweep", "Track", "open_dataset"]

DatasetName = Literal["nuscenes", "kitti-raw"]


class Dataset(Protocol):
    """A dataset on disk."""

    @property
    def scene_names(self) -> tuple[str, ...]:
        """Names of all scenes."""

    def scenes(self, names: Sequence[str] = ()) -> Iterator[Scene]:
        """Reads the scenes with these names (or the scenes of a split with that name), or all of them.

        Raises:
            InputError: A name is unknown, a table row or file is missing, or a calibration is broken.
        """


def open_dataset(
    name: DatasetName,
    dataroot: str | Path,
    version: str | None = None,
    cameras: Sequence[str] = (),
    poses: str | Path | None = None,
    tracks: str | Path | None = None,
) -> Dataset:
    """Opens a dataset by its format.

    Args:
        name: ``nuscenes`` or ``kitti-raw``.
        dataroot: The folder that holds ``samples`` and the table folder (nuScenes), or the date folders (KITTI).
        version: Table folder of nuScenes, such as ``v1.0-mini``.
        cameras: Cameras to read; all when empty.
        poses: kitti-raw only: a file of 3x4 world_SE3_cam0rect rows, one per frame, used in place of OXTS.
        tracks: kitti-raw only: a KITTI tracking label file, used in place of ``tracklet_labels.xml``.

    Raises:
        InputError: The folder or an option does not fit the format.
    """
    root = Path(dataroot)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; pass the dataset's root as --dataroot")
    if name == "nuscenes":
        from dense_depth.datasets.nuscenes import NuScenesDataset

        if poses or tracks:
            raise InputError("--poses and --tracks are for kitti-raw; nuScenes has its own")
        return NuScenesDataset(root, version or "v1.0-trainval", cameras)
    if name == "kitti-raw":
        from dense_depth.datasets.kitti import KittiRawDataset

        if version:
            raise InputError("--version is for nuscenes; kitti-raw has none")
        return KittiRawDataset(root, cameras, Path(poses) if poses else None, Path(tracks) if tracks else None)
    raise InputError(f"--dataset {name}: not known; use nuscenes or kitti-raw")
