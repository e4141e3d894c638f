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
Outputs = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]  # and the sums over rows


class Elementwise:
    """One direction of an op, for tensors of one shape (B, ...), some of which may be absent.

    Args:
        name: of the plan's class in the modules of backends.
        allocate: makes what is written from the inputs and `wanted`, which also decide what there is and in which
            layouts: tensors of that shape, and one of shape (B,) for the sum over each row.
        options: names of the op's numbers.
        check: raises for inputs and numbers that no backend takes; called once for each kind of call.
    """

    def __init__(
        self,
        name: str,
        allocate: Callable[[Operands, Any], Outputs],
        options: tuple[str, ...] = (),
        check: Callable[..., None] | None = None,
    ) -> None:
        self.name, self.allocate, self.options, self.check = name, allocate, options, check

    def __call__(
        self,
        module: ModuleType,
        launch: Launch,
        inputs: Operands,
        numbers: tuple = (),
        wanted: Any = None,
        per_row: Tensor | None = None,
    ) -> Outputs:
        """What is written.

        Args:
            module: a compiled module, or what stands in its place.
            launch: runs a plan.
            inputs: the first is never absent; its dtype decides in what is computed.
            numbers: as `options` names them.
            wanted: for `allocate`.
            per_row: shape (B,), read.
        """
        key: tuple = (self.name, module, numbers, wanted, per_row is not None and per_row.stride())
        for t in inputs:  # a call of `layout` for each takes longer
            key += (None,) if t is None else (t.shape, t.stride(), t.dtype, t.device)
        plan = plans.get(key)
        if plan is None:
            return self._rare(key, module, launch, inputs, numbers, wanted, per_row)
        outputs = self.allocate(inputs, wanted)
        launch(plan, inputs[0].device, *inputs, per_row, *outputs)  # type: ignore[union-attr]
        return outputs

    def _rare(self, key: tuple, module, launch, inputs, numbers, wanted, per_row) -> Outputs:
        """A call of a new kind, or one that needs contiguous copies."""
        plan = plans.get(key, key)
        new = plan is key
        if new and self.check is not None:
            self.check(*inputs, *numbers)
        outputs, device = self.allocate(inputs, wanted), inputs[0].device
        if new:
            plan = made(key, lambda: self._plan(module, inputs, numbers, outputs, per_row))
        if plan is not None:
            launch(plan, device, *inputs, per_row, *outputs)
            return outputs
        dense = tuple(None if t is None else t.contiguous() for t in inputs)
        *results, sums = (None if t is None else torch.empty(t.shape, dtype=t.dtype, device=device) for t in outputs)
        of_dense = Elementwise(self.name, lambda *_: (*results, sums), self.options)
        of_dense(module, launch, dense, numbers, wanted, per_row)
        for output, result in zip(outputs, (*results, sums)):
            if output is not None and result is not None:
                output.copy_(result)
        return outputs

    def _plan(
        self, module: ModuleType, inputs: Operands, numbers: tuple, outputs: Outputs, per_row: Tensor | None
    ) -> Any:
        """The plan of a call.

        Raises:
            TooManyDimensions: where it needs contiguous copies.
        """
        named = {f"output_{i}": t for i, t in enumerate(outputs[:OPERANDS])}
        named |= {f"input_{i}": t for i, t in enumerate(inputs)}
        given = {name: t for name, t in named.items() if t is not None}
        size, views = box([(name, t, t) for name, t in given.items()])
        return getattr(module, self.name)(
            box=size,
            dtypes={name: ELEMENT_DTYPES[t.dtype] for name, t in given.items()},
            row_stride=0 if per_row is None else per_row.stride(0),
            **views,
            **dict(zip(self.options, numbers)),
        )
