"""Tables print figures as they are declared."""

import pytest

import dense_depth.quality.tables
from catalog import figures
from catalog.figures import BY_NAME, FIGURES, Figure, to_columns
from dense_depth.quality.tables import means_table

SHOWN = [figure for figure in FIGURES if "table" in figure.places]


def test_a_table_has_a_column_for_each_figure_that_any_group_knows():
    table = means_table(
        "by class", "class", {"car": dict.fromkeys(BY_NAME, 0.5), "bus": {"mae_m": 1.25, "share": None}}
    )
    assert table.header == ("class", *(figure.header for figure in SHOWN))
    assert table.rows[0] == ("car", *(figure.text(0.5) for figure in SHOWN))
    assert table.rows[1] == ("bus", *("1.250" if figure.name == "mae_m" else "" for figure in SHOWN))
    assert means_table("", "class", {"bus": {"mae_m": 1.25, "rmse_m": None}}).header == ("class", "MAE\nm")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("mae_m", 0.27844, "0.278"),
        ("mae_m", 15.3456, "15.35"),
        ("abs_rel", 0.01188, "0.0119"),
        ("delta_125", 0.98514, "98.51"),
        ("delta_125", 1, "100.0"),
        ("behind", 0.00182, "0.182"),
        ("in_front", 1, "100.00"),
        ("share", 1, "100.0"),
        ("n_points", 1234567.0, "1234567"),
        ("mae_m", None, ""),
    ],
)
def test_a_figure_is_as_wide_as_its_column(name, value, text):
    assert BY_NAME[name].text(value) == text


def test_a_new_figure_is_one_line(monkeypatch):
    """Computed already, it is printed and kept as soon as it is declared."""
    found = {"mae_m": 1.0, "median_m": 0.25}
    assert means_table("", "all", {"all": found}).header == ("all", "MAE\nm")
    declared = (*FIGURES, Figure("median_m", "median", "m", 3, "low", ("table", "truth", "held_out")))
    monkeypatch.setattr(figures, "FIGURES", declared)
    monkeypatch.setattr(dense_depth.quality.tables, "FIGURES", declared)
    table = means_table("", "all", {"all": found})
    assert table.header == ("all", "MAE\nm", "median\nm") and table.rows == [("all", "1.000", "0.250")]
    assert to_columns("truth", found) == found
    assert to_columns("held_out", found) == {"held_out_mae_m": 1, "held_out_median_m": 0.25}
