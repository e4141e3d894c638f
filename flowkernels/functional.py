"""The public operations: tensors in and out, differentiable any number of times, traceable by torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from .ops.affine_coupling import AffineForm
from .ops.affine_coupling import affine_coupling as _affine_coupling
from .ops.planar import planar as _planar
from .ops.radial import radial as _radial
from .ops.stack import accumulation_dtype

_EXP = AffineForm()
_STRIDED = torch.strided


def _check_tensor(name: str, value: object, optional: bool) -> None:
    if isinstance(value, Tensor):
        if value.layout is not _STRIDED:
            raise TypeError(f"{name} must be a dense tensor; got layout {value.layout}")
    elif not (optional and value is None):
        pair = " or a (scale, shift) pair of tensors" if name == "raw" else ""
        raise TypeError(f"{name} must be a tensor{pair}; got {type(value).__name__}")


def _check_inverse(inverse: object) -> None:
    if not isinstance(inverse, bool):
        raise TypeError(f"inverse must be True or False; got {inverse!r}")


def affine_coupling(
    x: Tensor,
    raw: Tensor | tuple[Tensor, Tensor],
    *,
    form: AffineForm = _EXP,
    mask: Tensor | None = None,
    passive: int | None = None,
    bound: Tensor | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Affine coupling y = m x + t, or m (x + t), and its log-determinant, in one pass.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), equations 8 and 9, with the scale
    maps, orders and layouts that the libraries in this field use (`AffineForm`).

    Args:
        x: shape (B, C, ...), floating point, any strides.
        raw: output of the conditioner that `form` turns into scale and shift of the transformed elements. For the
            layouts of dimension 1 its shape is that of the transformed part with dimension 1 twice as long; for
            ``trailing`` layouts it has a last axis of size 2; for ``"additive"`` it is the shift alone. A pair
            ``(scale, shift)`` of tensors is taken whatever the layout.
        form: how raw output becomes scale and shift.
        mask: boolean, True = passive (kept), broadcastable to x's event shape. `raw` then has full width, and what it
            holds at passive elements is not used, even NaN.
        passive: the first `passive` channels are kept (negative: the last), and raw describes the others only.
            Neither mask nor passive: every element is transformed.
        bound: learned bound c of the scale map, shape (transformed channels,), in place of ``form.bound``; its
            gradient is computed.
        inverse: undo the map: x is its output, and log_det changes sign.

    Returns:
        y of x's shape and dtype, channels_last where x is and contiguous otherwise; and log_det = sum of log m over
        the transformed elements, shape (B,), float64 where x is, else float32. The passive part of y is x, bit for bit.

    Raises:
        ValueError: for shapes that do not fit, naming them, and for both mask and passive.
        TypeError: for dtypes that are not supported or do not go together, and for tensors on different devices.

    Example:
        >>> import torch, flowkernels as fk
        >>> x = torch.randn(8, 6)
        >>> raw = torch.randn(8, 6)  # scale and shift of the last three channels
        >>> y, log_det = fk.affine_coupling(x, raw, form=fk.AffineForm("tanh", bound=2.0), passive=3)
        >>> back, _ = fk.affine_coupling(y, raw, form=fk.AffineForm("tanh", bound=2.0), passive=3, inverse=True)
        >>> torch.allclose(back, x, atol=1e-5), log_det.shape
        (True, torch.Size([8]))
    """
    shift = None
    if isinstance(raw, (tuple, list)) and len(raw) == 2:
        raw, shift = raw
    if not (type(x) is type(raw) is Tensor and shift is mask is bound is None and x.layout is raw.layout is _STRIDED):
        for name, value, optional in (
            ("x", x, False),
            ("raw", raw, False),
            ("shift", shift, True),
            ("mask", mask, True),
            ("bound", bound, True),
        ):
            _check_tensor(name, value, optional)
    if not isinstance(form, AffineForm):
        raise TypeError(f"form must be an AffineForm; got {type(form).__name__}")
    if passive is not None and type(passive) is not int and not isinstance(passive, torch.SymInt):
        raise TypeError(f"passive must be an integer or None; got {passive!r}")
    _check_inverse(inverse)
    if bound is not None:
        if not bound.dtype.is_floating_point:
            raise TypeError(f"bound must be floating point; got {bound.dtype}")
        bound = bound.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return _affine_coupling(x, raw, shift, mask, bound, form, passive or 0, inverse)


def _stack_parameters(x: Tensor, names: tuple[str, ...], parameters: tuple[Tensor, ...]) -> list[Tensor]:
    """The parameters of a stack with a dimension for the layers, in the dtype that the stack computes in."""
    for name, value in (("x", x), *zip(names, parameters)):
        _check_tensor(name, value, False)
        if not value.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point; got {value.dtype}")
        if value.dtype == torch.float64 and x.dtype != torch.float64:
            raise TypeError(f"{name} has dtype float64 and x has {x.dtype}; cast {name} down or x up")
    if parameters[0].dim() == 1:
        parameters = tuple(p.unsqueeze(0) for p in parameters)
    dtype = accumulation_dtype(x.dtype)
    return [p if p.dtype == dtype else p.to(dtype) for p in parameters]


def planar(
    x: Tensor,
    u: Tensor,
    w: Tensor,
    b: Tensor,
    *,
    activation: str = "tanh",
    negative_slope: float = 0.2,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """A planar flow z + û h(wᵀz + b), or a stack of K of them, and its log-determinant, in one pass.

    Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equations 10 to 12, with û of appendix
    A.1, which keeps every layer invertible: û = u + (softplus(wᵀu) - 1 - wᵀu) w / |w|². The inverse, which has no
    closed form for tanh, is solved for one scalar per layer by Newton's method and differentiated implicitly.

    Args:
        x: shape (B, D), any strides.
        u: shape (D,) for one layer, (K, D) for a stack whose layer 0 is applied first, or (B, K, D) for parameters of
            each example. Values and gradients are finite for x and wᵀx + b up to 1e4 and 1e-10 <= |w| <= 1e15; w = 0
            makes the layer a shift by u h(b).
        w: shape of u. Where w tends to 0, û grows like 1 / |w|: parameters that a network makes start away from 0.
        b: shape of u without its last dimension.
        activation: h, ``"tanh"`` or ``"leaky_relu"``.
        negative_slope: of ``leaky_relu``, between 0 and 1.
        inverse: undo the map: x is its output, and log_det changes sign. Its accuracy is that of the problem, which
            is as badly conditioned as a cube root where wᵀû tends to -1.

    Returns:
        y of x's shape and dtype, contiguous; and log_det = sum of log |1 + wᵀû h'| over the layers, shape (B,),
        float64 where x is, else float32.

    Raises:
        ValueError: for shapes that do not fit, naming them, for an unknown activation and a slope out of range.
        TypeError: for dtypes that are not supported, float64 parameters beside a lower x, and different devices.

    Example:
        >>> import torch, flowkernels as fk
        >>> x, u, w, b = torch.randn(8, 2), torch.randn(4, 2), torch.randn(4, 2), torch.randn(4)
        >>> y, log_det = fk.planar(x, u, w, b)
        >>> back, _ = fk.planar(y, u, w, b, inverse=True)
        >>> torch.allclose(back, x, atol=1e-3), log_det.shape
        (True, torch.Size([8]))
    """
    u, w, b = _stack_parameters(x, ("u", "w", "b"), (u, w, b))
    _check_inverse(inverse)
    return _planar(x, u, w, b, activation, float(negative_slope), inverse)


def radial(x: Tensor, center: Tensor, alpha: Tensor, beta: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """A radial flow, which moves points along rays from a centre, or a stack of K, and its log-determinant.

    Rezende and Mohamed, "Variational Inference with Normalizing Flows" (2015), equations 13 and 14, with appendix
    A.2: y = z + β̂ (z - z0) / (alpha + r), r = |z - z0|, β̂ = softplus(beta) - alpha. The inverse is the positive root of
    a quadratic in r.

    Args:
        x: shape (B, D), any strides.
        center: z0, shape (D,) for one layer, (K, D) for a stack whose layer 0 is applied first, or (B, K, D) for
            parameters of each example.
        alpha: shape of center without its last dimension, positive; other values give NaN.
        beta: shape of alpha.
        inverse: undo the map: x is its output, and log_det changes sign.

    Returns:
        y of x's shape and dtype, contiguous; and log_det, shape (B,), float64 where x is, else float32. The gradient
        of log_det with respect to a point that is its layer's centre, where it has a cusp, is 0.

    Raises:
        ValueError: for shapes that do not fit, naming them.
        TypeError: for dtypes that are not supported, float64 parameters beside a lower x, and different devices.

    Example:
        >>> import torch, flowkernels as fk
        >>> x, center = torch.randn(8, 3), torch.zeros(3)
        >>> y, log_det = fk.radial(x, center, torch.tensor(1.0), torch.tensor(0.5))
        >>> back, _ = fk.radial(y, center, torch.tensor(1.0), torch.tensor(0.5), inverse=True)
        >>> torch.allclose(back, x, atol=1e-5), log_det.shape
        (True, torch.Size([8]))
    """
    center, alpha, beta = _stack_parameters(x, ("center", "alpha", "beta"), (center, alpha, beta))
    _check_inverse(inverse)
    return _radial(x, center, alpha, beta, inverse)
