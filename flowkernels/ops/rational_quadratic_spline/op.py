"""The operator of rational-quadratic splines."""

from __future__ import annotations

from ..operator import Operator
from .form import SplineForm


class _Spline(Operator):
    """A schema has the form as text."""

    def encode(self, options: tuple) -> tuple:
        form, *rest = options
        return form.spec, *rest

    def decode(self, options: tuple) -> tuple:
        spec, *rest = options
        return SplineForm.from_spec(spec), *rest


rational_quadratic_spline = _Spline(__package__, ("x", "raw", "mask?"), ("str form", "int passive", "bool inverse"))
