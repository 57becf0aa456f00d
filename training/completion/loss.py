"""What the completion network is trained to minimise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its usual name

from dense_depth.completion.network import Prediction
from training.completion.hide import Sample


@dataclass(frozen=True)
class LossConfig:
    """Weights of the terms.

    Attributes:
        absolute: Laplace likelihood of the depth in metres, with the scale that the network states.
        relative: Absolute error of log depth.
        sky: Cross entropy of the decision whether there is a surface.
        smoothness: Second differences of inverse depth, less where the image has edges.
        beta: Power of the stated scale that the likelihood is multiplied with, so that pixels of which the network is
            unsure still pull (0: likelihood, 1: as hard as sure ones); Seitzer et al., ICLR 2022.
    """

    absolute: float = 1.0
    relative: float = 2.0
    sky: float = 0.5
    smoothness: float = 0.05
    beta: float = 0.7


def completion_loss(prediction: Prediction, sample: Sample, config: LossConfig) -> dict[str, Float[Tensor, ""]]:
    """The terms of the loss, weighted, and their sum under "loss"; all in fp32.

    Each is a mean over the pixels that say something about it, so it does not depend on how dense the labels are.
    """
    total = sample.weight.sum().clamp(min=1.0)
    target_m = torch.where(sample.weight > 0, sample.target_m, prediction.depth_m.detach())
    error_m = (prediction.depth_m - target_m).abs()
    scale_m = prediction.log_scale.exp()
    likelihood = (error_m / scale_m + prediction.log_scale) * scale_m.detach() ** config.beta
    relative = (prediction.depth_m / target_m).log().abs()
    known = ~sample.surface.isnan()
    sky = F.binary_cross_entropy_with_logits(prediction.sky, 1 - sample.surface.nan_to_num(0.0), reduction="none")
    terms = {
        "absolute": config.absolute * (sample.weight * likelihood).sum() / total,
        "relative": config.relative * (sample.weight * relative).sum() / total,
        "sky": config.sky * (known * sky).sum() / known.sum().clamp(min=1),
        "smoothness": config.smoothness * smoothness(prediction.depth_m, sample.image, sample.surface),
    }
    return {"loss": sum(terms.values(), torch.zeros(())), **terms}


def smoothness(
    depth_m: Float[Tensor, "b h w"], image: Float[Tensor, "b 3 h w"], surface: Float[Tensor, "b h w"]
) -> Float[Tensor, ""]:
    """Second differences of inverse depth, relative to it, where the image is even: zero on planes; not on sky."""
    inverse, here = 1 / depth_m, surface.nan_to_num(1.0)
    scale = inverse.detach()
    total = torch.zeros((), device=depth_m.device)
    for axis in (-1, -2):
        n = depth_m.shape[axis]
        bend = (inverse.diff(n=2, dim=axis) / scale.narrow(axis, 1, n - 2)).abs()
        contrast = image.diff(dim=axis).abs().mean(1)
        edge = torch.maximum(contrast.narrow(axis, 0, n - 2), contrast.narrow(axis, 1, n - 2))
        total = total + (bend * torch.exp(-10 * edge) * here.narrow(axis, 1, n - 2)).mean()
    return total
