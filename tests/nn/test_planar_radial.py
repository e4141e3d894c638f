"""Planar and radial layers, shared and amortised: what they have in common is tested on all of them."""

import copy

import pytest
import torch
from torch.nn import functional as F

import flowkernels as fk
from flowkernels.nn import planar, radial

SHARED = {
    "planar": lambda **options: fk.nn.Planar(3, 4, **options),
    "leaky": lambda **options: fk.nn.Planar(3, 4, activation="leaky_relu", negative_slope=0.3, **options),
    "radial": lambda **options: fk.nn.Radial(3, 4, **options),
}
AMORTIZED = {
    "planar": lambda **options: fk.nn.AmortizedPlanar(3, 4, 2, **options),
    "radial": lambda **options: fk.nn.AmortizedRadial(3, 4, 2, **options),
}


def shaken(layer, amount=0.5):
    """The layer away from its start."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter += amount * torch.randn_like(parameter)
    return layer


def closed_form(layer, z):
    """What the op says of the direction that is not solved."""
    if isinstance(layer, fk.nn.Planar):
        options = {"activation": layer.activation, "negative_slope": layer.negative_slope}
        return fk.planar(z, layer.u, layer.w, layer.b, **options)
    return fk.radial(z, layer.center, F.softplus(layer.free_alpha), layer.beta)


@pytest.mark.parametrize("generative", [True, False])
@pytest.mark.parametrize("kind", SHARED)
def test_round_trip_and_log_det(check_layer, kind, generative):
    check_layer(shaken(SHARED[kind](generative=generative)), torch.randn(5, 3))


@pytest.mark.parametrize("generative", [True, False])
@pytest.mark.parametrize("kind", AMORTIZED)
def test_amortized_round_trip_and_log_det(check_layer, kind, generative):
    layer = shaken(AMORTIZED[kind](generative=generative), 0.3)
    check_layer(layer, torch.randn(5, 3), torch.randn(1, 2).double().expand(5, 2))


@pytest.mark.parametrize("kind", SHARED)
def test_generative_says_which_direction_is_in_closed_form(kind):
    layer = shaken(SHARED[kind]())
    z = torch.randn(5, 3)
    assert all(torch.equal(a, b) for a, b in zip(layer.inverse(z), closed_form(layer, z)))
    other = SHARED[kind](generative=False)
    other.load_state_dict(layer.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(other(z), closed_form(layer, z)))
    assert all(torch.equal(a, b) for a, b in zip(fk.nn.Inverse(layer)(z), other(z)))
    assert all(torch.equal(a, b) for a, b in zip(fk.nn.Inverse(layer).inverse(z), other.inverse(z)))


@pytest.mark.parametrize("kind", SHARED)
def test_starts_near_the_identity_in_any_dimension(kind):
    for features in (1, 2, 40):
        make = {"planar": fk.nn.Planar, "leaky": fk.nn.Planar, "radial": fk.nn.Radial}[kind]
        layer = make(features, 80)
        z = torch.randn(500, features)
        y, log_det = layer.inverse(z)
        moved = (y - z).norm(dim=1)
        assert moved.max() < 8
        assert moved.mean() > 1e-3
        assert log_det.abs().mean() < 4


@pytest.mark.parametrize("kind", AMORTIZED)
def test_amortized_starts_as_the_identity_and_learns(kind):
    layer = AMORTIZED[kind]()
    z, context = torch.randn(5, 3), torch.randn(5, 2)
    y, log_det = layer.inverse(z, context)
    torch.testing.assert_close(y, z)
    torch.testing.assert_close(log_det, torch.zeros(5), rtol=0, atol=1e-5)
    ((y**3).sum() + log_det.sum()).backward()
    assert layer.amortization.weight.grad.abs().max() > 1e-2


@pytest.mark.parametrize("kind", AMORTIZED)
def test_each_row_has_the_parameters_of_its_context(kind):
    layer = shaken(AMORTIZED[kind](), 0.3)
    z, context = torch.randn(5, 3), torch.randn(5, 2)
    y, log_det = layer.inverse(z, context)
    alone = [layer.inverse(z[i : i + 1], context[i : i + 1]) for i in range(5)]
    torch.testing.assert_close(y, torch.cat([a for a, _ in alone]))
    torch.testing.assert_close(log_det, torch.cat([b for _, b in alone]))
    shared = SHARED[kind]()
    first = layer.amortization.split(context)
    shared.load_state_dict({name: part[0].detach() for name, part in zip(shared.state_dict(), first)})
    torch.testing.assert_close(y[:1], shared.inverse(z[:1])[0])


def test_a_depth_of_0_is_the_identity():
    z, context = torch.randn(5, 3), torch.randn(5, 2)
    for layer in (fk.nn.Planar(3, 0), fk.nn.Radial(3, 0)):
        for y, log_det in (layer(z), layer.inverse(z)):
            assert torch.equal(y, z)
            assert not log_det.any()
    for layer in (fk.nn.AmortizedPlanar(3, 0, 2), fk.nn.AmortizedRadial(3, 0, 2)):
        assert torch.equal(layer(z, context)[0], z)


@pytest.fixture
def calls(monkeypatch):
    """How often the closed form and the solve of each op are called."""
    counted = {False: 0, True: 0}
    for module, name in ((planar, "planar"), (radial, "radial")):
        op = getattr(module, name)

        def counting(*arguments, op=op, **options):
            counted[options["inverse"]] += 1
            return op(*arguments, **options)

        monkeypatch.setattr(module, name, counting)
    return counted


@pytest.mark.parametrize("kind", SHARED)
def test_sampling_with_density_is_one_pass_without_a_solve(kind, calls):
    flow = fk.Flow([SHARED[kind]()], fk.bases.DiagonalNormal(3))
    x, log_prob = flow.rsample_and_log_prob(7)
    assert calls == {False: 1, True: 0}
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=1e-4, atol=1e-4)
    assert calls == {False: 1, True: 1}
    (x.sum() + log_prob.sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())


@pytest.mark.parametrize("kind", AMORTIZED)
def test_amortized_sampling_with_density_is_one_pass_without_a_solve(kind, calls):
    flow = fk.Flow([shaken(AMORTIZED[kind](), 0.1)], fk.bases.DiagonalNormal(3, 2)).double()
    context = torch.randn(5, 2).double()
    x, log_prob = flow.rsample_and_log_prob(4, context)
    assert x.shape == (5, 4, 3)
    assert calls == {False: 1, True: 0}
    again = flow.log_prob(x.flatten(0, 1), context.repeat_interleave(4, 0))
    torch.testing.assert_close(log_prob.flatten(), again)


@pytest.mark.parametrize("kind", SHARED)
def test_density_estimation_is_one_pass_without_a_solve(kind, calls):
    fk.Flow([SHARED[kind](generative=False)]).log_prob(torch.randn(5, 3)).sum().backward()
    assert calls == {False: 1, True: 0}


def normflows_planar(normflows, depth, act):
    flows = [normflows.flows.Planar((3,), act=act) for _ in range(depth)]
    ours = fk.nn.Planar(3, depth, activation=act)
    values = {name: torch.cat([getattr(f, name).detach() for f in flows]) for name in ("u", "w", "b")}
    ours.load_state_dict(values, strict=True)
    return flows, ours, {name: lambda name=name: torch.cat([getattr(f, name).grad for f in flows]) for name in values}


def normflows_radial(normflows, depth):
    """alpha, which normflows takes the magnitude of, as the softplus of our free number, with slope 1 - exp(-alpha)."""
    flows = [normflows.flows.Radial((3,)) for _ in range(depth)]
    ours = fk.nn.Radial(3, depth)
    alpha = torch.cat([f.alpha.detach() for f in flows])
    values = {
        "center": torch.cat([f.z_0.detach() for f in flows]),
        "free_alpha": alpha.abs().expm1().log(),
        "beta": torch.cat([f.beta.detach() for f in flows]),
    }
    ours.load_state_dict(values, strict=True)
    slope = alpha.sign() * -torch.expm1(-alpha.abs())
    gradients = {
        "center": lambda: torch.cat([f.z_0.grad for f in flows]),
        "free_alpha": lambda: torch.cat([f.alpha.grad for f in flows]) * slope,
        "beta": lambda: torch.cat([f.beta.grad for f in flows]),
    }
    return flows, ours, gradients


@pytest.mark.parametrize("kind", ["tanh", "leaky_relu", "radial"])
def test_parameters_of_normflows_give_its_values_and_gradients(kind):
    normflows = pytest.importorskip("normflows")
    flows, ours, gradients = (
        normflows_radial(normflows, 4) if kind == "radial" else normflows_planar(normflows, 4, kind)
    )
    z = torch.randn(16, 3)
    theirs = z.clone().requires_grad_()
    x, log_det = theirs, torch.zeros(16)
    for flow in flows:
        x, part = flow(x)
        log_det = log_det + part
    mine = z.clone().requires_grad_()
    y, own = ours.inverse(mine)
    torch.testing.assert_close(y, x)
    torch.testing.assert_close(own, log_det)
    weights = torch.randn_like(x)
    for value, change in ((x, log_det), (y, own)):
        ((value * weights).sum() + (change * change).sum()).backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name](), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*SHARED, "amortized"])
def test_saves_copies_and_compiles_to_one_graph(kind):
    amortized = kind == "amortized"
    layer = shaken(AMORTIZED["planar"]() if amortized else SHARED[kind](), 0.3)
    arguments = (torch.randn(5, 3), torch.randn(5, 2)) if amortized else (torch.randn(5, 3),)
    other = copy.deepcopy(layer)
    other.load_state_dict(layer.state_dict(), strict=True)
    for direction in ("forward", "inverse"):
        eager = getattr(layer, direction)
        compiled = torch.compile(getattr(other, direction), fullgraph=True, backend="aot_eager")
        for a, b in zip(compiled(*arguments), eager(*arguments)):
            torch.testing.assert_close(a, b)


def test_reset_parameters_follows_the_seed():
    for make in (fk.nn.Planar, fk.nn.Radial):
        layer = make(3, 2)
        before = copy.deepcopy(layer.state_dict())
        torch.manual_seed(3)
        layer.reset_parameters()
        one = copy.deepcopy(layer.state_dict())
        torch.manual_seed(3)
        layer.reset_parameters()
        assert all(torch.equal(one[name], value) for name, value in layer.state_dict().items())
        assert any(not torch.equal(one[name], value) for name, value in before.items())


def test_repr():
    assert repr(fk.nn.Planar(3, 4)) == "Planar(3, depth=4)"
    leaky = fk.nn.Planar(3, activation="leaky_relu", generative=False)
    assert repr(leaky) == "Planar(3, depth=1, generative=False, activation=leaky_relu, negative_slope=0.2)"
    assert "(amortization): Amortization(in_features=2" in repr(fk.nn.AmortizedRadial(3, 4, 2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.nn.Planar(0), "features must be an integer, at least 1; got 0"),
        (lambda: fk.nn.Radial(2.0), "features must be an integer, at least 1; got 2.0"),
        (lambda: fk.nn.Planar(2, -1), "depth must be an integer, at least 0; got -1"),
        (lambda: fk.nn.Planar(2, activation="relu"), "activation must be one of tanh, leaky_relu; got 'relu'"),
        (lambda: fk.nn.Planar(2, negative_slope=1.5), "negative_slope must be between 0 and 1; got 1.5"),
        (lambda: fk.nn.AmortizedPlanar(2, 1, 0), "context_features must be an integer, at least 1; got 0"),
        (lambda: fk.nn.Radial(2)(torch.zeros(5, 3)), r"center must have shape .* for x of shape \(5, 3\)"),
        (lambda: fk.nn.AmortizedPlanar(2, 1, 4)(torch.zeros(5, 2)), r"context of shape \(B, 4\); got None"),
        (lambda: fk.nn.AmortizedRadial(2, 1, 4)(torch.zeros(5, 2), torch.zeros(5, 3)), r"\(B, 4\); got \(5, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
