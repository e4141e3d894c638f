"""How raw conditioner output becomes the scale and shift of an affine coupling."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from typing import Any

# The order is the numbering of `ScaleMap` in csrc/flow/affine_coupling.h. Two public maps split in two there:
# `sigmoid` has a form without cancellation when nothing is added to it.
SCALE_MAP_IDS = {
    "exp": 0,
    "tanh": 1,
    "tanh_scaled": 2,
    "atan": 3,
    "atan_legacy": 4,
    "sigmoid_centered": 5,
    "softclip": 6,
    "sigmoid": 7,
    "sigmoid_floor": 8,
    "softplus": 9,
    "exp_floor": 10,
    "additive": 11,
    "given": 12,
}

BOUNDED = ("tanh", "tanh_scaled", "atan", "atan_legacy", "sigmoid_centered", "softclip")

# The constants that mean something for each scale map, with their defaults (None: required or a learned bound).
CONSTANTS: dict[str, dict[str, float | None]] = {
    "exp": {},
    **{name: {"bound": None} for name in BOUNDED},
    "sigmoid": {"offset": 2.0, "eps": 0.0},
    "softplus": {"eps": 0.0, "maximum": math.inf},
    "exp_floor": {"eps": 1e-10},
    "additive": {},
    "given": {},
}

ORDERS = ("scale_first", "shift_first")

HALVES = ("scale_shift", "shift_scale")
LAYOUTS = (*HALVES, "interleaved_shift_scale", "trailing_shift_scale", "trailing_scale_shift")


_SMALLEST_BOUND = 1e-30  # kernels multiply by its reciprocal


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise ValueError(f"{name} must be a number; got {value!r}")
    return float(value)


def _choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


@dataclasses.dataclass(frozen=True)
class AffineForm:
    """How raw conditioner output becomes scale and shift: y = m x + t, or m (x + t).

    With s and t the prescaled halves of `raw`, the multiplier is m = a, or 1 / a if `reciprocal`.

    Args:
        scale: the map from s to a. Stated as log a: ``"exp"`` s; ``"tanh"`` c tanh(s / c); ``"tanh_scaled"``
            c tanh(s); ``"atan"`` 0.636 c atan(s); ``"atan_legacy"`` 0.636 c atan(s / c); ``"sigmoid_centered"``
            2 c (sigmoid(s) - 1/2); ``"softclip"`` s / (1 + abs(s) / c). Stated as a: ``"sigmoid"``
            sigmoid(s + k) + eps; ``"softplus"`` min(softplus(s) + eps, maximum); ``"exp_floor"``
            exp(ln(1 - eps) + s / 2) + eps; ``"additive"`` 1, with raw the shift alone; ``"given"`` s itself,
            which may be negative (the log-determinant takes its absolute value).
        bound: c, at least 1e-30; for the maps from ``"tanh"`` to ``"softclip"`` only. None: the operation gets a
            learned bound.
        offset: k of ``"sigmoid"``, 2.0 by default.
        eps: of ``"sigmoid"`` and ``"softplus"`` (0 by default), ``"exp_floor"`` (1e-10 by default, less than 1).
        maximum: of ``"softplus"``, infinite by default.
        order: ``"scale_first"`` m x + t, or ``"shift_first"`` m (x + t).
        reciprocal: multiply by 1 / a instead of a.
        layout: where scale and shift lie in `raw`: ``"scale_shift"`` or ``"shift_scale"``, halves of dimension 1;
            ``"interleaved_shift_scale"``, even and odd entries of dimension 1; ``"trailing_shift_scale"`` or
            ``"trailing_scale_shift"``, a last axis of size 2. It has no effect where `raw` is a pair of tensors.
        prescale: multiplies both scale and shift.

    Raises:
        ValueError: for an unknown name, a constant out of its range, or one that means nothing for `scale`.

    Example:
        >>> import flowkernels as fk
        >>> fk.AffineForm("tanh", bound=2.0).layout
        'scale_shift'
        >>> fk.AffineForm("exp", bound=2.0)
        Traceback (most recent call last):
        ...
        ValueError: bound means nothing for scale='exp'; got bound=2.0
    """

    scale: str = "exp"
    bound: float | None = None
    offset: float | None = None
    eps: float | None = None
    maximum: float | None = None
    order: str = "scale_first"
    reciprocal: bool = False
    layout: str = "scale_shift"
    prescale: float = 1.0
    # The form as text: what the registered operators carry, so that graphs can be read and exported.
    spec: str = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _choice("scale", self.scale, tuple(CONSTANTS))
        _choice("order", self.order, ORDERS)
        _choice("layout", self.layout, LAYOUTS)
        for name in ("bound", "offset", "eps", "maximum"):
            value = getattr(self, name)
            if value is None:
                continue
            if name not in CONSTANTS[self.scale]:
                raise ValueError(f"{name} means nothing for scale={self.scale!r}; got {name}={value!r}")
            object.__setattr__(self, name, _number(name, value))
        if self.bound is not None and not _SMALLEST_BOUND <= self.bound < math.inf:
            raise ValueError(f"bound must be at least {_SMALLEST_BOUND} and finite; got {self.bound!r}")
        if self.eps is not None and not 0 <= self.eps < (1 if self.scale == "exp_floor" else math.inf):
            raise ValueError(f"eps is out of range for scale={self.scale!r}; got {self.eps!r}")
        if self.maximum is not None and self.maximum <= 0:
            raise ValueError(f"maximum must be positive; got {self.maximum!r}")
        if not isinstance(self.reciprocal, bool):
            raise ValueError(f"reciprocal must be True or False; got {self.reciprocal!r}")
        object.__setattr__(self, "prescale", _number("prescale", self.prescale))
        if not math.isfinite(self.prescale):
            raise ValueError(f"prescale must be finite; got {self.prescale!r}")
        changed = [(name, getattr(self, name)) for name, default in _DEFAULTS if getattr(self, name) != default]
        object.__setattr__(self, "spec", " ".join(f"{name}={value}" for name, value in changed))

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def from_spec(spec: str) -> AffineForm:
        """The form that `spec` came from."""
        values: dict[str, Any] = dict(item.split("=", 1) for item in spec.split())
        for name in ("bound", "offset", "eps", "maximum", "prescale"):
            if name in values:
                values[name] = float(values[name])
        if "reciprocal" in values:
            values["reciprocal"] = values["reciprocal"] == "True"
        return AffineForm(**values)

    def __hash__(self) -> int:
        return hash(self.spec)  # a cached string's hash: forms are looked up at every call

    def constant(self, name: str) -> float:
        """The value of a constant of this scale map, its default where it was not given, 0 where it has none."""
        value = getattr(self, name)
        return (CONSTANTS[self.scale].get(name) or 0.0) if value is None else value

    @property
    def bounded(self) -> bool:
        """Whether the scale map has a bound."""
        return self.scale in BOUNDED

    @classmethod
    def normflows(cls, scale_map: str = "exp") -> AffineForm:
        """normflows' AffineCoupling in the direction of its `forward` (latent to data).

        `scale_map` is ``"exp"``, ``"sigmoid"`` (which divides) or ``"sigmoid_inv"``.
        """
        _choice("scale_map", scale_map, ("exp", "sigmoid", "sigmoid_inv"))
        scale = "exp" if scale_map == "exp" else "sigmoid"
        return cls(scale, reciprocal=scale_map == "sigmoid", layout="interleaved_shift_scale")

    @classmethod
    def nflows(cls, activation: str = "default") -> AffineForm:
        """nflows' AffineCouplingTransform: ``"default"`` sigmoid(s + 2) + 1e-3, ``"general"`` a clamped softplus, or
        ``"additive"``.
        """
        _choice("activation", activation, ("default", "general", "additive"))
        if activation == "default":
            return cls("sigmoid", eps=1e-3, layout="shift_scale")
        if activation == "general":
            return cls("softplus", eps=1e-3, maximum=3.0, layout="shift_scale")
        return cls("additive")

    @classmethod
    def glow(cls, layout: str = "scale_shift") -> AffineForm:
        """The Glow ports' coupling, (x + t) sigmoid(s + 2); `layout` as in the port (rosinality's are halves)."""
        return cls("sigmoid", order="shift_first", layout=layout)

    @classmethod
    def uva(cls) -> AffineForm:
        """The UvA tutorial's CouplingLayer: (x + t) exp(f tanh(s / f)) with a learned bound f."""
        return cls("tanh", order="shift_first")

    @classmethod
    def freia(cls, clamp: float = 2.0, activation: str = "ATAN") -> AffineForm:
        """FrEIA's GLOW, RNVP and one-sided blocks: `activation` is ``"ATAN"``, ``"TANH"`` or ``"SIGMOID"``."""
        maps = {"ATAN": "atan", "TANH": "tanh_scaled", "SIGMOID": "sigmoid_centered"}
        _choice("activation", activation, tuple(maps))
        return cls(maps[activation], bound=clamp)

    @classmethod
    def zuko(cls) -> AffineForm:
        """zuko's MonotonicAffineTransform with its default slope of 1e-3."""
        return cls("softclip", bound=-math.log(1e-3), layout="trailing_shift_scale")


_DEFAULTS = tuple((f.name, f.default) for f in dataclasses.fields(AffineForm) if f.init)
