"""Keyframes for the detector: images, calibration, depth labels of a pinned version, and boxes."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from catalog import Catalog, Version
from dense_depth import InputError
from dense_depth.datasets import DatasetConfig
from dense_depth.datasets.scene import CameraFrame, Scene
from dense_depth.geometry import SE3, invert
from dense_depth.images import read_image
from training.detection.augmentation import (
    AugmentationConfig,
    WarpedLabel,
    bev_transform,
    image_transform,
    transform_boxes,
    warp_image,
    warp_label,
)
from training.detection.boxes import Boxes, GroundTruth, class_of, ground_truth
from training.models.lift import Cameras

DepthKind = Literal["none", "lidar", "accumulated", "completed"]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, 0 to 255


@dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        of: The dataset; its scenes need tracks.
        depth_source: Kind of the depth labels.
        store: Folder or URL of the label store; not needed for "none".
        ref: The version of the labels: number, tag or "latest".
        train: Scenes or splits to train on.
        val: Scenes or splits to score on.
        max_missing: Greatest share of camera frames without a label.
        past: Past keyframes seen beside the key frame; the detector says how many.
        augmentation: Size of the input and random changes; the detector says.
    """

    of: Annotated[DatasetConfig, tyro.conf.arg(name="")]
    depth_source: DepthKind = "lidar"
    store: str | None = None
    ref: str = "latest"
    train: tuple[str, ...] = ("train",)
    val: tuple[str, ...] = ("val",)
    max_missing: float = 0.0
    past: tyro.conf.Suppress[int] = 1
    augmentation: tyro.conf.Suppress[AugmentationConfig] = field(default_factory=AugmentationConfig)


class Batch(NamedTuple):
    """Some keyframes: B samples, T frames (the key frame first), N cameras.

    Attributes:
        images: Normalised RGB; (B, T, N, 3, H, W).
        cameras: Calibration of each frame.
        depth_m: Labels of the key frame in the pixels of its images, 0 = none; (B, N, H, W).
        source: Their source codes, uint8.
        confidence: Their confidence, uint8; 255 where a label has none.
        boxes: Ground truth of each sample, augmented as the bird's-eye view is.
        sample_tokens: The keyframes.
        world_SE3_ego: Their nominal ego poses, not augmented.
    """

    images: Float[Tensor, "b t n 3 h w"]
    cameras: list[Cameras]
    depth_m: Float[Tensor, "b n h w"]
    source: UInt8[Tensor, "b n h w"]
    confidence: UInt8[Tensor, "b n h w"]
    boxes: list[Boxes]
    sample_tokens: list[str]
    world_SE3_ego: list[SE3]

    def to(self, device: torch.device) -> "Batch":
        """The tensors on another device."""
        return self._replace(
            images=self.images.to(device, non_blocking=True),
            cameras=[Cameras(*(x.to(device, non_blocking=True) for x in camera)) for camera in self.cameras],
            depth_m=self.depth_m.to(device, non_blocking=True),
            source=self.source.to(device, non_blocking=True),
            confidence=self.confidence.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class _Item:
    scene_token: str
    frames: tuple[tuple[CameraFrame, ...], ...]  # frames[t][n]; the key frame first
    truth: GroundTruth


def open_version(config: DataConfig) -> Version | None:
    """The version that the labels come from; None without labels.

    Raises:
        InputError: There is no such store or version.
    """
    if config.depth_source == "none":
        return None
    if config.store is None:
        raise InputError(f"--depth-source {config.depth_source}: needs --store, where its labels are")
    return Catalog(config.store).version(config.ref)


class DetectionData(Dataset[Batch]):
    """The keyframes of scenes. Index with (keyframe, draw): equal pairs give equal batches of one.

    Attributes:
        notes: What is left out or without a label, one line each.
    """

    def __init__(self, config: DataConfig, scenes: Iterable[Scene], augment: bool, seed: int = 0):
        """Lists the keyframes of scenes and checks that their labels are there.

        Raises:
            InputError: No object or no keyframe can be learned from, the version cannot be used, or too many labels are
                missing.
        """
        self._config, self._augment, self._seed = config, augment, seed
        self.items: list[_Item] = []
        self.notes: list[str] = []
        left_out: Counter[str] = Counter()
        for scene in scenes:
            self.items += self._list(scene)
            for track in scene.tracks:
                if class_of(track.category) is None:
                    left_out[track.category] += len(track.boxes)
        if not self.items:
            raise InputError(f"{config.of.dataroot}: no keyframe of the scenes asked for has all cameras")
        categories = ", ".join(f"{name} {n}" for name, n in sorted(left_out.items()))
        if not any(len(item.truth.boxes.classes) for item in self.items):
            raise InputError(
                f"{config.of.dataroot}: the scenes asked for have no boxes of nuScenes' ten detection classes"
                + (f" (only {categories})" if categories else "")
                + "; detectors learn from a dataset with tracks"
            )
        if categories:
            self.notes.append(f"boxes of none of the ten detection classes are left out: {categories}")
        self._labels = self._open_labels()

    def _list(self, scene: Scene) -> Iterator[_Item]:
        """The keyframes of a scene that have all of its cameras."""
        of_camera = [scene.frames_of(camera) for camera in scene.cameras]
        by_token = [{frame.sample_token: i for i, frame in enumerate(frames)} for frames in of_camera]
        complete = [k for k in scene.keyframes if by_token and all(k.sample_token in index for index in by_token)]
        if n_lacking := len(scene.keyframes) - len(complete):
            n = len(scene.keyframes)
            self.notes.append(f"{scene.name}: {n_lacking} of {n} keyframes left out, they lack a camera")
        for keyframe in complete:
            frames = tuple(
                tuple(frames[max(index[keyframe.sample_token] - t, 0)] for frames, index in zip(of_camera, by_token))
                for t in range(self._config.past + 1)
            )
            yield _Item(scene.token, frames, ground_truth(scene, keyframe))

    def _open_labels(self) -> Version | None:
        """The version, after checking that it has the labels."""
        config, version = self._config, open_version(self._config)
        if version is None:
            return None
        labelled = {
            (token, row["camera"])
            for row in version.rows_of(config.depth_source, config.of.dataset)
            for token in row["sample_tokens"]
        }
        wanted = [(frame.sample_token, frame.camera) for item in self.items for frame in item.frames[0]]
        missing = [at for at in wanted if at not in labelled]
        if missing:
            by_camera = ", ".join(f"{n} of {camera}" for camera, n in Counter(camera for _, camera in missing).items())
            self.notes.append(
                f"version {version.number} of {config.store}: {len(missing)} of {len(wanted)} camera frames have no "
                f"{config.depth_source} label ({by_camera}; the first is sample {missing[0][0]})"
            )
        if len(missing) > config.max_missing * len(wanted):
            raise InputError(f"{self.notes[-1]}; make them, or allow a share with --max-missing")
        self._missing = set(missing)
        return version

    def views(self, index: int) -> Iterator[tuple[CameraFrame, str, Float[np.ndarray, "3 3"]]]:
        """The images of a key frame: frame, token of its scene, and pixels of the input from its own, not augmented."""
        item = self.items[index]
        for frame in item.frames[0]:
            yield frame, item.scene_token, image_transform(frame.height, frame.width, self._config.augmentation, None)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: tuple[int, int]) -> Batch:
        """One keyframe; the randomness depends on the draw and the seed alone."""
        which, draw = index
        item = self.items[which]
        rng = np.random.default_rng([self._seed, draw]) if self._augment else None
        augmentation = self._config.augmentation
        size = augmentation.height, augmentation.width
        n_cameras = len(item.frames[0])
        # One change of a camera's images for all its frames, as it is one camera.
        transforms = [image_transform(f.height, f.width, augmentation, rng) for f in item.frames[0]]
        bev_T_ego = bev_transform(augmentation, rng)
        ego_SE3_world = invert(item.truth.world_SE3_ego)

        images = np.empty((len(item.frames), n_cameras, *size, 3), np.uint8)
        cameras = []
        for t, frames in enumerate(item.frames):
            for n, (frame, input_T_recorded) in enumerate(zip(frames, transforms)):
                images[t, n] = _read(frame, input_T_recorded, *size)
            cameras.append(
                Cameras(
                    torch.from_numpy(np.stack([frame.K for frame in frames]))[None],
                    torch.from_numpy(np.stack(transforms))[None],
                    torch.from_numpy(np.stack([ego_SE3_world @ frame.world_SE3_cam for frame in frames]))[None],
                    torch.from_numpy(bev_T_ego)[None],
                )
            )
        depth_m = np.zeros((n_cameras, *size), np.float32)
        source, confidence = np.zeros((2, n_cameras, *size), np.uint8)
        for n, (frame, input_T_recorded) in enumerate(zip(item.frames[0], transforms)):
            if self._labels and (frame.sample_token, frame.camera) not in self._missing:
                depth_m[n], source[n], confidence[n] = self._label(frame, input_T_recorded, *size)
        normalised = (torch.from_numpy(images).float() - torch.tensor(MEAN)) / torch.tensor(STD)
        boxes, classes = item.truth.boxes
        return Batch(
            normalised.permute(0, 1, 4, 2, 3)[None],
            cameras,
            torch.from_numpy(depth_m)[None],
            torch.from_numpy(source)[None],
            torch.from_numpy(confidence)[None],
            [Boxes(transform_boxes(boxes, bev_T_ego), classes)],
            [item.frames[0][0].sample_token],
            [item.truth.world_SE3_ego],
        )

    def _label(
        self, frame: CameraFrame, input_T_recorded: Float[np.ndarray, "3 3"], height: int, width: int
    ) -> WarpedLabel:
        """The label of a camera frame in the pixels of the input."""
        assert self._labels
        label = self._labels.label_of(frame, self._config.depth_source)
        input_T_label = input_T_recorded @ _resize(frame.width / label.width, frame.height / label.height)
        return warp_label(label.points(), input_T_label, height, width)


def collate(samples: list[Batch]) -> Batch:
    """One batch of several."""
    cameras = [
        Cameras(*(torch.cat(parts) for parts in zip(*(sample.cameras[t] for sample in samples))))
        for t in range(len(samples[0].cameras))
    ]
    parts: dict[str, Any] = {}
    for name in Batch._fields:
        values = [getattr(sample, name) for sample in samples]
        if name != "cameras":
            parts[name] = torch.cat(values) if isinstance(values[0], Tensor) else [x for value in values for x in value]
    return Batch(cameras=cameras, **parts)


def _read(
    frame: CameraFrame, input_T_recorded: np.ndarray, height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The image in the pixels of the input: shrunk by area to about its scale, then warped."""
    scale = min(float(np.sqrt(abs(np.linalg.det(input_T_recorded[:2, :2])))), 1.0)
    small = max(1, round(frame.height * scale)), max(1, round(frame.width * scale))
    image = read_image(frame, *small)
    recorded_T_small = _resize(frame.width / small[1], frame.height / small[0])
    return warp_image(image, input_T_recorded @ recorded_T_small, height, width)


def _resize(across: float, down: float) -> Float[np.ndarray, "3 3"]:
    """Pixels of a resized image from those of the image; borders scale, as in ``geometry.resize_K``."""
    return np.array([[across, 0, (across - 1) / 2], [0, down, (down - 1) / 2], [0, 0, 1.0]])
