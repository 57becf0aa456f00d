"""Deformable convolution (Dai et al., ICCV 2017): torchvision's where it loads, else the same in plain torch."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  its usual name


def deform_conv2d(
    x: Float[Tensor, "b n_in h w"],
    offset: Float[Tensor, "b offsets h w"],
    weight: Float[Tensor, "n_out n_group k k"],
    bias: Float[Tensor, " n_out"] | None = None,
) -> Float[Tensor, "b n_out h w"]:
    """A convolution of stride 1, padded to the same size, whose taps are moved; as torchvision.ops.deform_conv2d.

    Args:
        x: The map; zero outside.
        offset: For each tap, row after row, how far it moves down and to the right; (2 k k) channels.
        weight: Its second side is the number of input channels divided by the number of groups.
        bias: Of each output channel.
    """
    batch, n_in, height, width = x.shape
    n_out, n_group, k, _ = weight.shape
    taps = torch.arange(k, device=x.device) - k // 2
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    fine = torch.promote_types(x.dtype, torch.float32)  # bf16 would misplace a tap by a sixth of a pixel at width 44
    moved = offset.reshape(batch, k * k, 2, height, width).to(fine)
    v = moved[:, :, 0] + taps.repeat_interleave(k)[:, None, None] + rows[:, None]
    u = moved[:, :, 1] + taps.repeat(k)[:, None, None] + columns
    # grid_sample's coordinates: -1 and 1 are the outer borders of the map.
    grid = torch.stack([(2 * u + 1) / width - 1, (2 * v + 1) / height - 1], -1).reshape(batch, -1, width, 2)
    sampled = F.grid_sample(x.to(fine), grid, align_corners=False).to(x.dtype)
    n_groups = n_in // n_group
    sampled = sampled.reshape(batch, n_groups, n_group * k * k, height * width)
    kernel = weight.reshape(n_groups, n_out // n_groups, n_group * k * k)
    out = torch.einsum("goi,bgip->bgop", kernel, sampled).reshape(batch, n_out, height, width)
    return out if bias is None else out + bias[:, None, None]


try:
    from torchvision.ops import deform_conv2d as _torchvision_deform_conv2d
except (ImportError, RuntimeError):  # there is none, or it was built for another torch
    _torchvision_deform_conv2d = None


class DeformConv(nn.Module):
    """A deformable 3x3 convolution that finds its offsets itself; they begin at zero, as a plain convolution."""

    def __init__(self, width: int, groups: int = 4):
        super().__init__()
        self.offset = nn.Conv2d(width, 18, 3, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)  # type: ignore[arg-type]
        self.weight = nn.Parameter(torch.empty(width, width // groups, 3, 3))
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Of stride 1, to the same size."""
        offset, weight = self.offset(x), self.weight.to(x.dtype)
        if _torchvision_deform_conv2d is not None:
            return _torchvision_deform_conv2d(x, offset.to(x.dtype), weight, padding=1)
        return deform_conv2d(x, offset, weight)
