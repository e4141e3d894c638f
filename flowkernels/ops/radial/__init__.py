"""Radial flows, a layer or a stack in one pass. Read check.py, reference.py, plan.py, triton.py in that order."""

from ..operator import Operator

radial = Operator(__name__, ("x", "center", "alpha", "beta"), ("bool inverse",))

__all__ = ["radial"]
