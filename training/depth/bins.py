"""The depth bins: labels, frustum depths and expected depths all come from one object, so they cannot disagree."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from dense_depth import InputError


@dataclass(frozen=True)
class DepthBins:
    """Intervals of z-depth; bin k is [edges[k], edges[k + 1]).

    Attributes:
        edges: Borders of the bins, metres, increasing; one more than there are bins. All else follows from them, in
            fp32.

    Raises:
        InputError: There are fewer than two bins, or a border is negative, infinite or not beyond the one before.
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        edges: list[float] = self.edges_m.tolist()  # two borders may become one in fp32
        if len(edges) < 3 or not all(0 <= near < far < float("inf") for near, far in pairwise(edges)):
            raise InputError(f"depth bins with borders {self.edges} m: give at least three, rising from 0")

    @classmethod
    def uniform(cls, start_m: float = 2.0, stop_m: float = 58.0, step_m: float = 0.5) -> "DepthBins":
        """Bins of one width, by default the 112 of BEVDepth (Li et al., AAAI 2023).

        Raises:
            InputError: The range is not a whole number of steps, at least two.
        """
        n = round((stop_m - start_m) / step_m) if step_m > 0 else 0
        if n < 2 or abs(start_m + n * step_m - stop_m) > 1e-6 * step_m:
            raise InputError(
                f"depth bins from {start_m} to {stop_m} m: a step of {step_m} m does not divide that into two or more"
                " bins; choose another step or range"
            )
        return cls(tuple(start_m + k * step_m for k in range(n)) + (stop_m,))

    @property
    def n(self) -> int:
        """Number of bins."""
        return len(self.edges) - 1

    @property
    def edges_m(self) -> Float[Tensor, " borders"]:
        """Borders of the bins, metres."""
        return torch.tensor(self.edges, dtype=torch.float32)

    @property
    def centres_m(self) -> Float[Tensor, " bins"]:
        """Middles of the bins, metres."""
        return torch.tensor([(near + far) / 2 for near, far in pairwise(self.edges)], dtype=torch.float32)

    def frustum_m(self, parity: bool = False) -> Float[Tensor, " bins"]:
        """The depth at which each bin's share of a pixel is lifted, metres: its middle.

        With ``parity`` its near border, as in BEVDepth. There a surface that was sorted into the right bin still comes
        out nearer than it is, on average by half a bin: 0.25 m with bins of 0.5 m.
        """
        return self.edges_m[:-1] if parity else self.centres_m

    def index(self, depth_m: Float[Tensor, "*shape"]) -> Int64[Tensor, "*shape"]:
        """The bin of every depth; -1 outside of all bins, and for NaN."""
        depth_m = _at_least_fp32(depth_m).contiguous()
        index = torch.bucketize(depth_m, self.edges_m.to(depth_m), right=True) - 1
        return torch.where(index < self.n, index, -1)

    def soft(self, depth_m: Float[Tensor, "*shape"]) -> tuple[Int64[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """Divides every depth between the bins with the two nearest middles so that its expectation is the depth.

        Returns:
            The nearer bin, -1 outside of all bins; and the share of the bin after it, the nearer one having the rest.
            Between the outermost middles and borders, all goes to the outermost bin.
        """
        depth_m = _at_least_fp32(depth_m).contiguous()
        centres_m = self.centres_m.to(depth_m)
        lower = (torch.bucketize(depth_m, centres_m, right=True) - 1).clamp(0, self.n - 2)
        share = ((depth_m - centres_m[lower]) / centres_m.diff()[lower]).clamp(0, 1)
        inside = self.index(depth_m) >= 0
        return torch.where(inside, lower, -1), torch.where(inside, share, 0)

    def expectation(self, probabilities: Float[Tensor, "*shape"], dim: int = -3) -> Float[Tensor, "*rest"]:
        """The mean depth, metres, of distributions over the bins, which lie along ``dim``; in fp32 or finer."""
        probabilities = _at_least_fp32(probabilities).movedim(dim, -1)
        return (probabilities * self.centres_m.to(probabilities)).sum(-1)


def _at_least_fp32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
