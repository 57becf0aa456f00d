"""Whether the confidence of completed labels is the share of them that is right."""

from typing import Any

import numpy as np
from jaxtyping import Float

from dense_depth.label import CERTAIN
from dense_depth.quality.errors import mean_errors

N_BINS = 10  # of confidence


def calibration(by_confidence: Float[np.ndarray, "confidences sums"]) -> dict[str, Any]:
    """Compares what labels state with how many of them are ``within``; {} if none states anything.

    Args:
        by_confidence: As in ``LabelErrors``.

    Returns:
        The mean ``stated`` confidence (0 to 1) of completed labels, ``within`` and other means; the same by "bins"
        of stated confidence, equally wide, those without labels left out; and by "tenths" of equally many labels,
        the least confident first (where labels of one confidence fall into two tenths, their sums are divided in
        proportion). ``error`` is the expected calibration error (Guo et al., "On calibration of modern neural
        networks", ICML 2017): the mean over labels of how far stated and within are apart in their bin.
    """
    stated = np.arange(CERTAIN + 1) / CERTAIN
    sums = np.column_stack([by_confidence, by_confidence[:, 0] * stated])
    n = sums[:, 0].sum()
    if not n:
        return {}
    bin_of = np.minimum(np.arange(CERTAIN + 1) * N_BINS // CERTAIN, N_BINS - 1)
    bins = [(i / N_BINS, sums[bin_of == i].sum(0)) for i in range(N_BINS)]
    up_to = np.vstack([np.zeros(sums.shape[1]), sums.cumsum(0)])
    ends = np.linspace(0, n, N_BINS + 1)
    tenths = np.diff([np.interp(ends, up_to[:, 0], column) for column in up_to.T]).T

    def figures(own: np.ndarray) -> dict[str, float]:
        means = mean_errors(own[:-1])
        kept = {name: means[name] for name in ("mae_m", "within", "on_sky")}
        return {"share": float(own[0] / n), "stated": float(own[-1] / own[0]), **kept}

    curve = [{"from": lowest, **figures(own)} for lowest, own in bins if own[0]]
    return {
        "n": n,
        "error": sum(own["share"] * abs(own["stated"] - own["within"]) for own in curve),
        **figures(sums.sum(0)),
        "bins": curve,
        "tenths": [figures(own) for own in tenths],
    }
