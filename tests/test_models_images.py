"""Glow and the UvA flows, against plain PyTorch and against the change of variables."""

import copy
import itertools
import math

import pytest
import torch
from torch import distributions, nn
from torch.nn import functional as F

import flowkernels as fk

MARGIN = 2.0**-12
TUTORIAL_PARAMETERS = {"simple": 556_312, "vardeq": 628_388, "multiscale": 1_711_818}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The pictures are small: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class TutorialConditioner(nn.Module):
    """GatedConvNet of the tutorial, on the parameters of ours."""

    def __init__(self, network):
        super().__init__()
        self.parts = network.nn

    @staticmethod
    def concat_elu(x):
        return torch.cat([F.elu(x), F.elu(-x)], dim=1)

    def forward(self, x):
        x = self.parts[0](x)
        for gated, norm in zip(self.parts[1:-2:2], self.parts[2:-2:2]):
            out = gated.net[3](self.concat_elu(gated.net[1](self.concat_elu(x))))
            value, gate = out.chunk(2, dim=1)
            x = x + value * torch.sigmoid(gate)
            mean, var = x.mean(dim=1, keepdim=True), x.var(dim=1, unbiased=False, keepdim=True)
            x = (x - mean) / torch.sqrt(var + 1e-5) * norm.gamma + norm.beta
        return self.parts[-1](self.concat_elu(x))


class TutorialCoupling(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.network = TutorialConditioner(layer.conditioner)
        self.scaling_factor = layer.log_bound
        self.mask = layer.mask.double()

    def forward(self, z, ldj, orig_img=None):
        z_in = z * self.mask
        s, t = self.network(z_in if orig_img is None else torch.cat([z_in, orig_img], dim=1)).chunk(2, dim=1)
        s_fac = self.scaling_factor.exp().view(1, -1, 1, 1)
        s = torch.tanh(s / s_fac) * s_fac * (1 - self.mask)
        t = t * (1 - self.mask)
        return (z + t) * torch.exp(s), ldj + s.sum(dim=[1, 2, 3])


def tutorial_dequantize(layer, x, u, ldj):
    """Uniform or variational dequantization, with noise kept in [2^-12, 1 - 2^-12] as in ours."""
    d = x[0].numel()
    if isinstance(layer, fk.nn.VariationalDequantize):
        image = x / (layer.levels - 1) * 2 - 1
        ldj = ldj - (torch.log(u) + torch.log(1 - u)).sum(dim=[1, 2, 3])
        y = torch.log(u) - torch.log(1 - u)
        for inverted in reversed(layer.flow):
            y, ldj = TutorialCoupling(inverted.layer)(y, ldj, orig_img=image)
        ldj = ldj + (-y - 2 * F.softplus(-y)).sum(dim=[1, 2, 3])
        u = torch.sigmoid(y)
    z = (x + MARGIN + (1 - 2 * MARGIN) * u) / layer.levels
    z = z * (1 - layer.alpha) + 0.5 * layer.alpha
    ldj = ldj + d * (math.log(1 - 2 * MARGIN) - math.log(layer.levels) + math.log(1 - layer.alpha))
    return torch.log(z) - torch.log(1 - z), ldj + (-torch.log(z) - torch.log(1 - z)).sum(dim=[1, 2, 3])


def tutorial_log_likelihood(flow, x, u):
    """The tutorial's ImageFlow on the parameters of ours, written out."""
    normal = distributions.Normal(0.0, 1.0)
    z, ldj = tutorial_dequantize(flow.layers[0], x, u, x.new_zeros(len(x)))
    for layer in flow.layers[1:]:
        if isinstance(layer, fk.nn.Squeeze):
            b, c, h, w = z.shape
            z = z.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)
        elif isinstance(layer, fk.nn.Split):
            z, out = z.chunk(2, dim=1)
            ldj = ldj + normal.log_prob(out).sum(dim=[1, 2, 3])
        else:
            z, ldj = TutorialCoupling(layer)(z, ldj)
    return ldj + normal.log_prob(z).sum(dim=[1, 2, 3])


def awake(flow):
    """The flow with couplings and priors that are no longer those of the start, in evaluation mode."""
    for name, parameter in flow.named_parameters():
        if name.endswith("log_bound") or not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return flow.eval()


def pictures(n, shape, levels):
    return torch.randint(levels, (n, *shape), dtype=torch.uint8)


@pytest.mark.parametrize("kind", TUTORIAL_PARAMETERS)
def test_parameter_counts_are_the_tutorials(kind):
    assert sum(p.numel() for p in fk.models.uva(kind).parameters()) == TUTORIAL_PARAMETERS[kind]


@pytest.mark.parametrize("kind", TUTORIAL_PARAMETERS)
@pytest.mark.parametrize(("shape", "levels"), [((1, 28, 28), 256), ((3, 8, 4), 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_likelihoods_are_the_tutorials(kind, shape, levels, dtype, monkeypatch):
    flow = awake(fk.models.uva(kind, shape, levels=levels)).to(dtype)
    x = pictures(2, shape, levels)
    u = torch.rand(2, *shape, dtype=torch.float64)
    monkeypatch.setattr(fk.nn.Dequantize, "_uniform", lambda layer, x, low, high: (u * (high - low) + low).to(dtype))
    with torch.no_grad():
        ours = flow.log_prob(x)
        expected = tutorial_log_likelihood(copy.deepcopy(flow).double(), x.double(), u)
    torch.testing.assert_close(ours.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-10, atol=0)


def small(name, **kwargs):
    """A model of (1, 8, 8) or (2, 4, 4) pictures, no longer at its start."""
    builders = {
        "simple": lambda: fk.models.uva("simple", (1, 4, 4), levels=17, **kwargs),
        "vardeq": lambda: fk.models.uva("vardeq", (2, 4, 4), levels=17, **kwargs),
        "multiscale": lambda: fk.models.uva("multiscale", (1, 8, 8), levels=17, **kwargs),
        "glow": lambda: fk.models.glow((2, 4, 4), scales=2, steps=2, hidden=8, levels=17, **kwargs),
        "glow-lu": lambda: fk.models.glow((1, 8, 8), scales=2, steps=1, hidden=8, lu=True, levels=17, **kwargs),
        "glow-additive": lambda: fk.models.glow(
            (1, 4, 4), scales=1, steps=2, hidden=8, coupling="additive", levels=17, **kwargs
        ),
    }
    return awake(builders[name]())


SHAPES = {"simple": (1, 4, 4), "vardeq": (2, 4, 4), "glow": (2, 4, 4), "glow-additive": (1, 4, 4)}
MODELS = ("simple", "vardeq", "multiscale", "glow", "glow-lu", "glow-additive")


def shape_of(name):
    return SHAPES.get(name, (1, 8, 8))


def test_log_det_is_that_of_the_jacobian_to_all_latents():
    """Without the prior terms of the splits: the sum of the layers' own log-determinants."""
    flow = awake(fk.models.glow((1, 8, 8), scales=3, steps=1, hidden=4, levels=None)).double()
    assert sum(hasattr(layer, "encode") for layer in flow.layers) == 2
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64)

    def latents(row):
        return torch.cat([z.flatten() for z in flow.encode(row[None])])

    jacobians = torch.stack([torch.autograd.functional.jacobian(latents, row).reshape(64, 64) for row in x])
    y, total, prior = x, 0.0, 0.0
    for layer in flow.layers:
        if hasattr(layer, "encode"):
            y, _, part = layer.encode(y)
            prior = prior + part
        else:
            y, part = layer(y)
            total = total + part
    torch.testing.assert_close(total, torch.linalg.slogdet(jacobians)[1])
    torch.testing.assert_close(flow.log_prob(x), total + prior + flow.base.log_prob(y))


@pytest.mark.parametrize("name", MODELS)
def test_pictures_come_back_and_samples_are_pictures(name):
    flow, shape = small(name), shape_of(name)
    x = pictures(5, shape, 17)
    latents = flow.encode(x)
    assert torch.equal(flow.decode(latents), x)
    assert sum(z[0].numel() for z in latents) == math.prod(shape)
    bits = flow.bits_per_dim(x)
    assert bits.shape == (5,)
    assert bits.isfinite().all()
    draws = [flow.sample(4, temperature=0.8, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert draws[0].shape == (4, *shape)
    assert draws[0].dtype == torch.uint8
    assert draws[0].max() < 17
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    cold = flow.sample(3, temperature=0.0)
    assert torch.equal(cold, cold[:1].expand_as(cold))
    with pytest.raises(ValueError, match="discrete"):
        flow.rsample_and_log_prob(2)


@pytest.mark.parametrize("name", MODELS)
def test_copies_and_double(name):
    flow = small(name)
    x = pictures(3, shape_of(name), 17)
    other = small(name)
    other.load_state_dict(flow.state_dict(), strict=True)
    values = []
    for model in (flow, other, copy.deepcopy(flow)):
        torch.manual_seed(1)
        values.append(model.log_prob(x))
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    flow.double()
    assert flow.log_prob(x).dtype == torch.float64
    assert torch.equal(flow.decode(flow.encode(x)), x)
    assert flow.sample(2).shape == (2, *x.shape[1:])


@pytest.mark.parametrize("name", ["simple", "multiscale", "glow"])
def test_a_context_changes_the_density(name):
    flow, shape = small(name, context=3), shape_of(name)
    x, context = pictures(4, shape, 17), torch.randn(4, 3)
    values = []
    for c in (context, context, -context):
        torch.manual_seed(1)
        values.append(flow.log_prob(x, c))
    assert torch.equal(values[0], values[1])
    assert (values[0] != values[2]).all()
    assert torch.equal(flow.decode(flow.encode(x, context), context), x)
    assert flow.sample(2, context).shape == (4, 2, *shape)
    with pytest.raises(ValueError, match=r"built for a context of shape \(B, 3\)"):
        flow.log_prob(x)


def test_masks_alternate_and_parts_are_in_the_tutorials_order():
    flow = fk.models.uva("multiscale")
    names = [type(layer).__name__ for layer in flow.layers]
    coupling = "AffineCoupling"
    middle = ["Squeeze", coupling, coupling, "Split", "Squeeze"]
    assert names == ["VariationalDequantize", coupling, coupling, *middle, *[coupling] * 4]
    inner = [inverted.layer for inverted in reversed(flow.layers[0].flow)]
    for group in (inner, flow.layers[1:3], flow.layers[4:6], flow.layers[8:]):
        assert all(torch.equal(a.mask, ~b.mask) for a, b in itertools.pairwise(group))
    assert inner[0].mask[0, 0, :2].tolist() == [False, True]
    assert flow.layers[4].mask.flatten().tolist() == [True, True, False, False]
    assert flow.event_shape == (8, 7, 7)


def test_a_continuous_glow_samples_with_gradients():
    flow = awake(fk.models.glow((1, 4, 4), scales=2, steps=2, hidden=4, levels=None)).double()
    x, log_prob = flow.rsample_and_log_prob(3)
    torch.testing.assert_close(flow.log_prob(x), log_prob)
    with pytest.raises(ValueError, match="needs a dequantizing layer"):
        flow.bits_per_dim(x)


def test_looking_at_samples_leaves_the_initialisation_to_the_data():
    flow = fk.models.glow((1, 8, 8), scales=2, steps=2, hidden=8)
    norms = [m for m in flow.modules() if isinstance(m, fk.nn.ActNorm)]
    flow.sample(2)
    assert not any(norm.initialized for norm in norms)
    flow(pictures(8, (1, 8, 8), 256))
    assert len(norms) == 4
    assert all(norm.initialized for norm in norms)


@pytest.mark.parametrize(
    ("build", "lr"),
    [
        (lambda: fk.models.uva("multiscale", (1, 4, 4), levels=16), 1e-3),
        (lambda: fk.models.glow((1, 4, 4), scales=2, steps=2, hidden=16, levels=16), 1e-2),
    ],
    ids=["multiscale", "glow"],
)
def test_training_lowers_the_bits(build, lr):
    """Pictures of which all rows are alike."""
    flow = build()
    x = torch.tensor([0, 5, 10, 15], dtype=torch.uint8).expand(16, 1, 4, 4)
    optimizer = torch.optim.Adam(flow.parameters(), lr=lr)
    bits = []
    for _ in range(10):
        loss = flow.bits_per_dim(x).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        bits.append(loss.item())
    assert all(p.grad is not None for p in flow.parameters())
    assert bits[-1] < bits[0] - 0.3


@pytest.mark.parametrize("name", ["vardeq", "glow", "glow-lu"])
def test_autocast_is_for_the_conditioners(name, monkeypatch):
    flow, x = small(name), pictures(4, shape_of(name), 17)
    u = torch.rand(x.shape)
    monkeypatch.setattr(fk.nn.Dequantize, "_uniform", lambda layer, x, low, high: u * (high - low) + low)
    exact = flow.log_prob(x)
    with torch.autocast("cpu", torch.bfloat16):
        latents = flow.encode(x)
        assert torch.equal(flow.decode(latents), x)
        assert flow.sample(2).shape == (2, *x.shape[1:])
        log_prob = flow.log_prob(x)
    assert {z.dtype for z in (*latents, log_prob)} == {torch.float32}
    torch.testing.assert_close(log_prob, exact, rtol=0.05, atol=0.5)


def test_log_prob_compiles_to_one_graph(monkeypatch):
    flow = small("glow")
    x = pictures(3, (2, 4, 4), 17)
    u = torch.rand(x.shape)
    monkeypatch.setattr(fk.nn.Dequantize, "_uniform", lambda layer, x, low, high: u * (high - low) + low)
    torch._dynamo.reset()
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), flow.log_prob(x), rtol=1e-5, atol=1e-4)
    parameters = list(flow.parameters())
    ours, theirs = (torch.autograd.grad(f(x).sum(), parameters) for f in (compiled, flow))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fk.models.uva("flow++"), "kind must be one of simple, vardeq, multiscale; got 'flow\\+\\+'"),
        (lambda: fk.models.uva("multiscale", (1, 28, 30)), r"multiples of 4 .* got image_shape=\(1, 28, 30\)"),
        (lambda: fk.models.uva("simple", (28, 28)), r"must be \(channels, height, width\); got \(28, 28\)"),
        (lambda: fk.models.uva("simple", (0, 4, 4)), "image_shape must be an integer, at least 1; got 0"),
        (lambda: fk.models.uva("simple", levels=1), "levels must be an integer from 2 to 65536; got 1"),
        (lambda: fk.models.uva("simple", context=-1), "context must be an integer, at least 0; got -1"),
        (lambda: fk.models.glow((1, 28, 28)), r"multiples of 8 to be squeezed 3 times; got image_shape=\(1, 28, 28\)"),
        (
            lambda: fk.models.glow((1, 8, 8), coupling="spline"),
            "coupling must be one of affine, additive; got 'spline'",
        ),
        (lambda: fk.models.glow((1, 8, 8), scales=0), "scales must be an integer, at least 1; got 0"),
        (lambda: fk.models.glow((1, 8, 8), steps=0), "steps must be an integer, at least 1; got 0"),
        (lambda: fk.models.glow((1, 8, 8), hidden=0), "hidden must be an integer, at least 1; got 0"),
    ],
)
def test_what_a_model_cannot_be_built_from_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
