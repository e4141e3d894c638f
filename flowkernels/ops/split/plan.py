"""The log-density of split by a backend."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ..elementwise import Elementwise, Operands, Outputs
from ..layout import allocate_like, allocate_log_det
from ..native import Launch
from .check import check


def _log_prob(inputs: Operands, wanted: None) -> Outputs:
    return None, None, None, allocate_log_det(inputs[0])  # type: ignore[arg-type]


def _gradients(inputs: Operands, wanted: tuple[bool, bool, bool]) -> Outputs:
    a, b, c = (allocate_like(t) if w and t is not None else None for t, w in zip(inputs, wanted))
    return a, b, c, None


_forward = Elementwise("SplitForward", _log_prob, check=check)
_backward = Elementwise("SplitBackward", _gradients)


def forward(module: ModuleType, launch: Launch, out: Tensor, mean: Tensor | None, log_std: Tensor | None) -> Tensor:
    """`reference.forward` by a backend."""
    return _forward(module, launch, (out, mean, log_std))[3]  # type: ignore[return-value]


def backward(
    module: ModuleType,
    launch: Launch,
    grad_log_prob: Tensor | None,
    out: Tensor,
    mean: Tensor | None,
    log_std: Tensor | None,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """`reference.backward` by a backend; None for what `wanted` leaves out."""
    return _backward(module, launch, (out, mean, log_std), wanted=wanted, per_row=grad_log_prob)[:3]
