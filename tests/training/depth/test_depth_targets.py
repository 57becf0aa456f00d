"""Depth targets against loops in float64 and numbers worked out by hand."""

import numpy as np
import pytest
import torch

from dense_depth import InputError
from training.depth.bins import DepthBins
from training.depth.loss import DepthLossConfig, depth_loss
from training.depth.targets import BEVDEPTH, DepthTargetConfig, depth_targets

BINS = DepthBins.uniform()
HISTOGRAM = DepthTargetConfig()
WEIGHTS = (0.0, 1.0, 0.7, 0.0, 0.3)

# Depth and its bin in BEVDepth; None: no target.
BORDERS = {
    0.0: None,
    0.7: None,
    1.499: None,
    1.5: None,
    1.999: None,
    2.0: 0,
    2.499: 0,
    2.5: 1,
    30.0: 56,
    57.499: 110,
    57.5: 111,
    57.99: 111,
    58.0: None,
    58.25: None,
    58.5: None,
    200.0: None,
}


def label(filled, shape=(2, 3, 16, 24), seed=0, outside=True):
    """Random labels: depth, confidence, source."""
    rng = np.random.default_rng(seed)
    # Neighbours have depths near each other, so that cells have several labels in one bin.
    depth_m = rng.uniform(0.1 if outside else 8, 65 if outside else 50, (*shape[:2], 1, 1)) + rng.normal(0, 1, shape)
    depth_m = np.where(rng.random(shape) < filled, depth_m.clip(0.01), 0).astype(np.float32)
    source = np.where(depth_m > 0, rng.integers(1, 5, shape), 0).astype(np.uint8)
    return tuple(map(torch.from_numpy, (depth_m, rng.integers(0, 256, shape).astype(np.uint8), source)))


def cells_of(image, stride):
    """Yields (b, n, row, column, its pixels)."""
    b, n, height, width = image.shape
    for i in np.ndindex(b, n, height // stride, width // stride):
        yield i, (*i[:2], *(slice(k * stride, (k + 1) * stride) for k in i[2:]))


def bevdepth(depth_m, stride):
    """BEVDepth's one-hot targets, cell by cell: level (d - 1.5) / 0.5 of the nearest label; level k is bin k - 1."""
    depth_m = depth_m.double().numpy()
    out = np.zeros((*depth_m.shape[:2], 112, depth_m.shape[2] // stride, depth_m.shape[3] // stride))
    for (b, n, row, column), pixels in cells_of(depth_m, stride):
        seen = depth_m[pixels][depth_m[pixels] != 0]
        level = int(np.floor((seen.min() - 1.5) / 0.5)) if len(seen) else 0
        if 1 <= level < 113:
            out[b, n, level - 1, row, column] = 1
    return out


def histogram(depth_m, confidence, source, stride, weights, linear=False, enough_px=1.0):
    """Votes of all pixels, one by one."""
    depth_m, confidence = depth_m.double().numpy(), confidence.double().numpy() / 255
    edges = np.arange(2, 58.1, 0.5)
    centres = edges[:-1] + 0.25
    out = np.zeros((*depth_m.shape[:2], 112, depth_m.shape[2] // stride, depth_m.shape[3] // stride))
    for (b, n, row, column), pixels in cells_of(depth_m, stride):
        for d, c, s in zip(depth_m[pixels].flat, confidence[pixels].flat, source.numpy()[pixels].flat):
            if 2 <= d < 58:
                near = max(int(np.argmax(centres > d)) - 1 if d < centres[-1] else 111, 0)
                share = np.clip((d - centres[near]) / 0.5, 0, 1) if near < 111 else 0
                if not linear:
                    near, share = int((d - 2) // 0.5), 0
                out[b, n, near, row, column] += c * weights[s] * (1 - share)
                out[b, n, min(near + 1, 111), row, column] += c * weights[s] * share
    evidence = out.sum(2)
    probabilities = np.divide(out, evidence[:, :, None], out=out, where=evidence[:, :, None] > 0)
    return probabilities, np.minimum(evidence / enough_px, 1)


@pytest.mark.parametrize("others", ["empty", "farther"])
def test_borders_of_bevdepth(others):
    """A cell for each depth, which is somewhere in it; labels farther away do not matter, nor where it has no bin."""
    rng = np.random.default_rng(0)
    depth_m = np.zeros((1, 1, 16, 16 * len(BORDERS)), np.float32)
    for i, d in enumerate(BORDERS):
        cell = depth_m[0, 0, :, 16 * i : 16 * (i + 1)]
        if others == "farther" and d > 0:
            cell[rng.random((16, 16)) < 0.3] = d + 0.6
        cell[tuple(rng.integers(16, size=2))] = d
    target = depth_targets(torch.from_numpy(depth_m), 16, BINS, BEVDEPTH)
    assert target.probabilities.shape == (1, 1, 112, 1, len(BORDERS))
    for i, k in enumerate(BORDERS.values()):
        expected = torch.zeros(112)
        if k is not None:
            expected[k] = 1
        assert torch.equal(target.probabilities[0, 0, :, 0, i], expected)
        assert target.weight[0, 0, 0, i] == (k is not None)


@pytest.mark.parametrize("filled", [0.02, 0.2, 1.0])
def test_bevdepth_cell_by_cell(filled):
    depth_m, confidence, source = label(filled)
    target = depth_targets(depth_m, 4, BINS, BEVDEPTH, confidence, source)
    expected = bevdepth(depth_m, 4)
    assert 0 < expected.sum() < expected[:, :, 0].size
    np.testing.assert_array_equal(target.probabilities, expected)
    np.testing.assert_array_equal(target.weight, expected.max(2))


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("filled", [0.05, 1.0])
@pytest.mark.parametrize("enough_px", [1.0, 5.0])
def test_histogram_pixel_by_pixel(filled, linear, enough_px):
    depth_m, confidence, source = label(filled)
    config = DepthTargetConfig(linear=linear, source_weight=WEIGHTS, enough_px=enough_px)
    target = depth_targets(depth_m, 4, BINS, config, confidence, source)
    probabilities, weight = histogram(depth_m, confidence, source, 4, WEIGHTS, linear, enough_px)
    assert (weight == 0).any() and ((weight > 0) & (weight < 1)).any()
    np.testing.assert_allclose(target.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(target.weight, weight, atol=1e-5)
    np.testing.assert_allclose(target.probabilities.sum(2), weight > 0, atol=1e-6)
    assert not linear or (target.probabilities > 0).sum() > 1.2 * (target.weight > 0).sum()


def test_histogram_by_hand():
    """A cell of four pixels: two of the wall at 10.1 m, one of the car at 6.3 m, and one that is too far away."""
    depth_m = torch.tensor([[[[10.1, 6.3], [10.1, 70.0]]]])
    confidence = torch.tensor([[[[255, 51], [51, 255]]]], dtype=torch.uint8)
    source = torch.tensor([[[[1, 3], [4, 1]]]], dtype=torch.uint8)
    config = DepthTargetConfig(source_weight=(0.0, 1.0, 1.0, 2.0, 0.5), enough_px=3.0)
    target = depth_targets(depth_m, 2, BINS, config, confidence, source)
    assert target.probabilities[0, 0, 16].item() == pytest.approx(1.1 / 1.5)  # 1 + 0.2 * 0.5, of 1.1 + 0.2 * 2
    assert target.probabilities[0, 0, 8].item() == pytest.approx(0.4 / 1.5)
    assert target.weight.item() == pytest.approx(1.5 / 3)
    without = depth_targets(depth_m, 2, BINS, HISTOGRAM)
    assert without.probabilities[0, 0, 16].item() == pytest.approx(2 / 3)
    assert without.weight.item() == 1


def test_linear_targets_expect_the_mean_depth():
    depth_m, confidence, source = label(0.5, outside=False)
    target = depth_targets(depth_m, 4, BINS, DepthTargetConfig(linear=True), confidence, source)
    of_cells = [x.double().reshape(2, 3, 4, 4, 6, 4) for x in (depth_m, confidence * (depth_m > 0))]
    mean_m = (of_cells[0] * of_cells[1]).sum((3, 5)) / of_cells[1].sum((3, 5))
    np.testing.assert_allclose(BINS.expectation(target.probabilities), mean_m, rtol=1e-5)


def test_min_passes_over_pixels_that_count_nothing():
    depth_m = torch.tensor([[[[5.1, 9.1], [0.0, 9.1]]]])
    source = torch.tensor([[[[4, 1], [0, 2]]]], dtype=torch.uint8)
    confidence = torch.tensor([[[[102, 51], [255, 255]]]], dtype=torch.uint8)
    for of_completed, k, weight in ((0.5, 6, 0.2), (0.0, 14, 0.8)):  # of two pixels at one depth the better counts
        config = DepthTargetConfig(mode="min", source_weight=(0.0, 1.0, 0.8, 1.0, of_completed))
        target = depth_targets(depth_m, 2, BINS, config, confidence, source)
        assert target.probabilities.flatten().nonzero().item() == k
        assert target.probabilities.sum() == 1 and target.weight.item() == pytest.approx(weight)


@pytest.mark.parametrize("mode", ["min", "histogram"])
def test_cells_of_little_weight_have_no_target(mode):
    depth_m, confidence, source = label(0.1)
    everything = depth_targets(depth_m, 4, BINS, DepthTargetConfig(mode=mode), confidence, source)
    target = depth_targets(depth_m, 4, BINS, DepthTargetConfig(mode=mode, min_weight=0.4), confidence, source)
    kept = everything.weight >= 0.4
    assert kept.any() and (everything.weight[~kept] > 0).any()
    assert torch.equal(target.weight, everything.weight * kept)
    assert torch.equal(target.probabilities, everything.probabilities * kept[:, :, None])


def test_the_order_of_pixels_in_a_cell_does_not_matter():
    given = label(1.0, (1, 1, 64, 64))
    target = depth_targets(given[0], 64, BINS, HISTOGRAM, *given[1:])
    order = torch.randperm(64 * 64)
    other = depth_targets(*(x.flatten()[order].reshape(x.shape) for x in given[:1]), 64, BINS, HISTOGRAM,
                          *(x.flatten()[order].reshape(x.shape) for x in given[1:]))  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(target, other))


@pytest.mark.parametrize("config", [BEVDEPTH, HISTOGRAM, DepthTargetConfig(linear=True)])
def test_nothing_to_see(config):
    target = depth_targets(torch.zeros(2, 3, 16, 24), 8, BINS, config)
    assert (
        target.probabilities.shape == (2, 3, 112, 2, 3) and not target.probabilities.any() and not target.weight.any()
    )
    assert depth_targets(torch.zeros(0, 6, 16, 24), 8, BINS, config).weight.shape == (0, 6, 2, 3)
    nothing = torch.full((1, 1, 8, 8), torch.nan)
    nothing[..., 0] = torch.inf
    nothing[..., 1] = -1
    target = depth_targets(nothing, 8, BINS, config)
    assert not target.probabilities.any() and not target.weight.any()


@pytest.mark.parametrize("config", [BEVDEPTH, HISTOGRAM, DepthTargetConfig(linear=True)])
def test_layout_in_memory_does_not_matter(config):
    given = label(0.3)
    turned = [x.mT.contiguous().mT for x in given]
    for a, b in zip(*(depth_targets(x[0], 4, BINS, config, *x[1:]) for x in (given, turned))):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", ["min", "histogram"])
def test_unknown_source_codes_are_counted_by_the_loss(mode):
    depth_m, _, source = label(1.0, outside=False)
    source[0, 1, 5, 7] = 9
    depth_m[0, 1, 5, 7] = 2.1  # the nearest of its cell
    target = depth_targets(depth_m, 4, BINS, DepthTargetConfig(mode=mode), None, source)
    assert target.weight.isnan().nonzero().tolist() == [[0, 1, 1, 1]]
    result = depth_loss(torch.zeros_like(target.probabilities), target, DepthLossConfig())
    assert result.nonfinite == 1 and result.loss.isfinite()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("config", [BEVDEPTH, HISTOGRAM, DepthTargetConfig(linear=True)])
def test_gpu(config):
    depth_m, confidence, source = label(0.5)
    on_gpu = depth_targets(depth_m.cuda(), 4, BINS, config, confidence.cuda(), source.cuda())
    for a, b in zip(on_gpu, depth_targets(depth_m, 4, BINS, config, confidence, source)):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-6 if config.linear else 0)


def test_cells_must_fill_the_image():
    for stride in (5, 0, -4):
        with pytest.raises(InputError, match=f"16 x 24 px: stride {stride}"):
            depth_targets(torch.zeros(1, 1, 16, 24), stride, BINS, HISTOGRAM)
    with pytest.raises(ValueError, match="source is"):
        depth_targets(torch.zeros(1, 1, 16, 24), 8, BINS, HISTOGRAM, source=torch.zeros(1, 1, 16, 16).byte())


@pytest.mark.parametrize(
    "option",
    [
        {"mode": "max"},
        {"source_weight": (1.0, 1.0)},
        {"source_weight": (0.0, 1.0, -1.0, 1.0, 1.0)},
        {"source_weight": (0.0, 1.0, float("nan"), 1.0, 1.0)},
        {"enough_px": 0.0},
        {"min_weight": 1.5},
    ],
)
def test_impossible_options(option):
    with pytest.raises(InputError, match=next(iter(option))):
        DepthTargetConfig(**option)
