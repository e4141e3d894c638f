"""Planar flows, a layer or a stack in one pass. Read check.py, reference.py, plan.py, triton.py in that order."""

from ..operator import Operator

planar = Operator(
    __name__, ("x", "u", "w", "b"), ("str activation", "float negative_slope", "bool inverse")
)  # fmt: skip

__all__ = ["planar"]
