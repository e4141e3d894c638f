"""The log-density of a split on every backend against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowkernels as fk
from flowkernels.tolerances import error, tolerance

from .affine_cases import DTYPES, cast, strided

SHAPES = [
    (0, 3), (3, 0), (1, 1), (5, 31), (33, 2), (2, 6, 8, 8), (3, 1, 28, 28), (2, 20001), (2, 3, 2, 3, 5), (7,),
    (64, 131), (65, 1100),  # many long rows
]  # fmt: skip
PRIORS = ["standard", "mean", "log_std", "both"]


def prior(kind: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    names = {"standard": (), "both": ("mean", "log_std")}.get(kind, (kind,))
    return {name: torch.randn(shape, dtype=torch.float64) for name in names}


def evaluate(tensors, cotangent):
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    log_prob = fk.log_normal(**leaves)
    return log_prob, dict(zip(leaves, torch.autograd.grad(log_prob, list(leaves.values()), cotangent.to(log_prob))))


def compare(backend, tensors, guarded=None):
    """Values and gradients against the float64 reference on the very same rounded inputs."""
    value = tensors["value"]
    wide = torch.promote_types(value.dtype, torch.float32)
    cotangent = torch.randn(value.shape[0])
    with fk.backend(backend):
        if guarded is None:
            log_prob, grads = evaluate(tensors, cotangent)
        else:
            with guarded():
                log_prob, grads = evaluate(tensors, cotangent)
    with fk.backend("reference"):
        exact, exact_grads = evaluate({name: t.double() for name, t in tensors.items()}, cotangent)
    assert log_prob.dtype == wide
    assert error(log_prob, exact) <= tolerance(wide, math.prod(value.shape[1:]))
    for name, grad in grads.items():
        assert grad.dtype == tensors[name].dtype
        assert error(grad, exact_grads[name]) <= 4 * tolerance(grad.dtype), name


@pytest.mark.parametrize("kind", PRIORS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(backend, shape, kind, guarded):
    tensors = {"value": torch.randn(shape, dtype=torch.float64), **prior(kind, shape)}
    compare(backend, {name: t.float() for name, t in tensors.items()}, guarded)


@pytest.mark.parametrize("dtype, prior_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", PRIORS)
def test_dtypes(backend, dtype, prior_dtype, kind):
    shape = (6, 3, 4, 4)
    tensors = {name: cast(t, prior_dtype) for name, t in prior(kind, shape).items()}
    compare(backend, {"value": cast(torch.randn(shape), dtype), **tensors})


@pytest.mark.parametrize("how", ["offset", "slice", "transposed", "channels_last"])
@pytest.mark.parametrize("other", ["contiguous", "slice", "channels_last"])
def test_layouts(backend, how, other):
    tensors = {"value": strided(torch.randn(3, 4, 6, 8), how)}
    tensors |= {name: strided(t.float(), other) for name, t in prior("both", (3, 4, 6, 8)).items()}
    compare(backend, tensors)


@pytest.mark.parametrize("kind", PRIORS)
def test_the_halves(backend, kind):
    """kept and out are views, and merge puts them together bit for bit; the gradient of both reaches x."""
    for shape in ((5, 6, 4, 4), (4, 7), (3, 2, 5)):
        x = torch.randn(shape, requires_grad=True)
        half = (shape[0], shape[1] // 2, *shape[2:])
        tensors = {name: t.float().requires_grad_() for name, t in prior(kind, half).items()}
        with fk.backend(backend):
            kept, out, log_prob = fk.split(x, **tensors)
            assert kept.shape[1] - out.shape[1] == shape[1] % 2
            assert kept.data_ptr() == x.data_ptr()
            assert torch.equal(fk.merge(kept, out), x)
            expected = fk.log_normal(out, **tensors)
            assert torch.equal(log_prob, expected)
            (grad,) = torch.autograd.grad(kept.sum() + 2 * out.sum() + log_prob.sum(), x)
        grad_kept, grad_out = grad.chunk(2, 1)
        assert (grad_kept == 1).all()
        slope = -(out - tensors.get("mean", 0)) * torch.exp(-2 * tensors.get("log_std", torch.zeros(()))) + 2
        assert torch.allclose(grad_out, slope.detach(), rtol=1e-5, atol=1e-5)


def test_the_density_integrates_to_one(backend):
    grid = torch.linspace(-12, 12, 4001, dtype=torch.float64)[:, None]
    with fk.backend(backend):
        mean, log_std = torch.tensor([0.7], dtype=torch.float64), torch.tensor([0.4], dtype=torch.float64)
        density = fk.log_normal(grid, mean, log_std).exp()
    assert abs(torch.trapezoid(density, grid[:, 0]) - 1) < 1e-9


def test_a_prior_that_broadcasts(backend):
    x = torch.randn(5, 8, 3, 3, requires_grad=True)
    for shape in ((4, 1, 1), (1, 4, 1, 1), (4, 3, 3), (), (5, 1, 1, 1)):
        mean = torch.randn(shape, requires_grad=True)
        with fk.backend(backend):
            log_prob = fk.split(x, mean)[2]
            (grad,) = torch.autograd.grad(log_prob.sum(), mean)
            expected = fk.split(x, mean.expand(5, 4, 3, 3).contiguous())[2]
        assert torch.allclose(log_prob, expected)
        assert grad.shape == mean.shape
        whole = x.detach()[:, 4:] - mean.detach()
        assert torch.allclose(grad, whole.sum_to_size(shape), rtol=1e-4, atol=1e-4)


def test_rows_do_not_depend_on_the_batch(backend):
    for shape in ((70, 5), (70, 700), (70, 3000), (37, 20000)):
        tensors = {"value": torch.randn(shape), **{k: t.float() for k, t in prior("both", shape).items()}}
        with fk.backend(backend):
            log_prob = fk.log_normal(**tensors)
            for row in (0, 16, 36):
                alone = fk.log_normal(**{name: t[row : row + 1] for name, t in tensors.items()})
                assert torch.equal(alone[0], log_prob[row])


def test_nan_stays_in_its_row(backend):
    value = torch.randn(4, 40)
    value[2, 7] = math.nan
    with fk.backend(backend):
        assert fk.log_normal(value).isnan().tolist() == [False, False, True, False]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 9),
    event=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    kind=st.sampled_from(PRIORS),
)
def test_random_calls_agree_with_the_reference(backend, rows, event, kind):
    shape = (rows, *event)
    tensors = {"value": torch.randn(shape), **{name: t.float() for name, t in prior(kind, shape).items()}}
    compare(backend, tensors)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"x": None}, r"x must be a tensor; got NoneType"),
        ({"x": torch.randn(4)}, r"x must have shape \(B, C, ...\) with at least two channels; got \(4,\)"),
        ({"x": torch.randn(4, 1)}, r"at least two channels; got \(4, 1\)"),
        ({"x": torch.ones(4, 6, dtype=torch.int32)}, r"x has dtype torch.int32; supported are"),
        ({"mean": torch.randn(4, 2)}, r"mean must broadcast to \(4, 3\), the shape of what is scored; got \(4, 2\)"),
        ({"log_std": torch.randn(5, 4, 3)}, r"log_std must broadcast to \(4, 3\).*got \(5, 4, 3\)"),
        (
            {"mean": torch.randn(4, 3).double()},
            r"beside x in torch.float32, mean has one of torch.float32, .*got torch.float64",
        ),
        ({"mean": torch.ones(4, 3, dtype=torch.int64)}, r"mean has one of .*got torch.int64"),
        ({"mean": torch.randn(4, 3), "log_std": torch.randn(4, 3).half()}, r"mean and log_std must have one dtype"),
        (
            {"x": torch.randn(4, 6).double(), "mean": torch.randn(4, 3).half()},
            r"mean has one of torch.float64, .*float16",
        ),
        ({"mean": 0.0}, r"mean must be a tensor; got float"),
    ],
)
def test_bad_arguments(backend, change, problem):
    with fk.backend(backend), pytest.raises((TypeError, ValueError), match=problem):
        fk.split(**{"x": torch.randn(4, 6), **change})


def test_halves_that_do_not_fit():
    for kept, out in (((2, 3), (2, 1)), ((2, 3), (3, 3)), ((2, 3, 4), (2, 3)), ((2, 3), (2, 4)), ((3,), (3,))):
        with pytest.raises(ValueError, match="kept and out must be halves of one tensor"):
            fk.merge(torch.zeros(kept), torch.zeros(out))
