"""Ops that map the elements of a few tensors of one shape, and may sum something over each row: one plan for all of
them, the struct of csrc/flow/elementwise.h.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .native import DTYPES, Launch
from .plans import box, made, plans

OPERANDS = 3  # inputs, and outputs, that a plan has
ELEMENT_DTYPES = {**DTYPES, torch.uint8: 4, torch.int32: 5}  # as Dtype in csrc/flow/plan.h

Operands = tuple[Tensor | None, Tensor | None, Tensor | None]
NONE: Operands = (None, None, None)


def run(
    name: str,
    module: ModuleType,
    launch: Launch,
    inputs: Operands,
    allocate: Callable[[], tuple[Operands, Tensor | None]],
    wanted: Any = None,
    per_row: Tensor | None = None,
    options: tuple[tuple[str, Any], ...] = (),
    check: Callable[[], None] | None = None,
) -> tuple[Operands, Tensor | None]:
    """Run an op of a backend over tensors of one shape (B, ...), some of which may be absent.

    Args:
        name: of the plan's class in the module.
        module: a compiled module, or what stands in its place.
        launch: runs a plan.
        inputs: the first is never absent; its dtype decides in what is computed.
        allocate: makes what is written, and is returned: tensors of that shape, and one of shape (B,) for the sum over
            each row. Which of these there are, and their layouts, follow from the other arguments.
        wanted: what else decides which outputs there are.
        per_row: shape (B,), read.
        options: names and values of the op's numbers.
        check: raises for what no backend takes; called once for each kind of call.
    """
    key: tuple = (name, module, options, wanted, per_row is not None and per_row.stride())
    for t in inputs:  # a call of `layout` for each takes longer
        key += (None,) if t is None else (t.shape, t.stride(), t.dtype, t.device)
    plan = plans.get(key, key)
    if plan is key and check is not None:
        check()
    outputs, sums = allocate()
    if plan is key:
        plan = made(key, lambda: _plan(getattr(module, name), inputs, outputs, per_row, options))
    device = inputs[0].device  # type: ignore[union-attr]
    if plan is not None:
        launch(plan, device, *inputs, per_row, *outputs, sums)
        return outputs, sums
    dense = tuple(None if t is None else t.contiguous() for t in inputs)
    results = tuple(None if t is None else torch.empty(t.shape, dtype=t.dtype, device=device) for t in outputs)
    run(name, module, launch, dense, lambda: (results, sums), wanted, per_row, options)  # type: ignore[arg-type]
    for output, result in zip(outputs, results):
        if output is not None and result is not None:
            output.copy_(result)
    return outputs, sums


def _plan(plan: Any, inputs: Operands, outputs: Operands, per_row: Tensor | None, options: tuple) -> Any:
    """The plan of a call.

    Raises:
        TooManyDimensions: where it needs contiguous copies.
    """
    named = {f"output_{i}": t for i, t in enumerate(outputs)} | {f"input_{i}": t for i, t in enumerate(inputs)}
    given = {name: t for name, t in named.items() if t is not None}
    size, views = box([(name, t, t) for name, t in given.items()])
    return plan(
        box=size,
        dtypes={name: ELEMENT_DTYPES[t.dtype] for name, t in given.items()},
        row_stride=0 if per_row is None else per_row.stride(0),
        **views,
        **dict(options),
    )
