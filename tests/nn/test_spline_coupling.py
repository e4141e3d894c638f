import pytest
import torch
from torch import nn

import flowkernels as fk

FORM = fk.SplineForm(4, 2.0)
FORMS = [FORM, fk.SplineForm.zuko(5), fk.SplineForm.freia(3), fk.SplineForm(3, tails="circular")]


class Conditioner(nn.Module):
    def __init__(self, kept, described, form=FORM, context=0):
        super().__init__()
        self.linear = nn.Linear(kept + context, described * form.parameters)

    def forward(self, kept, context=None):
        return self.linear(kept if context is None else torch.cat((kept, context), 1))


@pytest.mark.parametrize("form", FORMS, ids=lambda f: str(f.tails))
def test_round_trip_and_log_det(check_layer, form):
    x = torch.randn(3, 5)
    check_layer(fk.nn.SplineCoupling(Conditioner(2, 3, form), passive=2, form=form), x)
    check_layer(fk.nn.SplineCoupling(Conditioner(2, 3, form), passive=-2, form=form), x)
    check_layer(fk.nn.SplineCoupling(Conditioner(5, 5, form), mask=fk.nn.channel_mask(5), form=form), x)


@pytest.mark.parametrize("invert", [False, True])
def test_images(check_layer, invert):
    conditioner = nn.Conv2d(2, 2 * FORM.parameters, 3, padding=1)
    mask = fk.nn.checkerboard_mask(3, 2, invert=invert)
    check_layer(fk.nn.SplineCoupling(conditioner, mask=mask, form=FORM), torch.randn(2, 2, 3, 2))
    conditioner = nn.Conv2d(1, FORM.parameters, 3, padding=1)
    check_layer(fk.nn.SplineCoupling(conditioner, passive=1, form=FORM), torch.randn(2, 2, 3, 2))


def test_context(check_layer):
    layer = fk.nn.SplineCoupling(Conditioner(2, 3, context=2), passive=2, form=FORM)
    x = torch.randn(3, 5)
    check_layer(layer, x, torch.randn(1, 2).double().expand(3, 2))
    layer.float()
    assert not torch.equal(layer(x, torch.zeros(3, 2))[0], layer(x, torch.ones(3, 2))[0])


def test_the_conditioner_sees_the_kept_part_only():
    layer = fk.nn.SplineCoupling(Conditioner(4, 4), mask=fk.nn.channel_mask(4), form=FORM)
    x = torch.randn(3, 4)
    x[0, 3] = torch.nan  # in the transformed part
    y, log_det = layer(x)
    assert log_det.isfinite().tolist() == [False, True, True]
    assert y[:, :2].equal(x[:, :2])


@pytest.mark.parametrize("inverse", [False, True])
def test_compiles_to_one_graph(inverse):
    layer = fk.nn.SplineCoupling(Conditioner(2, 3), passive=2, form=FORM)
    function = layer.inverse if inverse else layer.forward
    x = torch.randn(4, 5)
    torch._dynamo.reset()
    for a, b in zip(torch.compile(function, fullgraph=True, backend="aot_eager")(x), function(x)):
        torch.testing.assert_close(a, b)


def test_state_dict_and_repr():
    mask = fk.nn.channel_mask(5)
    layer = fk.nn.SplineCoupling(Conditioner(5, 5), mask=mask, form=FORM)
    other = fk.nn.SplineCoupling(Conditioner(5, 5), mask=~mask, form=FORM)
    other.load_state_dict(layer.state_dict())
    x = torch.randn(4, 5)
    assert torch.equal(layer(x)[0], other(x)[0])
    assert "mask=(5,), form: bins=4" in repr(layer)
    assert "passive=2, form: bins=4" in repr(fk.nn.SplineCoupling(Conditioner(2, 3), passive=2, form=FORM))


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        ({}, ValueError, "give exactly one of mask and passive; got neither"),
        ({"passive": 2, "form": fk.AffineForm()}, TypeError, "form must be a SplineForm; got AffineForm"),
        ({"passive": 2, "conditioner": 3}, TypeError, "conditioner must be callable; got int"),
    ],
)
def test_arguments_that_do_not_fit_are_named(kwargs, error, message):
    arguments = {"conditioner": Conditioner(2, 3), **kwargs}
    with pytest.raises(error, match=message):
        fk.nn.SplineCoupling(arguments.pop("conditioner"), **arguments)


def test_a_conditioner_of_the_wrong_width_is_named():
    layer = fk.nn.SplineCoupling(nn.Linear(2, 30), passive=2, form=FORM)
    with pytest.raises(ValueError, match=r"raw must have shape \(4, 33\) .*11 parameters.*got \(4, 30\)"):
        layer(torch.randn(4, 5))
