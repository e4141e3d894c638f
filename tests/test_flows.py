import copy
import math
import pickle

import pytest
import torch
from torch import distributions, nn

import flowkernels as fk


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class Split(nn.Module):
    """Takes the last half of the channels out, scored under a normal whose mean is a map of the first half."""

    def __init__(self, channels):
        super().__init__()
        self.mean = nn.Linear(channels - channels // 2, channels // 2)

    def _base(self, y):
        return distributions.Normal(self.mean(y), 1.0)

    def encode(self, x, context=None):
        y, out = x[:, : x.shape[1] - x.shape[1] // 2], x[:, x.shape[1] - x.shape[1] // 2 :]
        return y, out, self._base(y).log_prob(out).sum(1)

    def decode(self, y, out, context=None):
        return torch.cat((y, out), 1)

    def sample_out(self, y, context=None, temperature=1.0, generator=None):
        mean = self.mean(y)
        noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype)
        return mean + temperature * noise


def realnvp(features=4, **kwargs):
    flow = fk.models.realnvp(features, transforms=4, hidden=(8,), **kwargs)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=0.5)
    return flow


def multiscale():
    return fk.Flow([*realnvp(4).layers, Split(4), *realnvp(2).layers], event_shape=(2,))


def dequantizing(levels=17):
    return fk.Flow([fk.nn.Dequantize(levels), *realnvp(4).layers], event_shape=(4,))


def log_det_of_encoding(flow, x):
    """log |det| of the Jacobian of all latents together, by autograd."""

    def latents(row):
        return torch.cat([z.flatten(1) for z in flow.encode(row[None])], 1)[0]

    jacobians = torch.stack([torch.autograd.functional.jacobian(latents, row) for row in x])
    return torch.linalg.slogdet(jacobians)[1]


def test_log_prob_is_the_change_of_variables():
    flow = realnvp().double()
    x = torch.randn(5, 4).double()
    (z,) = flow.encode(x)
    base = distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(flow.log_prob(x), base + log_det_of_encoding(flow, x))
    assert torch.equal(flow(x), flow.log_prob(x))


def test_log_prob_with_a_split():
    flow = multiscale().double()
    x = torch.randn(5, 4).double()
    out, z = flow.encode(x)
    y = x
    for layer in flow.layers[:4]:
        y, _ = layer(y)
    split = flow.layers[4]
    density = distributions.Normal(split.mean(y[:, :2]), 1.0).log_prob(out).sum(1)
    density = density + distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    torch.testing.assert_close(flow.log_prob(x), density + log_det_of_encoding(flow, x))


@pytest.mark.parametrize("build", [realnvp, multiscale])
def test_decode_undoes_encode(build):
    flow = build().double()
    x = torch.randn(5, 4).double()
    latents = flow.encode(x)
    assert isinstance(latents, tuple)
    assert len(latents) == (1 if build is realnvp else 2)
    torch.testing.assert_close(flow.decode(latents), x)
    with pytest.raises(ValueError, match=f"has {len(latents)} latents; got 3"):
        flow.decode([x] * 3)
    with pytest.raises(TypeError, match="got a tensor"):
        flow.decode(x)


@pytest.mark.parametrize("build", [realnvp, multiscale])
def test_rsample_and_log_prob_agree_with_log_prob(build):
    flow = build().double()
    x, log_prob = flow.rsample_and_log_prob(7)
    assert x.shape == (7, 4)
    torch.testing.assert_close(log_prob, flow.log_prob(x))
    (x.sum() + log_prob.sum()).backward()
    assert all(p.grad is not None for p in flow.parameters())


def test_samples_have_the_density():
    """Integral of the density over a grid, and the share of samples in a box, agree."""
    flow = realnvp(2)
    with torch.no_grad():
        for layer in flow.layers:
            layer.conditioner.layers[-1].weight.mul_(0.3)
    axis = torch.linspace(-6, 6, 401)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        density = flow.log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
    x = flow.sample(20_000)
    inside = (grid[:, 0] > 0) & (grid[:, 1] > -1)
    share = ((x[:, 0] > 0) & (x[:, 1] > -1)).float().mean()
    assert abs(density.sum() - 1) < 0.02
    assert abs(share - density[inside].sum()) < 0.02


@pytest.mark.parametrize("build", [realnvp, multiscale])
def test_sample_follows_the_generator_and_the_temperature(build):
    flow = build()
    draws = [flow.sample(6, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert draws[0].shape == (6, 4)
    assert not draws[0].requires_grad
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    cold = flow.sample(5, temperature=0.0)
    torch.testing.assert_close(cold, cold[:1].expand_as(cold))
    assert flow.sample(0).shape == (0, 4)


def test_context_means_one_row_per_example():
    flow = realnvp(context=3)
    context = torch.randn(5, 3)
    x = flow.sample(6, context)
    assert x.shape == (5, 6, 4)
    log_prob = flow.log_prob(x.flatten(0, 1), context.repeat_interleave(6, 0)).reshape(5, 6)
    y, sampled = flow.rsample_and_log_prob(6, context)
    assert y.shape == (5, 6, 4)
    assert sampled.shape == log_prob.shape
    again = flow.log_prob(y.flatten(0, 1), context.repeat_interleave(6, 0)).reshape(5, 6)
    torch.testing.assert_close(sampled, again, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"each of the 4 of x; got shape \(5, 3\)"):
        flow.log_prob(torch.randn(4, 4), context)
    with pytest.raises(ValueError, match="scalar"):
        flow.sample(2, torch.tensor(1.0))


def test_every_layer_gets_the_context():
    conditional = realnvp(context=3)
    flow = fk.Flow([fk.nn.Permute(4), *conditional.layers, fk.nn.Inverse(fk.nn.Permute(4))], event_shape=(4,))
    x, context = torch.randn(5, 4), torch.randn(5, 3)
    torch.testing.assert_close(flow.decode(flow.encode(x, context), context), x, rtol=1e-4, atol=1e-4)


def test_bits_per_dim():
    flow = dequantizing()
    x = torch.randint(17, (6, 4))
    torch.manual_seed(1)
    bits = flow.bits_per_dim(x)
    torch.manual_seed(1)
    torch.testing.assert_close(bits, -flow.log_prob(x) / (4 * math.log(2)))
    with pytest.raises(ValueError, match="needs a dequantizing layer"):
        realnvp().bits_per_dim(torch.randn(6, 4))


def test_bits_per_dim_count_the_dimensions_of_the_data():
    """17 equally likely levels cost log2(17) bits however they are modelled, and the bound cannot be below."""
    flow = fk.Flow([fk.nn.Dequantize(17), Split(4)], event_shape=(2,))
    x = torch.randint(17, (2000, 4))
    assert math.log2(17) < flow.bits_per_dim(x).mean() < math.log2(17) + 3


def test_a_dequantizing_flow_samples_whole_numbers():
    x = dequantizing().sample(20)
    assert x.dtype == torch.uint8
    assert x.max() < 17
    with pytest.raises(ValueError, match="discrete"):
        dequantizing().rsample_and_log_prob(3)


BASES = {
    "normal": lambda: distributions.Normal(torch.arange(4.0), 2.0 * torch.ones(4)),
    "independent": lambda: distributions.Independent(distributions.Laplace(torch.zeros(4), torch.ones(4)), 1),
    "multivariate": lambda: distributions.MultivariateNormal(torch.zeros(4), 2 * torch.eye(4)),
    "transformed": lambda: distributions.TransformedDistribution(
        distributions.Normal(torch.zeros(4), 1.0), [distributions.AffineTransform(torch.ones(4), 2.0 * torch.ones(4))]
    ),
    "mixture": lambda: distributions.MixtureSameFamily(
        distributions.Categorical(torch.ones(3)), distributions.MultivariateNormal(torch.randn(3, 4), torch.eye(4))
    ),
}


@pytest.mark.parametrize("name", BASES)
def test_distributions_as_base(name):
    distribution = BASES[name]()
    flow = fk.Flow(realnvp().layers, distribution)
    assert flow.event_shape == (4,)
    x = torch.randn(6, 4)
    (z,) = flow.encode(x)
    expected = distribution.log_prob(z)
    expected = (expected if expected.dim() == 1 else expected.sum(1)) - distributions.Normal(0, 1).log_prob(z).sum(1)
    difference = flow.log_prob(x) - fk.Flow(flow.layers).log_prob(x)
    torch.testing.assert_close(difference, expected, rtol=1e-4, atol=1e-4)
    draws = [flow.sample(5, generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert draws[0].shape == (5, 4)
    assert torch.equal(*draws)


@pytest.mark.parametrize("name", BASES)
def test_the_tensors_of_a_distribution_are_buffers(name):
    flow = fk.Flow([fk.nn.Permute(4)], BASES[name]())
    assert list(flow.base.buffers())
    assert flow.double().log_prob(torch.randn(3, 4).double()).dtype == torch.float64
    assert flow.sample(2).dtype == torch.float64
    shifted = {k: v + 0.5 if "loc" in k else v for k, v in flow.state_dict().items()}
    x = torch.randn(3, 4).double()
    before = flow.log_prob(x)
    for assign in (False, True):
        other = pickle.loads(pickle.dumps(copy.deepcopy(flow)))
        torch.testing.assert_close(other.log_prob(x), before)
        other.load_state_dict(shifted, strict=True, assign=assign)
        assert not torch.allclose(other.log_prob(x), before)
    torch.testing.assert_close(flow.log_prob(x), before)  # a copy does not share its tensors


def test_the_users_distribution_is_left_alone():
    distribution = distributions.Normal(torch.zeros(4), 1.0)
    flow = fk.Flow([fk.nn.Permute(4)], distribution).double()
    flow.base.loc.add_(1)
    assert distribution.loc.dtype == torch.float32
    assert not distribution.loc.any()


def test_limits_of_distributions_as_base():
    flow = fk.Flow([fk.nn.Permute(4)], BASES["mixture"]())
    with pytest.raises(ValueError, match="MixtureSameFamily has no reparameterised"):
        flow.rsample_and_log_prob(2)
    with pytest.raises(ValueError, match=r"temperature=0.5 is not defined for a MixtureSameFamily"):
        flow.sample(2, temperature=0.5)
    flow = fk.Flow([fk.nn.Permute(4)], BASES["normal"]())
    torch.testing.assert_close(flow.sample(3, temperature=0.0), torch.arange(3.0, -1, -1).expand(3, 4))
    with pytest.raises(ValueError, match="loc of the base requires gradients"):
        fk.Flow([], distributions.Normal(torch.zeros(4, requires_grad=True), 1.0))


class LearnedNormal(nn.Module):
    """A base of the module protocol, conditional on the context."""

    event_shape = (2,)

    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(3, 2)

    def log_prob(self, z, context=None):
        return distributions.Normal(self.mean(context), 1.0).log_prob(z).sum(1)

    def rsample(self, n, context, temperature, generator):
        return self.mean(context) + temperature * torch.randn((n, 2), generator=generator)


def test_a_module_as_base():
    flow = fk.Flow([fk.nn.Permute(2)], LearnedNormal(), event_shape=(2,))
    context = torch.randn(5, 3)
    x, log_prob = flow.rsample_and_log_prob(4, context)
    assert x.shape == (5, 4, 2)
    torch.testing.assert_close(log_prob.flatten(), flow.log_prob(x.flatten(0, 1), context.repeat_interleave(4, 0)))
    assert torch.equal(
        flow.sample(4, context, generator=torch.Generator().manual_seed(1)),
        flow.sample(4, context, generator=torch.Generator().manual_seed(1)),
    )


class Returns(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x, context=None):
        return self.result(x)

    inverse = forward


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda x: x, TypeError, r"layer 1 \(Returns\) must return \(value, log_det\); got Tensor"),
        (lambda x: (x, 0.0), ValueError, r"layer 1 \(Returns\) must return a log_det of shape \(3,\); got float"),
        (lambda x: (x, torch.zeros(())), ValueError, r"log_det of shape \(3,\); got \(\)"),
        (lambda x: (x[:, :1], torch.zeros(3)), ValueError, r"event shape \(2,\); got \(1,\)"),
    ],
)
def test_a_layer_that_returns_something_else_is_named(result, error, message):
    flow = fk.Flow([fk.nn.Permute(2), Returns(result)], event_shape=(2,))
    with pytest.raises(error, match=message):
        flow.log_prob(torch.zeros(3, 2))


def test_construction_errors():
    with pytest.raises(TypeError, match=r"layer 1 \(Linear\) must have forward and inverse; it lacks inverse"):
        fk.Flow([fk.nn.Permute(2), nn.Linear(2, 2)])
    with pytest.raises(TypeError, match=r"layer 0 \(int\) must be a module"):
        fk.Flow([3])
    with pytest.raises(TypeError, match="got Linear: it lacks event_shape, log_prob, rsample"):
        fk.Flow([], nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"event_shape=\(3,\) is not that of the base, \(4,\)"):
        fk.Flow([], BASES["normal"](), event_shape=(3,))


def test_sampling_errors():
    with pytest.raises(ValueError, match="needs event_shape"):
        fk.Flow([fk.nn.Permute(2)]).sample(1)
    for n in (-1, 2.5, True):
        with pytest.raises(ValueError, match=f"got {n}"):
            realnvp().sample(n)
    with pytest.raises(ValueError, match=r"got -0\.5"):
        realnvp().sample(1, temperature=-0.5)


def test_log_dets_accumulate_in_float32():
    def half(x):
        return x, torch.full((len(x),), 0.1, dtype=torch.float16)

    flow = fk.Flow([Returns(half)] * 200, event_shape=(2,))
    x = torch.zeros(3, 2)
    total = flow.log_prob(x) - fk.Flow([], event_shape=(2,)).log_prob(x)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, torch.full((3,), 200 * torch.tensor(0.1).half().item()), rtol=1e-5, atol=0)


@pytest.mark.parametrize("build", [realnvp, multiscale, dequantizing])
def test_copies_are_equal(build):
    flow = build()
    x = torch.randint(17, (5, 4)) if build is dequantizing else torch.randn(5, 4)
    other = build()
    other.load_state_dict(flow.state_dict(), strict=True)
    values = []
    for model in (flow, other, copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.manual_seed(1)
        values.append(model.log_prob(x))
    assert all(torch.equal(values[0], v) for v in values)


def test_torch_compile_makes_one_graph():
    x = torch.randn(5, 4, dtype=torch.float64)  # in float32 eager perceptrons round in another order
    for flow in (realnvp(), multiscale(), fk.Flow(realnvp().layers, BASES["multivariate"]())):
        flow.double()
        torch._dynamo.reset()
        compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), flow.log_prob(x))
        (gradient,) = torch.autograd.grad(compiled(x).sum(), next(flow.parameters()))
        torch.testing.assert_close(gradient, torch.autograd.grad(flow(x).sum(), next(flow.parameters()))[0])
    flow = realnvp(context=3).double()
    context = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.compile(flow, fullgraph=True, backend="aot_eager")(x, context), flow(x, context))


def test_hooks_fire_under_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        flow = realnvp()
        wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(flow))
        reduced = []

        def hook(state, bucket):
            reduced.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, hook)
        x = torch.randn(6, 4)
        (-wrapped(x).mean()).backward()
        (-flow(x).mean()).backward()
        assert sum(reduced) == sum(p.numel() for p in flow.parameters())
        for a, b in zip(wrapped.parameters(), flow.parameters()):
            torch.testing.assert_close(a.grad, b.grad)
    finally:
        torch.distributed.destroy_process_group()
