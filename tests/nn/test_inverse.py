import pytest
import torch

import flowkernels as fk


def coupling():
    return fk.nn.AffineCoupling(torch.nn.Linear(2, 4), passive=2)


def test_swaps_the_directions(check_layer):
    layer = coupling()
    x = torch.randn(5, 4)
    swapped = fk.nn.Inverse(layer)
    assert all(torch.equal(a, b) for a, b in zip(swapped(x), layer.inverse(x)))
    assert all(torch.equal(a, b) for a, b in zip(swapped.inverse(x), layer(x)))
    check_layer(swapped, x)


def test_twice_is_the_layer_itself():
    layer = coupling()
    x = torch.randn(5, 4)
    assert torch.equal(fk.nn.Inverse(fk.nn.Inverse(layer))(x)[0], layer(x)[0])


def test_passes_the_context_on():
    layer = fk.models.realnvp(4, context=2, transforms=1).layers[0]
    torch.nn.init.normal_(layer.conditioner.layers[-1].weight)
    x, context = torch.randn(5, 4), torch.randn(5, 2)
    assert torch.equal(fk.nn.Inverse(layer)(x, context)[0], layer.inverse(x, context)[0])


def test_saves_loads_and_compiles():
    one, other = fk.nn.Inverse(coupling()), fk.nn.Inverse(coupling())
    other.load_state_dict(one.state_dict(), strict=True)
    x = torch.randn(3, 4)
    assert torch.equal(torch.compile(other, fullgraph=True, backend="aot_eager")(x)[0], one(x)[0])


@pytest.mark.parametrize("layer", [torch.nn.Linear(2, 2), lambda x: x])
def test_refuses_what_has_no_inverse(layer):
    with pytest.raises(TypeError, match=type(layer).__name__):
        fk.nn.Inverse(layer)
