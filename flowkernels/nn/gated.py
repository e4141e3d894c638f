"""The gated convolutional conditioner of the UvA deep learning tutorials."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import whole
from .context import join


class ConcatELU(nn.Module):
    """[elu(x) | elu(-x)] on dimension 1. In place on the copy, so that nothing but the result is kept for backward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.elu(torch.cat((x, -x), 1), inplace=True)


class LayerNormChannels(nn.Module):
    """Layer normalisation over the channels of each pixel. Parameters `gamma` and `beta`, (1, C, 1, 1)."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1:2]
        pixels = x.movedim(1, -1)
        return F.layer_norm(pixels, channels, self.gamma.flatten(), self.beta.flatten(), self.eps).movedim(-1, 1)


class GatedConv(nn.Module):
    """x + value sigmoid(gate), with value and gate from a 3x3 and a 1x1 convolution of x."""

    def __init__(self, c_in: int, c_hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            ConcatELU(),
            nn.Conv2d(2 * c_in, c_hidden, 3, padding=1),
            ConcatELU(),
            nn.Conv2d(2 * c_hidden, 2 * c_in, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + F.glu(self.net(x), 1)


class GatedConvNet(nn.Module):
    """Gated convolutions with layer normalisation, the conditioner of image flows in the UvA tutorials.

    Lippe, "UvA Deep Learning Tutorials", tutorial 11 (2020), after Ho et al., "Flow++" (2019), without its attention:
    3x3 convolution, `num_layers` times a gated convolution and a normalisation over channels, concatenated ELU, 3x3
    convolution. The last one starts at zero, so that a coupling starts as the identity. Its parameters have the names
    that they have in the tutorial.

    Args:
        c_in: channels of what the coupling shows.
        c_hidden: channels in between.
        c_out: channels of the result; None for scale and shift of each of c_in.
        num_layers: number of gated convolutions.
        context: channels of the context; 0 for none.

    Shapes:
        x: (B, c_in, H, W); context: (B, context), the same at each pixel, or (B, context, H, W); the result:
        (B, c_out, H, W).

    Raises:
        ValueError: for a number out of range, naming it. When called: for a context that it was not built for.

    Example:
        >>> import torch, flowkernels as fk
        >>> network = fk.nn.GatedConvNet(1, 32)
        >>> layer = fk.nn.AffineCoupling(network, mask=fk.nn.checkerboard_mask(28, 28))
        >>> sum(p.numel() for p in network.parameters()), layer(torch.randn(2, 1, 28, 28))[0].shape
        (69538, torch.Size([2, 1, 28, 28]))
    """

    def __init__(
        self, c_in: int, c_hidden: int = 32, c_out: int | None = None, num_layers: int = 3, *, context: int = 0
    ) -> None:
        super().__init__()
        c_out = 2 * c_in if c_out is None else c_out
        for name, value, least in (
            ("c_in", c_in, 1),
            ("c_hidden", c_hidden, 1),
            ("c_out", c_out, 1),
            ("num_layers", num_layers, 0),
            ("context", context, 0),
        ):
            whole(name, value, least)
        self.context = context
        blocks = [
            part for _ in range(num_layers) for part in (GatedConv(c_hidden, c_hidden), LayerNormChannels(c_hidden))
        ]
        last = nn.Conv2d(2 * c_hidden, c_out, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.nn = nn.Sequential(nn.Conv2d(c_in + context, c_hidden, 3, padding=1), *blocks, ConcatELU(), last)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.nn(join(x, context, self.context))
