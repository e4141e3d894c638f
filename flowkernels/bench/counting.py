"""Launches and bytes of eager code: one kernel per ATen operation, and no cache between them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..ops.cost import distinct_bytes

# Operations that move no data, beside the views, whose schemas say so.
_FREE = ("empty", "new_empty", "detach", "alias", "lift", "_unsafe_view", "_reshape_alias", "set_", "resize_")
# Operations whose first argument is written and not read.
_OVERWRITES = ("copy_", "zero_", "fill_", "normal_", "uniform_", "random_", "bernoulli_")


@dataclasses.dataclass
class Count:
    """What a piece of eager code launched, and the bytes that its kernels read and wrote."""

    launches: int = 0
    read: int = 0
    written: int = 0

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def __add__(self, other: Count) -> Count:
        return Count(self.launches + other.launches, self.read + other.read, self.written + other.written)


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = _tensors((args[1:] if _name(operation) in _OVERWRITES else args, kwargs))
        result = operation(*args, **kwargs)
        outputs = _tensors(result)
        if not _moves_nothing(operation) and any(t.numel() for t in outputs):
            self.count.launches += 1
            self.count.read += sum(map(distinct_bytes, inputs))
            self.count.written += sum(map(distinct_bytes, outputs))
        return result


def _name(operation: torch._ops.OpOverload) -> str:
    return operation.overloadpacket.__name__


def _moves_nothing(operation: torch._ops.OpOverload) -> bool:
    name = _name(operation)
    return operation.is_view or any(name == free or name.startswith(free + "_") for free in _FREE)


def _tensors(tree: object) -> list[Tensor]:
    """The distinct tensors of a nested structure: what is passed twice is read once."""
    found: dict[tuple, Tensor] = {}
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            key = (leaf.untyped_storage()._cdata, leaf.storage_offset(), leaf.shape, leaf.stride(), leaf.dtype)
            found.setdefault(key, leaf)
    return list(found.values())


@contextlib.contextmanager
def counting() -> Iterator[Count]:
    """Count what eager PyTorch code inside the block launches and moves. Meta tensors give the same numbers.

    A view is free, an output is written once, each distinct input is read once, and what a stride of 0 repeats once.

    Example:
        >>> import torch
        >>> from flowkernels.bench.counting import counting
        >>> with counting() as count:
        ...     _ = torch.zeros(1000).exp()
        >>> count.launches, count.read, count.written
        (2, 4000, 8000)
    """
    with _Counter() as counter:
        yield counter.count


def count_both(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> tuple[Count, Count]:
    """What `function` costs forward, and what the gradients of all its inputs cost after it."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    with torch.enable_grad():
        with counting() as forward:
            outputs = function(*inputs)
        with counting() as backward:
            torch.autograd.grad(outputs, inputs, cotangents)
    return forward, backward
