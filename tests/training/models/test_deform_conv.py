"""The deformable convolution against torchvision where it loads, a loop over taps, and the plain convolution."""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from training.models import deform_conv
from training.models.deform_conv import DeformConv, deform_conv2d


def value_at(plane, v, u):
    """Between the four pixels around; zero outside."""
    height, width = plane.shape
    top, left = math.floor(v), math.floor(u)
    total = 0.0
    for row, weight_v in ((top, top + 1 - v), (top + 1, v - top)):
        for column, weight_u in ((left, left + 1 - u), (left + 1, u - left)):
            if 0 <= row < height and 0 <= column < width:
                total += weight_v * weight_u * float(plane[row, column])
    return total


def by_taps(x, offset, weight, bias):
    """Dai et al.'s equation, one output at a time; channels of the offset as torchvision documents them."""
    batch, n_in, height, width = x.shape
    n_out, n_group, k, _ = weight.shape
    out = torch.zeros(batch, n_out, height, width, dtype=torch.float64)
    for b in range(batch):
        for o in range(n_out):
            first = o // (n_out // (n_in // n_group)) * n_group
            for row in range(height):
                for column in range(width):
                    total = float(bias[o])
                    for i in range(k):
                        for j in range(k):
                            down, right = offset[b, 2 * (i * k + j) : 2 * (i * k + j) + 2, row, column].tolist()
                            v, u = row + i - k // 2 + down, column + j - k // 2 + right
                            for c in range(n_group):
                                total += float(weight[o, c, i, j]) * value_at(x[b, first + c], v, u)
                    out[b, o, row, column] = total
    return out


def case(n_in, n_out, groups, k=3, size=(5, 4), batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (batch, n_in, *size), (batch, 2 * k * k, *size), (n_out, n_in // groups, k, k), (n_out,)
    x, offset, weight, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return x, offset * 1.5, weight, bias


@pytest.mark.parametrize("groups, k, size", [(1, 3, (5, 4)), (2, 3, (3, 6)), (4, 1, (4, 3))])
def test_equals_a_loop_over_taps(groups, k, size):
    arguments = case(4, 8, groups, k, size, batch=2 if groups == 1 else 1)
    expected = by_taps(*arguments)
    torch.testing.assert_close(deform_conv2d(*arguments), expected, rtol=1e-9, atol=1e-9)
    single = deform_conv2d(*(x.float() for x in arguments))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(deform_conv._torchvision_deform_conv2d is None, reason="torchvision does not load")
@pytest.mark.parametrize("groups", [1, 4])
def test_equals_torchvision(groups):
    x, offset, weight, bias = case(8, 12, groups, size=(16, 22))
    expected = deform_conv._torchvision_deform_conv2d(x, offset, weight, bias, padding=1)
    torch.testing.assert_close(deform_conv2d(x, offset, weight, bias), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_without_offsets_it_is_a_convolution(groups):
    x, offset, weight, bias = case(8, 12, groups, size=(16, 44), dtype=torch.float32)
    got = deform_conv2d(x, torch.zeros_like(offset), weight, bias)
    torch.testing.assert_close(got, F.conv2d(x, weight, bias, padding=1, groups=groups), rtol=1e-4, atol=1e-4)
    # Whole offsets shift the map.
    shifted = deform_conv2d(x, torch.ones_like(offset), weight, bias)
    rolled = F.conv2d(x, weight, bias, padding=1, groups=groups)
    torch.testing.assert_close(shifted[..., :-2, :-2], rolled[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)


def test_bf16_does_not_move_taps():
    """Places in bf16 would be off by up to a sixth of a pixel on a map 44 wide."""
    x, offset, weight, _ = (y.bfloat16() for y in case(8, 8, 4, size=(16, 44)))
    got = deform_conv2d(x, torch.zeros_like(offset), weight)
    assert got.dtype == torch.bfloat16
    expected = F.conv2d(x.float(), weight.float(), padding=1, groups=4)
    assert (got.float() - expected).abs().max() < 0.02 * expected.abs().max()


def test_gradients():
    x, offset, weight, bias = case(4, 4, 2, size=(3, 4), batch=1)
    # Away from whole coordinates, where the value between pixels has a kink.
    offset = offset.floor() + 0.2 + 0.6 * offset.frac().abs()
    arguments = [y.requires_grad_() for y in (x, offset, weight, bias)]
    assert torch.autograd.gradcheck(deform_conv2d, arguments)


def test_module_begins_as_a_convolution_and_learns_where_to_look(monkeypatch):
    monkeypatch.setattr(deform_conv, "_torchvision_deform_conv2d", None)
    torch.manual_seed(0)
    module, x = DeformConv(8), torch.randn(2, 8, 6, 7)
    out = module(x)
    torch.testing.assert_close(out, F.conv2d(x, module.weight, padding=1, groups=4), rtol=1e-4, atol=1e-5)
    (out * torch.randn_like(out)).sum().backward()
    assert module.offset.weight.grad.abs().max() > 0 and module.offset.bias.grad.abs().max() > 0
    # One tap of one pixel on: as the map moved by that much.
    with torch.no_grad():
        module.offset.bias.view(9, 2)[:, 1] = 1
        torch.testing.assert_close(module(x)[..., :-2], out[..., 1:-1].detach(), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
