"""Figures of a version and of a manifest row."""

import json

import numpy as np
import pytest
from conftest import frame_truth, label_of

from catalog.figures import FIGURES, column
from dense_depth.label import Source
from dense_depth.quality.errors import DepthErrors, LabelErrors
from dense_depth.quality.summary import row_figures, summarise
from dense_depth.quality.truth import compare


def test_figures_of_no_labels_are_none():
    """JSON has no NaN."""
    for nothing in (LabelErrors(), DepthErrors()):
        figures = summarise([nothing, nothing], ["CAM_A", "CAM_B"])
        assert json.loads(json.dumps(figures, allow_nan=False)) == figures
        for means in (figures["all"], *figures["cameras"].values()):
            assert (means["n"], means["share"], means["mae_m"], means["behind"]) == (0, None, None, None)
    assert figures["cameras"].keys() == {"CAM_A", "CAM_B"}


def test_figures_of_a_row_are_columns_of_the_manifest():
    source = np.array([[Source.KEY_SWEEP, Source.COMPLETED, Source.COMPLETED]], np.uint8)
    label = label_of([[10.0, 10.2, 14]], source, np.array([[255, 204, 51]], np.uint8))
    row = row_figures(compare(label, frame_truth([[10, 10, 10]])), n_rows=1)
    assert row["evaluated_rows"] == row["coverage"] == 1 and row["mae_m"] == pytest.approx((0.2 + 4) / 3, rel=1e-6)
    assert row["completed_mae_m"] == pytest.approx((0.2 + 4) / 2, rel=1e-6) and row["completed_within"] == 0.5
    assert row["calibration_error"] == pytest.approx((0.2 + 0.2) / 2)  # of 0.8 and of 0.2
    held_out = DepthErrors()
    held_out.add(np.array([[10.0, 0]]), np.array([[12.0, 5]]))
    assert row_figures(held_out, 1)["held_out_mae_m"] == 2 and row_figures(held_out, 1)["held_out_compared"] == 0.5

    measured = ("truth", "held_out", "completed")
    declared = {column(place, f.name) for f in FIGURES for place in f.places if place in measured}
    assert row.keys() | row_figures(held_out, 1).keys() == declared  # whatever is declared is computed


def test_figures_that_were_not_measured_are_not_in_a_row():
    """Else they would replace those that were."""
    row = row_figures(compare(label_of([[10.0]]), frame_truth([[10]])), n_rows=1)
    assert not [name for name in row if name.startswith(("completed_", "held_out_"))] and "calibration_error" not in row
    assert row_figures(LabelErrors(), 1)["mae_m"] is None
