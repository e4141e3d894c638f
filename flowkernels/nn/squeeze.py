"""Blocks of pixels to channels."""

from __future__ import annotations

from torch import Tensor, nn

from ..functional import squeeze, unsqueeze
from ..ops.layout import accumulation_dtype
from .arguments import whole


class Squeeze(nn.Module):
    """Turn blocks of pixels into channels: `fk.squeeze`, with `fk.unsqueeze` as the inverse. Volume-preserving.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 3.6.

    Args:
        factor: f, the side of a block.

    Shapes:
        x: (B, C, H, W), any dtype, with H and W multiples of f; y: (B, C f², H / f, W / f); log_det: (B,), zeros.

    Raises:
        ValueError: for a factor that is not positive. When called: for a shape that it does not divide.

    Example:
        >>> import torch, flowkernels as fk
        >>> layer = fk.nn.Squeeze()
        >>> x = torch.randn(2, 3, 8, 8)
        >>> y, log_det = layer(x)
        >>> y.shape, torch.equal(layer.inverse(y)[0], x)
        (torch.Size([2, 12, 4, 4]), True)
    """

    def __init__(self, factor: int = 2) -> None:
        super().__init__()
        whole("factor", factor, 1)
        self.factor = factor

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return squeeze(x, self.factor), _zeros(x)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return unsqueeze(y, self.factor), _zeros(y)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


def _zeros(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], dtype=accumulation_dtype(x.dtype))
