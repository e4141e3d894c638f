"""Ready models."""

from .glow import glow
from .realnvp import realnvp
from .uva import uva
from .vae import VAE, vae

__all__ = ["VAE", "glow", "realnvp", "uva", "vae"]
