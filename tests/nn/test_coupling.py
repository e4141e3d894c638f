import copy

import pytest
import torch
from torch import nn

import flowkernels as fk

FORMS = [
    fk.AffineForm("tanh", bound=2.0),
    fk.AffineForm(),
    fk.AffineForm.glow(),
    fk.AffineForm.nflows("general"),
    fk.AffineForm.zuko(),
    fk.AffineForm.nflows("additive"),
]


class Conditioner(nn.Module):
    """A linear map with the number of outputs, and the shape, that a form asks for."""

    def __init__(self, kept, described, form, context=0):
        super().__init__()
        self.form = form
        self.linear = nn.Linear(kept + context, described * (1 if form.scale == "additive" else 2))

    def forward(self, kept, context=None):
        raw = self.linear(kept if context is None else torch.cat((kept, context), 1))
        return raw.unflatten(1, (-1, 2)) if self.form.layout.startswith("trailing") else raw


def image_layer(**kwargs):
    return fk.nn.AffineCoupling(nn.Conv2d(2, 4, 3, padding=1), mask=fk.nn.checkerboard_mask(3, 2), **kwargs)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.scale)
def test_round_trip_and_log_det(check_layer, form):
    x = torch.randn(3, 5)
    check_layer(fk.nn.AffineCoupling(Conditioner(2, 3, form), passive=2, form=form), x)
    check_layer(fk.nn.AffineCoupling(Conditioner(2, 3, form), passive=-2, form=form), x)
    check_layer(fk.nn.AffineCoupling(Conditioner(5, 5, form), mask=fk.nn.channel_mask(5), form=form), x)


@pytest.mark.parametrize("mask", [fk.nn.checkerboard_mask(3, 2), fk.nn.channel_mask(2, spatial=True)])
@pytest.mark.parametrize("invert", [False, True])
def test_images(check_layer, mask, invert):
    layer = fk.nn.AffineCoupling(nn.Conv2d(2, 4, 3, padding=1), mask=mask != invert)
    check_layer(layer, torch.randn(2, 2, 3, 2))


def test_context(check_layer):
    form = fk.AffineForm("tanh", bound=2.0)
    layer = fk.nn.AffineCoupling(Conditioner(2, 3, form, context=2), passive=2, form=form)
    x = torch.randn(3, 5)
    check_layer(layer, x, torch.randn(1, 2).double().expand(3, 2))
    layer.float()
    assert not torch.equal(layer(x, torch.zeros(3, 2))[0], layer(x, torch.ones(3, 2))[0])


def test_the_conditioner_sees_the_kept_part_only():
    layer = image_layer()
    x = torch.randn(2, 2, 3, 2)
    x[:, :, 0, 0] = torch.nan  # in the transformed part
    x[:, :, 1, 1] = torch.inf
    y, log_det = layer(x)
    assert log_det.isfinite().all()
    expected = ~x.isnan() & ~x.isinf()
    assert torch.equal(y.isfinite(), expected)
    y[expected].sum().backward()
    assert layer.conditioner.weight.grad[2:].isfinite().all()  # of the shift


def test_the_kept_part_passes_bit_for_bit():
    x = torch.randn(4, 5)
    form = fk.AffineForm("tanh", bound=2.0)
    assert torch.equal(fk.nn.AffineCoupling(Conditioner(2, 3, form), passive=-2)(x)[0][:, -2:], x[:, -2:])


def test_learned_bound_starts_at_the_forms_bound(check_layer):
    fixed, learned = image_layer(), image_layer(learned_bound=True, channels=2)
    learned.load_state_dict({**fixed.state_dict(), "log_bound": learned.log_bound.detach()}, strict=True)
    x = torch.randn(2, 2, 3, 2)
    torch.testing.assert_close(learned(x)[0], fixed(x)[0])
    check_layer(learned, x)
    learned(x.double())[1].sum().backward()
    assert learned.log_bound.grad.shape == (2,)
    assert learned.log_bound.grad.all()


def test_learned_bound_counts_the_transformed_channels():
    layer = fk.nn.AffineCoupling(nn.Linear(2, 6), passive=2, learned_bound=True, channels=5, form=fk.AffineForm.uva())
    assert torch.equal(layer.log_bound, torch.zeros(3))  # a form without a bound starts at 1
    layer(torch.randn(2, 5))[0].sum().backward()
    assert layer.log_bound.grad.shape == (3,)


def test_state_dict():
    layer = image_layer(learned_bound=True, channels=2)
    assert set(layer.state_dict()) == {"mask", "log_bound", "conditioner.weight", "conditioner.bias"}
    other = fk.nn.AffineCoupling(nn.Conv2d(2, 4, 3, padding=1), mask=~layer.mask, learned_bound=True, channels=2)
    other.load_state_dict(copy.deepcopy(layer.state_dict()), strict=True)
    x = torch.randn(2, 2, 3, 2)
    assert torch.equal(other(x)[0], layer(x)[0])


def test_a_mask_is_not_shared_between_layers():
    mask = fk.nn.channel_mask(4)
    one, other = (fk.nn.AffineCoupling(nn.Linear(4, 8), mask=mask) for _ in range(2))
    one.mask.logical_not_()
    assert torch.equal(other.mask, mask)


@pytest.mark.parametrize("inverse", [False, True])
def test_compiles_to_one_graph(inverse):
    x = torch.randn(2, 2, 3, 2)
    for layer in (image_layer(), image_layer(learned_bound=True, channels=2)):
        eager = layer.inverse if inverse else layer
        compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
        for a, b in zip(compiled(x), eager(x)):
            torch.testing.assert_close(a, b)


def test_exports():
    layer = fk.nn.AffineCoupling(nn.Linear(2, 6), passive=2)
    x = torch.randn(4, 5)
    exported = torch.export.export(layer, (x,))
    for a, b in zip(exported.module()(x), layer(x)):
        torch.testing.assert_close(a, b)


def test_repr():
    assert "mask=(1, 3, 2), form: scale=tanh bound=2.0" in repr(image_layer())
    layer = fk.nn.AffineCoupling(nn.Linear(2, 6), passive=2, learned_bound=True, channels=5)
    assert "passive=2, form: scale=tanh, learned_bound: 3 channels" in repr(layer)
    assert "form: scale=exp" in repr(fk.nn.AffineCoupling(nn.Linear(2, 6), passive=2, form=fk.AffineForm()))


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({}, ValueError, "got neither"),
        ({"mask": torch.ones(4, dtype=torch.bool), "passive": 2}, ValueError, "got both, passive=2"),
        ({"mask": torch.ones(4)}, TypeError, "torch.float32"),
        ({"mask": [True]}, TypeError, "list"),
        ({"passive": 0}, ValueError, "got 0"),
        ({"passive": 1.5}, TypeError, "1.5"),
        ({"passive": 1, "form": "tanh"}, TypeError, "str"),
        ({"passive": 1, "form": fk.AffineForm("tanh")}, ValueError, "'tanh' needs a bound"),
        ({"passive": 1, "form": fk.AffineForm(), "learned_bound": True, "channels": 4}, ValueError, "'exp' has none"),
        ({"passive": 1, "learned_bound": True}, ValueError, "needs channels"),
        ({"passive": 4, "learned_bound": True, "channels": 4}, ValueError, "channels=4, passive=4"),
        ({"passive": 1, "channels": 4}, ValueError, "channels=4"),
    ],
)
def test_arguments_that_do_not_fit_are_named(kwargs, error, message):
    with pytest.raises(error, match=message):
        fk.nn.AffineCoupling(nn.Linear(2, 4), **kwargs)


def test_call_errors():
    with pytest.raises(TypeError, match="conditioner must be callable"):
        fk.nn.AffineCoupling(3, passive=1)
    with pytest.raises(ValueError, match=r"passive=6 .* \(2, 4\)"):
        fk.nn.AffineCoupling(nn.Linear(2, 4), passive=6)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="raw must have shape"):
        fk.nn.AffineCoupling(nn.Linear(2, 3), passive=2)(torch.zeros(2, 4))
