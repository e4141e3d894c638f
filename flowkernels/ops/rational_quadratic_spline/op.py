"""The operator of rational-quadratic splines."""

from __future__ import annotations

from ..operator import FormOperator
from .form import SplineForm


class _Spline(FormOperator):
    form = SplineForm


rational_quadratic_spline = _Spline(__package__, ("x", "raw", "mask?"), ("str form", "int passive", "bool inverse"))
