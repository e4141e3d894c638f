"""Rational-quadratic splines on every backend against the reference in float64, and against nflows' own function."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowkernels as fk
from flowkernels.ops.rational_quadratic_spline import reference
from flowkernels.tolerances import error, tolerance

from .affine_cases import cast
from .spline_cases import ALL, DTYPES, EIGHT, FORMS, SMALL, TRAILING, Call, allowed, flat, inputs, options, run


def compare(backend, call, dtype=torch.float32, raw_dtype=torch.float32, guarded=None):
    """Values and gradients of a call within what rounding may do to the very same numbers."""
    x, raw = inputs(call)
    x, raw = cast(x, dtype), cast(raw, raw_dtype)
    given = options(call)
    cotangents = (cast(torch.randn(x.shape), dtype), torch.randn(x.shape[0]))
    with fk.backend(backend):
        if guarded is None:
            found = run(x, raw, cotangents, given)
        else:
            with guarded():
                found = run(x, raw, cotangents, given)
    wide = torch.promote_types(dtype, torch.float32)
    assert [t.dtype for t in found] == [dtype, wide, dtype, raw_dtype]
    with fk.backend("reference"):
        exact = list(run(x.double(), raw.double(), [g.double() for g in cotangents], given))
    saved = found[0].double() if call.inverse else x.double()
    wide_grads = [g.double() for g in cotangents]
    exact[2:] = reference.backward(
        *wide_grads, saved, raw.double(), given["mask"], call.form, call.passive or 0, call.inverse
    )[:2]
    check_errors(call, (x.double(), raw.double(), saved), wide_grads, given["mask"], found, exact, dtype, raw_dtype)


def check_errors(call, tensors, cotangents, mask, found, exact, dtype, raw_dtype):
    x, raw, saved = tensors
    active = torch.ones(x.shape, dtype=torch.bool)
    active[:] = True if mask is None else ~mask
    if call.passive:
        passive = active[:, : call.passive] if call.passive > 0 else active[:, call.passive :]
        passive[:] = False
    assert torch.equal(found[0][~active], x[~active].to(dtype))
    assert torch.equal(found[2][~active], cotangents[0][~active].to(dtype))
    transformed = flat(active, raw, call)[0].flatten()
    per_element = (
        flat(cotangents[0], raw, call)[0].flatten(),
        flat(cotangents[1].reshape(-1, *(1,) * (x.dim() - 1)).expand(x.shape), raw, call)[0].flatten(),
    )
    limits = allowed(x, raw, saved, per_element, call, dtype, raw_dtype)

    def elements(t):
        return flat(t.double(), raw, call)[0].flatten()

    assert ((elements(found[0]) - elements(exact[0])).abs() <= limits.y)[transformed].all()
    assert ((elements(found[2]) - elements(exact[2])).abs() <= limits.grad_x)[transformed].all()
    by_raw = (flat(x, found[3].double() - exact[3], call)[1]).flatten(1).abs()
    assert (by_raw <= limits.grad_raw[:, None])[transformed].all()
    assert not flat(x, found[3], call)[1].flatten(1)[~transformed].any()
    of_rows = (x.shape[0], transformed.numel() // max(1, x.shape[0]))
    rows = torch.where(transformed, limits.log_det, 0).reshape(of_rows).sum(1)
    rows = rows + tolerance(torch.promote_types(dtype, torch.float32)) * exact[1].abs()
    assert ((found[1] - exact[1]).abs() <= rows).all()


@pytest.mark.parametrize("call", ALL, ids=str)
def test_calls(backend, call, guarded):
    compare(backend, call, guarded=guarded)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype, raw_dtype", DTYPES, ids=str)
def test_dtypes(backend, dtype, raw_dtype, inverse):
    for form in (EIGHT, FORMS[-1]):
        compare(backend, Call(form, (6, 9), passive=2, inverse=inverse), dtype, raw_dtype)
    compare(backend, Call(shape=(3, 4, 4, 4), mask="checkerboard", inverse=inverse), dtype, raw_dtype)


@pytest.mark.parametrize("call", SMALL, ids=str)
def test_float64(backend, call):
    compare(backend, call, torch.float64, torch.float64)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.spec)
@pytest.mark.parametrize("inverse", [False, True])
def test_the_gradient_formula_is_that_of_autograd(form, inverse):
    call = Call(form, (20, 6), inverse=inverse)
    x, raw = (t.requires_grad_() for t in inputs(call))
    grads = torch.randn(20, 6, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    y, log_det = reference.forward(x, raw, None, form, 0, inverse)
    derived = torch.autograd.grad((y, log_det), (x, raw), grads)
    saved = (y if inverse else x).detach()
    stated = reference.backward(*grads, saved, raw.detach(), None, form, 0, inverse)[:2]
    for a, b in zip(stated, derived):
        assert (a - b).abs().max() <= 1e-9 * b.abs().max()


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.spec)
@pytest.mark.parametrize("inverse", [False, True])
def test_the_log_determinant_is_that_of_the_jacobian(form, inverse):
    x, raw = inputs(Call(form, (1, 4), inverse=inverse))

    def apply(v):
        return fk.rational_quadratic_spline(v, raw, form=form, inverse=inverse)

    with fk.backend("reference"):
        jacobian = torch.autograd.functional.jacobian(lambda v: apply(v)[0][0], x)
        log_det = apply(x)[1]
    assert error(log_det[0], torch.linalg.slogdet(jacobian[:, 0])[1]) <= 1e-12


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.spec)
def test_there_and_back(backend, form):
    call = Call(form, (200, 6))
    x, raw = (t.float() for t in inputs(call))
    with fk.backend(backend):
        y, log_det = fk.rational_quadratic_spline(x, raw, form=form)
        back, log_back = fk.rational_quadratic_spline(y, raw, form=form, inverse=True)
    steep = log_det.abs().amax().exp()
    assert error(back, x) <= 20 * tolerance(torch.float32) * steep
    assert (log_det + log_back).abs().max() <= 200 * tolerance(torch.float32, 6) * steep


def test_knots_and_ends(backend):
    """The first knot, inner knots and the last one belong to a bin, and points beyond follow the tails."""
    form = fk.SplineForm(4, 2.0)
    raw = torch.zeros(1, 7 * form.parameters, dtype=torch.float64)
    x = torch.tensor([[-2.0, -1.0, 0.0, 1.0, 2.0, 2.5, -math.inf]], dtype=torch.float64)
    derivative = 1e-3 + math.log(2)
    with fk.backend(backend):
        for inverse in (False, True):
            y, log_det = fk.rational_quadratic_spline(x, raw, form=form, inverse=inverse)
            assert error(y, x) <= tolerance(torch.float64)
            sign = -1 if inverse else 1
            assert error(log_det, torch.tensor([sign * 3 * math.log(derivative)], dtype=torch.float64)) <= 1e-14


def test_outside_of_the_box_gradients_follow_the_tails(backend):
    x = torch.tensor([[-1e30, -9.0, 9.0, 1e30]]).requires_grad_()
    for form in (EIGHT, fk.SplineForm(8, 3.0, tails="circular"), fk.SplineForm.zuko()):
        raw = torch.randn(1, 4 * form.parameters).requires_grad_()
        for inverse in (False, True):
            with fk.backend(backend):
                y, log_det = fk.rational_quadratic_spline(x, raw, form=form, inverse=inverse)
                of_x, of_raw = torch.autograd.grad(y.sum() + log_det.sum(), (x, raw))
            assert torch.equal(y, x)
            assert torch.equal(of_x, torch.ones_like(x))
            assert log_det.item() == 0
            assert not of_raw.any()


def test_nan_reaches_its_row_only(backend):
    x, raw = torch.randn(5, 6), torch.randn(5, 6 * EIGHT.parameters)
    clean = fk.rational_quadratic_spline(x, raw)
    x[2, 3] = math.nan
    for inverse in (False, True):
        with fk.backend(backend):
            y, log_det = fk.rational_quadratic_spline(x, raw, inverse=inverse)
        assert y.isnan().nonzero().tolist() == [[2, 3]]
        assert log_det.isnan().nonzero().tolist() == [[2]]
    assert not clean[0].isnan().any()


def test_outside_of_a_box_without_tails_is_nan(backend):
    form = fk.SplineForm(4, box=(0.0, 1.0, 0.0, 1.0), tails=None)
    x, raw = torch.tensor([[0.5, 1.5], [0.2, 0.3]]), torch.zeros(2, 2 * form.parameters)
    with fk.backend(backend):
        y, log_det = fk.rational_quadratic_spline(x, raw, form=form)
    assert y.isnan().tolist() == [[False, True], [False, False]]
    assert log_det.isnan().tolist() == [True, False]


def test_nan_in_masked_raw_is_not_seen(backend):
    mask = torch.tensor([True, False, True])
    x = torch.randn(4, 3)
    raw = torch.randn(4, 3, EIGHT.parameters)
    raw[:, mask] = math.nan
    raw = raw.flatten(1).requires_grad_()
    with fk.backend(backend):
        y, log_det = fk.rational_quadratic_spline(x, raw, mask=mask)
        (grad,) = torch.autograd.grad(y.sum() + log_det.sum(), raw)
    assert not y.isnan().any()
    assert torch.equal(y[:, mask], x[:, mask])
    assert not grad.view(4, 3, -1)[:, mask].any()
    assert not grad.isnan().any()


def test_extreme_raw_numbers(backend):
    """Wild conditioners: everything stays finite, the inverse too, where nflows' asserts."""
    for size in (50.0, 1e3):
        x, raw = 4 * torch.randn(300, 4), size * torch.randn(300, 4 * EIGHT.parameters)
        with fk.backend(backend):
            for inverse in (False, True):
                leaves = x.clone().requires_grad_(), raw.clone().requires_grad_()
                y, log_det = fk.rational_quadratic_spline(*leaves, inverse=inverse)
                grads = torch.autograd.grad(y.sum() + log_det.sum(), leaves)
                assert all(t.isfinite().all() for t in (y, log_det, *grads))


def test_rows_do_not_depend_on_the_batch(backend):
    for features in (5, 700):
        x, raw = 2 * torch.randn(37, features), torch.randn(37, features * EIGHT.parameters)
        with fk.backend(backend):
            y, log_det = fk.rational_quadratic_spline(x, raw)
            for row in (0, 16, 36):
                alone = fk.rational_quadratic_spline(x[row : row + 1], raw[row : row + 1])
                assert torch.equal(alone[0][0], y[row])
                assert torch.equal(alone[1][0], log_det[row])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_calls(backend, data):
    form = fk.SplineForm(
        data.draw(st.integers(1, 12)),
        data.draw(st.floats(0.5, 8)),
        tails=data.draw(st.sampled_from(["linear", "circular"])),
        normalization=data.draw(st.sampled_from(["softmax", "softclip"])),
        derivative=data.draw(st.sampled_from(["softplus", "exp_softclip", "softplus_shifted"])),
        side=data.draw(st.sampled_from(["left", "right"])),
        layout=data.draw(st.sampled_from([EIGHT.layout, TRAILING])),
    )
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=2, max_size=4)))
    passive = data.draw(st.integers(-shape[1], shape[1]))
    strides = data.draw(st.sampled_from(["contiguous", "offset", "slice", "transposed"]))
    compare(backend, Call(form, shape, passive or None, None, data.draw(st.booleans()), strides))


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_hundred_thousand_splines_as_nflows_makes_them(backend, dtype, inverse):
    """Values, log-determinants and gradients, also outside of the box. In float32 as close to the exact ones as
    rounding allows; nflows' inverse may be further away."""
    nflows = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    slow = backend == "triton" and (inverse or dtype == torch.float64)  # minutes in the interpreter: a tenth of them
    call = Call(shape=(1_250 if slow else 12_500, 8), inverse=inverse)
    if dtype == torch.float64:
        x, raw = inputs(call)
        leaves = x.requires_grad_(), raw.requires_grad_()
        view = raw.view(*x.shape, EIGHT.parameters)
        theirs = nflows.unconstrained_rational_quadratic_spline(
            x, view[..., :8], view[..., 8:16], view[..., 16:], inverse, tail_bound=3.0
        )
        grads = torch.randn(x.shape, dtype=dtype), torch.randn(x.shape[0], dtype=dtype)
        exact = (theirs[0], theirs[1].sum(1))
        exact += torch.autograd.grad(exact, leaves, grads)
        with fk.backend(backend):
            found = run(*leaves, grads, options(call))
        for value, truth in zip(found, exact):
            assert (value - truth).abs().max() <= 1e-8 * truth.abs().max()
        return
    compare(backend, call)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"raw": torch.zeros(2, 68)}, r"raw must have shape \(2, 69\) .*23 parameters .*got \(2, 68\)"),
        ({"passive": 4}, r"passive must be at most the 3 channels of x; got 4"),
        (
            {"mask": torch.ones(2, dtype=torch.bool)},
            r"mask of shape \(2,\) does not broadcast to the event shape \(3,\)",
        ),
        ({"mask": torch.ones(3)}, r"mask must be boolean, True = passive \(kept\); got torch.float32"),
        ({"form": fk.AffineForm()}, r"form must be a SplineForm; got AffineForm"),
        ({"raw": torch.zeros(2, 69, dtype=torch.float64)}, r"raw has dtype float64 and x has torch.float32"),
        ({"x": torch.zeros(2, 3, dtype=torch.int32)}, r"x has dtype torch.int32; supported are"),
        ({"x": [1.0]}, r"x must be a tensor; got list"),
        ({"inverse": 1}, r"inverse must be True or False; got 1"),
        ({"passive": 1.5}, r"passive must be an integer or None; got 1.5"),
    ],
)
def test_bad_calls(backend, change, problem):
    arguments = {"x": torch.zeros(2, 3), "raw": torch.zeros(2, 69), **change}
    with fk.backend(backend), pytest.raises((TypeError, ValueError), match=problem):
        fk.rational_quadratic_spline(arguments.pop("x"), arguments.pop("raw"), **arguments)


@pytest.mark.parametrize(
    "arguments, problem",
    [
        ({"bins": 0}, r"bins must be an integer from 1 to 1024; got 0"),
        ({"bins": 2.5}, r"bins must be an integer from 1 to 1024; got 2.5"),
        ({"bound": -1.0}, r"bound must be a number from 1e-06 to 1e\+06; got -1.0"),
        ({"bound": 1.0, "box": (0, 1, 0, 1)}, r"bound and box exclude each other"),
        ({"box": (0, 1, 0, 2)}, r"linear tails are the identity: the box must be a square"),
        ({"box": (1, 0, 0, 1), "tails": None}, r"box must have left < right and bottom < top"),
        ({"bins": 2000}, r"bins must be an integer"),
        ({"bins": 20, "min_width": 0.1}, r"min_width times bins must be at most 1; got 0.1 and 20 bins"),
        ({"tails": "cubic"}, r"tails must be one of 'linear', 'circular', 'affine', None; got 'cubic'"),
        ({"normalization": "softplus"}, r"normalization='softplus' needs tails='affine'; got tails='linear'"),
        ({"slope": 1.0}, r"slope must be a number from 1e-12 to 0.999; got 1.0"),
        ({"min_derivative": math.nan}, r"min_derivative must be a number"),
    ],
)
def test_bad_forms(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        fk.SplineForm(**arguments)


@pytest.mark.parametrize("form", FORMS, ids=lambda f: f.spec)
def test_forms_survive_as_text(form):
    assert fk.SplineForm.from_spec(form.spec) == form
    assert dataclasses.replace(form, bound=None) == form


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])
@pytest.mark.parametrize("shape", [(70, 1), (70, 3), (5, 4, 6)], ids=str)
def test_parameters_that_rows_share_on_cpu(shape, inverse):
    form, x = fk.SplineForm.nflows(4, 3.0), torch.randn(shape)
    raw = torch.randn(1, shape[1] * 11, *shape[2:]).expand(shape[0], *[-1] * (len(shape) - 1))
    assert raw.stride(0) == 0
    results = []
    for own in (raw, raw.contiguous()):
        leaves = [x.clone().requires_grad_(), own.detach().requires_grad_()]
        y, log_det = fk.rational_quadratic_spline(*leaves, form=form, inverse=inverse)
        results.append([y, log_det, *torch.autograd.grad(y.sum() + log_det.square().sum(), leaves)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_huge_scaled_logits_on_cpu():
    """Products that are rounded once in a sum and twice apart, whose difference is beyond the range of exp."""
    x, raw = torch.linspace(-2, 2, 64)[:, None], 1e12 * torch.randn(64, 23)
    form = fk.SplineForm(8, 3.0, logit_scale=0.3)
    for inverse in (False, True):
        assert all(t.isfinite().all() for t in fk.rational_quadratic_spline(x, raw, form=form, inverse=inverse))
