"""BEVDepth: images to a bird's-eye-view map, through a depth distribution per image cell that labels supervise.

Li et al., "BEVDepth: Acquisition of Reliable Depth for Multi-view 3D Object Detection", AAAI 2023.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ext import BevGrid, BevIndex, bev_pool, build_index
from training.depth.bins import DepthBins
from training.models.backbone import ImageEncoder
from training.models.depth_net import DepthNet, camera_values
from training.models.layers import BasicBlock, Neck, conv_block
from training.models.lift import Cameras, cell_pixels, frustum_points

STRIDE = 16  # of the image cells that are lifted


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the detector.

    Attributes:
        backbone: A name of ``BACKBONES``, or a folder or hub name of a model that transformers' AutoBackbone opens.
        pretrained: Folder or hub name of weights for a backbone of ``BACKBONES``, such as microsoft/resnet-50.
        neck: Channels of each of the four levels of the image neck.
        depth: Channels of the depth net.
        context: Channels that are lifted.
        trunk: Channels of the first stage of the BEV trunk; they double twice.
        bev_neck: Channels of each of the four levels of the BEV neck.
        past: How many past keyframes are seen beside the key frame.
        parity: Cell centres, frustum depths and rounding as in the reference.
    """

    backbone: str = "resnet-50"
    pretrained: str | None = None
    neck: int = 128
    depth: int = 512
    context: int = 80
    trunk: int = 160
    bev_neck: int = 64
    past: int = 1
    parity: bool = False


class Lifted(NamedTuple):
    """What the model says before the head.

    Attributes:
        depth_logits: Of the key frame's image cells, before the softmax over bins; (B, N, bins, rows, columns).
        bev: Features of the BEV cells; (B, channels, y, x).
    """

    depth_logits: Float[Tensor, "b n bins rows columns"]
    bev: Float[Tensor, "b c y x"]


class BevTrunk(nn.Module):
    """Three residual stages on the BEV map, and a neck back to its size."""

    def __init__(self, n_in: int, width: int, neck: int):
        super().__init__()
        widths = [width, 2 * width, 4 * width]
        self.stem = conv_block(n_in, width, 7, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(BasicBlock(a, b, stride), BasicBlock(b, b))
            for a, b, stride in zip([width, *widths], widths, (1, 2, 2))
        )
        self.neck = Neck([n_in, *widths], [1, 2, 4, 8], neck)

    def forward(self, x: Float[Tensor, "b c y x"]) -> Float[Tensor, "b c_out y x"]:
        """Sides must be multiples of 8."""
        maps = [x]
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return self.neck(maps)


class BevDepth(nn.Module):
    """Images of a key frame and of past ones to the features of BEV cells."""

    def __init__(self, config: ModelConfig, bins: DepthBins, grid: BevGrid):
        super().__init__()
        self.config, self.bins, self.grid = config, bins, grid
        self.encoder = ImageEncoder(config.backbone, config.pretrained, config.neck)
        self.depth_net = DepthNet(4 * config.neck, config.depth, config.context, bins.n)
        self.trunk = BevTrunk(config.context * (1 + config.past), config.trunk, config.bev_neck)
        self.out_channels = 4 * config.bev_neck

    def forward(self, images: Float[Tensor, "b t n 3 h w"], cameras: list[Cameras]) -> Lifted:
        """Lifts every frame into the key ego frame; only the key frame, the first, is differentiated, as in BEVDepth.

        Args:
            images: Normalised RGB; T frames, the key frame first.
            cameras: Of each frame, all in the key ego frame.
        """
        values = camera_values(cameras[0])  # of past frames too: mounts stay, though poses in the key ego frame do not
        depth_logits, key_bev = self.lift(images[:, 0], cameras[0], values)
        maps = [key_bev]
        with torch.no_grad():
            for t in range(1, images.shape[1]):
                maps.append(self.lift(images[:, t], cameras[t], values)[1])
        return Lifted(depth_logits, self.trunk(torch.cat(maps, 1)))

    def lift(
        self, images: Float[Tensor, "b n 3 h w"], cameras: Cameras, values: Float[Tensor, "b n 27"]
    ) -> tuple[Float[Tensor, "b n bins rows columns"], Float[Tensor, "b c y x"]]:
        """Depth logits of one frame, and its context summed into BEV cells; ``values`` as of ``camera_values``."""
        batch, n_cameras, _, height, width = images.shape
        features = self.encoder(images.flatten(0, 1))
        logits, context = self.depth_net(features, values.flatten(0, 1))
        logits, context = (x.unflatten(0, (batch, n_cameras)) for x in (logits, context))
        v_px, u_px = cell_pixels(height, width, STRIDE, self.config.parity)
        depths_m = self.bins.frustum_m(self.config.parity)
        index = self._index(cameras, depths_m.to(images.device), v_px, u_px)
        probabilities = logits.float().softmax(2)
        return logits, bev_pool(probabilities, context.float(), index)

    @torch.compiler.disable  # it sorts, and counts by hand: nothing to compile, but much to break a graph
    @torch.no_grad()
    def _index(self, cameras: Cameras, depths_m: Tensor, v_px: Tensor, u_px: Tensor) -> BevIndex:
        points_m = frustum_points(cameras, depths_m, v_px, u_px)
        return build_index(points_m, self.grid, "trunc" if self.config.parity else "floor")
