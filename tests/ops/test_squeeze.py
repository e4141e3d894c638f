"""Squeeze and unsqueeze, which torch's copies do on every device."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk

from .affine_cases import strided

SHAPES = [(2, 3, 4, 6), (1, 1, 2, 2), (0, 2, 4, 4), (3, 5, 6, 12), (2, 0, 4, 4)]


def by_definition(x, factor):
    """Channel c f² + i f + j of block (h, w) is channel c of pixel (h f + i, w f + j)."""
    rows, channels, height, width = x.shape
    y = x.new_empty(rows, channels * factor**2, height // factor, width // factor)
    for c in range(channels):
        for i in range(factor):
            for j in range(factor):
                y[:, c * factor**2 + i * factor + j] = x[:, c, i::factor, j::factor]
    return y


@pytest.mark.parametrize("how", ["contiguous", "channels_last", "slice", "transposed", "expanded"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_definition_and_bijective_to_the_bit(shape, how):
    for dtype in (torch.float32, torch.uint8, torch.bfloat16):
        x = strided((200 * torch.rand(shape)).to(dtype), how)
        y = fk.squeeze(x)
        assert torch.equal(y, by_definition(x, 2))
        assert torch.equal(fk.unsqueeze(y), x)
        last = how == "channels_last" and not x.is_contiguous()
        if x.numel():
            assert y.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_factors_and_gradients(factor):
    x = torch.randn(2, 3, 6, 12, dtype=torch.float64, requires_grad=True)
    y = fk.squeeze(x, factor)
    assert torch.equal(y, by_definition(x, factor))
    (grad,) = torch.autograd.grad(y, x, y)
    assert torch.equal(grad, x)
    assert torch.autograd.gradcheck(lambda t: fk.unsqueeze(t, factor), torch.randn_like(y).requires_grad_())


def test_factor_one_is_a_copy_of_nothing():
    """A view will do: nothing is moved."""
    x = torch.randn(2, 3, 4, 4)
    assert fk.squeeze(x, 1).data_ptr() == x.data_ptr()


@pytest.mark.parametrize(
    "call, problem",
    [
        (lambda: fk.squeeze(torch.zeros(1, 1, 3, 4)), r"multiples of factor=2; got x of shape \(1, 1, 3, 4\)"),
        (lambda: fk.squeeze(torch.zeros(1, 3, 4)), r"x must have shape \(B, C, H, W\); got \(1, 3, 4\)"),
        (lambda: fk.squeeze(torch.zeros(1, 1, 4, 4), 0), "factor must be a positive integer; got 0"),
        (lambda: fk.squeeze(torch.zeros(1, 1, 4, 4), 2.0), "factor must be a positive integer; got 2.0"),
        (lambda: fk.unsqueeze(torch.zeros(1, 6, 4, 4)), r"multiple of factor² = 4; got y of shape \(1, 6, 4, 4\)"),
        (lambda: fk.squeeze(None), "x must be a tensor; got NoneType"),
    ],
)
def test_bad_arguments(call, problem):
    with pytest.raises((TypeError, ValueError), match=problem):
        call()
