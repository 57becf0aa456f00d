"""The summary of an evaluation as text and plain tables, none wider than 80 characters."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from catalog.figures import BY_NAME, FIGURES, Figure
from dense_depth.label import OUTLIER_M
from dense_depth.quality.calibration import N_BINS
from dense_depth.quality.errors import SPLITS

CALIBRATION = ("share", "stated", "within", "mae_m", "on_sky")
TOP_CAUSES = 12  # shown; the summary has all


class Table(NamedTuple):
    """A table of text, to be printed by whoever shows it: a name on the left of each row, then figures."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def tables(summary: Mapping[str, Any]) -> list[Table | str]:
    """What an evaluation found, block by block.

    Args:
        summary: What ``summarise`` says, and of what: ``evaluated``, ``labels``, ``kind``, ``reference``,
            ``crop_height``.
    """
    rows = f", bottom {summary['crop_height']} rows" if summary["crop_height"] else ""
    labels = f"{summary['labels']} {summary['kind']} labels"
    title = f"version {summary['evaluated']}: {labels} against {summary['reference']}{rows}"
    blocks: list[Table | str] = [means_table(title, "camera", summary["cameras"] | {"all": summary["all"]})]
    if "causes" not in summary:
        return blocks
    blocks.append(_coverage(summary["all"]))
    blocks += [means_table(f"by {name}", name, summary[name]) for name in SPLITS]
    if summary["origins"]:
        blocks.append(means_table("by origin", "origin", summary["origins"]))
    if summary["calibration"]:
        blocks += _calibration(summary["calibration"])
    return [*blocks, _causes(summary["causes"][:TOP_CAUSES])]


def means_table(title: str, name: str, groups: Mapping[str, Mapping[str, Any]]) -> Table:
    """The figures of each group; a column for those that any group knows."""
    known = {figure for own in groups.values() for figure, value in own.items() if value is not None}
    return _table(title, name, groups, [f for f in FIGURES if "table" in f.places and f.name in known])


def _table(title: str, name: str, groups: Mapping[str, Mapping[str, Any]], figures: Sequence[Figure]) -> Table:
    rows = [(group, *(figure.text(own.get(figure.name)) for figure in figures)) for group, own in groups.items()]
    return Table(title, (name, *(figure.header for figure in figures)), rows)


def _coverage(figures: Mapping[str, Any]) -> str:
    def percent(name: str, share: float | None) -> str:
        return "?" if share is None else BY_NAME[name].text(share)

    cells, centre = figures["coverage_cells"], figures["at_centre"]
    of_cells = ", ".join(percent("coverage", share) for share in cells.values())
    strict = [f"{percent(name, centre[name])} % {name.replace('_', ' ')}" for name in ("behind", "in_front", "on_sky")]
    return (
        f"labelled: {percent('labelled', figures['labelled'])} % of all pixels\n"
        f"          {percent('coverage', figures['coverage'])} % of the pixels that show a surface\n"
        f"          {of_cells} % of the cells of {', '.join(cells)} pixels that do\n"
        f"by pixel centres alone: {', '.join(strict)}"
    )


def _calibration(figures: Mapping[str, Any]) -> list[Table]:
    """Two tables of the confidence of completed labels: by what it states, and by tenths of the labels."""
    stated, within, error = (
        BY_NAME[name].text(figures[key])
        for name, key in (("stated", "stated"), ("within", "within"), ("calibration_error", "error"))
    )
    title = (
        f"{figures['n']:,.0f} completed labels: {stated} % should be within {OUTLIER_M} m by their confidence,\n"
        f"{within} % are; calibration error {error} %"
    )
    bins = {f"{group['from']:.1f}-{group['from'] + 1 / N_BINS:.1f}": group for group in figures["bins"]}
    tenths = {str(i): group for i, group in enumerate(figures["tenths"], start=1)}
    columns = [BY_NAME[name] for name in CALIBRATION]
    return [_table(title, "confidence", bins, columns), _table("least confident first", "tenth", tenths, columns)]


def _causes(causes: Sequence[Mapping[str, Any]]) -> Table:
    names, counts, share = ("class", "place", "source"), ("behind", "in_front"), BY_NAME["share"]
    rows = [
        (*(cause[name] for name in names), *(str(cause[name]) for name in counts), share.text(cause["share"]))
        for cause in causes
    ]
    return Table("false labels by cause", (*names, "behind", "in front", "share %"), rows)
