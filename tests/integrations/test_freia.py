"""FrEIA's blocks, accelerated, against themselves."""

import copy
import dataclasses
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from flowkernels.integrations import accelerate

pytest.importorskip("FrEIA")
from FrEIA import framework, modules

from flowkernels.integrations import freia

ONE_NET = ["GLOWCouplingBlock", "RNVPCouplingBlock", "GINCouplingBlock", "AffineCouplingOneSided"]


@dataclasses.dataclass
class Slope:
    """A callable that has no hash."""

    slope: float = 0.3

    def __call__(self, u):
        return torch.tanh(self.slope * u)


CLAMPS = {
    "ATAN": "ATAN",
    "TANH": "TANH",
    "SIGMOID": "SIGMOID",
    "function": lambda u: u / (1 + u.abs()),
    "module": nn.Softsign(),
    "object": Slope(),
}


@pytest.fixture(autouse=True)
def sizes_do_not_matter(monkeypatch):
    """Small calls take the ways of large ones too."""
    monkeypatch.setattr(freia, "_MANY", 0)
    for kind in (freia.RNVPCouplingBlock, freia.GINCouplingBlock, freia.AllInOneBlock):
        monkeypatch.setattr(kind, "least", 0)


def dense(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Tanh(), nn.Linear(8, outputs))


def rectified(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))


def convolution(inputs, outputs):
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def noisy(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.Dropout(0.5), nn.Linear(8, outputs))


class Calls(nn.Module):
    """Both directions of a block as methods, of tensors."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def run(self, inputs, rev):
        x, *c = inputs if isinstance(inputs, list) else [inputs]
        return self.block([x], c, rev=rev) if c else self.block([x], rev=rev)

    def forward(self, inputs):
        return self.run(inputs, False)

    def inverse(self, inputs):
        return self.run(inputs, True)


def points(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def build(name, dims=(5,), condition=None, net=dense, **options):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002, permutations come from there
    return getattr(modules, name)([dims], [condition] if condition else [], subnet_constructor=net, **options)


@pytest.mark.parametrize("clamp", CLAMPS)
@pytest.mark.parametrize("name", ONE_NET)
def test_clamps(check_parity, name, clamp):
    report = check_parity(Calls(build(name, clamp_activation=CLAMPS[clamp], clamp=1.3)), 3 * points(9, 5), replaced=1)
    assert not report.left_alone


@pytest.mark.parametrize("name", [*ONE_NET, "AllInOneBlock"])
def test_images(check_parity, name):
    block = build(name, (5, 4, 6), net=convolution)
    check_parity(Calls(block), points(3, 5, 4, 6), replaced=1)
    check_parity(Calls(block), points(3, 5, 4, 6).contiguous(memory_format=torch.channels_last), replaced=1)


@pytest.mark.parametrize("name", [*ONE_NET, "AllInOneBlock", "ConditionalAffineTransform"])
def test_with_a_condition(check_parity, name):
    check_parity(Calls(build(name, condition=(2,))), points(9, 5), points(9, 2), replaced=1)


def test_with_two_conditions(check_parity):
    torch.manual_seed(0)
    block = modules.ConditionalAffineTransform([(3,)], [(2,), (1,)], subnet_constructor=dense)
    check_parity(Calls(block), points(9, 3), points(9, 2), points(9, 1), replaced=1)


@pytest.mark.parametrize("split", [0, 1, 4, 5, 0.25])
@pytest.mark.parametrize("name", ONE_NET[:2] + ONE_NET[3:])
def test_splits(check_parity, name, split):
    def wide_enough(inputs, outputs):  # torch warns of layers without weights
        return dense(inputs, outputs) if inputs and outputs else Nothing(outputs)

    check_parity(Calls(build(name, split_len=split, net=wide_enough)), points(9, 5), replaced=1)


class Nothing(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, u):
        return u.sum(1, keepdim=True).expand(-1, self.outputs) + 0.5


@pytest.mark.parametrize("clamp", [0.0, -1.5])
def test_a_clamp_that_is_not_positive(check_parity, clamp):
    check_parity(Calls(build("GLOWCouplingBlock", clamp=clamp)), points(9, 5), replaced=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine_clamping": 0.7, "reverse_permutation": True},
        {"permute_soft": True, "global_affine_type": "SIGMOID"},
        {
            "permute_soft": True,
            "learned_householder_permutation": 2,
            "global_affine_type": "EXP",
            "global_affine_init": 0.7,
        },
    ],
    ids=["hard", "reverse", "soft", "householder"],
)
@pytest.mark.parametrize("channels", [4, 5])
def test_all_in_one(check_parity, options, channels):
    block = build("AllInOneBlock", (channels,), **options)
    if "learned_householder_permutation" in options:  # float32 whatever the block is
        compare_in_float32(block, points(9, channels))
    else:
        check_parity(Calls(block), points(9, channels), replaced=1)


def test_all_in_one_of_one_channel(check_parity):
    check_parity(Calls(build("AllInOneBlock", (1,), net=lambda *_: Nothing(0))), points(9, 1), replaced=1)


def compare_in_float32(block, x):
    ours = copy.deepcopy(block)
    assert len(accelerate(ours).replaced) == 1
    for rev in (False, True):
        (expected,), expected_log_det = block([x], rev=rev)
        (found,), log_det = ours([x], rev=rev)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(log_det, expected_log_det)


def test_all_in_one_as_gin_is_left_alone():
    report = accelerate(build("AllInOneBlock", gin_block=True))
    assert "gin_block" in report.left_alone[0].why


def test_dropout_runs_as_before(check_parity):
    check_parity(Calls(build("GLOWCouplingBlock", net=noisy)), points(9, 4, 1)[:, :, 0].repeat(1, 2)[:, :5], replaced=1)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("rows", [9, 70])
@pytest.mark.parametrize("name", [*ONE_NET, "AllInOneBlock", "ConditionalAffineTransform"])
def test_perceptrons_are_one_call(monkeypatch, check_parity, in_one_call, name, rows, small):
    if small:
        monkeypatch.undo()
    block = build(name, condition=(2,), net=rectified)
    check_parity(Calls(block), points(rows, 5), points(rows, 2), replaced=1)
    in_one_call.clear()
    accelerate(block)
    with torch.no_grad():
        block([points(rows, 5)], [points(rows, 2)])
    networks = sum(isinstance(part, nn.Sequential) for part in block.modules())
    assert len(in_one_call) == networks > 0
    assert all(isinstance(y, torch.Tensor) for y in in_one_call)


@pytest.mark.parametrize("name", [*ONE_NET, "AllInOneBlock"])
def test_inference_and_small_calls(monkeypatch, name):
    monkeypatch.undo()
    block = build(name)
    ours = copy.deepcopy(block)
    accelerate(ours)
    with torch.no_grad():
        for rev in (False, True):
            torch.testing.assert_close(ours([points(9, 5)], rev=rev), block([points(9, 5)], rev=rev))


def test_a_network(check_parity):
    torch.manual_seed(0)
    network = framework.SequenceINN(6)
    for seed, name in enumerate(ONE_NET):
        network.append(getattr(modules, name), subnet_constructor=dense)
        network.append(modules.PermuteRandom, seed=seed)
    network.append(modules.ActNorm)
    network(points(9, 6))
    report = check_parity(SequenceCalls(network), points(9, 6), replaced=4)
    assert {left.was for left in report.left_alone} == {"FrEIA.PermuteRandom", "FrEIA.ActNorm"}


class SequenceCalls(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)

    def inverse(self, x):
        return self.network(x, rev=True)


def test_a_graph():
    torch.manual_seed(0)
    source = framework.InputNode(4, name="input")
    condition = framework.ConditionNode(2, name="condition")
    node = framework.Node(
        source, modules.GLOWCouplingBlock, {"subnet_constructor": dense}, conditions=condition, name="coupling"
    )
    graph = framework.GraphINN([source, condition, node, framework.OutputNode(node, name="output")])
    x, c = points(9, 4), points(9, 2)
    expected = graph(x, c=c), graph(x, c=c, rev=True)
    assert len(accelerate(graph, strict=True).replaced) == 1
    torch.testing.assert_close((graph(x, c=c), graph(x, c=c, rev=True)), expected)


def test_half_precision_and_other_shapes_are_the_library_s():
    block = build("GLOWCouplingBlock")
    ours = copy.deepcopy(block)
    accelerate(ours)
    for module in (block, ours):
        module.subnet1[2].bias.data.zero_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for expected, found in zip(block([points(9, 5)]), ours([points(9, 5)])):
            torch.testing.assert_close(expected, found)
    broadcasting = copy.deepcopy(block), ours
    for module in broadcasting:
        module.subnet1 = Nothing(6)
        module.subnet2 = One(4)
    torch.testing.assert_close(broadcasting[1]([points(9, 5)]), broadcasting[0]([points(9, 5)]))


class One(Nothing):
    """Scales and shifts of one example for all."""

    def forward(self, u):
        return torch.linspace(-1, 1, self.outputs)[None]


def test_subclasses_strict_load_pickle_and_the_way_back():
    block = build("RNVPCouplingBlock", clamp_activation="TANH")  # the one activation that pickles
    x = points(9, 5)
    expected = block([x])
    report = accelerate(block, strict=True)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert isinstance(other, modules.RNVPCouplingBlock)
        other.load_state_dict(block.state_dict(), strict=True)
        torch.testing.assert_close(other([x]), expected)
    report.undo()
    assert type(block) is modules.RNVPCouplingBlock
    assert "subclass" in accelerate(Derived([(4,)], subnet_constructor=dense)).left_alone[0].why


class Derived(modules.GLOWCouplingBlock):
    pass


def test_an_activation_that_is_changed_later_is_followed():
    block = build("GLOWCouplingBlock")
    ours = copy.deepcopy(block)
    accelerate(ours)
    for module in (block, ours):
        module.f_clamp, module.clamp = torch.sin, 0.3
    torch.testing.assert_close(ours([points(9, 5)]), block([points(9, 5)]))


def test_a_library_that_computes_something_else_is_left_alone(monkeypatch):
    original = modules.GLOWCouplingBlock._coupling1

    def legacy(self, x1, u2, rev=False):
        y, log_det = original(self, x1, u2, rev)
        return 2 * y, log_det

    legacy.__module__, legacy.__qualname__ = original.__module__, original.__qualname__
    monkeypatch.setattr(modules.GLOWCouplingBlock, "_coupling1", legacy)
    freia._tried.cache_clear()
    try:
        assert "something else" in accelerate(build("GLOWCouplingBlock")).left_alone[0].why
    finally:
        freia._tried.cache_clear()


def test_trying_a_block_out_leaves_the_generator_alone():
    blocks = [build(name) for name in [*ONE_NET, "AllInOneBlock"]]
    state = torch.get_rng_state()
    freia._tried.cache_clear()
    for block in blocks:
        accelerate(block)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not hasattr(modules, "RationalQuadraticSpline"), reason="not in FrEIA's release on PyPI")
@pytest.mark.parametrize(
    "options",
    [{}, {"bins": 4, "min_bin_sizes": (0.05, 0.2), "default_domain": (-2.0, 3.0, -1.0, 2.0)}],
    ids=["default", "other box"],
)
def test_splines(check_parity, options):
    check_parity(Calls(build("RationalQuadraticSpline", **options)), 2 * points(9, 5), replaced=1, exact=False)
    check_parity(Calls(build("RationalQuadraticSpline", (4, 3, 2), net=convolution)), points(3, 4, 3, 2), exact=False)
    for left in ({"identity_tails": True}, {"domain_clamping": 5.0}):
        assert "identity_tails" in accelerate(build("RationalQuadraticSpline", **left)).left_alone[0].why


@pytest.mark.parametrize("clamp", ["TANH", "function"])
@pytest.mark.parametrize("name", [*ONE_NET, "AllInOneBlock"])
def test_the_op_runs_once_per_coupling(monkeypatch, name, clamp):
    block = build(name) if name == "AllInOneBlock" else build(name, clamp_activation=CLAMPS[clamp])
    accelerate(block)
    calls, op = [], freia.affine_coupling
    monkeypatch.setattr(freia, "affine_coupling", lambda *args, **options: calls.append(1) or op(*args, **options))
    for rev in (False, True):
        block([points(9, 5)], rev=rev)
    assert len(calls) == (2 if name in ("AffineCouplingOneSided", "AllInOneBlock") else 4)
