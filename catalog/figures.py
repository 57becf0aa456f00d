"""The figures that labels are measured by, each declared once: unit, format, which way is better, where it is kept.

The manifest's columns, the tables that are printed, and the gate derive from this list. It stands here, below the
manifest that keeps the figures; ``dense_depth.quality`` above computes them. So a new figure is one line in
``FIGURES``, and where it is computed an entry of the same name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dense_depth.label import OUTLIER_M

# The tables of means; and in a manifest row: what labels are made of, their errors against truth, against the key sweep
# that was held out, and the errors of completed pixels alone against truth.
Place = Literal["table", "made", "truth", "held_out", "completed"]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: As it is computed, in summaries and manifests.
        title: Above its column; may break into two lines.
        unit: "m", "deg", "%" (the figure itself is a share, from 0 to 1), or "" for plain numbers.
        digits: After the point.
        better: Which way labels get better; None where neither is.
        places: Where it is shown and kept.
    """

    name: str
    title: str
    unit: str
    digits: int
    better: Literal["low", "high"] | None = None
    places: tuple[Place, ...] = ()

    @property
    def header(self) -> str:
        """Title and unit, in two lines."""
        return f"{self.title}{' ' if chr(10) in self.title else chr(10)}{self.unit}" if self.unit else self.title

    def text(self, value: float | None) -> str:
        """A value without its unit; fewer digits if it would be too wide: 100.00 under 99.997. None is nothing."""
        if value is None:
            return ""
        number = 100 * value if self.unit == "%" else value
        width = max(self.digits + (3 if self.unit == "%" else 2), 5)
        text = f"{number:.{self.digits}f}"
        return f"{number:.{max(self.digits + width - len(text), 0)}f}" if len(text) > width else text


FIGURES = (
    Figure("n_points", "points", "", 0, None, ("made",)),
    Figure("key_fraction", "key", "%", 2, None, ("made",)),
    Figure("static_fraction", "static", "%", 2, None, ("made",)),
    Figure("moving_fraction", "moving", "%", 2, None, ("made",)),
    Figure("completed_fraction", "completed", "%", 2, None, ("made",)),
    Figure("mean_confidence", "confidence", "%", 2, None, ("made",)),
    Figure("hidden_fraction", "hidden", "%", 2, None, ("made",)),
    Figure("dropped_moving", "dropped:\nmoving", "", 0, None, ("made",)),
    Figure("behind_dropped", "behind\ndropped", "", 0, None, ("made",)),  # pixels; nothing there is labelled
    Figure("dropped_unknown_pose", "dropped:\nno pose", "", 0, "low", ("made",)),
    Figure("dropped_ego", "dropped:\nego", "", 0, None, ("made",)),
    Figure("dropped_range", "dropped:\nrange", "", 0, None, ("made",)),
    Figure("dropped_nonfinite", "dropped:\nnot finite", "", 0, "low", ("made",)),
    Figure("dropped_sweeps", "dropped\nsweeps", "", 0, "low", ("made",)),
    # Poses found by registration: how sweeps fit on those ten before them, by the dataset's poses and by these.
    Figure("pose_misfit_before_m", "pose misfit\nbefore", "m", 3, None, ("made",)),
    Figure("pose_misfit_m", "pose misfit", "m", 3, "low", ("made",)),
    Figure("pose_shift_m", "pose shift", "m", 3, None, ("made",)),
    Figure("pose_turn_deg", "pose turn", "deg", 3, None, ("made",)),
    Figure("poses_rejected", "poses\nrejected", "%", 1, "low", ("made",)),
    Figure("poses_open", "poses\npartly open", "%", 1, "low", ("made",)),
    # What registration made of the moving objects' tracks, with --refine.
    Figure("tracks_refined", "tracks\nrefined", "", 0, None, ("made",)),
    Figure("tracks_unproven", "tracks not\nrefined", "", 0, None, ("made",)),
    Figure("views_rejected", "views\nrejected", "%", 1, "low", ("made",)),
    Figure("evaluated_rows", "rows", "", 0, None, ("truth",)),  # at the bottom of each label
    Figure("share", "labels", "%", 1, None, ("table",)),
    Figure("labelled", "labelled", "%", 1, "high"),
    Figure("coverage", "with\nlabel", "%", 1, "high", ("table", "truth")),
    Figure("compared", "com-\npared", "%", 1, "high", ("table", "held_out")),
    Figure("mae_m", "MAE", "m", 3, "low", ("table", "truth", "held_out", "completed")),
    Figure("rmse_m", "RMSE", "m", 3, "low", ("table", "truth", "held_out")),
    Figure("abs_rel", "AbsRel", "", 4, "low", ("table", "truth", "held_out")),
    Figure("delta_125", "<1.25", "%", 2, "high", ("table", "truth", "held_out")),
    Figure("behind", "behind", "%", 3, "low", ("table", "truth", "held_out")),
    Figure("in_front", "in front", "%", 3, "low", ("table", "truth", "held_out")),
    Figure("on_sky", "on sky", "%", 3, "low", ("table", "truth")),
    Figure("stated", "stated", "%", 2),
    Figure("within", f"within {OUTLIER_M} m", "%", 2, "high", ("completed",)),
    Figure("calibration_error", "calibration\nerror", "%", 2, "low", ("truth",)),
)
BY_NAME = {figure.name: figure for figure in FIGURES}


def column(place: Place, name: str) -> str:
    """What the manifest calls a figure."""
    return name if place in ("made", "truth") else f"{place}_{name}"


COLUMNS = {column(place, figure.name): figure for figure in FIGURES for place in figure.places if place != "table"}
"""The columns of the manifest, and what each holds."""


def to_columns(place: Place, found: Mapping[str, Any]) -> dict[str, float | None]:
    """Those of the figures found that a manifest row keeps, by the names it has for them."""
    return {
        column(place, figure.name): found[figure.name]
        for figure in FIGURES
        if place in figure.places and figure.name in found
    }


def means(rows: Iterable[Mapping[str, float | None]]) -> dict[str, float]:
    """Of each column the mean over the rows that know it; columns that none knows are left out."""
    known: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                known.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in known.items()}


def changes(
    pairs: Sequence[tuple[Mapping[str, float | None], Mapping[str, float | None]]],
) -> list[tuple[str, str, str, str, str, str]]:
    """What became of the figures of shards.

    Args:
        pairs: The figures of each shard by column, before and after.

    Returns:
        Of each column that differs where both are known: its name, its unit, the means before and after, and in how
        many shards it got better and worse; nothing there for a figure of which neither way is better.
    """
    rows = []
    for name, figure in COLUMNS.items():
        both = [(a, b) for old, new in pairs if (a := old.get(name)) is not None and (b := new.get(name)) is not None]
        up, down = sum(b > a for a, b in both), sum(b < a for a, b in both)
        if up or down:
            old_text, new_text = (figure.text(sum(values) / len(both)) for values in zip(*both))
            counts = {"high": (str(up), str(down)), "low": (str(down), str(up)), None: ("", "")}[figure.better]
            rows.append((name, figure.unit, old_text, new_text, *counts))
    return rows
