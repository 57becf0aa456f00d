"""The exact depth of every camera frame, as Zarr arrays beside the tables."""

import enum
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dense_depth import InputError

ARRAYS = {  # type, fill value
    "depth_m": ("float32", np.nan),
    "instance": ("uint16", 65535),
    "moving": ("uint8", 255),
    "surface": ("uint8", 255),
}


class Surface(enum.IntEnum):
    """What kind of thing a pixel shows."""

    SKY = 0
    GROUND = 1
    BUILDING = 2
    VEGETATION = 3
    THIN = 4  # poles, signs, fences
    OBJECT = 5  # an instance, annotated where the LiDAR hits it


@dataclass(frozen=True)
class Truth:
    """Exact depth of one camera of one scene, as Zarr arrays (frames, height, width): indexing one reads it.

    Attributes:
        sample_tokens: The keyframe of each frame.
        instance_tokens: Token of instance i at [i - 1].
        classes: Detection class of instance i at [i - 1], "car" for example.
        depth_m: float32, z-depth through the pixel's centre at the camera's own time, to 16 significant bits (0.5 mm
            at 60 m); 0 where there is only sky.
        instance: uint16, 0 for the background.
        moving: uint8, 1 on objects that move at some time in the scene.
        surface: uint8, ``Surface`` codes.
    """

    sample_tokens: tuple[str, ...]
    instance_tokens: tuple[str, ...]
    classes: tuple[str, ...]
    depth_m: Any
    instance: Any
    moving: Any
    surface: Any


def truth_path(dataroot: Path, scene_token: str, camera: str) -> Path:
    """Where the truth of one camera of one scene lies."""
    return dataroot / "truth" / scene_token / f"{camera}.zarr"


def read_truth(dataroot: str | Path, scene_token: str, camera: str) -> Truth:
    """Opens the truth of one camera of one scene.

    Raises:
        InputError: There is none, or a frame of it is lost.
    """
    import zarr

    path = truth_path(Path(dataroot), scene_token, camera)
    if not path.is_dir():
        raise InputError(f"{path}: no truth for this scene and camera; only generated datasets have it")
    group: Any = zarr.open_group(path, mode="r")
    arrays = [group[name] for name in ARRAYS]
    for array in arrays:  # Zarr would return its fill value for a lost chunk
        if array.nchunks_initialized != array.nchunks:
            raise InputError(f"{path}: {array.nchunks - array.nchunks_initialized} frames of {array.name} are lost")
    names = [tuple(group.attrs[name]) for name in ("sample_tokens", "instance_tokens", "classes")]
    return Truth(*names, *arrays)


open_truth = functools.lru_cache(4096)(read_truth)
"""``read_truth`` for those who come back for frame after frame: opening takes as long as reading one."""
