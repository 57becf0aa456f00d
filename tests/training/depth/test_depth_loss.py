"""The depth loss against BEVDepth's formula in float64 numpy, its gradients, and what must not break it."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812  its usual name

from dense_depth import InputError
from training.depth.bins import DepthBins
from training.depth.loss import DepthLossConfig, depth_loss
from training.depth.targets import BEVDEPTH, DepthTarget, depth_targets

CONFIG = DepthLossConfig()
BAD = [float("nan"), float("inf"), -float("inf")]


def case(batch=2, bins=6, spread=2.0, seed=0, dtype=torch.float32):
    """Logits, soft targets, and weights of which some are 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = batch, 3, bins, 4, 5
    logits = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.rand(batch, 3, 4, 5, generator=generator, dtype=torch.float64)
    weight = weight * (weight > 0.4)
    probabilities = torch.rand(shape, generator=generator, dtype=torch.float64).softmax(2) * (weight > 0)[:, :, None]
    return logits.to(dtype), DepthTarget(probabilities.to(dtype), weight.to(dtype))


def bevdepth_loss(logits, one_hot):
    """3 * sum of BCE(softmax, one-hot) over the cells with a target / max(1, their number), in float64."""
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(2, keepdims=True))
    p /= p.sum(2, keepdims=True)
    not_p = np.stack([np.delete(p, k, 2).sum(2) for k in range(p.shape[2])], 2)  # 1 - p with all digits
    with np.errstate(divide="ignore"):
        bce = -(one_hot * np.maximum(np.log(p), -100) + (1 - one_hot) * np.maximum(np.log(not_p), -100))
    foreground = one_hot.max(2) > 0
    return 3 * bce.sum(2)[foreground].sum() / max(1, foreground.sum())


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0, 300.0])
def test_bevdepth_from_label_to_loss(spread):
    depths_m = [0.0, 1.5, 1.999, 2.0, 2.499, 57.99, 58.0, 58.25, 31.2, 12.0, 47.7, 5.0]
    levels = [math.floor((d - 1.5) / 0.5) for d in depths_m]  # level k is bin k - 1; the last is 112
    one_hot = np.zeros((1, 1, 112, 1, len(depths_m)))
    for i, level in enumerate(levels):
        if 1 <= level < 113:
            one_hot[0, 0, level - 1, 0, i] = 1
    assert one_hot.sum() == 7
    depth_m = torch.zeros(1, 1, 16, 16 * len(depths_m))
    depth_m[0, 0, 3, 11::16] = torch.tensor(depths_m)
    target = depth_targets(depth_m, 16, DepthBins.uniform(), BEVDEPTH)
    rng = np.random.default_rng(0)
    logits = (spread * rng.standard_normal(one_hot.shape)).astype(np.float32)
    result = depth_loss(torch.from_numpy(logits), target, CONFIG)
    assert result.loss.item() == pytest.approx(bevdepth_loss(logits, one_hot), rel=2e-6)
    assert result.cells == result.weight == 7 and result.nonfinite == 0
    assert result.loss.dtype == torch.float32
    if spread <= 1:  # no probability is rounded to 1
        parity = depth_loss(torch.from_numpy(logits), target, DepthLossConfig(parity=True))
        assert parity.loss.item() == pytest.approx(bevdepth_loss(logits, one_hot), rel=2e-6)


def test_by_hand():
    """Chances of 1/4 and 3/4 where the first bin is right: 2 log 4. Even chances for an even target: 2 log 2."""
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]).reshape(1, 1, 2, 1, 2)
    probabilities = torch.tensor([[1.0, 0.5], [0.0, 0.5]]).reshape(1, 1, 2, 1, 2)
    target = DepthTarget(probabilities, torch.tensor([1.0, 0.5]).reshape(1, 1, 1, 2))
    expected = (1 * 2 * math.log(4) + 0.5 * 2 * math.log(2)) / 1.5
    assert depth_loss(logits, target, CONFIG).loss.item() == pytest.approx(3 * expected)
    assert depth_loss(logits, target, DepthLossConfig(scale=0.5)).loss.item() == pytest.approx(expected / 2)
    little = target._replace(weight=target.weight / 6)  # together 1/4, but divided by 1
    assert depth_loss(logits, little, CONFIG).loss.item() == pytest.approx(3 * expected / 4)


@pytest.mark.parametrize(("parity", "of_the_wrong_bin"), [(False, 30), (True, 100)])
def test_sure_and_wrong_by_hand(parity, of_the_wrong_bin):
    """Chances of e^-30 and 1 - e^-30, which rounds to 1; with parity the wrong bin then costs 100."""
    logits = torch.tensor([0.0, 30.0]).reshape(1, 1, 2, 1, 1).requires_grad_()
    target = DepthTarget(torch.tensor([1.0, 0.0]).reshape(1, 1, 2, 1, 1), torch.ones(1, 1, 1, 1))
    loss = depth_loss(logits, target, DepthLossConfig(scale=1.0, parity=parity)).loss
    assert loss.item() == pytest.approx(30 + of_the_wrong_bin)
    if not parity:
        loss.backward()
        assert logits.grad.flatten().tolist() == pytest.approx([-2.0, 2.0])


@pytest.mark.parametrize("parity", [False, True])
def test_gradients_are_those_of_differences(parity):
    logits, target = case(batch=1, dtype=torch.float64)
    logits.requires_grad_()
    config = DepthLossConfig(parity=parity)
    assert torch.autograd.gradcheck(lambda z: depth_loss(z, target, config).loss, logits, eps=1e-6, atol=1e-8)


@pytest.mark.parametrize("margin", [5, 12, 17, 20])
def test_gradients_of_predictions_that_are_sure_and_wrong(margin):
    """fp32 against float64, also where the likeliest bin's probability rounds to 1 in fp32."""
    logits, target = case()
    logits[:, :, 2] += margin
    one_hot = torch.zeros_like(logits)
    one_hot[:, :, 4] = 1
    target = DepthTarget(one_hot, torch.ones_like(target.weight))
    exact = logits.double().requires_grad_()
    entropy = F.binary_cross_entropy(exact.softmax(2), one_hot.double(), reduction="sum")
    expected = torch.autograd.grad(entropy * 3 / target.weight.sum().double(), exact)[0]
    logits.requires_grad_()
    result = depth_loss(logits, target, CONFIG).loss
    result.backward()
    assert result.item() == pytest.approx((entropy * 3 / target.weight.sum()).item(), rel=1e-5)
    torch.testing.assert_close(logits.grad.double(), expected, rtol=1e-4, atol=1e-7)
    if margin == 20:
        rounded = logits.detach().requires_grad_()
        depth_loss(rounded, target, DepthLossConfig(parity=True)).loss.backward()
        assert (rounded.grad - expected).abs().max() > 1


def test_a_perfect_prediction_costs_nothing():
    logits, target = case()
    one_hot = torch.zeros_like(logits)
    one_hot[:, :, 3] = 1
    assert depth_loss(60 * one_hot, target._replace(probabilities=one_hot), CONFIG).loss.item() == pytest.approx(0)


def test_a_soft_target_is_best_met_exactly():
    _, target = case(dtype=torch.float64)
    target = target._replace(probabilities=case(seed=1)[0].double().softmax(2))
    logits = target.probabilities.log().requires_grad_()
    best = depth_loss(logits, target, CONFIG).loss
    assert torch.autograd.grad(best, logits)[0].abs().max() < 1e-12
    assert depth_loss(logits + 0.1 * case(seed=2)[0], target, CONFIG).loss > best


@pytest.mark.parametrize("parity", [False, True])
def test_autocast_changes_nothing(parity):
    config = DepthLossConfig(parity=parity)
    logits, target = case()
    with torch.autocast("cpu", torch.bfloat16):
        inside = depth_loss(logits, target, config)
    assert all(torch.equal(a, b) for a, b in zip(inside, depth_loss(logits, target, config)))
    half = logits.bfloat16().requires_grad_()
    loss = depth_loss(half, target, config).loss
    assert loss.dtype == torch.float32 and torch.equal(loss, depth_loss(half.float(), target, config).loss)
    loss.backward()
    assert half.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("bad", BAD)
def test_cells_that_are_not_finite_are_left_out_and_counted(bad, parity):
    config = DepthLossConfig(parity=parity)
    logits, target = case()
    hurt = logits.clone()
    cells = [(0, 1, 2, 3), (1, 0, 0, 0), (1, 2, 3, 4)]
    weight = target.weight.clone()
    for b, n, row, column in cells:
        weight[b, n, row, column] = 1
    hurt[0, 1, 5, 2, 3] = bad
    hurt[1, 0, :, 0, 0] = bad
    probabilities = target.probabilities.clone()
    probabilities[1, 2, 0, 3, 4] = bad
    unsupervised = tuple((weight == 0).nonzero()[0].tolist())
    hurt[unsupervised[0], unsupervised[1], 0, unsupervised[2], unsupervised[3]] = bad  # not worth a count
    hurt.requires_grad_()
    result = depth_loss(hurt, DepthTarget(probabilities, weight), config)
    result.loss.backward()

    without = weight.clone()
    for b, n, row, column in cells:
        without[b, n, row, column] = 0
    logits.requires_grad_()
    expected = depth_loss(logits, DepthTarget(target.probabilities, without), config)
    expected.loss.backward()
    assert result.nonfinite == 3 and expected.nonfinite == 0
    assert torch.equal(result.loss, expected.loss) and torch.equal(hurt.grad, logits.grad)
    assert result.cells == expected.cells == (without > 0).sum()


def test_nothing_finite():
    logits, target = case()
    logits = (logits * torch.nan).requires_grad_()
    result = depth_loss(logits, target, CONFIG)
    result.loss.backward()
    assert result.loss == 0 and result.nonfinite == (target.weight > 0).sum() and not logits.grad.any()


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize("big", [1e3, 1e30, 3e38])
def test_the_largest_numbers(big, parity):
    logits, target = case()
    logits = (logits.sign() * big).requires_grad_()
    result = depth_loss(logits, target, DepthLossConfig(parity=parity))
    result.loss.backward()
    assert result.loss.isfinite() and logits.grad.isfinite().all() and result.nonfinite == 0


@pytest.mark.parametrize("batch", [0, 2])
def test_without_labels_loss_and_gradients_are_zero(batch):
    logits = case(batch)[0].requires_grad_()
    target = DepthTarget(torch.zeros_like(logits), torch.zeros(batch, 3, 4, 5))
    result = depth_loss(logits, target, CONFIG)
    result.loss.backward()
    assert result.loss == result.cells == result.weight == result.nonfinite == 0
    assert logits.grad is not None and not logits.grad.any()


def test_cells_without_weight_have_no_gradient():
    logits, target = case()
    logits.requires_grad_()
    depth_loss(logits, target, CONFIG).loss.backward()
    assert torch.equal(logits.grad.abs().sum(2) > 0, target.weight > 0)


def test_with_a_common_divisor_processes_have_the_gradient_of_one():
    logits, target = case()
    whole = logits.clone().requires_grad_()
    depth_loss(whole, target, CONFIG).loss.backward()
    divisor = target.weight.sum() / 2
    for i in range(2):
        part = logits[i : i + 1].clone().requires_grad_()
        depth_loss(part, DepthTarget(*(x[i : i + 1] for x in target)), CONFIG, divisor).loss.backward()
        torch.testing.assert_close(part.grad[0] / 2, whole.grad[i], rtol=1e-6, atol=1e-9)
    assert depth_loss(logits, target, CONFIG, 0.5).loss == depth_loss(logits, target, CONFIG, 1.0).loss


def test_the_supervised_weight_can_be_held():
    logits, target = case(bins=2)
    full = target._replace(weight=torch.ones_like(target.weight))
    few = full.weight.clone()
    few[1].zero_()
    few[1, 0, 0, :3] = 1
    config = DepthLossConfig(cells_per_sample=10)
    assert depth_loss(logits, full, config).weight == 20
    assert depth_loss(logits, full, config).cells == 20
    assert depth_loss(logits, full._replace(weight=few), config).weight == 13  # no more than there are
    assert depth_loss(logits, full._replace(weight=few * 0.75), config).weight == pytest.approx(12.25)
    assert depth_loss(logits, full, DepthLossConfig(cells_per_sample=7.5)).weight == 15
    assert depth_loss(logits, full, DepthLossConfig(cells_per_sample=1000)) == depth_loss(logits, full, CONFIG)
    torn = logits.clone()
    torn[0, 0] = torch.nan
    assert depth_loss(torn, full, config).weight == 20  # of the others


def test_held_weight_is_drawn_evenly_and_repeatably():
    logits, target = case(bins=2)
    target = target._replace(weight=torch.ones_like(target.weight))
    config = DepthLossConfig(cells_per_sample=15)  # of 60
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    drawn = torch.zeros_like(target.weight)
    for _ in range(400):
        z = logits.clone().requires_grad_()
        first = torch.autograd.grad(depth_loss(z, target, config, generator=generator).loss, z)[0]
        drawn += first.any(2)
    assert (drawn.sum((1, 2, 3)) == 400 * 15).all()
    spread = math.sqrt(400 * 0.25 * 0.75)
    assert (drawn - 100).abs().max() < 5 * spread
    generator.set_state(state)
    again = [depth_loss(logits, target, config, generator=generator).loss for _ in range(2)]
    generator.set_state(state)
    assert again == [depth_loss(logits, target, config, generator=generator).loss for _ in range(2)]
    assert again[0] != again[1]


def test_bad_input():
    logits, target = case()
    with pytest.raises(ValueError, match="logits are"):
        depth_loss(logits[:, :, :3], target, CONFIG)
    with pytest.raises(InputError, match="scale"):
        DepthLossConfig(scale=-1.0)
    with pytest.raises(InputError, match="cells_per_sample"):
        DepthLossConfig(cells_per_sample=0.0)
