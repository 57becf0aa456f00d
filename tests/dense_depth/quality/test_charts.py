"""What charts draw: the data behind their lines and bars, and that the picture has them."""

import cv2
import numpy as np
import pytest

from dense_depth.quality.charts import BLUE, calibration_chart


def group(share: float, stated: float, within: float, mae_m: float | None) -> dict:
    return {"share": share, "stated": stated, "within": within, "mae_m": mae_m}


FIGURES = {
    "n": 300.0,
    "error": 0.0375,
    "bins": [group(1 / 3, 0.2, 0.25, 0.9), group(1 / 3, 0.6, 0.5, 1.1), group(1 / 3, 1, 1, 0)],
    "tenths": [group(0.1, 0.2, 0.2, 1.5 - 0.1 * i if i < 9 else None) for i in range(10)],
}


def test_the_calibration_chart_draws_its_figures(tmp_path):
    chart = calibration_chart(FIGURES)
    curve, bars = chart.axes
    assert "300 completed labels" in curve.get_title("left") and "3.75 %" in curve.get_title("left")
    by_the_bins = [[20, 25], [60, 50], [100, 100]]
    assert any(np.array_equal(line.get_xydata(), by_the_bins) for line in curve.lines)
    assert any(np.array_equal(line.get_xydata(), [[0, 0], [100, 100]]) for line in curve.lines)
    np.testing.assert_allclose(curve.collections[-1].get_offsets(), by_the_bins)
    heights = [bar.get_height() for bar in bars.patches]
    assert heights == pytest.approx([1.5 - 0.1 * i for i in range(9)] + [0])  # the last tenth is all on sky
    assert bars.get_ylabel() == "MAE, m"

    chart.savefig(tmp_path / "chart.png")
    picture = cv2.imread(str(tmp_path / "chart.png"))
    blue = (picture == [int(BLUE[i : i + 2], 16) for i in (5, 3, 1)]).all(axis=2)
    assert picture.shape[1] > 1000 and blue[:, : picture.shape[1] // 2].any() and blue.mean() > 0.02
