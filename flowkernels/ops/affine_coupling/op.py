"""The operator of affine coupling."""

from __future__ import annotations

from ..operator import Operator
from .form import AffineForm


class _AffineCoupling(Operator):
    """A schema has the form as text."""

    def encode(self, options: tuple) -> tuple:
        form, *rest = options
        return form.spec, *rest

    def decode(self, options: tuple) -> tuple:
        spec, *rest = options
        return AffineForm.from_spec(spec), *rest


affine_coupling = _AffineCoupling(
    __package__,
    ("x", "raw", "shift?", "mask?", "bound?"),
    ("str form", "int passive", "bool inverse"),
)
