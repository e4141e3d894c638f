"""Ready models."""

from .glow import glow
from .nsf import nsf
from .realnvp import realnvp
from .uva import uva
from .vae import VAE, vae

__all__ = ["VAE", "glow", "nsf", "realnvp", "uva", "vae"]
