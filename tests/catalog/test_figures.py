"""Every figure is declared whole, and the manifest's columns follow from that."""

import pyarrow as pa
import pytest

from catalog import manifest
from catalog.figures import BY_NAME, COLUMNS, FIGURES, changes, means
from dense_depth import InputError


def test_every_figure_of_the_manifest_has_a_declaration():
    kept = [field.name for field in manifest.schema().field("quality").type]
    assert kept == list(manifest.QUALITY) == list(COLUMNS)
    assert len(BY_NAME) == len(FIGURES)  # names are unique
    for figure in FIGURES:
        assert figure.unit in ("m", "deg", "%", "") and figure.better in ("low", "high", None) and figure.title
        assert figure.digits >= 0 and len(set(figure.places)) == len(figure.places)
    errors = [figure for name, figure in COLUMNS.items() if name.startswith(("held_out", "completed_m", "calibration"))]
    assert all(figure.better for figure in errors)
    assert BY_NAME["mae_m"].better == BY_NAME["behind"].better == "low" and BY_NAME["coverage"].better == "high"


def as_written(names) -> bytes:
    """A manifest of no shards by a program that knows these figures."""
    struct = pa.field("quality", pa.struct([pa.field(name, pa.float64()) for name in names]), nullable=False)
    schema = manifest.schema()
    schema = schema.set(schema.get_field_index("quality"), struct)
    return manifest.to_bytes(schema.empty_table())


@pytest.mark.parametrize("names", [("mae_m",), ("on_sky", "n_points", "coverage"), tuple(reversed(COLUMNS))])
def test_a_manifest_may_have_fewer_figures_in_any_order(names):
    assert manifest.from_bytes(as_written(names), "old").schema == manifest.schema()


def test_a_manifest_with_figures_that_nobody_knows_is_refused():
    with pytest.raises(InputError, match="newer program"):
        manifest.from_bytes(as_written(("mae_m", "invented")), "new")
    with pytest.raises(InputError, match="newer program"):
        manifest.from_bytes(manifest.to_bytes(pa.table({"quality": [1.0]})), "other")
    with pytest.raises(InputError, match="newer program"):
        manifest.from_bytes(manifest.to_bytes(pa.table({"shard_id": ["a"]})), "other")


def test_means_are_of_the_rows_that_know_a_figure():
    assert means([{"mae_m": 1.0, "behind": None}, {"mae_m": 2.0, "behind": 0.5}]) == {"mae_m": 1.5, "behind": 0.5}
    assert means([{"mae_m": None}]) == means([]) == {}


def test_changes_say_which_way_is_better():
    old = {"n_points": 10.0, "coverage": 0.5, "mae_m": 1.0, "behind": 0.1, "on_sky": None}
    new = {"n_points": 12.0, "coverage": 0.6, "mae_m": 2.0, "behind": 0.1, "on_sky": 0.1}
    assert changes([(old, new), (old, new | {"mae_m": 0.5, "coverage": None})]) == [
        ("n_points", "", "10", "12", "", ""),
        ("coverage", "%", "50.0", "60.0", "1", "0"),
        ("mae_m", "m", "1.000", "1.250", "1", "1"),
    ]
    assert changes([(old, old)]) == changes([]) == []
