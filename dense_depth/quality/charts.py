"""Charts of an evaluation, by matplotlib."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from catalog.figures import BY_NAME
from dense_depth.label import OUTLIER_M

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Chart

INK, BLUE, PALE, GRID = "#1f2933", "#2f6db3", "#a9c6e6", "#dfe4ea"


def calibration_chart(figures: Mapping[str, Any]) -> "Chart":
    """Two charts: the share of labels that are right against stated confidence, and MAE by tenths of the confidence.

    Args:
        figures: What ``calibration.calibration`` says, of any labels.
    """
    from matplotlib.figure import Figure as Chart  # no pyplot: it would choose a back end for the whole process

    chart = Chart(figsize=(11, 4.8), dpi=120, layout="constrained")
    curve, bars = chart.subplots(1, 2)
    error = BY_NAME["calibration_error"].text(figures["error"])
    _style(curve, f"{figures['n']:,.0f} completed labels, calibration error {error} %")
    _draw_curve(curve, figures["bins"])
    _style(bars, "MAE of each tenth of the labels")
    _draw_tenths(bars, figures["tenths"])
    return chart


def _draw_curve(axes: "Axes", bins: list[dict[str, Any]]) -> None:
    stated, within, share = ([100 * found[name] for found in bins] for name in ("stated", "within", "share"))
    axes.plot([0, 100], [0, 100], color=INK, linewidth=1, linestyle="--", label="as it should be")
    axes.vlines(stated, stated, within, color=PALE, linewidth=3)
    axes.plot(stated, within, color=BLUE, linewidth=2, label="labels; area: how many")
    axes.scatter(stated, within, [20 + 6 * percent for percent in share], color=BLUE, zorder=3, clip_on=False)
    axes.set(xlim=(0, 103), ylim=(0, 103), aspect="equal")
    axes.set(xlabel="stated confidence, %", ylabel=f"off by at most {OUTLIER_M} m, %")
    axes.legend(frameon=False, loc="upper left")


def _draw_tenths(axes: "Axes", tenths: list[dict[str, Any]]) -> None:
    names = [str(i) for i in range(1, len(tenths) + 1)]
    bars = axes.bar(names, [tenth["mae_m"] or 0.0 for tenth in tenths], color=BLUE, width=0.7)  # None: all on sky
    axes.bar_label(bars, [BY_NAME["mae_m"].text(tenth["mae_m"]) for tenth in tenths], padding=2, fontsize=8, color=INK)
    axes.margins(y=0.1)
    axes.set(xlabel="tenth, the least confident first", ylabel="MAE, m")


def _style(axes: "Axes", title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, pad=10, color=INK)
    axes.grid(axis="y", color=GRID)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
