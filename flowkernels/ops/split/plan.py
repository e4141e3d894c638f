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
    _, log_prob = elementwise.run(
        "SplitForward",
        module,
        launch,
        (out, mean, log_std),
        lambda: (elementwise.NONE, allocate_log_det(out)),
        check=lambda: check(out, mean, log_std),
    )
    assert log_prob is not None
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

    def allocate():
        return tuple(allocate_like(t) if w and t is not None else None for t, w in zip(inputs, wanted)), None

    return elementwise.run("SplitBackward", module, launch, inputs, allocate, wanted, grad_log_prob)[0]
