"""Dequantization on every backend against the reference in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowkernels as fk
from flowkernels.ops.dequantize import reference
from flowkernels.tolerances import error, tolerance

from .affine_cases import cast, strided

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SHAPES = [
    (0, 3), (3, 0), (1, 1), (5, 31), (33, 2), (2, 3, 8, 8), (3, 1, 28, 28), (2, 20001), (2, 3, 2, 3, 5), (7,),
    (64, 131), (65, 1100),  # many long rows
]  # fmt: skip
LAYOUTS = ("contiguous", "offset", "slice", "transposed", "expanded")
IMAGES = ("channels_last", "slice", "transposed")


def noise_for(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64).clamp(2**-12, 1 - 2**-12)


def evaluate(x, noise, cotangents, **options):
    noise = noise.detach().requires_grad_()
    z, log_det = fk.dequantize(x, noise, **options)
    pairs = [g.to(t) for g, t in zip(cotangents, (z, log_det))]
    return z, log_det, *torch.autograd.grad((z, log_det), noise, pairs)


def compare(backend, x, noise, guarded=None, **options):
    """Values and gradients against the float64 reference on the very same rounded inputs."""
    wide = torch.promote_types(noise.dtype, torch.float32)
    cotangents = (cast(torch.randn(x.shape), noise.dtype).double(), torch.randn(x.shape[0]))
    with fk.backend(backend):
        if guarded is None:
            z, log_det, grad = evaluate(x, noise, cotangents, **options)
        else:
            with guarded():
                z, log_det, grad = evaluate(x, noise, cotangents, **options)
    with fk.backend("reference"):
        exact_z, exact_log_det, exact_grad = evaluate(x, noise.double(), cotangents, **options)
    assert (z.dtype, log_det.dtype, grad.dtype) == (noise.dtype, wide, noise.dtype)
    assert error(z, exact_z) <= tolerance(noise.dtype)
    assert error(log_det, exact_log_det) <= tolerance(wide, math.prod(x.shape[1:]))
    grads = (cotangents[0], cotangents[1].double())
    rest = (None, options.get("levels", 256), options.get("alpha", 1e-5))
    if noise.dtype != wide:  # the gradient carries the rounding of z, from which it is computed
        exact_grad, _ = reference.backward(*grads, z.detach().double(), *rest)
    terms, _ = reference.backward(*(g.abs() for g in grads), exact_z.abs().detach(), *rest)  # which may cancel
    size = 1 + terms
    assert error(grad / size, exact_grad / size) <= 4 * tolerance(noise.dtype)
    return z


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
def test_shapes(backend, shape, dtype, guarded):
    x = torch.randint(256, shape).to(dtype)
    z = compare(backend, x, noise_for(shape).float(), guarded)
    assert z.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("x_dtype", [torch.uint8, torch.int64], ids=str)
def test_dtypes(backend, dtype, x_dtype):
    x = torch.randint(17, (6, 3, 4, 4)).to(x_dtype)
    compare(backend, x, cast(noise_for(x.shape), dtype), levels=17)


@pytest.mark.parametrize("how", LAYOUTS)
def test_vectors_in_any_layout(backend, how):
    x, noise = torch.randint(256, (5, 24), dtype=torch.uint8), noise_for((5, 24)).float()
    compare(backend, strided(x, how), strided(noise, "slice" if how == "contiguous" else how))
    compare(backend, strided(x, how), noise)


@pytest.mark.parametrize("how", IMAGES)
@pytest.mark.parametrize("x_how", IMAGES)
def test_images_in_any_layout(backend, how, x_how):
    x, noise = torch.randint(256, (3, 4, 6, 8), dtype=torch.uint8), noise_for((3, 4, 6, 8)).float()
    z = compare(backend, strided(x, x_how), strided(noise, how))
    assert z.is_contiguous(memory_format=torch.channels_last if how == "channels_last" else torch.contiguous_format)


@pytest.mark.parametrize("levels, alpha", [(2, 0.0), (17, 0.05), (256, 1e-5), (256, 0.0), (65536, 1e-6)])
def test_levels_and_alpha(backend, levels, alpha):
    x = torch.arange(levels)[:: max(1, levels // 512)].view(1, -1)
    compare(backend, x, noise_for(x.shape).float(), levels=levels, alpha=alpha)


@pytest.mark.parametrize("layout", ["contiguous", "offset", "transposed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_every_number_comes_back(backend, dtype, layout):
    """For all 256 values, and noise from 2^-12 to 1 - 2^-12."""
    noise = torch.cat((torch.tensor([2**-12, 1 - 2**-12], dtype=torch.float64), noise_for((62,)))).to(dtype)
    x = torch.arange(256, dtype=torch.uint8)[:, None].expand(256, 64)
    with fk.backend(backend):
        z, _ = fk.dequantize(strided(x, layout), noise.expand(256, 64))
        back = fk.quantize(strided(z, layout))
    assert back.dtype == torch.uint8
    assert torch.equal(back, x)


@pytest.mark.parametrize(
    "levels, dtype", [(2, torch.uint8), (256, torch.uint8), (257, torch.int32), (4096, torch.int32)]
)
def test_quantize_agrees_with_the_reference(backend, levels, dtype):
    z = torch.cat((4 * torch.randn(3, 500), torch.tensor([[-1e4, 1e4, math.inf, -math.inf, math.nan]]).expand(3, 5)), 1)
    for how in ("contiguous", "transposed", "slice"):
        with fk.backend(backend):
            x = fk.quantize(strided(z, how), levels=levels)
        with fk.backend("reference"):
            exact = fk.quantize(z.double(), levels=levels)
        assert x.dtype == exact.dtype == dtype
        assert (x.long() - exact.long()).abs().max() <= (levels > 256)  # a number on the border of two
        assert x[:, -5:].tolist() == [[0, levels - 1, levels - 1, 0, 0]] * 3


def test_quantize_in_half_precision_and_of_nothing(backend):
    with fk.backend(backend):
        for dtype in (torch.float16, torch.bfloat16):
            z = torch.tensor([[-9.0, 0.0, 9.0]], dtype=dtype)
            assert fk.quantize(z, levels=16).tolist() == [[0, 8, 15]]
        assert fk.quantize(torch.zeros(0, 4)).shape == (0, 4)
        images = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        assert fk.quantize(images).is_contiguous(memory_format=torch.channels_last)


def test_log_det_is_that_of_the_jacobian(backend):
    x, noise = torch.randint(17, (1, 6)), noise_for((1, 6))
    with fk.backend(backend):
        jacobian = torch.autograd.functional.jacobian(lambda u: fk.dequantize(x, u, levels=17)[0][0], noise)
        log_det = fk.dequantize(x, noise, levels=17)[1]
    assert error(log_det[0], torch.linalg.slogdet(jacobian[:, 0])[1]) <= 10 * tolerance(torch.float64)


def test_rows_do_not_depend_on_the_batch(backend):
    for shape in ((70, 5), (70, 700), (70, 3000), (37, 20000)):
        x, noise = torch.randint(256, shape, dtype=torch.uint8), noise_for(shape).float()
        with fk.backend(backend):
            z, log_det = fk.dequantize(x, noise)
            for row in (0, 16, 36):
                alone = fk.dequantize(x[row : row + 1], noise[row : row + 1])
                assert torch.equal(alone[0][0], z[row])
                assert torch.equal(alone[1][0], log_det[row])


def test_nan_stays_in_its_row(backend):
    x, noise = torch.randint(256, (4, 40), dtype=torch.uint8), noise_for((4, 40)).float()
    noise[2, 7] = math.nan
    with fk.backend(backend):
        z, log_det = fk.dequantize(x, noise)
    assert z.isnan().sum() == 1
    assert log_det.isnan().tolist() == [False, False, True, False]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(0, 9),
    event=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    levels=st.integers(2, 300),
    alpha=st.floats(0, 0.5),
)
def test_random_calls_agree_with_the_reference(backend, rows, event, levels, alpha):
    x = torch.randint(levels, (rows, *event))
    compare(backend, x, noise_for(x.shape).float(), levels=levels, alpha=alpha)


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"levels": 1}, r"levels must be an integer from 2 to 65536; got 1"),
        ({"levels": 2.5}, r"levels must be an integer from 2 to 65536; got 2.5"),
        ({"levels": True}, r"levels .*got True"),
        ({"alpha": 1.0}, r"alpha must be in \[0, 1\); got 1.0"),
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\); got -0.1"),
        ({"alpha": math.nan}, r"alpha must be in \[0, 1\); got nan"),
        ({"noise": torch.rand(2, 4)}, r"noise must have the shape of x, \(2, 3\); got \(2, 4\)"),
        ({"noise": torch.ones(2, 3, dtype=torch.int32)}, r"noise has dtype torch.int32; supported are"),
        ({"noise": None}, r"noise must be a tensor; got NoneType"),
        ({"x": [[1]]}, r"x must be a tensor; got list"),
        ({"x": torch.zeros(2, 3, dtype=torch.cfloat)}, r"x must hold whole numbers; got torch.complex64"),
        ({"x": torch.tensor(1), "noise": torch.tensor(0.5)}, r"noise must have shape \(B, ...\); got a scalar"),
    ],
)
def test_bad_arguments(backend, change, problem):
    arguments = {"x": torch.ones(2, 3, dtype=torch.uint8), "noise": torch.rand(2, 3), **change}
    with fk.backend(backend), pytest.raises((TypeError, ValueError), match=problem):
        fk.dequantize(**arguments)


def test_bad_arguments_of_quantize(backend):
    with fk.backend(backend):
        for z, options, problem in (
            (torch.zeros(2, 3), {"levels": 0}, "levels .*got 0"),
            (torch.zeros(2, 3, dtype=torch.uint8), {}, "z has dtype torch.uint8"),
            (torch.tensor(1.0), {}, "z must have shape"),
            (None, {}, "z must be a tensor"),
        ):
            with pytest.raises((TypeError, ValueError), match=problem):
                fk.quantize(z, **options)
