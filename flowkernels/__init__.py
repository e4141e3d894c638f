"""Fused kernels for normalizing flows, with a PyTorch-compatible layer API."""

import torch  # noqa: F401  first, so that its OpenMP and CUDA runtimes are the ones in the process

from . import integrations, models, nn
from .backends import BackendError, backend
from .flows import Flow
from .functional import (
    actnorm,
    affine_coupling,
    dequantize,
    log_normal,
    merge,
    planar,
    quantize,
    radial,
    rational_quadratic_spline,
    split,
    squeeze,
    unsqueeze,
)
from .inspect import explain, warmup
from .integrations import accelerate
from .ops.affine_coupling import AffineForm
from .ops.rational_quadratic_spline import SplineForm
from .version import __version__

__all__ = [
    "AffineForm",
    "BackendError",
    "Flow",
    "SplineForm",
    "__version__",
    "accelerate",
    "actnorm",
    "affine_coupling",
    "backend",
    "dequantize",
    "explain",
    "integrations",
    "log_normal",
    "merge",
    "models",
    "nn",
    "planar",
    "quantize",
    "radial",
    "rational_quadratic_spline",
    "split",
    "squeeze",
    "unsqueeze",
    "warmup",
]
