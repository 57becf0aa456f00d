"""The sizes that a detector comes in, and all else that makes one."""

from dataclasses import dataclass, field, replace
from typing import Literal

from ext import BevGrid
from training.depth.bins import DepthBins
from training.depth.loss import DepthLossConfig
from training.depth.targets import BEVDEPTH, DepthTargetConfig
from training.detection.augmentation import AugmentationConfig
from training.models.bevdepth import ModelConfig
from training.models.center_head import CenterHeadConfig


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
