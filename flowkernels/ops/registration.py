"""Registering operators with torch.library, the same way for every op."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("flowkernels", "DEF")


def define(name: str, schema: str, implementation: Callable, fake: Callable) -> None:
    """Define ``torch.ops.flowkernels.<name>`` with one implementation that chooses its backend, and its fake."""
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
    _LIBRARY.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"flowkernels::{name}", fake, lib=_LIBRARY)


def differentiable(name: str, setup_context: Callable, backward: Callable) -> None:
    """Give an operator its gradient."""
    torch.library.register_autograd(
        f"flowkernels::{name}",
        backward,
        setup_context=setup_context,
        lib=_LIBRARY,
    )


def differentiate(
    formula: Callable, inputs: Sequence[Tensor | None], needs: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The vector-Jacobian product of a plain PyTorch formula, for a backward of a backward.

    `inputs` are saved tensors. The formula sees views of them: with the tensors themselves, a further derivative
    would be the total one through their own history, and third-order derivatives would be wrong.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        views = [
            t if t is None or not n else (t.view_as(t) if again else t.detach().requires_grad_())
            for t, n in zip(inputs, needs)
        ]
        pairs = [(y, g) for y, g in zip(formula(*views), grads) if g is not None and y is not None and y.requires_grad]
        wanted = [v for v, n in zip(views, needs) if n and v is not None]
        if not pairs:
            return [None] * len(views)
        outputs, cotangents = zip(*pairs)
        found = iter(torch.autograd.grad(outputs, wanted, cotangents, create_graph=again, allow_unused=True))
    return [next(found) if n and v is not None else None for v, n in zip(views, needs)]
