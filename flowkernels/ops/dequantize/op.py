"""The operators of dequantization and of quantization, which undoes it and has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import backends
from ..._compat import transforming
from .. import registration
from ..layout import memory_format
from ..native import launcher
from ..operator import Operator
from . import plan, reference
from .check import check_latent, check_numbers

# x comes second, because z has the dtype of the noise, and may be absent, because backward does not read it.
dequantize = Operator(__package__, ("noise", "x?"), ("int levels", "float alpha"), ("z", "log_det"))


def _quantize(z: Tensor, levels: int, alpha: float, backend: int) -> Tensor:
    number = backends.resolve(backend, z.device)
    if number != backends.REFERENCE:
        return plan.quantize(*launcher(number, __package__), z, levels, alpha)
    return _empty(z, levels, alpha, backend).copy_(reference.quantize(z, levels, alpha))


def _empty(z: Tensor, levels: int, alpha: float, backend: int) -> Tensor:
    check_numbers(levels, alpha)
    check_latent("z", z)
    return torch.empty_like(z, dtype=reference.quantized_dtype(levels), memory_format=memory_format(z))


registration.define("quantize", "(Tensor z, int levels, float alpha, int backend) -> Tensor", _quantize, _empty)


def quantize(z: Tensor, levels: int, alpha: float) -> Tensor:
    """The whole numbers whose dequantization gave z, by the backend in force."""
    if transforming():
        check_numbers(levels, alpha)
        check_latent("z", z)
        return reference.quantize(z, levels, alpha)
    return torch.ops.flowkernels.quantize(z.detach(), levels, alpha, backends.requested())
