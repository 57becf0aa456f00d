"""How far labels are from a reference: truth where a dataset has it, else a sweep that was held out."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

OUTLIER_M = 0.5
OUTLIER_RATIO = 0.05


@dataclass
class DepthErrors:
    """Sums over pixels that have both a label and a reference; add frame after frame, then ask for the means.

    A label is behind (seen through a surface) or in front (a ghost) if it is off by more than
    max(OUTLIER_M, OUTLIER_RATIO * reference).
    """

    n: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    relative: float = 0.0
    n_within_125: int = 0
    n_behind: int = 0
    n_in_front: int = 0

    def add(self, depth_m: Float[np.ndarray, "height width"], reference_m: Float[np.ndarray, "height width"]) -> None:
        """Adds the pixels where both are above 0; metres."""
        both = (depth_m > 0) & (reference_m > 0)
        depth, reference = depth_m[both].astype(np.float64), reference_m[both].astype(np.float64)
        error = depth - reference
        margin = np.maximum(OUTLIER_M, OUTLIER_RATIO * reference)
        self.n += len(error)
        self.absolute += float(np.abs(error).sum())
        self.squared += float((error**2).sum())
        self.relative += float((np.abs(error) / reference).sum())
        self.n_within_125 += int((np.maximum(depth / reference, reference / depth) < 1.25).sum())
        self.n_behind += int((error > margin).sum())
        self.n_in_front += int((error < -margin).sum())

    def means(self) -> dict[str, float]:
        """MAE and RMSE in metres, AbsRel, and shares of pixels; NaN where there was nothing to compare."""
        n = self.n or np.nan
        return {
            "n": float(self.n),
            "mae_m": self.absolute / n,
            "rmse_m": float(np.sqrt(self.squared / n)),
            "abs_rel": self.relative / n,
            "delta_125": self.n_within_125 / n,
            "behind": self.n_behind / n,
            "in_front": self.n_in_front / n,
        }
