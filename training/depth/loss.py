"""How far the predicted depth distributions are from their targets."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  its usual name

from dense_depth import InputError
from training.depth.targets import DepthTarget


@dataclass(frozen=True)
class DepthLossConfig:
    """The depth loss.

    Attributes:
        scale: Factor of the mean over cells.
        parity: Take the logarithms from rounded probabilities, as BEVDepth does. Where the likeliest bin is wrong and
            its probability rounds to 1, it then costs 100, and gradients can be thousands of times too large.
        cells_per_sample: For a fair comparison of label sources: each sample is supervised with no more weight than
            that many full cells, drawn at random from those that have a target. Being a mean, the loss as a whole pulls
            equally hard with any number of cells, but each of many cells pulls less than each of few; with as many
            cells from each source, each cell pulls equally hard too. All cells if not given.

    Raises:
        InputError: A value is out of its range.
    """

    scale: float = 3.0
    parity: bool = False
    cells_per_sample: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale < float("inf"):
            raise InputError(f"scale {self.scale} of the depth loss: give a number, not negative")
        if self.cells_per_sample is not None and not 0 < self.cells_per_sample < float("inf"):
            raise InputError(f"cells_per_sample {self.cells_per_sample}: give a number above 0")


class DepthLoss(NamedTuple):
    """The loss and what went into it; scalars on the device, so that reading them is left to the caller.

    Attributes:
        loss: The loss.
        weight: Sum of the weights of the supervised cells.
        cells: Their number.
        nonfinite: Cells with a target that were left out because logits or target are not finite there.
    """

    loss: Float[Tensor, ""]
    weight: Float[Tensor, ""]
    cells: Int64[Tensor, ""]
    nonfinite: Int64[Tensor, ""]


def depth_loss(
    logits: Float[Tensor, "b n bins rows columns"],
    target: DepthTarget,
    config: DepthLossConfig,
    divisor: Float[Tensor, ""] | float | None = None,
    generator: torch.Generator | None = None,
) -> DepthLoss:
    """Weighted mean over the cells of the binary cross entropies of all bins, in fp32 or finer.

    With the ``BEVDEPTH`` targets it is BEVDepth's depth loss (Li et al., AAAI 2023; get_depth_loss): entropies of the
    softmax, logarithms of no less than -100, summed over the bins and divided by the number of supervised cells, or
    by 1 if there is none.

    A cell that is not finite is left out and counted rather than being an error: one overflow in half precision should
    not end a long run, and the caller can stop when the count stays above 0.

    Args:
        logits: Of the bins, before the softmax.
        target: The targets.
        config: Scale, and supervised weight per sample.
        divisor: Replaces the sum of weights, for instance by its mean over all processes, so that their mean gradient
            is that of one process with all samples. Less than 1 counts as 1.
        generator: Draws the cells for ``cells_per_sample``; on the logits' device.

    Raises:
        ValueError: Shapes of logits and target differ.
    """
    if logits.shape != target.probabilities.shape:
        raise ValueError(f"depth logits are {tuple(logits.shape)}, targets {tuple(target.probabilities.shape)}")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        finite = logits.isfinite().all(2) & target.probabilities.isfinite().all(2) & target.weight.isfinite()
        nonfinite = (~finite & (target.weight != 0)).sum()
        weight = torch.where(finite, target.weight, 0).to(logits)
        if config.cells_per_sample is not None:
            weight = _draw(weight, config.cells_per_sample, generator)
        supervised = (weight > 0)[:, :, None]
        logits = torch.where(supervised, logits, 0)
        probabilities = torch.where(supervised, target.probabilities, 0).to(logits)
        if config.parity:
            entropy = F.binary_cross_entropy(logits.softmax(2), probabilities, reduction="none").sum(2)
        else:
            entropy = _cross_entropy(logits, probabilities)
        total = weight.sum()
        divisor = torch.as_tensor(total if divisor is None else divisor).clamp(min=1)
        return DepthLoss(config.scale * (weight * entropy).sum() / divisor, total, supervised.sum(), nonfinite)


def _cross_entropy(
    logits: Float[Tensor, "b n bins rows columns"], target: Float[Tensor, "b n bins rows columns"]
) -> Float[Tensor, "b n rows columns"]:
    """Binary cross entropies of softmax(logits), summed over the bins."""
    log_p = logits.log_softmax(2)
    # log(1 - p) loses its digits only for the likeliest bin, where 1 - p is the sum of the others.
    top = logits.argmax(2, keepdim=True)
    log_rest = logits.scatter(2, top, -torch.inf).logsumexp(2, keepdim=True) - logits.logsumexp(2, keepdim=True)
    log_not_p = torch.log1p(-log_p.exp().scatter(2, top, 0.0)).scatter(2, top, log_rest)
    return -(target * log_p.clamp(min=-100) + (1 - target) * log_not_p.clamp(min=-100)).sum(2)


def _draw(
    weight: Float[Tensor, "b n rows columns"], total: float, generator: torch.Generator | None
) -> Float[Tensor, "b n rows columns"]:
    """Weights of cells drawn at random until ``total`` is reached in each sample; the last may count in part."""
    flat = weight.flatten(1)
    order = torch.rand(flat.shape, generator=generator, device=flat.device).argsort(1)
    drawn = flat.gather(1, order)
    drawn = (total - (drawn.cumsum(1) - drawn)).clamp(min=0).minimum(drawn)
    return torch.zeros_like(flat).scatter(1, order, drawn).reshape(weight.shape)
