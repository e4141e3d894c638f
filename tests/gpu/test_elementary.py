"""The elementary functions of the device, at each of the 2^32 numbers of float32: within 4 ulp of float64.

They are called through the operation itself, with rows of one element, where log_det is what the map says: whatever
stands between the function and memory is swept too.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import flowkernels as fk

pytestmark = pytest.mark.gpu

CHUNK = 2**24
MOST = 4  # ulp
LEAST_NORMAL = 2.0**-126
LEAST = -149  # the exponent of the smallest subnormal number


def multiplier(form: fk.AffineForm) -> Callable[[Tensor], Tensor]:
    """m: that is y where x = 1 and the shift is 0."""

    def function(s: Tensor) -> Tensor:
        return fk.affine_coupling(torch.ones_like(s), (s, torch.zeros_like(s)), form=form)[0].squeeze(1)

    return function


def log_multiplier(form: fk.AffineForm) -> Callable[[Tensor], Tensor]:
    """log |m|: that is log_det where a row has one element."""

    def function(s: Tensor) -> Tensor:
        return fk.affine_coupling(torch.ones_like(s), (s, torch.zeros_like(s)), form=form)[1]

    return function


def slope(form: fk.AffineForm) -> Callable[[Tensor], Tensor]:
    """The derivative of log |m|, by the backward kernel."""

    def function(s: Tensor) -> Tensor:
        leaf = s.detach().requires_grad_()
        log_det = fk.affine_coupling(torch.ones_like(s), (leaf, torch.zeros_like(s)), form=form)[1]
        return torch.autograd.grad(log_det, leaf, torch.ones_like(log_det))[0].squeeze(1)

    return function


def sech2(x: Tensor) -> Tensor:
    e = torch.exp(-2 * x.abs())
    return 4 * e / (1 + e) ** 2


SIGMOID = fk.AffineForm("sigmoid", offset=0.0)
UNIT_TANH = fk.AffineForm("tanh", bound=1.0)
UNIT_ATAN = fk.AffineForm("atan", bound=1.5723271369934082)  # 0.636 times this is 1 in float32
# Name: the function of the device, the same in float64.
FUNCTIONS = {
    "exp": (multiplier(fk.AffineForm("exp")), torch.exp),
    "tanh": (log_multiplier(UNIT_TANH), torch.tanh),
    "sech2": (slope(UNIT_TANH), sech2),
    "sigmoid": (multiplier(SIGMOID), torch.sigmoid),
    "log_sigmoid": (log_multiplier(SIGMOID), F.logsigmoid),
    "softplus": (multiplier(fk.AffineForm("softplus")), lambda x: torch.logaddexp(x, torch.zeros_like(x))),
    "log": (log_multiplier(fk.AffineForm("given")), lambda x: x.abs().log()),
    "atan": (log_multiplier(UNIT_ATAN), torch.atan),
}


def numbers(first: int, device: torch.device) -> Tensor:
    """The `CHUNK` numbers whose bits are the integers from `first` on."""
    return torch.arange(first, first + CHUNK, device=device).to(torch.int32).view(torch.float32)


def ulps(value: Tensor, exact: Tensor) -> Tensor:
    """The error in units of the last place of the exact value; infinite where one is NaN or infinite alone."""
    _, exponent = torch.frexp(exact.abs())
    unit = torch.exp2((exponent - 24).clamp(min=LEAST).double())
    same = (value == exact.float()) | (value.isnan() & exact.isnan())
    error = ((value.double() - exact).abs() / unit).masked_fill(same, 0.0)
    return torch.nan_to_num(error, nan=torch.inf, posinf=torch.inf)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_four_ulp_everywhere(backend, device, name):
    function, exact_function = FUNCTIONS[name]
    worst, where = 0.0, None
    with fk.backend(backend):
        for first in range(-(2**31), 2**31, CHUNK):
            x = numbers(first, device)
            exact = exact_function(x.double())
            value = function(x.unsqueeze(1))
            error = ulps(value, exact)
            if name == "sech2":  # documented to be 0 below the smallest normal number
                error = error.masked_fill((exact < 2 * LEAST_NORMAL) & (value < 2 * LEAST_NORMAL), 0.0)
            index = int(error.argmax())
            if (largest := error[index].item()) > worst:
                worst, where = largest, x[index].item()
    assert worst <= MOST, f"{worst:.3g} ulp at {where!r}"
