"""Fused kernels for normalizing flows, with a PyTorch-compatible layer API."""

import torch  # noqa: F401  first, so that its OpenMP and CUDA runtimes are the ones in the process

from .backends import BackendError, backend
from .functional import affine_coupling
from .ops.affine_coupling import AffineForm

__version__ = "0.1.0"

__all__ = ["AffineForm", "BackendError", "affine_coupling", "backend"]
