"""Sums and means of errors, by hand-worked numbers."""

import numpy as np
import pytest
from conftest import label_of, random_frame

from dense_depth.quality.errors import DepthErrors, LabelErrors
from dense_depth.quality.truth import compare


def test_sums_of_frames_do_not_depend_on_how_they_are_grouped():
    rng = np.random.default_rng(1)
    frames = [random_frame(rng, (27, 48), (12, 21)) for _ in range(4)]
    a, b, c, d = (compare(label_of(depth_m, source), truth) for depth_m, source, truth in frames)
    merged, together = (a + b) + (c + d), LabelErrors() + a + b + c + d
    for name in ("errors", "errors_at_centre", "pixels", "surface_pixels", "surface_cells"):
        np.testing.assert_allclose(getattr(merged, name), getattr(together, name), rtol=1e-12)
    assert (a + b).means()["n"] < merged.means()["n"] == together.means()["n"]
    assert together.means()["n"] == sum(np.count_nonzero(depth_m) for depth_m, *_ in frames)

    depth = [DepthErrors() for _ in range(3)]
    for i, (depth_m, *_) in enumerate(frames):
        for errors in (depth[0], depth[1 + i // 2]):
            errors.add(depth_m, np.full_like(depth_m, 30))
    assert (depth[1] + depth[2]).means() == pytest.approx(depth[0].means(), rel=1e-12)


def test_depth_errors_of_a_held_out_sweep():
    errors = DepthErrors()
    errors.add(np.array([[10.0, 0.0, 30.0, 22.0]]), np.array([[10.4, 5.0, 20.0, 0.0]]))
    errors.add(np.array([[4.0]], np.float32), np.array([[8.0]], np.float32))
    means = errors.means()
    assert means["n"] == 3 and means["compared"] == 3 / 4
    assert means["mae_m"] == pytest.approx((0.4 + 10 + 4) / 3)
    assert means["rmse_m"] == pytest.approx(np.sqrt((0.16 + 100 + 16) / 3))
    assert means["abs_rel"] == pytest.approx((0.4 / 10.4 + 0.5 + 0.5) / 3)
    assert means["delta_125"] == means["behind"] == means["in_front"] == pytest.approx(1 / 3)
    assert np.isnan(DepthErrors().means()["mae_m"])
