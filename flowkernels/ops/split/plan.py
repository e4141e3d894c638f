"""The log-density of split by a backend."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from .. import elementwise
from ..layout import allocate_like, allocate_log_det
from ..native import Launch
from .check import check


def forward(module: ModuleType, launch: Launch, out: Tensor, mean: Tensor | None, log_std: Tensor | None) -> Tensor:
    """`reference.forward` by a backend."""
    check(out, mean, log_std)
    log_prob = allocate_log_det(out)
    elementwise.run("SplitForward", module, launch, (out, mean, log_std), (None, None, None), sums=log_prob)
    return log_prob


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
    inputs = (out, mean, log_std)
    grads = tuple(allocate_like(t) if w and t is not None else None for t, w in zip(inputs, wanted))
    elementwise.run("SplitBackward", module, launch, inputs, grads, per_row=grad_log_prob)
    return grads
