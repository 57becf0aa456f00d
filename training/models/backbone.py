"""Backbones of images, from transformers: published ones by name, or whatever a folder or the hub has."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dense_depth import InputError
from training.models.layers import Neck

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


class ImageEncoder(nn.Module):
    """Backbone and neck: images to features of stride 16."""

    def __init__(self, backbone: str, pretrained: str | None, width: int):
        super().__init__()
        self.backbone = open_backbone(backbone, pretrained)
        self.neck = Neck(cast(list[int], self.backbone.channels), [1 / 4, 1 / 2, 1, 2], width)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h/16 w/16"]:
        """Normalised RGB in."""
        return self.neck(list(self.backbone(images).feature_maps))


def open_backbone(name: str, pretrained: str | None = None) -> nn.Module:
    """A backbone with four feature maps of strides 4, 8, 16 and 32.

    Args:
        name: One of ``BACKBONES``, or a folder or hub name of a model that transformers' AutoBackbone opens.
        pretrained: Folder or hub name of weights for one of ``BACKBONES``.

    Raises:
        InputError: There is no such backbone, or its weights are not there or of another one.
    """
    from safetensors import SafetensorError
    from transformers import AutoBackbone, AutoConfig
    from transformers.utils import logging

    logging.set_verbosity_error()
    stages = ["stage1", "stage2", "stage3", "stage4"]
    sizes, place = BACKBONES.get(name), pretrained or name
    if sizes and not pretrained:
        return AutoBackbone.from_config(AutoConfig.for_model(**sizes, out_features=stages))
    try:
        stored = AutoConfig.from_pretrained(place, out_features=stages)
        if sizes and any(getattr(stored, key, None) != value for key, value in sizes.items()):
            raise ValueError(f"is no {name}")
        with torch.device("meta"):
            kind: Any = type(AutoBackbone.from_config(stored))  # AutoBackbone.from_pretrained opens no folder
        backbone, info = kind.from_pretrained(
            place, config=stored, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        # Classifiers lack the norms that ConvNeXt as a backbone has behind its stages.
        if missing := {key for key in info["missing_keys"] if not key.startswith("hidden_states_norms.")}:
            raise ValueError(f"lacks {len(missing)} weights, such as {min(missing)}")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"backbone {place}: {str(error).splitlines()[0]}; name one of {', '.join(BACKBONES)}, or a folder or hub "
            "name of a backbone of transformers with its weights as safetensors"
        ) from error
    return backbone
