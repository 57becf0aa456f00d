"""The depth bins against numpy, and at every border."""

import numpy as np
import pytest
import torch

from dense_depth import InputError
from training.depth.bins import DepthBins

UNIFORM = DepthBins.uniform()
IRREGULAR = DepthBins((2.0, 2.3, 3.1, 7.0, 7.5, 60.0))


def around(values):
    """fp32 values with their neighbours on either side."""
    values = np.asarray(values, np.float32)
    return np.concatenate([np.nextafter(values, np.float32(-np.inf)), values, np.nextafter(values, np.float32(np.inf))])


def test_bevdepth_has_112_bins():
    edges = np.arange(2.0, 58.25, 0.5)
    assert UNIFORM.n == 112 and len(UNIFORM.edges) == 113
    np.testing.assert_array_equal(UNIFORM.edges_m, edges)
    np.testing.assert_array_equal(UNIFORM.centres_m, edges[:-1] + 0.25)
    np.testing.assert_array_equal(UNIFORM.frustum_m(), edges[:-1] + 0.25)
    np.testing.assert_array_equal(UNIFORM.frustum_m(parity=True), np.arange(2.0, 58.0, 0.5))
    assert UNIFORM.edges_m.dtype == UNIFORM.centres_m.dtype == UNIFORM.frustum_m(True).dtype == torch.float32


def test_steps_that_are_no_binary_fractions():
    bins = DepthBins.uniform(1.0, 41.0, 0.1)
    assert bins.n == 400 and bins.edges[-1] == 41.0
    np.testing.assert_allclose(bins.edges_m, np.linspace(1, 41, 401), rtol=1e-7)


def test_index_by_the_formula_of_the_reference():
    depth_m = around(UNIFORM.edges)
    level = (depth_m.astype(np.float64) - 1.5) / 0.5  # level 0 and what is beyond level 112 are no bins
    expected = np.where((level >= 1) & (level < 113), np.floor(level) - 1, -1)
    index = UNIFORM.index(torch.from_numpy(depth_m))
    assert index.dtype == torch.int64
    np.testing.assert_array_equal(index, expected)
    assert set(expected) == set(range(-1, 112))


@pytest.mark.parametrize("bins", [UNIFORM, IRREGULAR])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_index_by_numpy(bins, dtype):
    edges = bins.edges_m.double().numpy()
    depth_m = np.concatenate([around(edges), np.random.default_rng(0).uniform(-5, 70, 2000), [0, -1, np.inf]]).repeat(2)
    depth_m = torch.from_numpy(depth_m).to(dtype).reshape(-1, 2).T  # not contiguous
    expected = np.digitize(depth_m.double().numpy(), edges) - 1
    np.testing.assert_array_equal(bins.index(depth_m), np.where(expected < bins.n, expected, -1))


def test_what_is_no_depth_is_in_no_bin():
    nothing = torch.tensor([float("nan"), float("inf"), -float("inf"), -3.0, 0.0])
    assert (UNIFORM.index(nothing) == -1).all()
    lower, share = UNIFORM.soft(nothing)
    assert (lower == -1).all() and (share == 0).all()


def test_half_precision_depth_does_not_round_the_borders():
    bins = DepthBins.uniform(50.0, 51.0, 0.0625)  # bfloat16 has steps of 0.25 m there
    assert bins.index(torch.tensor([50.25, 50.5]).bfloat16()).tolist() == [4, 8]


@pytest.mark.parametrize("bins", [UNIFORM, IRREGULAR])
def test_soft_labels_are_hat_functions(bins):
    """The share of bin k is the piecewise linear function that is 1 at its middle and 0 at all others."""
    depth_m = torch.from_numpy(np.random.default_rng(1).uniform(bins.edges[0], bins.edges[-1], 3000))
    depth_m = torch.cat([depth_m, bins.centres_m.double(), bins.edges_m[:-1].double()])
    lower, share = bins.soft(depth_m)
    soft = torch.zeros(len(depth_m), bins.n, dtype=torch.float64)
    soft[torch.arange(len(lower)), lower] = 1 - share
    soft[torch.arange(len(lower)), lower + 1] = share
    centres_m = bins.centres_m.double().numpy()
    expected = np.stack([np.interp(depth_m, centres_m, hat) for hat in np.eye(bins.n)], 1)
    np.testing.assert_allclose(soft, expected, atol=1e-12)
    np.testing.assert_allclose(
        bins.expectation(soft, dim=1), np.clip(depth_m, centres_m[0], centres_m[-1]), rtol=0, atol=1e-9
    )


def test_expectation_along_any_dimension_and_in_fp32():
    probabilities = torch.rand(2, 3, UNIFORM.n, 4, 5).double().softmax(2)
    expected = np.einsum("bndhw,d->bnhw", probabilities, np.arange(2.25, 58, 0.5))
    np.testing.assert_allclose(UNIFORM.expectation(probabilities), expected, rtol=1e-12)
    np.testing.assert_allclose(UNIFORM.expectation(probabilities.movedim(2, 0), dim=0), expected, rtol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(UNIFORM.expectation(probabilities.float()), expected, rtol=1e-6)
    certain = torch.eye(UNIFORM.n).bfloat16()  # 57.75 is no bfloat16 number
    np.testing.assert_array_equal(UNIFORM.expectation(certain, dim=-1), UNIFORM.centres_m)


def test_left_edges_are_a_quarter_of_a_metre_too_near():
    depth_m = torch.linspace(2, 58, 112 * 1000 + 1).double()[:-1]
    index = UNIFORM.index(depth_m)
    assert (UNIFORM.frustum_m(parity=True)[index] - depth_m).mean().item() == pytest.approx(-0.25, abs=1e-3)
    assert (UNIFORM.frustum_m()[index] - depth_m).mean().item() == pytest.approx(0, abs=1e-3)


def test_bins_compare_by_value():
    assert DepthBins.uniform() == UNIFORM and hash(DepthBins.uniform()) == hash(UNIFORM)
    assert DepthBins.uniform(step_m=1.0) != UNIFORM
    with pytest.raises(AttributeError):
        UNIFORM.edges = ()


@pytest.mark.parametrize("range_m", [(2, 58, 0.3), (2, 58, 0), (2, 58, -1), (58, 2, 0.5), (2, 58, 56), (-1, 58, 0.5)])
def test_impossible_ranges(range_m):
    with pytest.raises(InputError, match="depth bins"):
        DepthBins.uniform(*range_m)


@pytest.mark.parametrize("edges", [(1.0, 2.0), (1.0, 3.0, 2.0), (1.0, 1.0 + 1e-9, 2.0), (1.0, 2.0, float("inf"))])
def test_impossible_borders(edges):
    with pytest.raises(InputError, match="borders"):
        DepthBins(edges)
