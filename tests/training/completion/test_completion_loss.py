"""Each term of the loss against numbers worked out by hand, and what may not change it."""

import math

import numpy as np
import pytest
import torch

from dense_depth.completion.network import Prediction
from training.completion.hide import Sample
from training.completion.loss import LossConfig, completion_loss, smoothness

NAN = float("nan")


def maps(*rows):
    return torch.tensor(rows)[None]


def sample(target_m, weight, surface, image=None):
    empty = torch.zeros_like(target_m)
    image = torch.zeros(len(target_m), 3, *target_m.shape[1:]) if image is None else image
    return Sample(image, empty, empty, empty, target_m, weight, surface)


TARGET = maps([10.0, 20.0], [0.0, 0.0])
WEIGHT = maps([1.0, 0.5], [0.0, 0.0])
SURFACE = maps([1.0, 1.0], [0.0, NAN])
DEPTH = maps([12.0, 19.0], [50.0, 3.0])
LOG_SCALE = maps([0.0, math.log(4)], [7.0, -7.0])
SKY = maps([0.0, -math.log(3)], [math.log(3), 9.0])


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_terms_by_hand(beta):
    config = LossConfig(absolute=2.0, relative=3.0, sky=5.0, beta=beta)
    terms = completion_loss(Prediction(DEPTH, LOG_SCALE, SKY), sample(TARGET, WEIGHT, SURFACE), config)
    # Weights 1 and 1/2: off by 2 m with a scale of 1 m, and by 1 m with a scale of 4 m.
    absolute = (1 * (2 / 1 + 0) * 1 + 0.5 * (1 / 4 + math.log(4)) * 4**beta) / 1.5
    relative = (1 * math.log(12 / 10) + 0.5 * math.log(20 / 19)) / 1.5
    # Logits of sky 0 on a surface, 1 to 3 on a surface, 3 to 1 on sky: stated chances of what is there.
    sky = -(math.log(1 / 2) + math.log(3 / 4) + math.log(3 / 4)) / 3
    assert terms["absolute"].item() == pytest.approx(2 * absolute, rel=1e-5)
    assert terms["relative"].item() == pytest.approx(3 * relative, rel=1e-5)
    assert terms["sky"].item() == pytest.approx(5 * sky, rel=1e-5)


def test_smoothness_by_hand():
    """Inverse depths 1, 2, 4 along a row: bend 1 at a middle of 2."""
    depth_m = maps([1.0, 0.5, 0.25]).repeat(1, 3, 1)
    image = torch.zeros(1, 3, 3, 3)
    surface = torch.ones(1, 3, 3)
    assert smoothness(depth_m, image, surface).item() == pytest.approx(1 / 2)
    assert smoothness(depth_m.mT, image, surface).item() == pytest.approx(1 / 2)
    image[..., 2] = torch.tensor([0.0, 0.1, 0.2])[:, None]  # differs by 0.1 on average from the column before
    assert smoothness(depth_m, image, surface).item() == pytest.approx(math.exp(-1) / 2)
    image[..., 0] = 0.5  # the stronger edge of two counts
    assert smoothness(depth_m, image, surface).item() == pytest.approx(math.exp(-5) / 2)
    surface[:, 0] = 0  # a row of sky
    surface[:, 1] = NAN
    assert smoothness(depth_m, image, surface).item() == pytest.approx(math.exp(-5) / 2 * 2 / 3)


def test_smoothness_is_zero_on_planes_only():
    rows, columns = np.indices((20, 30))
    plane = torch.from_numpy(1 / (0.02 + 1e-3 * rows + 2e-3 * columns))[None]
    image, surface = torch.rand(1, 3, 20, 30).double(), torch.ones(1, 20, 30).double()
    assert smoothness(plane, image, surface).item() == pytest.approx(0, abs=1e-12)
    assert smoothness(plane**2, image, surface).item() > 1e-4


def random_case(batch=1, seed=0):
    torch.manual_seed(seed)
    shape = batch, 12, 16
    weight = torch.rand(shape) * (torch.rand(shape) < 0.5)
    target_m = torch.where(weight > 0, 5 + 40 * torch.rand(shape), 0.0)
    surface = torch.where(torch.rand(shape) < 0.3, NAN, (torch.rand(shape) < 0.7).float())
    prediction = Prediction(5 + 40 * torch.rand(shape), torch.randn(shape), torch.randn(shape))
    return prediction, sample(target_m, weight, surface, torch.rand(batch, 3, *shape[1:]))


def test_unknown_pixels_have_no_gradient():
    prediction, given = random_case()
    prediction = Prediction(*(x.requires_grad_() for x in prediction))
    completion_loss(prediction, given, LossConfig(smoothness=0))["loss"].backward()
    weighted, known = given.weight > 0, ~given.surface.isnan()
    for x, where in zip(prediction, (weighted, weighted, known)):
        assert x.grad.isfinite().all()
        assert torch.equal(x.grad != 0, where)


def test_nothing_known_is_zero_with_finite_gradients():
    prediction, given = random_case()
    prediction = Prediction(*(x.requires_grad_() for x in prediction))
    nothing = torch.zeros_like(given.weight)
    terms = completion_loss(
        prediction, given._replace(weight=nothing, target_m=nothing, surface=nothing + NAN), LossConfig(smoothness=0)
    )
    terms["loss"].backward()
    assert terms["loss"].item() == 0
    assert all(x.grad.isfinite().all() and not x.grad.any() for x in prediction)


def test_a_loss_is_a_mean_and_its_parts_are_its_sum():
    prediction, given = random_case()
    once = completion_loss(prediction, given, LossConfig())
    twice = completion_loss(
        Prediction(*(torch.cat([x, x]) for x in prediction)), Sample(*(torch.cat([x, x]) for x in given)), LossConfig()
    )
    for name, value in once.items():
        assert value.item() == pytest.approx(twice[name].item(), rel=1e-5)
    assert once["loss"].item() == pytest.approx(sum(value.item() for name, value in once.items() if name != "loss"))
    fewer = completion_loss(prediction, given._replace(weight=given.weight * 0.5), LossConfig())
    assert fewer["absolute"].item() == pytest.approx(once["absolute"].item(), rel=1e-5)


def test_gradients_are_those_of_differences():
    prediction, given = random_case()
    prediction = Prediction(*(x.double().requires_grad_() for x in prediction))
    given = Sample(*(x.double() for x in given))

    def loss(depth_m, log_scale, sky):  # the stated scale is held in the factor of beta, so that is left out
        terms = completion_loss(Prediction(depth_m, log_scale, sky), given, LossConfig(beta=0.0, smoothness=0.0))
        return terms["loss"]

    assert torch.autograd.gradcheck(loss, tuple(prediction), eps=1e-6, atol=1e-6)


def test_the_stated_scale_is_drawn_to_the_error_whatever_beta():
    """The gradient of e / s + log s is 1 - e / s with respect to log s, here times s ** beta."""
    log_scale = LOG_SCALE.clone().requires_grad_()
    config = LossConfig(relative=0, sky=0, smoothness=0, beta=0.7)
    terms = completion_loss(Prediction(DEPTH, log_scale, SKY), sample(TARGET, WEIGHT, SURFACE), config)
    terms["absolute"].backward()
    expected = maps([1 * (1 - 2 / 1) * 1 / 1.5, 0.5 * (1 - 1 / 4) * 4**0.7 / 1.5], [0.0, 0.0])
    torch.testing.assert_close(log_scale.grad, expected)
