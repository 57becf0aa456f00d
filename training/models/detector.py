"""The detector as a whole: what it says of a batch, its losses, and what it detects."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from training.depth.loss import depth_loss
from training.depth.targets import depth_targets
from training.detection.boxes import Detections
from training.detection.data import Batch
from training.loop import mean_over_processes
from training.models.bevdepth import STRIDE, BevDepth
from training.models.center_head import CenterHead, TaskOutput
from training.models.lift import Cameras
from training.models.sizes import DetectorConfig


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
        config = self.config
        terms = self.head.loss(output.tasks, self.head.targets(batch.boxes))
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
