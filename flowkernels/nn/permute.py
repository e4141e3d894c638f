"""Fixed permutations of dimension 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def _indices(channels: int, order: str | Sequence[int] | Tensor, generator: torch.Generator | None) -> Tensor:
    if generator is not None and not (isinstance(order, str) and order == "random"):
        raise ValueError(f"generator means something for order='random' only; got order={order!r}")
    if isinstance(order, str):
        if order == "reverse":
            return torch.arange(channels - 1, -1, -1)
        if order == "random":
            return torch.randperm(channels, generator=generator)
        raise ValueError(f"order must be 'reverse', 'random' or a sequence of indices; got {order!r}")
    indices = torch.as_tensor(order).to("cpu", torch.int64, copy=True)
    if indices.shape != (channels,) or not torch.equal(indices.sort().values, torch.arange(channels)):
        raise ValueError(f"order must hold each of 0, ..., {channels - 1} once; got {indices.tolist()}")
    return indices


class Permute(nn.Module):
    """A fixed permutation of dimension 1 (features or channels): y[:, i] = x[:, order[i]]. Volume-preserving.

    Args:
        channels: size of dimension 1.
        order: ``"reverse"``; ``"random"``, drawn once, when the layer is made; or the indices, each once.
        generator: for ``"random"``, in place of torch's global one.

    The permutation is saved in the state_dict, as `order` and its inverse `inverse_order`.

    Raises:
        ValueError: if `order` is neither of the names nor a permutation.

    Example:
        >>> import torch, flowkernels as fk
        >>> y, log_det = fk.nn.Permute(3, [2, 0, 1])(torch.tensor([[10.0, 11.0, 12.0]]))
        >>> y, log_det
        (tensor([[12., 10., 11.]]), tensor([0.]))
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(
        self,
        channels: int,
        order: str | Sequence[int] | Tensor = "reverse",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        indices = _indices(channels, order, generator)
        self.register_buffer("order", indices)
        self.register_buffer("inverse_order", indices.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._select(x, self.order)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._select(y, self.inverse_order)

    def _select(self, x: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        # index_select would read beyond a narrower x only to fail, and drop the rest of a wider one silently.
        if x.dim() < 2 or x.shape[1] != len(order):
            raise ValueError(f"x must have shape (B, {len(order)}, ...); got {tuple(x.shape)}")
        log_det = x.new_zeros(x.shape[0], dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
        return x.index_select(1, order), log_det

    def extra_repr(self) -> str:
        return f"{len(self.order)}"
