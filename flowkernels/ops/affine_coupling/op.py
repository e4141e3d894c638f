"""The operator of affine coupling."""

from __future__ import annotations

from ..operator import FormOperator
from .form import AffineForm


class _AffineCoupling(FormOperator):
    form = AffineForm


affine_coupling = _AffineCoupling(
    __package__,
    ("x", "raw", "shift?", "mask?", "bound?"),
    ("str form", "int passive", "bool inverse"),
)
