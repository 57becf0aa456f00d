"""Prints the figures of an evaluation as tables, no wider than 80 characters."""

import sys
from collections.abc import Sequence
from typing import Any

from dense_depth.quality.errors import N_BINS, OUTLIER_M, SPLITS
from pipelines.console import new_table, print_table

COLUMNS = (  # header, figure, factor, digits after the point, width
    ("labels\n%", "share", 100, 1, 5),
    ("with\nlabel %", "coverage", 100, 1, 5),
    ("com-\npared %", "compared", 100, 1, 5),
    ("MAE\nm", "mae_m", 1, 3, 5),
    ("RMSE\nm", "rmse_m", 1, 3, 5),
    ("AbsRel", "abs_rel", 1, 4, 6),
    ("<1.25\n%", "delta_125", 100, 2, 5),
    ("behind\n%", "behind", 100, 3, 6),
    ("in front\n%", "in_front", 100, 3, 6),
    ("on sky\n%", "on_sky", 100, 3, 6),
)
TOP_CAUSES = 12  # printed; the summary has all


def print_summary(summary: dict[str, Any]) -> None:
    """Prints the summary of ``evaluate.evaluate``: the figures as tables, and what became of them."""
    for name, error in summary["failed"].items():
        print(f"failed: {name}: {error}", file=sys.stderr)
    if summary["failed"]:
        print("no version committed")
        return
    rows = f", bottom {summary['crop_height']} rows" if summary["crop_height"] else ""
    labels = f"{summary['labels']} {summary['kind']} labels"
    title = f"version {summary['evaluated']}: {labels} against {summary['reference']}{rows}"
    _print_means(title, "camera", summary["cameras"] | {"all": summary["all"]})
    if summary["reference"] == "truth":
        _print_coverage(summary["all"])
        for name in SPLITS:
            _print_means(f"by {name}", name, summary[name])
        if summary["origins"]:
            _print_means("by origin", "origin", summary["origins"])
        if summary["calibration"]:
            _print_calibration(summary["calibration"])
        _print_causes(summary["causes"][:TOP_CAUSES])
    for line in summary["refused"]:
        print(f"evaluate: refused: {line}", file=sys.stderr)
    if summary.get("pictures"):
        print(f"{len(summary['pictures'])} pictures")
    tag = f", tag {summary['tag']}" if summary["tag"] else ""
    print(f"version {summary['version']}{tag}, manifest {summary['manifest']}")


def _print_means(title: str, name: str, groups: dict[str, dict[str, Any]]) -> None:
    columns = [c for c in COLUMNS if any(figures.get(c[1]) is not None for figures in groups.values())]
    table = new_table("", name, *(header for header, *_ in columns))
    for group, figures in groups.items():
        table.add_row(group, *(_cell(figures.get(figure), *how) for _, figure, *how in columns))
    print(title)  # apart: a table would cut it to its own width
    print_table(table)
    print()


def _print_coverage(figures: dict[str, Any]) -> None:
    cells, centre = figures["coverage_cells"], figures["at_centre"]
    print(f"labelled: {_percent(figures['labelled'])} % of all pixels")
    print(f"          {_percent(figures['coverage'])} % of the pixels that show a surface")
    print(f"          {', '.join(map(_percent, cells.values()))} % of the cells of {', '.join(cells)} pixels that do")
    strict = [f"{_percent(centre[name], 3)} % {name.replace('_', ' ')}" for name in ("behind", "in_front", "on_sky")]
    print(f"by pixel centres alone: {', '.join(strict)}\n")


def _print_calibration(figures: dict[str, Any]) -> None:
    """Two tables of the confidence of completed labels: by what it states, and by tenths of the labels."""
    stated, within = (_percent(figures[name]) for name in ("stated", "within"))
    print(f"{figures['n']:,.0f} completed labels: {stated} % should be within {OUTLIER_M} m by their confidence,")
    print(f"{within} % are; calibration error {_percent(figures['error'], 2)} %")
    bins = {f"{group['from']:.1f}-{group['from'] + 1 / N_BINS:.1f}": group for group in figures["bins"]}
    tenths = {str(i): group for i, group in enumerate(figures["tenths"], start=1)}
    for name, groups in (("confidence", bins), ("tenth", tenths)):
        table = new_table("", name, "labels %", "stated %", f"within {OUTLIER_M} m %", "MAE m", "on sky %")
        for group, own in groups.items():
            shares = (_percent(own[figure], 2) for figure in ("share", "stated", "within"))
            table.add_row(group, *shares, _cell(own["mae_m"], 1, 3, 5), _percent(own["on_sky"], 2))
        print_table(table)
        print()


def _print_causes(causes: Sequence[dict[str, Any]]) -> None:
    table = new_table("", "class", "place", "source", "behind", "in front", "share %")
    for cause in causes:
        names = (cause[name] for name in ("class", "place", "source"))
        table.add_row(*names, str(cause["behind"]), str(cause["in_front"]), _percent(cause["share"]))
    print("false labels by cause")
    print_table(table)
    print()


def _cell(value: float | None, factor: float, digits: int, width: int) -> str:
    """A figure with fewer digits if it would be too wide: 100.00 under 99.997."""
    if value is None:
        return ""
    text = f"{factor * value:.{digits}f}"
    return f"{factor * value:.{max(digits + width - len(text), 0)}f}" if len(text) > width else text


def _percent(share: float | None, digits: int = 1) -> str:
    return "?" if share is None else f"{100 * share:.{digits}f}"
