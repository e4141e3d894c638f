"""Rational-quadratic splines. Read form.py, check.py, reference.py, op.py, plan.py, triton.py in that order."""

from .form import SplineForm
from .op import rational_quadratic_spline

__all__ = ["SplineForm", "rational_quadratic_spline"]
