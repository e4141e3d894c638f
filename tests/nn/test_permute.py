import copy

import pytest
import torch

import flowkernels as fk


@pytest.mark.parametrize("order", ["reverse", "random", (2, 0, 3, 1)])
def test_round_trip_and_log_det(check_layer, order):
    check_layer(fk.nn.Permute(4, order), torch.randn(3, 4))
    check_layer(fk.nn.Permute(4, order), torch.randn(2, 4, 2, 1))


def test_forward_selects_and_inverse_is_exact():
    layer = fk.nn.Permute(4, [2, 0, 3, 1])
    x = torch.randn(5, 4, 3)
    y, log_det = layer(x, torch.zeros(5))  # a context is accepted
    assert torch.equal(y, x[:, [2, 0, 3, 1]])
    assert torch.equal(layer.inverse(y)[0], x)
    assert log_det.dtype == torch.float32
    assert not log_det.any()


def test_random_follows_the_generator():
    orders = [fk.nn.Permute(50, "random", generator=torch.Generator().manual_seed(s)).order for s in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_the_permutation_is_in_the_state_dict():
    one, other = fk.nn.Permute(30, "random"), fk.nn.Permute(30, "random")
    other.load_state_dict(copy.deepcopy(one.state_dict()), strict=True)
    x = torch.randn(2, 30)
    assert torch.equal(other(x)[0], one(x)[0])
    assert torch.equal(other.inverse(x)[0], one.inverse(x)[0])


@pytest.mark.parametrize("order", ["shuffle", [0, 1], [0, 1, 1], [0, 1, 3], [[0, 1, 2]]])
def test_a_bad_order_is_named(order):
    with pytest.raises(ValueError, match="order must"):
        fk.nn.Permute(3, order)


def test_other_errors():
    with pytest.raises(ValueError, match=r"x must have shape \(B, 3, \.\.\.\); got \(2, 4\)"):
        fk.nn.Permute(3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="generator"):
        fk.nn.Permute(3, "reverse", generator=torch.Generator())


def test_compiles():
    layer = fk.nn.Permute(6, "random")
    x = torch.randn(4, 6)
    assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0], layer(x)[0])
    assert repr(layer) == "Permute(6)"
