"""The neck."""

import torch

from training.models.layers import Neck


def test_neck_stacks_levels():
    """Each level alone fills its own channels, at its own place."""
    neck = Neck([3, 4, 5, 6], [1 / 4, 1 / 2, 1, 2], 7).eval()
    maps = [torch.zeros(1, c, 96 // s, 64 // s) for c, s in zip((3, 4, 5, 6), (4, 8, 16, 32))]
    assert neck(maps).shape == (1, 28, 6, 4) and not neck(maps).any()
    for level, x in enumerate(maps):
        scale = x.shape[-1] / 4
        touched = torch.zeros(6, 4, dtype=torch.bool)
        for sign in (1, -1):  # a ReLU lets one of them pass
            x[0, :, int(2 * scale), int(scale)] = sign
            out = neck(maps)[0]
            touched |= out[7 * level : 7 * level + 7].any(0)
            assert not out[: 7 * level].any() and not out[7 * level + 7 :].any()
        x.zero_()
        expected = torch.zeros(6, 4, dtype=torch.bool)
        size = max(1, round(1 / scale))
        expected[2 : 2 + size, 1 : 1 + size] = scale >= 1
        if scale < 1:
            expected[2:4, :2] = True
        assert torch.equal(touched, expected)
