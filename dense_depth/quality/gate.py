"""The gate: limits that the figures of a version must keep before it gets a tag."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from catalog.figures import BY_NAME
from dense_depth.options import check_options, option_name

LIMITS = {  # the figure of each limit, and what to call it
    "max_see_through": ("behind", "see-through"),
    "max_ghosts": ("in_front", "ghosts"),
    "min_coverage": ("coverage", "coverage"),
}


@dataclass(frozen=True)
class Gate:
    """Limits, each a share from 0 to 1, or None.

    Attributes:
        max_see_through: Largest share of labels behind the surface.
        max_ghosts: Largest share of labels in front of it.
        min_coverage: Smallest share of the pixels that show a surface with a label.
    """

    max_see_through: float | None = None
    max_ghosts: float | None = None
    min_coverage: float | None = None

    def __post_init__(self) -> None:
        check_options(self, dict.fromkeys(LIMITS, 0), most=dict.fromkeys(LIMITS, 1))

    def refusals(self, figures: Mapping[str, Any]) -> list[str]:
        """The limits that the figures break, one line each; a figure that is not known keeps none."""
        lines = []
        for name, (figure, title) in LIMITS.items():
            limit, found = getattr(self, name), figures.get(figure)
            if limit is None:
                continue
            is_broken = found is None or (found > limit if BY_NAME[figure].better == "low" else found < limit)
            if is_broken:
                says = "not known" if found is None else f"{100 * found:.3f} %"
                lines.append(f"{title} {says}, {option_name(name)} is {100 * limit:g} %")
        return lines
