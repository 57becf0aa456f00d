"""Training samples for depth completion: labels with a part hidden, which is what the network has to predict."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from catalog import Catalog, Version
from dense_depth import InputError
from dense_depth.datasets import READERS, DatasetConfig, open_dataset
from dense_depth.datasets.scene import CameraFrame
from dense_depth.datasets.truth import open_truth
from dense_depth.geometry import SE3, invert
from dense_depth.images import read_image
from dense_depth.label import Label, Source
from dense_depth.quality.truth import footprints

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
                poses=Path(values["poses"]) if "poses" in values else None,
            ),
            values["store"],
            values.get("ref", "latest"),
            tuple(filter(None, values.get("scenes", "").split("+"))),
            values.get("truth") == "yes",
            int(values.get("repeat", "1")),
        )


@dataclass(frozen=True)
class HideConfig:
    """What the network sees of a label, and what it has to predict.

    Attributes:
        modes: Relative frequency of: the whole label; the label without its key sweep; the key sweep alone; the sweeps
            of some ages only.
        region: Chance that rectangles are cut out as well.
        thin: Chance that pixels are left out at random as well.
        lines: Chance that a key sweep alone loses lines: bands of elevation, down to an eighth of them.
        shown_weight: Weight in the loss of a pixel that the network was shown.
        max_age: Labels from sweeps older than this (0.1 s) are not learned from, on moving objects half of it.
    """

    modes: tuple[float, float, float, float] = (0.35, 0.15, 0.35, 0.15)
    region: float = 0.3
    thin: float = 0.3
    lines: float = 0.5
    shown_weight: float = 0.3
    max_age: int = 10

    def __post_init__(self) -> None:
        if min(self.modes) < 0 or not sum(self.modes) > 0:
            raise InputError(f"--modes {self.modes}: none may be negative, and one must be above 0")


@dataclass(frozen=True)
class ViewConfig:
    """How a frame becomes a training image.

    Attributes:
        height: Rows of a sample.
        width: Columns of a sample.
        scale: Range of the size of the image, cut afterwards, as a fraction of the label's.
        colour: Strength of random changes of colour; 0 for none.
        flip: Chance of a mirror image.
    """

    height: int = 256
    width: int = 512
    scale: tuple[float, float] = (0.65, 1.0)
    colour: float = 0.3
    flip: float = 0.5

    def __post_init__(self) -> None:
        if min(self.height, self.width) < 32:
            raise InputError(f"--height {self.height} --width {self.width}: must be at least 32 pixels")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"--scale {self.scale}: must rise within (0, 1]")


class Sample(NamedTuple):
    """One training sample; H x W, or, in a batch, B x H x W."""

    image: Tensor  # (3, H, W) RGB, 0 to 1
    depth_m: Tensor  # what the network sees; 0 = none
    source: Tensor
    age: Tensor
    target_m: Tensor  # what it has to say; 0 = unknown, or sky
    weight: Tensor  # of the target; 0 where it is not known
    surface: Tensor  # 1 where there is a surface, 0 where there is sky, NaN where it is not known


LabelMaps = tuple[np.ndarray, np.ndarray, np.ndarray]  # depth_m, source, age


class Frame(NamedTuple):
    """A frame at the size of its label."""

    image: UInt8[np.ndarray, "h w 3"]
    label: Label
    single: Label | None  # of kind lidar
    truth_m: Float32[np.ndarray, "h w"] | None  # 0 = sky, NaN = not known


class Maps(NamedTuple):
    """What a view shows of a frame, all (H, W)."""

    image: UInt8[np.ndarray, "h w 3"]
    label: LabelMaps
    single: LabelMaps | None
    truth_m: Float32[np.ndarray, "h w"] | None
    K: Float[np.ndarray, "3 3"]


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


def augment(frame: Frame, view: ViewConfig, rng: np.random.Generator) -> Maps:
    """Resizes, cuts, mirrors and recolours a frame; a frame smaller than the view is padded with nothing."""
    height, width = frame.label.height, frame.label.width
    scale = rng.uniform(*view.scale)
    scale = min(1.0, max(scale, view.height / height, view.width / width))
    size = round(height * scale), round(width * scale)
    rows, columns = footprints(size[0], height)[:, 2], footprints(size[1], width)[:, 2]
    image = cv2.resize(frame.image, size[::-1], interpolation=cv2.INTER_AREA)
    label = frame.label.shrunk(*size)
    single = frame.single.shrunk(*size) if frame.single else None
    truth_m = frame.truth_m[np.ix_(rows, columns)] if frame.truth_m is not None else None

    top, left = (int(rng.integers(max(n - m, 0) + 1)) for n, m in zip(size, (view.height, view.width)))
    mirror = rng.uniform() < view.flip
    K = label.K.copy()
    K[:2, 2] -= [left, top]

    def cut(x: np.ndarray, beyond: float = 0) -> np.ndarray:
        x = x[top : top + view.height, left : left + view.width]
        padding = [(0, view.height - x.shape[0]), (0, view.width - x.shape[1]), *[(0, 0)] * (x.ndim - 2)]
        x = np.pad(x, padding, constant_values=beyond)
        return x[:, ::-1] if mirror else x

    if mirror:
        K[0] = [-K[0, 0], -K[0, 1], view.width - 1 - K[0, 2]]
    image = _recoloured(cut(image), view.colour, rng)
    return Maps(
        image,
        _view_maps(label, top, left, mirror, view),
        _view_maps(single, top, left, mirror, view) if single else None,
        cut(truth_m, np.nan) if truth_m is not None else None,
        K,
    )


def _view_maps(label: Label, top: int, left: int, mirror: bool, view: ViewConfig) -> LabelMaps:
    """Depth, source and age of what a view shows of a label."""
    points = label.points()
    v, u = points.v.astype(int) - top, points.u.astype(int) - left
    inside = (v >= 0) & (v < view.height) & (u >= 0) & (u < view.width)
    v, u = v[inside], u[inside]
    at = v, view.width - 1 - u if mirror else u

    def in_view(values: np.ndarray) -> np.ndarray:
        out = np.zeros((view.height, view.width), values.dtype)
        out[at] = values[inside]
        return out

    return in_view(points.depth_m), in_view(points.source), in_view(points.age)


def _recoloured(
    image: UInt8[np.ndarray, "h w 3"], strength: float, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """Another exposure, white balance, contrast, blur and noise: generated images are cleaner than recorded ones."""
    if not strength:
        return image
    gain = np.exp(strength * (rng.normal() + 0.3 * rng.normal(size=3)))
    gamma = np.exp(strength * rng.normal())
    table = np.clip(255 * (gain * np.linspace(0, 1, 256)[:, None] ** gamma), 0, 255).astype(np.uint8)
    image = np.stack([cv2.LUT(np.ascontiguousarray(image[..., i]), table[:, i]) for i in range(3)], -1)
    if rng.uniform() < strength:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        image = cv2.addWeighted(image, 0.3, np.repeat(grey, 3, -1), 0.7, 0)
    if rng.uniform() < strength:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.2))
    if rng.uniform() < strength:
        noise = rng.normal(0, rng.uniform(2, 12), image.shape).astype(np.int16)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


def hide_part(maps: Maps, lidar_SE3_cam: SE3, config: HideConfig, rng: np.random.Generator) -> Sample:
    """Chooses what the network is shown of a label and what it has to say."""
    depth_m, source, age = maps.label
    labelled = depth_m > 0
    mode = rng.choice(4, p=np.array(config.modes) / sum(config.modes))
    shown_m, shown_source, shown_age = maps.label
    shown = labelled
    if mode == 1:
        shown = labelled & (source != Source.KEY_SWEEP)
    elif mode == 2:
        if maps.single is not None:
            shown_m, shown_source, shown_age = maps.single
            shown = shown_m > 0
        else:
            shown = source == Source.KEY_SWEEP
        if rng.uniform() < config.lines:
            shown = shown & _lines(shown_m, maps.K, lidar_SE3_cam, rng)
    elif mode == 3:
        shown = labelled & (rng.uniform(size=256) < rng.uniform(0.1, 0.7))[age]
    if rng.uniform() < config.region:
        shown = shown & ~_rectangles(shown.shape, rng)
    if rng.uniform() < config.thin:
        shown = shown & (rng.uniform(size=shown.shape) < rng.uniform(0.1, 1.0))

    if maps.truth_m is not None:
        target_m = np.nan_to_num(maps.truth_m)
        weight = (target_m > 0).astype(np.float32)
        surface = np.where(np.isnan(maps.truth_m), np.float32(np.nan), weight)
    else:
        target_m = depth_m
        weight = trusted(depth_m, source, age, config).astype(np.float32)
        weight[shown & (shown_m == depth_m)] *= config.shown_weight
        surface = np.where(labelled, np.float32(1), np.float32(np.nan))
    maps_out = (np.where(shown, x, 0) for x in (shown_m, shown_source, shown_age))
    image = torch.from_numpy(np.ascontiguousarray(maps.image)).permute(2, 0, 1).float() / 255
    arrays = (*maps_out, target_m, weight, surface)
    return Sample(image, *(torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in arrays))


def trusted(
    depth_m: Float32[np.ndarray, "h w"],
    source: UInt8[np.ndarray, "h w"],
    age: UInt8[np.ndarray, "h w"],
    config: HideConfig,
) -> Bool[np.ndarray, "h w"]:
    """Labels to learn from: of fresh sweeps, and not behind another label nearby.

    The visibility test of the labels keeps the background beside an edge, and with it the few points that are seen
    through one. Here the stricter window minimum is used, since nothing is lost by not learning from a pixel.
    """
    nearest = cv2.erode(np.where(depth_m > 0, depth_m, np.float32(1e6)), np.ones((5, 7), np.uint8))
    fresh = age <= np.where(source == Source.MOVING, config.max_age // 2, config.max_age)
    return (depth_m > 0) & fresh & (depth_m <= 1.05 * nearest + 0.3)


def _lines(depth_m: np.ndarray, K: np.ndarray, lidar_SE3_cam: SE3, rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """Bands of elevation, as seen from the LiDAR: about one beam of 64 or 32 in each."""
    v, u = np.indices(depth_m.shape)
    rays = np.stack([(u - K[0, 2]) / K[0, 0], (v - K[1, 2]) / K[1, 1], np.ones(depth_m.shape)])
    x, y, z = np.tensordot(lidar_SE3_cam[:3, :3], rays * depth_m, 1) + lidar_SE3_cam[:3, 3, None, None]
    elevation_deg = np.degrees(np.arctan2(z, np.hypot(x, y)))
    band_deg = rng.uniform(0.3, 1.4)
    period_deg = band_deg * rng.uniform(1.2, 8.0)
    return (elevation_deg + rng.uniform(0, period_deg)) % period_deg < band_deg


def _rectangles(shape: tuple[int, ...], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A few rectangles of up to half the height and width."""
    inside = np.zeros(shape, bool)
    for _ in range(rng.integers(1, 5)):
        height, width = (int(n * rng.uniform(0.05, 0.5)) for n in shape)
        top, left = (int(rng.integers(n - m + 1)) for n, m in zip(shape, (height, width)))
        inside[top : top + height, left : left + width] = True
    return inside
