"""Layers: ``forward(x, context=None)`` maps data to latent, ``inverse(y, context=None)`` latent to data.

Both return ``(value, log_det)``, log |det J| of the map just applied, shape (B,). Batch is dimension 0, the rest is the
event. A layer that ignores the context accepts it. `Split`, which removes dimensions, has `encode`, `decode` and
`sample_out` instead.
"""

from .actnorm import ActNorm
from .conv1x1 import ActNormConv1x1, InvertibleConv1x1
from .coupling import AffineCoupling, SplineCoupling
from .dequantize import Dequantize, VariationalDequantize
from .gated import GatedConvNet
from .inverse import Inverse
from .masks import channel_mask, checkerboard_mask
from .permute import Permute
from .planar import AmortizedPlanar, Planar
from .radial import AmortizedRadial, Radial
from .split import Split
from .squeeze import Squeeze

__all__ = [
    "ActNorm",
    "ActNormConv1x1",
    "AffineCoupling",
    "AmortizedPlanar",
    "AmortizedRadial",
    "Dequantize",
    "GatedConvNet",
    "Inverse",
    "InvertibleConv1x1",
    "Permute",
    "Planar",
    "Radial",
    "SplineCoupling",
    "Split",
    "Squeeze",
    "VariationalDequantize",
    "channel_mask",
    "checkerboard_mask",
]
