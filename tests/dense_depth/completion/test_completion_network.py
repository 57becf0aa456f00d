"""The completion network against its parts written again in float64 with numpy and scipy, and against its bounds."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F  # noqa: N812
from torch.utils.flop_counter import FlopCounterMode

from dense_depth.completion.network import (
    CELL_PX,
    FAR_M,
    FAR_OFF,
    NEAR_M,
    PYRAMID,
    CompletionNetwork,
    average,
    follow_measured,
    propagate,
)
from dense_depth.label import Source

TINY = (64, 96)


def inputs(height, width, batch=1, density=0.05, seed=0):
    """An image, and a label of depths from 2 to 80 m with codes and ages."""
    rng = np.random.default_rng(seed)
    shape = batch, height, width
    measured = rng.random(shape) < density
    depth_m, source, age = rng.uniform(2, 80, shape), rng.integers(1, 4, shape), rng.integers(0, 12, shape)
    image = rng.random((batch, 3, height, width))
    return [torch.from_numpy(np.float32(x)) for x in (image, depth_m * measured, source * measured, age * measured)]


def random_network(seed=0, strength=0.05):
    """With a head that is not zero, and batch norms that have seen something."""
    torch.manual_seed(seed)
    network = CompletionNetwork()
    torch.nn.init.normal_(network.head.weight, std=strength)
    torch.nn.init.normal_(network.head.bias, std=strength)  # type: ignore[arg-type]
    with torch.no_grad():
        network(*inputs(*TINY, batch=4))
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return random_network()


def enlarge(x, factor):
    """Bilinear, borders of pixels on borders of pixels."""
    return ndimage.zoom(x, factor, order=1, mode="nearest", grid_mode=True)


def blocks(x, side):
    height, width = x.shape
    return x.reshape(height // side, side, width // side, side)


def propagated(depth_m):
    """Coarse inverse depth and spread, in float64; sides are whole multiples of the largest cell."""
    inverse = np.divide(1.0, depth_m, out=np.zeros(depth_m.shape), where=depth_m > 0)
    n = np.count_nonzero(depth_m)
    side = CELL_PX * 2**PYRAMID
    filled = np.full(blocks(inverse, side).shape[::2], inverse.sum() / n if n else 1 / 20)
    spread = np.ones_like(filled)
    for level in range(PYRAMID, -1, -1):
        side = CELL_PX * 2**level
        if level < PYRAMID:
            filled, spread = enlarge(filled, 2), enlarge(spread, 2)
        count = (blocks(depth_m, side) > 0).sum((1, 3))
        mean = blocks(inverse, side).sum((1, 3)) / np.maximum(count, 1)
        filled, spread = np.where(count, mean, filled), np.where(count, level / PYRAMID, spread)
    return filled, spread


def as_inverse(depth_m):
    depth = torch.from_numpy(np.float32(depth_m))[None, None]
    return torch.where(depth > 0, 1 / depth, 0), (depth > 0).float()


@pytest.mark.parametrize("density", [0.0005, 0.003, 0.05, 1.0])
def test_depth_is_propagated_from_the_smallest_cell_that_holds_any(density):
    rng = np.random.default_rng(3)
    depth_m = rng.uniform(1, 100, (128, 256)) * (rng.random((128, 256)) < density)
    coarse, spread = propagate(*as_inverse(depth_m))
    expected, expected_spread = propagated(depth_m)
    np.testing.assert_allclose(coarse[0, 0], expected, rtol=2e-5)
    np.testing.assert_allclose(spread[0, 0], expected_spread, atol=1e-6)


def test_one_point_fills_the_map_and_none_is_20_m():
    depth_m = np.zeros((128, 128))
    coarse, spread = propagate(*as_inverse(depth_m))
    assert (1 / coarse).numpy() == pytest.approx(20) and (spread == 1).all()
    depth_m[37, 90] = 7
    coarse, spread = propagate(*as_inverse(depth_m))
    assert (1 / coarse).numpy() == pytest.approx(7)
    assert spread[0, 0, 9, 22] == 0 and (spread == 0).sum() == 1
    assert spread[0, 0, -1, 0] == 1


@pytest.mark.parametrize("shape", [(128, 128), (96, 224), (32, 32)])
def test_a_plane_stays_one(shape):
    rows, columns = np.indices(shape)
    plane = 0.02 + 4e-4 * rows + 1e-4 * columns
    coarse, _ = propagate(*as_inverse(1 / plane))
    np.testing.assert_allclose(coarse[0, 0], blocks(plane, CELL_PX).mean((1, 3)), rtol=1e-5)


@pytest.mark.parametrize("dilation", [1, 2])
def test_average_is_that_of_unfold(dilation):
    torch.manual_seed(0)
    x, weights = torch.rand(2, 1, 7, 9), torch.rand(2, 9, 7, 9)
    columns = F.unfold(F.pad(x, (dilation,) * 4, mode="replicate"), 3, dilation=dilation).view(2, 9, 7, 9)
    torch.testing.assert_close(average(x, weights, dilation), (columns * weights).sum(1, keepdim=True))


def followed(said, depth_m):
    """``follow_measured`` again."""
    measured = depth_m > 0
    ratio = np.log(np.where(measured, depth_m * said, 1))
    weight = measured / (1 + (ratio / FAR_OFF) ** 2)
    total, count = (
        ndimage.gaussian_filter(x, 1.3, radius=3, mode="constant")
        + 0.05 * enlarge(ndimage.uniform_filter(blocks(x, CELL_PX).mean((1, 3)), 3, mode="constant"), CELL_PX)
        for x in (weight * ratio, weight)
    )
    return said * np.exp(-total / (count + 1e-3))


def test_depth_follows_what_was_measured_nearby():
    depth_m = torch.zeros(1, 1, 32, 32)
    depth_m[0, 0, 8, 8], depth_m[0, 0, 24, 24] = 10.2, 30.0  # the second is seen through a surface at 10 m
    moved_m = 1 / follow_measured(torch.full((1, 1, 32, 32), 0.1), depth_m)[0, 0]
    assert 10.19 < moved_m[8, 8] <= 10.2 and 10.15 < moved_m[8, 9] <= 10.2
    assert moved_m[8, 31] == 10.0 and moved_m[24, 24] < 10.0 * 30**0.5  # it pulls, alone, but is not believed
    random = np.random.default_rng(0)
    said, depth = random.uniform(0.02, 0.3, (40, 60)), random.uniform(4, 40, (40, 60)) * (random.random((40, 60)) < 0.1)
    got = follow_measured(*(torch.from_numpy(x)[None, None] for x in (said, depth)))[0, 0]
    np.testing.assert_allclose(got, followed(said, depth), rtol=1e-6)


def test_with_a_head_of_zeros_it_is_the_coarse_depth_smoothed_and_drawn_half_way_to_measured_pixels():
    image, depth, source, age = inputs(128, 128, density=0.003)
    prediction = CompletionNetwork()(image, depth, source, age)
    depth_m = depth[0].double().numpy()
    inverse = np.divide(1.0, depth_m, out=np.zeros(depth_m.shape), where=depth_m > 0)
    refined, _ = propagated(depth_m)
    nearest = blocks(inverse, CELL_PX).max((1, 3))
    anchor = 0.5 * (nearest > 0)
    for dilation in (1, 2, 1, 2):
        kernel = np.zeros((2 * dilation + 1,) * 2)
        kernel[::dilation, ::dilation] = 1 / 9
        refined = (1 - anchor) * ndimage.convolve(refined, kernel, mode="nearest") + anchor * nearest
    expected = followed(enlarge(refined, CELL_PX), depth_m)
    np.testing.assert_allclose(prediction.depth_m[0].detach(), 1 / expected, rtol=1e-4)
    assert not prediction.log_scale.any() and not prediction.sky.any()


@pytest.mark.parametrize("shape", [(1, 1), (3, 70), (31, 33), (64, 95), (65, 97)])
def test_any_size(network, shape):
    """What is outside a smaller image is not seen as anything but its last row and column."""
    with torch.inference_mode():
        small = network(*inputs(*shape, batch=2))
        height, width = (n + -n % 32 for n in shape)
        padding = (0, width - shape[1], 0, height - shape[0])
        image, *maps = inputs(*shape, batch=2)
        large = network(F.pad(image, padding, mode="replicate"), *(F.pad(x, padding) for x in maps))
    for x, y in zip(small, large):
        assert x.shape == (2, *shape)
        assert torch.equal(x, y[:, : shape[0], : shape[1]])


def test_images_of_a_batch_do_not_see_each_other(network):
    both = inputs(*TINY, batch=2)
    with torch.inference_mode():
        together = network(*both)
        for i in range(2):
            for x, y in zip(together, network(*(x[i : i + 1] for x in both))):
                torch.testing.assert_close(x[i : i + 1], y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strength", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_depth_is_always_finite_and_within_its_range(strength, density):
    image, depth, source, age = inputs(*TINY, density=density)
    depth[depth > 60] *= 10  # beyond what the network can say
    with torch.inference_mode():
        prediction = random_network(strength=strength)(image, depth, source, age)
    assert all(x.isfinite().all() for x in prediction)
    assert prediction.depth_m.min() >= NEAR_M * (1 - 1e-6) and prediction.depth_m.max() <= FAR_M * (1 + 1e-6)
    if strength == 10:
        assert prediction.depth_m.unique().numel() > 2  # not all of it cut off at the ends


@pytest.mark.parametrize("density", [0.0, 0.05, 1.0])
def test_gradients_are_finite_and_reach_every_parameter(density):
    network = random_network().train()
    prediction = network(*inputs(*TINY, batch=2, density=density))
    (prediction.depth_m.log().mean() + prediction.log_scale.mean() + prediction.sky.mean()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_source_and_age_are_seen(network):
    image, depth, source, age = inputs(*TINY)
    with torch.inference_mode():
        before = network(image, depth, source, age)
        key, static, moving = (torch.where(depth > 0, float(code), 0.0) for code in list(Source)[1:4])
        outputs = [network(image, depth, codes, age).depth_m for codes in (key, static, moving)]
        assert all(not torch.equal(a, b) for a, b in itertools.pairwise(outputs))
        assert not torch.equal(network(image, depth, source, 0 * age).depth_m, before.depth_m)
        older = torch.where(age >= 10, 31.0, age)  # older than a second counts as a second
        assert torch.equal(network(image, depth, source, older).depth_m, before.depth_m)


def test_same_bytes_again_and_with_any_number_of_threads(network):
    sample = inputs(*TINY, batch=2)
    threads = torch.get_num_threads()
    try:
        outputs = []
        for n in (threads, threads, 1, 2):
            torch.set_num_threads(n)
            with torch.inference_mode():
                outputs.append(network(*sample))
    finally:
        torch.set_num_threads(threads)
    for other in outputs[1:]:
        assert all(torch.equal(x, y) for x, y in zip(outputs[0], other))


def test_six_views_take_20_gflop():
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        CompletionNetwork().eval()(*inputs(256, 704, batch=6))
    assert 15e9 < counter.get_total_flops() <= 20e9
