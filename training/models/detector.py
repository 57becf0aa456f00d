"""The detector as a whole: its sizes, its losses, what it detects, and the file it is kept in."""

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import default_collate

from dense_depth.checkpoint import read_checkpoint, write_checkpoint
from ext import BevGrid
from training.depth.bins import DepthBins
from training.depth.loss import DepthLossConfig, depth_loss
from training.depth.targets import BEVDEPTH, DepthTargetConfig, depth_targets
from training.detection.augmentation import AugmentationConfig
from training.detection.boxes import Detections
from training.detection.data import Batch
from training.loop import mean_over_processes
from training.models.bevdepth import STRIDE, BevDepth, ModelConfig
from training.models.center_head import CenterHead, CenterHeadConfig, TaskOutput
from training.models.center_targets import center_targets
from training.models.lift import Cameras

FORMAT = "dense-depth detector 1"


@dataclass(frozen=True)
class DetectorConfig:
    """All that makes a detector.

    Attributes:
        model: Sizes of the network.
        head: Of the detection head.
        bins: Borders of the depth bins.
        grid: The BEV grid, in the key ego frame.
        image: Size of the input, and how images are changed in training.
        depth_targets: How labels become targets.
        depth_loss: How the depth distribution is compared with them.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    head: CenterHeadConfig = field(default_factory=CenterHeadConfig)
    bins: DepthBins = field(default_factory=DepthBins.uniform)
    grid: BevGrid = field(default_factory=BevGrid)
    image: AugmentationConfig = field(default_factory=AugmentationConfig)
    depth_targets: DepthTargetConfig = field(default_factory=DepthTargetConfig)
    depth_loss: DepthLossConfig = field(default_factory=DepthLossConfig)

    def as_bevdepth(self) -> "DetectorConfig":
        """With cell centres, rounding, targets and loss of the reference."""
        return replace(
            self,
            model=replace(self.model, parity=True),
            head=replace(self.head, targets=replace(self.head.targets, rule="trunc")),
            depth_targets=BEVDEPTH,
            depth_loss=replace(self.depth_loss, parity=True),
        )


SizeName = Literal["tiny", "r50-256x704", "r101-512x1408"]
SIZES: dict[SizeName, DetectorConfig] = {
    "tiny": DetectorConfig(  # seconds a step on a CPU
        ModelConfig("resnet-tiny", None, neck=32, depth=64, context=32, trunk=32, bev_neck=16, past=0),
        CenterHeadConfig(channels=32),
        grid=BevGrid((-51.2, 51.2, 1.6), (-51.2, 51.2, 1.6)),  # most of the work is the head's, on BEV cells
        image=AugmentationConfig(128, 352),
    ),
    "r50-256x704": DetectorConfig(),
    "r101-512x1408": DetectorConfig(ModelConfig("resnet-101"), image=AugmentationConfig(512, 1408)),
}


class Output(NamedTuple):
    """What the detector says of a batch.

    Attributes:
        depth_logits: Of the image cells of the key frames, over the depth bins; (B, N, bins, rows, columns).
        tasks: Of the six detection tasks.
    """

    depth_logits: Float[Tensor, "b n bins rows columns"]
    tasks: list[TaskOutput]


class Detector(nn.Module):
    """``BevDepth`` and a ``CenterHead``."""

    def __init__(self, config: DetectorConfig):
        super().__init__()
        self.config = config
        self.lifting = BevDepth(config.model, config.bins, config.grid)
        self.head = CenterHead(self.lifting.out_channels, config.grid, config.head)

    def forward(self, images: Float[Tensor, "b t n 3 h w"], cameras: list[Cameras]) -> Output:
        """As ``BevDepth``, and the head."""
        lifted = self.lifting(images, cameras)
        return Output(lifted.depth_logits, self.head(lifted.bev))

    def losses(self, output: Output, batch: Batch, supervise_depth: bool) -> dict[str, Tensor]:
        """The terms of the loss, their sum under "loss", and what went into the depth loss."""
        config, device = self.config, output.depth_logits.device
        targets = default_collate([center_targets(b, self.head.grid, config.head.targets) for b in batch.boxes])
        terms = self.head.loss(output.tasks, _to(targets, device))
        total = terms.pop("loss")
        if supervise_depth:
            target = depth_targets(
                batch.depth_m, STRIDE, config.bins, config.depth_targets, batch.confidence, batch.source
            )
            weight = mean_over_processes(target.weight.sum()[None])[0]  # so that N processes learn as one does
            divisor = None if config.depth_loss.cells_per_sample else weight  # drawn cells weigh alike everywhere
            depth = depth_loss(output.depth_logits, target, config.depth_loss, divisor)
            total = total + depth.loss
            terms |= {"depth": depth.loss, "depth_weight": depth.weight, "depth_nonfinite": depth.nonfinite.float()}
        return {"loss": total, **terms}

    def detect(self, output: Output) -> list[Detections]:
        """The boxes of each sample, in its ego frame."""
        return self.head.decode(output.tasks)

    def expected_depth(self, output: Output) -> Float[Tensor, "b n rows columns"]:
        """The mean of each image cell's depth distribution, metres."""
        return self.config.bins.expectation(output.depth_logits.float().softmax(2), 2)


def _to(value: Any, device: torch.device) -> Any:
    """Tensors in nested tuples, on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    parts = [_to(part, device) for part in value]
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def save_detector(path: Path, detector: Detector, trained: dict[str, Any]) -> None:
    """Writes weights, configuration and how it was trained as safetensors; whole or not at all."""
    state = {name: x.detach().cpu().contiguous() for name, x in detector.state_dict().items()}
    write_checkpoint(path, state, FORMAT, config=dataclasses.asdict(detector.config), trained=trained)


def load_detector(path: Path) -> tuple[Detector, str]:
    """Reads what ``save_detector`` wrote; returns the detector and the file's sha256.

    Raises:
        InputError: The file is missing, damaged, or holds something else.
    """
    hint = "training/train.py writes detector.safetensors into its --out"
    with read_checkpoint(path, FORMAT, "the detector", hint) as (state, metadata):
        config = _from_json(DetectorConfig, json.loads(metadata["config"]))
        # Its weights come from this file, not from where training began.
        detector = Detector(replace(config, model=replace(config.model, pretrained=None)))
        detector.load_state_dict(state)
    return detector, hashlib.sha256(path.read_bytes()).hexdigest()


def _from_json(cls: Any, values: dict[str, Any]) -> Any:
    """A nested dataclass from what ``dataclasses.asdict`` made of it; JSON has no tuples."""
    hints, arguments = typing.get_type_hints(cls), {}
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            value = _from_json(hints[name], value)
        arguments[name] = tuple(value) if isinstance(value, list) else value
    return cls(**arguments)
