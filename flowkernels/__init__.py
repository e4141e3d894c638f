"""Fused kernels for normalizing flows, with a PyTorch-compatible layer API."""

import torch  # noqa: F401  first, so that its OpenMP and CUDA runtimes are the ones in the process

from . import models, nn
from .backends import BackendError, backend
from .flows import Flow
from .functional import affine_coupling, planar, radial
from .inspect import explain, warmup
from .ops.affine_coupling import AffineForm
from .version import __version__

__all__ = [
    "AffineForm",
    "BackendError",
    "Flow",
    "__version__",
    "affine_coupling",
    "backend",
    "explain",
    "models",
    "nn",
    "planar",
    "radial",
    "warmup",
]
