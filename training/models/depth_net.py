"""The depth net of BEVDepth: depth logits and context of image cells, from features and what the camera is like."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.models.deform_conv import DeformConv
from training.models.layers import BasicBlock, conv_block
from training.models.lift import Cameras

N_CAMERA_VALUES = 27


class CameraGate(nn.Module):
    """Weighs channels by what the camera is like (squeeze and excitation; Hu et al., CVPR 2018)."""

    def __init__(self, width: int):
        super().__init__()
        self.values = nn.Sequential(nn.Linear(N_CAMERA_VALUES, width), nn.ReLU(inplace=True), nn.Linear(width, width))
        self.gate = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, width), nn.Sigmoid())

    def forward(self, x: Float[Tensor, "b c h w"], values: Float[Tensor, "b 27"]) -> Float[Tensor, "b c h w"]:
        """Values are normalised."""
        return x * self.gate(self.values(values))[..., None, None]


class Aspp(nn.Module):
    """Convolutions of several dilations and the mean of the map, mixed (Chen et al., 2017)."""

    def __init__(self, width: int, dilations: tuple[int, ...] = (1, 6, 12, 18)):
        super().__init__()
        self.branches = nn.ModuleList(conv_block(width, width, 1 if d == 1 else 3, 1, d) for d in dilations)
        self.mean = conv_block(width, width, 1)
        self.mix = conv_block(width * (len(dilations) + 1), width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """To the same size."""
        mean = self.mean(x.mean((2, 3), keepdim=True)).expand_as(x)
        return self.mix(torch.cat([*(branch(x) for branch in self.branches), mean], 1))


class DepthNet(nn.Module):
    """Features and camera to depth logits and context."""

    def __init__(self, n_in: int, width: int, context: int, bins: int):
        super().__init__()
        self.reduce = conv_block(n_in, width)
        self.normalise = nn.BatchNorm1d(N_CAMERA_VALUES)
        self.depth_gate, self.context_gate = CameraGate(width), CameraGate(width)
        self.context = nn.Conv2d(width, context, 1)
        self.depth = nn.Sequential(
            *(BasicBlock(width, width) for _ in range(3)), Aspp(width), DeformConv(width), nn.Conv2d(width, bins, 1)
        )

    def forward(
        self, x: Float[Tensor, "b c h w"], camera_values: Float[Tensor, "b 27"]
    ) -> tuple[Float[Tensor, "b bins h w"], Float[Tensor, "b context h w"]]:
        """Logits and context of each image."""
        values = self.normalise(camera_values)
        x = self.reduce(x)
        return self.depth(self.depth_gate(x, values)), self.context(self.context_gate(x, values))


def camera_values(cameras: Cameras) -> Float[Tensor, "b n 27"]:
    """The 27 numbers that tell the depth net what camera it looks through, in the order of BEVDepth."""
    n = cameras.K.shape[1]
    K, image, bev = cameras.K, cameras.image_T_recorded, cameras.bev_T_ego[:, None].expand(-1, n, -1, -1)
    values = [K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]]
    values += [image[..., i, j] for i in (0, 1) for j in (0, 1, 2)]
    values += [bev[..., 0, 0], bev[..., 0, 1], bev[..., 1, 0], bev[..., 1, 1], bev[..., 2, 2]]
    mount = cameras.ego_SE3_cam[..., :3, :].flatten(2)
    return torch.cat([torch.stack(values, -1), mount], -1).float()
