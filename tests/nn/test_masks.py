import torch

import flowkernels as fk


def test_checkerboard_keeps_odd_sites():
    mask = fk.nn.checkerboard_mask(3, 5)
    assert mask.shape == (1, 3, 5)
    assert mask.dtype == torch.bool
    assert all(mask[0, h, w] == ((h + w) % 2 == 1) for h in range(3) for w in range(5))


def test_channel_mask_keeps_the_first_half():
    assert fk.nn.channel_mask(5).tolist() == [True, True, False, False, False]
    assert fk.nn.channel_mask(4, spatial=True).shape == (4, 1, 1)
    assert fk.nn.channel_mask(1).tolist() == [False]


def test_invert_is_the_complement():
    assert torch.equal(fk.nn.checkerboard_mask(4, 3, invert=True), ~fk.nn.checkerboard_mask(4, 3))
    assert torch.equal(fk.nn.channel_mask(5, invert=True, spatial=True), ~fk.nn.channel_mask(5, spatial=True))
