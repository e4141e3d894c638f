"""How raw conditioner output becomes the knots and derivatives of a rational-quadratic spline."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from typing import Any

# The order is the numbering of `Normalization`, `KnotDerivative` and `Tails` in csrc/flow/rational_quadratic_spline.h.
NORMALIZATIONS = ("softmax", "softclip", "softplus")
DERIVATIVES = ("softplus", "exp_softclip", "softplus_shifted")
TAILS = ("linear", "circular", "affine", None)

SIDES = ("right", "left")
LAYOUTS = ("widths_heights_derivatives", "trailing_widths_heights_derivatives")
MOST_BINS = 1024


def _number(name: str, value: object, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not least <= float(value) <= most:
        raise ValueError(f"{name} must be a number from {least:g} to {most:g}; got {value!r}")
    return float(value)


def _choice(name: str, value: object, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


@dataclasses.dataclass(frozen=True)
class SplineForm:
    """How raw conditioner output becomes a monotone rational-quadratic spline with K bins.

    Each element has `parameters` raw numbers: K widths, K heights, and the derivatives at the knots; with
    ``normalization="softplus"`` the bottom and the left of the box come between heights and derivatives.

    Args:
        bins: K, from 1 to 1024.
        bound: B: the box is [-B, B] x [-B, B].
        min_width: least width of a bin: as a share of the box, or in units of x with ``"softplus"``.
        min_height: least height of a bin, likewise.
        min_derivative: added to every derivative that comes from a softplus.
        tails: outside of the box, ``"linear"`` is the identity, with derivative 1 at the ends; ``"circular"`` is the
            identity as well, and the derivative at both ends is one parameter; ``"affine"`` continues the box's
            diagonal, whose slope is the derivative at the ends; None gives NaN, and the ends have parameters.
        normalization: from raw widths w to shares of the box (heights likewise): ``"softmax"`` softmax(c w) with
            c = logit_scale; ``"softclip"`` softmax(w / (1 + abs(2 w / ln slope))); both squeezed to
            min_width + (1 - K min_width) share. Or unnormalised, with affine tails: ``"softplus"`` makes the width
            min_width + softplus(w + a), the left the box's plus a raw number, and a such that zeros give the box.
        derivative: from a raw number d: ``"softplus"`` min_derivative + softplus(d); ``"exp_softclip"``
            exp(d / (1 + abs(d / ln slope))); ``"softplus_shifted"`` min_derivative + softplus(d + ln(e - 1)).
        logit_scale: c, for widths and heights, not for derivatives.
        slope: of ``"softclip"`` and ``"exp_softclip"``, between 0 and 1.
        side: ``"right"``: a knot belongs to the bin on its right, and the box is closed; ``"left"``: to that on its
            left, and the box is open at its left. Only derivatives of log_det tell them apart.
        layout: ``"widths_heights_derivatives"``: raw has shape (B, C parameters, ...), those of a channel adjacent in
            dimension 1; ``"trailing_widths_heights_derivatives"``: shape (B, C, ..., parameters).
        box: (left, right, bottom, top), in place of bound.

    Raises:
        ValueError: for an unknown name, a constant out of its range, and those that do not go together.

    Example:
        >>> import flowkernels as fk
        >>> fk.SplineForm(bins=8, bound=3.0).parameters, fk.SplineForm(bins=8, tails="circular").parameters
        (23, 24)
    """

    bins: int = 8
    bound: float | None = None
    _: dataclasses.KW_ONLY
    min_width: float = 1e-3
    min_height: float = 1e-3
    min_derivative: float = 1e-3
    tails: str | None = "linear"
    normalization: str = "softmax"
    derivative: str = "softplus"
    logit_scale: float = 1.0
    slope: float = 1e-3
    side: str = "right"
    layout: str = "widths_heights_derivatives"
    box: tuple[float, float, float, float] | None = None
    # The form as text: what the registered operators carry, so that graphs can be read and exported.
    spec: str = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.bins, bool) or not isinstance(self.bins, int) or not 1 <= self.bins <= MOST_BINS:
            raise ValueError(f"bins must be an integer from 1 to {MOST_BINS}; got {self.bins!r}")
        for name, allowed in (
            ("tails", TAILS),
            ("normalization", NORMALIZATIONS),
            ("derivative", DERIVATIVES),
            ("side", SIDES),
            ("layout", LAYOUTS),
        ):
            _choice(name, getattr(self, name), allowed)
        for name, least, most in (
            ("min_width", 0.0, 1e6),
            ("min_height", 0.0, 1e6),
            ("min_derivative", 0.0, 1e6),
            ("logit_scale", 1e-6, 1e6),
            ("slope", 1e-12, 0.999),
        ):
            object.__setattr__(self, name, _number(name, getattr(self, name), least, most))
        self._set_box()
        self._check_sizes()
        changed = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self) if f.init and f.name != "bound"]
        object.__setattr__(self, "spec", " ".join(f"{name}={_text(value)}" for name, value in changed))

    def _set_box(self) -> None:
        """Bound and box, each from the other where it can be."""
        if self.bound is not None and self.box is not None:
            raise ValueError(f"bound and box exclude each other; got bound={self.bound!r} and box={self.box!r}")
        if self.box is None:
            bound = _number("bound", 3.0 if self.bound is None else self.bound, 1e-6, 1e6)
            object.__setattr__(self, "bound", bound)
            object.__setattr__(self, "box", (-bound, bound, -bound, bound))
            return
        if not isinstance(self.box, (tuple, list)) or len(self.box) != 4:
            raise ValueError(f"box must be (left, right, bottom, top); got {self.box!r}")
        left, right, bottom, top = (_number("box", value, -1e6, 1e6) for value in self.box)
        if not (left < right and bottom < top):
            raise ValueError(f"box must have left < right and bottom < top; got {self.box!r}")
        if self.tails in ("linear", "circular") and (left, right) != (bottom, top):
            raise ValueError(f"{self.tails} tails are the identity: the box must be a square; got {self.box!r}")
        object.__setattr__(self, "box", (left, right, bottom, top))
        object.__setattr__(self, "bound", right if left == bottom == -right == -top else None)

    def _check_sizes(self) -> None:
        left, right, bottom, top = self.extent
        if self.normalization == "softplus":
            if self.tails != "affine":
                raise ValueError(f"normalization='softplus' needs tails='affine'; got tails={self.tails!r}")
            if self.min_width * self.bins >= right - left or self.min_height * self.bins >= top - bottom:
                raise ValueError(f"{self.bins} bins of the least size do not fit the box {self.box!r}")
            return
        for name in ("min_width", "min_height"):
            if getattr(self, name) * self.bins > 1:
                raise ValueError(f"{name} times bins must be at most 1; got {getattr(self, name)} and {self.bins} bins")

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def from_spec(spec: str) -> SplineForm:
        """The form that `spec` came from."""
        values: dict[str, Any] = dict(item.split("=", 1) for item in spec.split())
        for name in ("min_width", "min_height", "min_derivative", "logit_scale", "slope"):
            values[name] = float(values[name])
        values["bins"] = int(values["bins"])
        values["tails"] = None if values["tails"] == "None" else values["tails"]
        values["box"] = tuple(map(float, values["box"].split(",")))
        return SplineForm(**values)

    def __hash__(self) -> int:
        return hash(self.spec)  # a cached string's hash: forms are looked up at every call

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """(left, right, bottom, top) of the box; with ``"softplus"``, of the one that zeros give."""
        assert self.box is not None
        return self.box

    @property
    def derivatives(self) -> int:
        """How many derivatives are parameters."""
        return {"linear": self.bins - 1, "circular": self.bins, "affine": self.bins - 1, None: self.bins + 1}[
            self.tails
        ]

    @property
    def parameters(self) -> int:
        """How many raw numbers each transformed element has."""
        return 2 * self.bins + self.derivatives + (2 if self.normalization == "softplus" else 0)

    @classmethod
    def nflows(
        cls, bins: int = 10, bound: float = 1.0, *, tails: str | None = "linear", **constants: Any
    ) -> SplineForm:
        """nflows' and normflows' PiecewiseRationalQuadraticCoupling. Their conditioners' widths and heights are divided
        by sqrt(hidden_features) where the conditioner has that attribute: ``logit_scale=hidden_features**-0.5``.
        """
        return cls(bins, bound, tails=tails, **constants)

    @classmethod
    def zuko(cls, bins: int = 8, bound: float = 5.0, *, slope: float = 1e-3) -> SplineForm:
        """zuko's MonotonicRQSTransform."""
        return cls(
            bins,
            bound,
            min_width=0.0,
            min_height=0.0,
            normalization="softclip",
            derivative="exp_softclip",
            slope=slope,
            side="left",
        )

    @classmethod
    def freia(
        cls,
        bins: int = 10,
        *,
        min_bin_sizes: tuple[float, float] = (0.1, 0.1),
        default_domain: tuple[float, float, float, float] = (-3.0, 3.0, -3.0, 3.0),
    ) -> SplineForm:
        """FrEIA's RationalQuadraticSpline without identity_tails and domain_clamping."""
        return cls(
            bins,
            min_width=min_bin_sizes[0],
            min_height=min_bin_sizes[1],
            min_derivative=0.0,
            tails="affine",
            normalization="softplus",
            derivative="softplus_shifted",
            side="left",
            box=default_domain,
        )


def _text(value: object) -> str:
    return ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)


def shift_for(mean: float) -> float:
    """a with softplus(a) = mean."""
    return math.log(math.expm1(mean)) if mean < 30 else mean
