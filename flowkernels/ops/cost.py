"""What a call costs on a GPU, counted: launches, and bytes between memory and chip."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor

from .layout import split_passive

# As in the kernels: a row that exceeds the first is cut into chunks of the second, whose sums a second launch adds.
LONGEST_ROW = 16384
CHUNK = 8192


@dataclasses.dataclass(frozen=True)
class Cost:
    """Kernel launches, and bytes read and written by them, of a fused call.

    `floor` is what any implementation has to move: each input that matters and each output once.
    """

    launches: int
    read: int
    written: int
    floor: int

    @property
    def bytes(self) -> int:
        return self.read + self.written

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.launches + other.launches,
            self.read + other.read,
            self.written + other.written,
            self.floor + other.floor,
        )


def coupling_chunks(x: Tensor, passive: int) -> int:
    """Into how many pieces a row of a coupling is cut, whose active and passive elements are walked together."""
    longest = max(math.prod(part.shape[1:]) for part in split_passive(x, passive))
    return 1 if longest <= LONGEST_ROW else -(-longest // CHUNK)


def distinct_bytes(tensor: Tensor | None) -> int:
    """The bytes of a tensor's elements, those repeated by a stride of 0 once."""
    if tensor is None or tensor.numel() == 0:
        return 0
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        count *= size if stride != 0 else 1
    return count * tensor.element_size()
