"""Layers that the parts of a detector share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  its usual name


def conv_block(n_in: int, n_out: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU; to the same size if the stride is 1."""
    padding = dilation * (kernel - 1) // 2 if kernel % 2 else 0
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(inplace=True),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016)."""

    def __init__(self, n_in: int, n_out: int, stride: int = 1):
        super().__init__()
        self.first = conv_block(n_in, n_out, 3, stride)
        self.second = nn.Sequential(nn.Conv2d(n_out, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out))
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same over the stride."""
        return F.relu(self.shortcut(x) + self.second(self.first(x)), inplace=True)


class Neck(nn.Module):
    """Brings maps of several strides to one and stacks them (SECONDFPN; Yan et al., Sensors 2018)."""

    def __init__(self, widths: list[int], scales: list[float], width: int):
        super().__init__()
        self.levels = nn.ModuleList()
        for n_in, scale in zip(widths, scales, strict=True):
            if scale <= 1:
                self.levels.append(conv_block(n_in, width, round(1 / scale), round(1 / scale)))
            else:
                up = nn.ConvTranspose2d(n_in, width, round(scale), round(scale), bias=False)
                self.levels.append(nn.Sequential(up, nn.BatchNorm2d(width), nn.ReLU(inplace=True)))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps, finest first, to one with the channels of all levels."""
        return torch.cat([level(x) for level, x in zip(self.levels, maps, strict=True)], 1)
