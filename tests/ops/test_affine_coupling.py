"""Affine coupling on every backend against the reference in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowkernels as fk
from flowkernels import backends
from flowkernels.ops.affine_coupling import reference
from flowkernels.tolerances import error, tolerance

from .affine_cases import ALL, BY_DIVISION, BY_STRIDES, DTYPES, FORMS, SMALL, Call, cast, inputs

EXAMPLES = 20 if backends.interpreting() else 60


def evaluate(given_inputs, tensors, cotangents):
    """y, log_det and the gradients of every tensor."""
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    outputs = given_inputs.run(leaves)
    # Where a log-determinant is constant the reference's has no graph.
    pairs = [(y, g.to(y.dtype)) for y, g in zip(outputs, cotangents) if y.requires_grad]
    if not pairs:
        return outputs, {}
    grads = torch.autograd.grad([y for y, _ in pairs], list(leaves.values()), [g for _, g in pairs], allow_unused=True)
    return outputs, dict(zip(leaves, grads))


def compare(backend, call, x_dtype=torch.float32, raw_dtype=torch.float32, guarded=None, device="cpu"):
    """A backend's values and gradients against the float64 reference on the very same rounded inputs."""
    dtypes = {"x": x_dtype, "raw": raw_dtype, "shift": raw_dtype, "bound": torch.promote_types(x_dtype, torch.float32)}
    with torch.device(device):
        case = inputs(call)
        tensors = {name: cast(t, dtypes[name]) for name, t in case.tensors.items()}
        exact_inputs = {name: cast(t, torch.float64) for name, t in tensors.items()}
        y_cotangent = cast(torch.randn_like(exact_inputs["x"]), x_dtype)
        cotangents = (y_cotangent, torch.randn(call.shape[0], dtype=torch.float32))
    with fk.backend(backend):
        if guarded is None:
            (y, log_det), grads = evaluate(case, tensors, cotangents)
        else:
            with guarded():
                (y, log_det), grads = evaluate(case, tensors, cotangents)
    with fk.backend("reference"):
        (exact_y, exact_log_det), exact_grads = evaluate(case, exact_inputs, cotangents)
    per_row = max(1, y.numel() // max(1, y.shape[0]))
    assert y.dtype == x_dtype
    assert y.shape == exact_y.shape
    assert log_det.dtype == torch.promote_types(x_dtype, torch.float32)
    assert error(y, exact_y) <= tolerance(x_dtype)
    assert error(log_det, exact_log_det) <= tolerance(log_det.dtype, per_row)
    for name, exact in exact_grads.items():
        if exact is None:
            continue
        # A saved output is rounded to x's dtype, and so is what its gradient is made of.
        coarse = max(x_dtype, tensors[name].dtype, key=lambda d: torch.finfo(d).eps)
        length = y.numel() if name == "bound" else 1
        assert grads[name].dtype == tensors[name].dtype
        assert error(grads[name], exact) <= tolerance(coarse, length), name


@pytest.mark.parametrize("call", ALL, ids=str)
def test_values_and_gradients(backend, call, guarded):
    compare(backend, call, guarded=guarded)


@pytest.mark.parametrize("dtypes", DTYPES, ids=lambda d: "-".join(str(t).removeprefix("torch.") for t in d))
@pytest.mark.parametrize("call", [ALL[1], *BY_DIVISION[:4], BY_STRIDES[0], BY_STRIDES[-1]], ids=str)
def test_dtypes(backend, call, dtypes):
    compare(backend, call, *dtypes)


@pytest.mark.parametrize("call", [call for call in SMALL if not call.inverse], ids=str)
def test_round_trip(backend, call):
    case = inputs(call)
    with fk.backend(backend):
        y, log_det = case.run(case.tensors)
        case.options["inverse"] = True
        back, negative = case.run({**case.tensors, "x": y})
    assert error(back, case.tensors["x"]) <= 1e3 * tolerance(torch.float64)
    assert error(negative, -log_det) <= tolerance(torch.float64, 100)


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_log_det_is_that_of_the_jacobian(backend, call):
    case = inputs(call)
    first = {name: t if name == "bound" else t[:1] for name, t in case.tensors.items()}

    def function(x):
        return case.run({**first, "x": x})[0]

    with fk.backend(backend):
        jacobian = torch.autograd.functional.jacobian(function, first["x"])
        log_det = case.run(first)[1]
    size = first["x"].numel()
    assert error(log_det[0], torch.linalg.slogdet(jacobian.reshape(size, size))[1]) <= 1e3 * tolerance(torch.float64)


@pytest.mark.parametrize("call", BY_DIVISION, ids=str)
def test_passive_elements_are_kept_bit_for_bit(backend, call):
    if call.mask is None and not call.passive:
        call = dataclasses.replace(call, passive=2)
    case = inputs(call)
    mask = case.options["mask"]
    if mask is None:
        mask = torch.zeros(call.shape[1:], dtype=torch.bool)
        mask[: call.passive] = call.passive > 0
        mask[call.passive :] |= call.passive < 0
    kept = mask.expand(call.shape)
    x = case.tensors["x"].float()
    bits = torch.tensor([-(2**31), 1, 0x7FC01234, -1], dtype=torch.int32)  # -0, a subnormal, two NaNs
    x[kept] = bits.repeat(x[kept].numel())[: x[kept].numel()].view(torch.float32)
    tensors = {name: t.float() for name, t in case.tensors.items()} | {"x": x}
    with fk.backend(backend):
        y, _ = case.run(tensors)
    pairs = [t[kept] for t in (y, x)]
    assert torch.equal(pairs[0].contiguous().view(torch.int32), pairs[1].contiguous().view(torch.int32))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.spec or "exp")
def test_raw_at_masked_elements_is_never_used(backend, form):
    call = Call(form=form, shape=(3, 6), mask="channel")
    case = inputs(call)
    mask = case.options["mask"].expand(call.shape)
    s, t = reference.split_raw(case.tensors["raw"], None, form)
    for part in (s, t):
        if part is not None:
            part[mask] = float("nan")
    tensors = {name: value.float() for name, value in case.tensors.items()}
    with fk.backend(backend):
        outputs, grads = evaluate(case, tensors, (torch.ones(call.shape), torch.ones(3)))
    assert all(output.isfinite().all() for output in outputs)
    assert all(grad.isfinite().all() for grad in grads.values())
    for part in reference.split_raw(grads["raw"], None, form):
        if part is not None:
            assert (part[mask] == 0).all()


@pytest.mark.parametrize("scale", ["tanh", "sigmoid", "softplus", "softclip", "atan"])
def test_saturated_scales_have_exact_gradients(backend, scale):
    form = fk.AffineForm(scale, bound=2.0 if scale in ("tanh", "softclip", "atan") else None)
    s = torch.tensor([[-80.0, -30.0, -12.0, -1e-6, 0.0, 1e-30, 12.0, 30.0, 80.0]])
    case = inputs(Call(form=form, shape=(1, 9), paired=True))
    tensors = {"x": torch.ones(1, 9), "raw": s, "shift": torch.zeros(1, 9)}
    cotangents = (torch.zeros(1, 9), torch.ones(1))
    with fk.backend(backend):
        _, grads = evaluate(case, tensors, cotangents)
    # The written backward formula: autograd's tanh is 1 - tanh^2, which is 0 from 19 on even in float64.
    x, raw = tensors["x"].double(), tensors["raw"].double()
    exact = reference.backward(None, torch.ones(1), x, raw, raw, None, None, form, 0, False)[1]
    # Relative to the value itself: an absolute tolerance would forgive a gradient that is 0 where it should be tiny.
    normal = exact.abs() > 1e-37
    ratio = grads["raw"].double()[normal] / exact[normal]
    assert (ratio - 1).abs().max() <= tolerance(torch.float32)
    assert (grads["raw"][~normal].abs() < 2e-37).all()


def test_infinite_and_nan_inputs_stay_in_their_row(backend):
    x = torch.randn(4, 6)
    raw = torch.randn(4, 12)
    x[1, 2] = float("nan")
    raw[2, 3] = float("nan")
    x[3, 0] = float("inf")
    with fk.backend(backend):
        y, log_det = fk.affine_coupling(x, raw)
    assert y[0].isfinite().all()
    assert log_det[[0, 1, 3]].isfinite().all()
    assert y[1].isnan().sum() == 1
    assert y[1, 2].isnan()
    assert log_det[2].isnan()
    assert y[3, 0].isinf()


def test_same_bits_every_time_and_whatever_the_batch(backend):
    x, raw = torch.randn(40, 300), torch.randn(40, 600)
    with fk.backend(backend):
        first = fk.affine_coupling(x, raw, passive=0)
        again = fk.affine_coupling(x, raw, passive=0)
        part = fk.affine_coupling(x[:7], raw[:7], passive=0)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert all(torch.equal(a[:7], b) for a, b in zip(first, part))


def test_outputs_have_the_promised_layout(backend):
    x = torch.randn(2, 4, 3, 5).contiguous(memory_format=torch.channels_last)
    with fk.backend(backend):
        y, _ = fk.affine_coupling(x, torch.randn(2, 8, 3, 5))
        sliced, _ = fk.affine_coupling(torch.randn(2, 9)[:, 1:5], torch.randn(2, 8))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not y.is_contiguous()
    assert sliced.is_contiguous()


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_call(backend, data):
    form = data.draw(st.sampled_from(FORMS))
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=5)))
    passive = data.draw(st.integers(-shape[1], shape[1]))
    mask = data.draw(st.sampled_from([None, "dense"])) if passive == 0 else None
    strides = data.draw(st.sampled_from(["contiguous", "offset", "slice", "transposed", "expanded"]))
    learned = form.bounded and data.draw(st.booleans())
    paired = form.scale != "additive" and data.draw(st.booleans())
    inverse = data.draw(st.booleans())
    compare(
        backend,
        Call(form, shape, passive, mask, paired, learned, inverse, strides),
        *data.draw(st.sampled_from(DTYPES)),
    )


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_extreme_values_agree_with_the_reference(backend, data):
    """Where float32 overflows, a backend is infinite or NaN exactly where the float32 reference is."""
    form = data.draw(st.sampled_from([form for form in FORMS if form.scale not in ("given", "additive")]))
    values = (
        st.floats(-(2.0**100), 2.0**100, width=32)
        | st.floats(-120, 120, width=32)
        | st.sampled_from([0.0, 1e-38, -1e-44])
    )
    s = torch.tensor([data.draw(st.lists(values, min_size=4, max_size=4))])
    t = torch.zeros(1, 4)
    x = torch.ones(1, 4)
    results = []
    for name in (backend, "reference"):
        with fk.backend(name):
            results.append(fk.affine_coupling(x, (s, t), form=form))
    for value, expected in zip(*results):
        assert torch.equal(value.isnan(), expected.isnan())
        finite = expected.isfinite() & (expected.abs() > 1e-36) & (expected.abs() < 1e36)
        assert error(value[finite], expected[finite]) <= 64 * tolerance(torch.float32)
