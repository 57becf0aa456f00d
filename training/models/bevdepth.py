"""BEVDepth: images to a bird's-eye-view map, through a depth distribution per image cell that labels supervise.

Li et al., "BEVDepth: Acquisition of Reliable Depth for Multi-view 3D Object Detection", AAAI 2023.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  its usual name

from dense_depth import InputError
from ext import BevGrid, BevIndex, bev_pool, build_index
from training.depth.bins import DepthBins
from training.models.deform_conv import DeformConv
from training.models.lift import Cameras, cell_pixels, frustum_points

STRIDE = 16  # of the image cells that are lifted
N_CAMERA_VALUES = 27
BACKBONES: dict[str, dict[str, Any]] = {  # as transformers names their sizes
    "resnet-tiny": {
        "model_type": "resnet",
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 32, 64, 128],
        "layer_type": "basic",
        "embedding_size": 16,
    },
    "resnet-18": {
        "model_type": "resnet",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
        "layer_type": "basic",
    },
    "resnet-50": {
        "model_type": "resnet",
        "depths": [3, 4, 6, 3],
        "hidden_sizes": [256, 512, 1024, 2048],
        "layer_type": "bottleneck",
    },
    "resnet-101": {
        "model_type": "resnet",
        "depths": [3, 4, 23, 3],
        "hidden_sizes": [256, 512, 1024, 2048],
        "layer_type": "bottleneck",
    },
    "convnext-tiny": {"model_type": "convnext", "depths": [3, 3, 9, 3], "hidden_sizes": [96, 192, 384, 768]},
}


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


class ImageEncoder(nn.Module):
    """Backbone and neck: images to features of stride 16."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.backbone = open_backbone(config)
        self.neck = Neck(cast(list[int], self.backbone.channels), [1 / 4, 1 / 2, 1, 2], config.neck)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h/16 w/16"]:
        """Normalised RGB in."""
        return self.neck(list(self.backbone(images).feature_maps))


def open_backbone(config: ModelConfig) -> nn.Module:
    """A backbone with four feature maps of strides 4, 8, 16 and 32.

    Raises:
        InputError: There is no such backbone, or its weights are not there or of another one.
    """
    from safetensors import SafetensorError
    from transformers import AutoBackbone, AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    stages = ["stage1", "stage2", "stage3", "stage4"]
    sizes, name = BACKBONES.get(config.backbone), config.pretrained or config.backbone
    if sizes and not config.pretrained:
        return AutoBackbone.from_config(AutoConfig.for_model(**sizes, out_features=stages))
    try:
        stored = AutoConfig.from_pretrained(name, out_features=stages)
        if sizes and any(getattr(stored, key, None) != value for key, value in sizes.items()):
            raise ValueError(f"is no {config.backbone}")
        with torch.device("meta"):
            kind: Any = type(AutoBackbone.from_config(stored))  # AutoBackbone.from_pretrained opens no folder
        backbone, info = kind.from_pretrained(
            name, config=stored, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        # Classifiers lack the norms that ConvNeXt as a backbone has behind its stages.
        if missing := {key for key in info["missing_keys"] if not key.startswith("hidden_states_norms.")}:
            raise ValueError(f"lacks {len(missing)} weights, such as {min(missing)}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"backbone {name}: {str(error).splitlines()[0]}; name one of {', '.join(BACKBONES)}, or a folder or hub "
            "name of a backbone of transformers with its weights as safetensors"
        ) from error
    return backbone


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
        self.encoder = ImageEncoder(config)
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


def camera_values(cameras: Cameras) -> Float[Tensor, "b n 27"]:
    """The 27 numbers that tell the depth net what camera it looks through, in the order of BEVDepth."""
    n = cameras.K.shape[1]
    K, image, bev = cameras.K, cameras.image_T_recorded, cameras.bev_T_ego[:, None].expand(-1, n, -1, -1)
    values = [K[..., 0, 0], K[..., 1, 1], K[..., 0, 2], K[..., 1, 2]]
    values += [image[..., i, j] for i in (0, 1) for j in (0, 1, 2)]
    values += [bev[..., 0, 0], bev[..., 0, 1], bev[..., 1, 0], bev[..., 1, 1], bev[..., 2, 2]]
    mount = cameras.ego_SE3_cam[..., :3, :].flatten(2)
    return torch.cat([torch.stack(values, -1), mount], -1).float()
