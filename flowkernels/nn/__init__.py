"""Layers: ``forward(x, context=None)`` maps data to latent, ``inverse(y, context=None)`` latent to data.

Both return ``(value, log_det)``, log |det J| of the map just applied, shape (B,). Batch is dimension 0, the rest is the
event. A layer that ignores the context accepts it.
"""

from .coupling import AffineCoupling
from .dequantize import Dequantize
from .inverse import Inverse
from .masks import channel_mask, checkerboard_mask
from .permute import Permute
from .planar import AmortizedPlanar, Planar
from .radial import AmortizedRadial, Radial

__all__ = [
    "AffineCoupling",
    "AmortizedPlanar",
    "AmortizedRadial",
    "Dequantize",
    "Inverse",
    "Permute",
    "Planar",
    "Radial",
    "channel_mask",
    "checkerboard_mask",
]
