"""The completion network: an image and a sparse label in, dense depth and how far it may be off out.

A coarse depth is propagated from the measured pixels. An encoder-decoder at a quarter of the resolution and below
corrects it, learned affinities spread it over surfaces (spatial propagation, Liu et al., NeurIPS 2017; with measured
pixels as anchors, Cheng et al., ECCV 2018), a correction for each of the 4 x 4 pixels of a cell brings it to full
resolution, and at last it follows the measured pixels around. Depth is propagated, averaged and enlarged as inverse
depth, which is linear on a plane, however slanted.

Cells of 4 x 4 pixels are what makes it fast on a CPU: at half resolution convolutions have few channels and run at half
the rate (measured), and every other operation touches four times as many values.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  its usual name

from dense_depth.label import Source

NEAR_M, FAR_M = 0.5, 200.0  # depths the network can say
CELL_PX = 4
PYRAMID = 5  # doublings of the cell over which measured depth is spread at first
FAR_OFF = 0.12  # log ratio of measured to said depth at which a measured pixel counts half
MAX_AGE = 10.0  # tenths of a second; older counts as this
MIDDLE = 2.5  # log depth around which inputs are centred: 12 m
INPUTS = 10  # channels: colour, coarse log depth and its spread, and of the measured pixels the five below
# Channels that the head gives for each cell: a correction of the coarse log depth, trust in the nearest measured pixel,
# affinities to the cell and its neighbours, and for pixels a correction, the log of the scale of errors, and sky.
HEADS = {"residual": 1, "gate": 1, "affinity": 9, "detail": 16, "log_scale": 16, "sky": 4}


@dataclass(frozen=True)
class NetworkConfig:
    """Size of the network.

    Attributes:
        widths: Channels at 1/4, 1/8, 1/16 ... of the image.
        blocks: Residual blocks at each of these on the way down; the way up has one convolution each.
        iterations: Steps of spatial propagation.
    """

    widths: tuple[int, ...] = (48, 64, 96, 128)
    blocks: tuple[int, ...] = (1, 1, 1, 0)
    iterations: int = 4


SIZES = {
    "small": NetworkConfig(),  # 20 GFLOP for six views of 256x704: for a CPU
    "large": NetworkConfig(widths=(96, 128, 192, 256, 320), blocks=(2, 2, 3, 2, 2), iterations=8),
}


class Prediction(NamedTuple):
    """What the network says of every pixel."""

    depth_m: Float[Tensor, "b h w"]  # z in metres, also where there is sky
    log_scale: Float[Tensor, "b h w"]  # log of the expected absolute error in metres (of a Laplace distribution)
    sky: Float[Tensor, "b h w"]  # logit: no surface


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, ReLU."""

    def __init__(self, n_in: int, n_out: int, kernel: int = 3, stride: int = 1, padding: int = 1):
        super().__init__(
            nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)
        )


class ResidualBlock(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int):
        super().__init__()
        self.first = ConvBlock(width, width)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        return F.relu(self.second(self.first(x)).add_(x), inplace=True)


class CompletionNetwork(nn.Module):
    """See the module. Any image size: inputs are padded to whole cells of the coarsest level and outputs cut."""

    def __init__(self, config: NetworkConfig = SIZES["small"]):
        super().__init__()
        self.config = config
        widths = config.widths
        entries = [
            ConvBlock(INPUTS, widths[0], CELL_PX, CELL_PX, 0),
            *(ConvBlock(above, below, stride=2) for above, below in itertools.pairwise(widths)),
        ]
        self.down = nn.ModuleList(
            nn.Sequential(entry, *(ResidualBlock(width) for _ in range(n)))
            for entry, width, n in zip(entries, widths, config.blocks, strict=True)
        )
        self.lateral = nn.ModuleList(nn.Conv2d(below, above, 1) for above, below in itertools.pairwise(widths))
        self.up = nn.ModuleList(ConvBlock(width, width) for width in widths[:-1])
        self.head = nn.Conv2d(widths[0], sum(HEADS.values()), 3, padding=1)
        nn.init.zeros_(self.head.weight)  # the first output is the coarse depth
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

    def forward(
        self,
        image: Float[Tensor, "b 3 h w"],
        depth_m: Float[Tensor, "b h w"],
        source: Float[Tensor, "b h w"],
        age: Float[Tensor, "b h w"],
    ) -> Prediction:
        """Completes labels.

        Args:
            image: RGB, 0 to 1.
            depth_m: Measured depth, 0 = none.
            source: ``Source`` codes of the measured pixels.
            age: Age of their sweeps in 0.1 s; 0 where it is not known.
        """
        height, width = depth_m.shape[-2:]
        step = CELL_PX * 2 ** (len(self.config.widths) - 1)
        padding = (0, -width % step, 0, -height % step)
        maps = [x[:, None] for x in (depth_m, source, age)]
        if any(padding):  # a copy of everything
            image, maps = F.pad(image, padding, mode="replicate"), [F.pad(x, padding) for x in maps]

        x, coarse, nearest = prepare(image, *maps)
        skips: list[Tensor] = []
        for down in self.down:
            x = down(x).contiguous(memory_format=torch.channels_last)
            skips.append(x)
        x = skips.pop()
        for lateral, up in zip(reversed(self.lateral), reversed(self.up)):
            x = up(F.interpolate(pointwise(lateral, x), scale_factor=2.0, mode="nearest").add_(skips.pop()))
        with torch.autocast(x.device.type, enabled=False):  # eight bits are too few for a depth
            raw = self.head(x.float()).contiguous()
        heads = dict(zip(HEADS, raw.split(list(HEADS.values()), 1)))

        anchor = torch.sigmoid(heads["gate"]) * (nearest > 0)
        affinity = torch.softmax(heads["affinity"], 1)
        refined = coarse * torch.exp(-heads["residual"].clamp(-20, 20))  # 0 or inf could become NaN below
        for i in range(self.config.iterations):
            refined = torch.lerp(average(refined, affinity, dilation=1 + i % 2), nearest, anchor)
        detail, log_scale = (F.pixel_shuffle(heads[name], CELL_PX) for name in ("detail", "log_scale"))
        sky = F.interpolate(F.pixel_shuffle(heads["sky"], 2), scale_factor=2.0, mode="bilinear")
        inverse = F.interpolate(refined, scale_factor=float(CELL_PX), mode="bilinear") * torch.exp(-detail)
        inverse = follow_measured(inverse.clamp(1 / FAR_M, 1 / NEAR_M), maps[0])
        outputs = 1 / inverse.clamp(1 / FAR_M, 1 / NEAR_M), log_scale, sky
        return Prediction(*(x[:, 0, :height, :width] for x in outputs))


def pointwise(conv: nn.Module, x: Float[Tensor, "b n_in h w"]) -> Float[Tensor, "b n_out h w"]:
    """A 1x1 convolution of a map that is stored channels last: on one thread torch's own first reorders it."""
    weight, bias = cast(Tensor, conv.weight), cast(Tensor, conv.bias)
    return F.linear(x.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)


@torch.no_grad()
def prepare(
    image: Float[Tensor, "b 3 h w"],
    depth_m: Float[Tensor, "b 1 h w"],
    source: Float[Tensor, "b 1 h w"],
    age: Float[Tensor, "b 1 h w"],
) -> tuple[Float[Tensor, "b inputs h w"], Float[Tensor, "b 1 h/4 w/4"], Float[Tensor, "b 1 h/4 w/4"]]:
    """What the convolutions see, and per cell the coarse and the nearest measured inverse depth (0 = none)."""
    x = image.new_empty(len(image), INPUTS, *image.shape[2:])
    colour, log_coarse, far, ratio, measured, is_key, is_moving, is_old = x.split([3, 1, 1, 1, 1, 1, 1, 1], 1)
    torch.gt(depth_m, 0, out=measured)
    inverse = measured / depth_m.clamp(NEAR_M, FAR_M)
    coarse, spread = propagate(inverse, measured)
    enlarged = F.interpolate(coarse, scale_factor=float(CELL_PX), mode="bilinear")
    torch.sub(4 * image, 1.8, out=colour)
    torch.sub(-torch.log(enlarged), MIDDLE, out=log_coarse)
    far.copy_(F.interpolate(spread, scale_factor=float(CELL_PX), mode="nearest"))
    torch.mul(torch.log(torch.lerp(enlarged, inverse, measured) / enlarged), 4, out=ratio)  # 0 where none is measured
    torch.eq(source, Source.KEY_SWEEP, out=is_key)
    torch.eq(source, Source.MOVING, out=is_moving)
    torch.mul(age.clamp(max=MAX_AGE), 1 / MAX_AGE, out=is_old)
    return x, coarse, F.max_pool2d(inverse, CELL_PX)


def propagate(
    inverse: Float[Tensor, "b 1 h w"], measured: Float[Tensor, "b 1 h w"]
) -> tuple[Float[Tensor, "b 1 h/4 w/4"], Float[Tensor, "b 1 h/4 w/4"]]:
    """Depth for every cell from the measured pixels: averages over growing cells, the smallest that holds any wins.

    Args:
        inverse: Inverse depth, 0 = none.
        measured: 1 where there is any.

    Returns:
        Inverse depth (1/20 m where nothing was measured at all), and from how large a cell it comes, 0 to 1.
    """
    total, count = (F.avg_pool2d(x, CELL_PX) for x in (inverse, measured))
    levels = [(total, count)]
    for _ in range(PYRAMID):
        total, count = (F.avg_pool2d(x, 2, ceil_mode=True) for x in (total, count))
        levels.append((total, count))
    total, count = (x.mean((2, 3), keepdim=True) for x in levels[-1])
    filled, spread = torch.where(count > 0, total / count.clamp(min=1e-12), 1 / 20.0), torch.ones_like(count)
    for i, (total, count) in reversed(list(enumerate(levels))):
        size = (int(total.shape[-2]), int(total.shape[-1]))
        known = (count > 0).to(total)
        filled = torch.lerp(F.interpolate(filled, size, mode="bilinear"), total / count.clamp(min=1e-12), known)
        spread = torch.lerp(F.interpolate(spread, size, mode="bilinear"), torch.full_like(known, i / PYRAMID), known)
    return filled, spread


def follow_measured(inverse: Float[Tensor, "b 1 h w"], depth_m: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 1 h w"]:
    """Moves depth to what was measured, and the pixels around a measured one with it.

    What the convolutions say is off by up to a percent, smoothly. So the log ratio of measured to said depth is
    averaged around each pixel, with weights that fall with distance, and with the ratio itself: a point seen through a
    surface is far from what is said there. On KITTI this takes MAE from 304 to 253 mm.

    Args:
        inverse: Inverse depth as it was said.
        depth_m: Measured depth, 0 = none.
    """
    measured = (depth_m > 0).to(inverse)
    ratio = measured * torch.log(depth_m.clamp(NEAR_M, FAR_M) * inverse)
    weight = measured / (1 + (ratio / FAR_OFF) ** 2)
    sums = torch.cat([weight * ratio, weight], 1)
    near = blur(blur(sums, -1), -2)
    wide = F.avg_pool2d(F.avg_pool2d(sums, CELL_PX), 3, 1, 1)
    wide = F.interpolate(wide, scale_factor=float(CELL_PX), mode="bilinear")
    total, count = (near + 0.05 * wide).split(1, 1)
    return inverse * torch.exp(-total / (count + 1e-3))


def blur(x: Float[Tensor, "b n h w"], dim: int) -> Float[Tensor, "b n h w"]:
    """Gaussian of 1.3 pixels along one side, zero beyond; sums of slices, seven times as fast as a convolution."""
    taps = [math.exp(-0.5 * (tap / 1.3) ** 2) for tap in range(4)]
    total, n = taps[0] + 2 * sum(taps[1:]), x.shape[dim]
    blurred = x * (taps[0] / total)
    for tap in range(1, min(4, n)):
        for to, origin in ((tap, 0), (0, tap)):
            blurred.narrow(dim, to, n - tap).add_(x.narrow(dim, origin, n - tap), alpha=taps[tap] / total)
    return blurred


def average(x: Float[Tensor, "b 1 h w"], weights: Float[Tensor, "b 9 h w"], dilation: int) -> Float[Tensor, "b 1 h w"]:
    """Weighted sum of each value and its eight neighbours at a distance."""
    height, width = x.shape[-2:]
    padded = F.pad(x, (dilation,) * 4, mode="replicate")
    total = torch.zeros_like(x)
    for i in range(9):
        top, left = i // 3 * dilation, i % 3 * dilation
        total = torch.addcmul(total, weights[:, i : i + 1], padded[..., top : top + height, left : left + width])
    return total
