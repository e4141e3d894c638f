"""zuko's flows and transforms, accelerated, against themselves."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from flowkernels.integrations import accelerate

zuko = pytest.importorskip("zuko")
from zuko import flows, transforms  # noqa: E402
from zuko.flows.gaussianization import ElementWiseTransform  # noqa: E402

SPLINE = {"univariate": transforms.MonotonicRQSTransform, "shapes": [(5,), (5,), (4,)]}
NARROW = SPLINE | {"univariate": partial(transforms.MonotonicRQSTransform, bound=1.5, slope=1e-2)}
STEEP = {"univariate": partial(transforms.MonotonicAffineTransform, slope=0.2)}
UNIVARIATES = {"affine": {}, "steep": STEEP, "spline": SPLINE, "narrow": NARROW}
SMALL = {"hidden_features": (8, 8)}


class Calls(nn.Module):
    """What a lazy transform's transform does, as methods of a module."""

    def __init__(self, lazy, context=False):
        super().__init__()
        self.lazy, self.context = lazy, context

    def transform(self, inputs):
        x, *c = inputs if self.context else [inputs]
        return self.lazy(*c), x

    def forward(self, inputs):
        t, x = self.transform(inputs)
        return t.call_and_ladj(x)

    def value(self, inputs):
        t, x = self.transform(inputs)
        return t(x)

    def ladj(self, inputs):
        t, x = self.transform(inputs)
        return t.log_abs_det_jacobian(x, t(x))

    def inverse(self, inputs):
        t, y = self.transform(inputs)
        return t.inv(y)

    def inverse_and_ladj(self, inputs):
        t, y = self.transform(inputs)
        return t.inv.call_and_ladj(y)


METHODS = ("forward", "value", "ladj", "inverse", "inverse_and_ladj")


def points(*shape):
    """Some of them are outside of the box of a spline."""
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", UNIVARIATES)
def test_coupling(check_parity, kind):
    torch.manual_seed(0)
    lazy = flows.GeneralCouplingTransform(5, **UNIVARIATES[kind], **SMALL)
    check_parity(Calls(lazy), points(11, 5), methods=METHODS, replaced=1)


@pytest.mark.parametrize("passes", [2, None])
@pytest.mark.parametrize("kind", UNIVARIATES)
def test_autoregressive(check_parity, kind, passes):
    torch.manual_seed(0)
    lazy = flows.MaskedAutoregressiveTransform(4, passes=passes, **UNIVARIATES[kind], **SMALL)
    check_parity(Calls(lazy), points(11, 4), methods=METHODS, replaced=1)


@pytest.mark.parametrize("build", [flows.GeneralCouplingTransform, flows.MaskedAutoregressiveTransform])
@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_with_context(check_parity, build, kind):
    torch.manual_seed(0)
    lazy = build(3, 2, **UNIVARIATES[kind], **SMALL)
    check_parity(Calls(lazy, True), points(7, 3), points(7, 2), methods=METHODS, replaced=1)
    check_parity(Calls(lazy, True), points(3, 7, 3), points(7, 2), methods=METHODS, replaced=1)


@pytest.mark.parametrize("kind", UNIVARIATES)
@pytest.mark.parametrize("context", [False, True])
def test_elementwise(check_parity, kind, context):
    torch.manual_seed(0)
    lazy = ElementWiseTransform(3, 2 * context, **UNIVARIATES[kind])
    inputs = [points(7, 3), points(7, 2)] if context else [points(7, 3)]
    check_parity(Calls(lazy, context), *inputs, methods=METHODS, replaced=1)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (2, 4, 3)], ids=str)
@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_shapes(check_parity, kind, shape):
    torch.manual_seed(0)
    lazy = flows.MaskedAutoregressiveTransform(3, **UNIVARIATES[kind], **SMALL)
    check_parity(Calls(lazy), points(*shape), methods=METHODS, replaced=1)


class Density(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, x):
        return self.flow().log_prob(x)

    def sample(self, x):
        return self.flow().rsample((len(x),))

    def sample_and_log_prob(self, x):
        return self.flow().rsample_and_log_prob((len(x),))


FLOWS = {
    "NSF": lambda: flows.NSF(3, transforms=2, bins=4, **SMALL),
    "NSF in two passes": lambda: flows.NSF(3, transforms=2, bins=4, passes=2, **SMALL),
    "NSF of one": lambda: flows.NSF(1, transforms=2, bins=4),
    "MAF": lambda: flows.MAF(3, transforms=2, randperm=True, **SMALL),
    "NICE": lambda: flows.NICE(4, transforms=2, randmask=True, **SMALL),
    "RealNVP of splines": lambda: flows.RealNVP(4, transforms=2, **SPLINE, **SMALL),
}


@pytest.mark.parametrize("name", FLOWS)
def test_flows(check_parity, name):
    torch.manual_seed(0)
    flow = FLOWS[name]()
    report = check_parity(
        Density(flow),
        points(9, next(iter(flow.buffers())).shape[-1] if name != "NSF of one" else 1),
        methods=("forward", "sample", "sample_and_log_prob"),
        replaced=2,
    )
    assert not report.left_alone


def test_strict_load_pickle_and_the_way_back():
    torch.manual_seed(0)
    flow = FLOWS["NSF in two passes"]()
    x = points(5, 3)
    expected = flow().log_prob(x)
    kinds = [type(m) for m in flow.modules()]
    report = accelerate(flow, strict=True)
    assert isinstance(flow.transform.transforms[0], flows.MaskedAutoregressiveTransform)
    other = pickle.loads(pickle.dumps(flow))
    other.load_state_dict(copy.deepcopy(flow.state_dict()), strict=True)
    for model in (flow, other, copy.deepcopy(flow)):
        torch.testing.assert_close(model().log_prob(x), expected)
    assert repr(flow)
    assert repr(flow().transform.transforms[0].meta(x))
    report.undo()
    assert [type(m) for m in flow.modules()] == kinds


def test_dropout_and_hooks_run_as_before(check_parity):
    torch.manual_seed(0)
    lazy = flows.GeneralCouplingTransform(4, **SPLINE, hidden_features=(8,), activation=lambda: nn.Dropout(0.5))
    check_parity(Calls(lazy), points(9, 4), methods=METHODS, replaced=1)
    calls = []
    lazy.hyper.register_forward_hook(lambda *_: calls.append(1))
    accelerate(lazy)
    lazy().call_and_ladj(points(9, 4))
    assert len(calls) == 1


def own_affine(shift, scale):
    return transforms.MonotonicAffineTransform(shift, scale)


@pytest.mark.parametrize(
    "options",
    [
        {"univariate": own_affine},
        {"univariate": transforms.AdditiveTransform, "shapes": [()]},
        {"univariate": partial(transforms.MonotonicAffineTransform, cache_size=1)},
        {"univariate": partial(transforms.MonotonicRQSTransform, slope=0.9999), "shapes": SPLINE["shapes"]},
        {"univariate": partial(transforms.MonotonicRQSTransform, bound=torch.ones(2)), "shapes": SPLINE["shapes"]},
        {"univariate": transforms.BernsteinTransform, "shapes": [(6,)]},
    ],
    ids=["own", "additive", "cache", "slope", "bounds", "bernstein"],
)
def test_unknown_univariates_are_left_alone(options):
    lazy = flows.GeneralCouplingTransform(4, **options, **SMALL)
    report = accelerate(lazy)
    assert "unknown univariate" in report.left_alone[0].why
    with pytest.raises(ValueError, match="unknown univariate"):
        accelerate(lazy, strict=True)


def test_a_changed_transform_is_left_alone(monkeypatch):
    original = transforms.MonotonicAffineTransform.log_abs_det_jacobian
    monkeypatch.setattr(
        transforms.MonotonicAffineTransform, "log_abs_det_jacobian", lambda self, x, y: 2 * original(self, x, y)
    )
    report = accelerate(flows.GeneralCouplingTransform(4, **SMALL))
    assert "something else" in report.left_alone[0].why


def test_a_univariate_that_is_changed_later_is_followed():
    torch.manual_seed(0)
    lazy = flows.GeneralCouplingTransform(4, **SMALL)
    theirs = copy.deepcopy(lazy)
    accelerate(lazy)
    x = points(5, 4)
    for univariate in (own_affine, STEEP["univariate"]):
        lazy.univariate = theirs.univariate = univariate
        torch.testing.assert_close(lazy().call_and_ladj(x), theirs().call_and_ladj(x))


def test_other_dtypes_are_the_library_s():
    torch.manual_seed(0)
    lazy = flows.GeneralCouplingTransform(4, **SPLINE, **SMALL).bfloat16()
    theirs = copy.deepcopy(lazy)
    accelerate(lazy)
    x = points(5, 4).bfloat16()
    for expected, found in zip(theirs().call_and_ladj(x), lazy().call_and_ladj(x)):
        assert torch.equal(expected, found)


@pytest.mark.parametrize("kind", UNIVARIATES)
def test_the_library_s_transform_is_not_even_made(monkeypatch, kind):
    lazy = flows.MaskedAutoregressiveTransform(4, **UNIVARIATES[kind], **SMALL)
    accelerate(lazy)
    made = []
    monkeypatch.setattr(type(lazy().meta(points(5, 4))), "base", property(lambda _: made.append(1)))
    calls, x = Calls(lazy), points(5, 4)
    for method in METHODS:
        getattr(calls, method)(x)
    assert not made
