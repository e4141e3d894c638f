"""Squeeze and unsqueeze, by torch's copies and by the compiled module of the CPU."""

from __future__ import annotations

import pytest
import torch

import flowkernels as fk
from flowkernels.ops import squeeze as op

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


# Lines of known and of other lengths; sizes that threads share, and that they do not.
MOVED = [(64, 1, 28, 28), (3, 6, 16, 16), (3, 12, 32, 32), (40, 4, 8, 8), (5, 3, 14, 20), (16, 2, 64, 50)]


@pytest.mark.parametrize("how", ["contiguous", "channels_last", "half of the channels", "part of the lines"])
@pytest.mark.parametrize("shape", MOVED, ids=str)
def test_the_compiled_module_moves_the_same(shape, how):
    rows, channels, height, width = shape
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool, torch.int64):
        x = (200 * torch.rand(rows, 2 * channels, height + 4, width)).to(dtype)
        x = x[:, channels:] if how.startswith("half") else x[:, :channels]
        x = x[:, :, 2:-2] if how.startswith("part") else x[:, :, 4:].clone()
        if how == "channels_last":
            x = x.contiguous(memory_format=torch.channels_last)
        y = fk.squeeze(x)
        with fk.backend("reference"):
            expected = fk.squeeze(x)
            assert torch.equal(fk.unsqueeze(y), x)
        assert torch.equal(y, expected)
        assert y.stride() == expected.stride()
        assert torch.equal(fk.unsqueeze(y), x)
        assert op._plan(x, False) is not None
        assert op._plan(y, True) is not None


def test_gradients_of_what_the_compiled_module_moves():
    x = torch.randn(2, 4, 24, 24, dtype=torch.float64, requires_grad=True)
    y = fk.squeeze(x)
    assert "_Function" in y.grad_fn.name()
    weights = torch.randn_like(y)
    (grad,) = torch.autograd.grad((y**3 * weights).sum(), x, create_graph=True)
    expected = 3 * x**2 * fk.unsqueeze(weights)
    torch.testing.assert_close(grad, expected)
    (second,) = torch.autograd.grad(grad.sum(), x)
    torch.testing.assert_close(second, 6 * x * fk.unsqueeze(weights))
    (expanded,) = torch.autograd.grad(fk.squeeze(x).sum(), x)
    assert torch.equal(expanded, torch.ones_like(x))


def test_four_channels_kept_last():
    """The picture has one channel: it is in order as well, and what it is squeezed to is not."""
    y = torch.randn(64, 4, 14, 14).contiguous(memory_format=torch.channels_last)
    with fk.backend("reference"):
        expected = fk.unsqueeze(y)
    assert torch.equal(fk.unsqueeze(y), expected)
    x = torch.randn(64, 1, 28, 28, requires_grad=True)
    (grad,) = torch.autograd.grad(fk.squeeze(x), x, y)
    assert torch.equal(grad, expected)


def test_many_gradients_at_once_and_another_default_device():
    x = torch.randn(2, 4, 24, 24, requires_grad=True)
    many = torch.randn(3, 2, 16, 12, 12)
    (grads,) = torch.autograd.grad(fk.squeeze(x), x, many, is_grads_batched=True)
    assert torch.equal(grads, torch.stack([fk.unsqueeze(g) for g in many]))
    with torch.device("meta"):
        assert fk.squeeze(x).device.type == "cpu"


def test_what_is_watched_is_torch_s_own():
    x = torch.randn(4, 4, 32, 32)
    expected = fk.squeeze(x)
    assert torch.equal(torch.func.vmap(lambda t: fk.squeeze(t[None])[0])(x), expected)
    value, tangent = torch.func.jvp(fk.squeeze, (x,), (x,))
    assert torch.equal(value, expected)
    assert torch.equal(tangent, expected)
    assert torch.equal(torch.compile(fk.squeeze, fullgraph=True, backend="eager")(x), expected)
    assert fk.squeeze(torch.complex(x, x)).imag.equal(expected)
    assert torch.equal(fk.squeeze(torch.complex(x, x).conj().imag), -expected)


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
