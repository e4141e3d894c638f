"""Plans, which hold everything about a call but the addresses, are made once per kind of call and kept here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .layout import TooManyDimensions, coalesce

_MOST = 4096

# A key tells the op, the backend, and all that a plan depends on.
plans: dict[tuple, Any] = {}


def remember(key: tuple, plan: Any) -> Any:
    """Keep a plan; returns it."""
    if len(plans) >= _MOST:
        plans.clear()
    plans[key] = plan
    return plan


def made(key: tuple, make: Callable[[], Any]) -> Any:
    """The plan that `make` makes, or None where the call needs contiguous copies; it is kept."""
    try:
        return remember(key, make())
    except TooManyDimensions:
        return remember(key, None)


def layout(tensor: Tensor | None) -> tuple | None:
    """What a plan may depend on of a tensor that is often absent."""
    return None if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def box(named: Sequence[tuple[str, Tensor, Tensor]]) -> tuple[list[int], dict[str, list[int]]]:
    """The common extent of (name, view, base) triples, and each view's offset from its base and strides.

    The first decides the order in which a row is walked.

    Raises:
        TooManyDimensions: if native plans have too few dimensions for these strides.
    """
    views = [view for _, view, _ in named]
    if 0 in views[0].shape:  # any strides will do, and those of an empty tensor are odd even where it is "contiguous"
        views = [view.new_empty(view.shape[0], 0) for view in views]
    rows, *event = views[0].shape
    sizes, strides = coalesce(event, [view.stride()[1:] for view in views], 0)
    return [int(rows), *sizes], {
        name: [int(view.storage_offset() - base.storage_offset()), view.stride(0), *stride]
        for (name, view, base), stride in zip(named, strides)
    }
