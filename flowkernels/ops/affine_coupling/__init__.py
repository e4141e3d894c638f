"""Affine coupling: the op that others copy. Read form.py, reference.py, op.py, plan.py, triton.py in that order."""

from .form import AffineForm
from .op import affine_coupling

__all__ = ["AffineForm", "affine_coupling"]
