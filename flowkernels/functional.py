"""The public operations: tensors in and out, differentiable any number of times, traceable by torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from .ops.affine_coupling import AffineForm
from .ops.affine_coupling import affine_coupling as _affine_coupling

_EXP = AffineForm()
_STRIDED = torch.strided


def _check_tensor(name: str, value: object, optional: bool) -> None:
    if isinstance(value, Tensor):
        if value.layout is not _STRIDED:
            raise TypeError(f"{name} must be a dense tensor; got layout {value.layout}")
    elif not (optional and value is None):
        pair = " or a (scale, shift) pair of tensors" if name == "raw" else ""
        raise TypeError(f"{name} must be a tensor{pair}; got {type(value).__name__}")


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
    if not isinstance(inverse, bool):
        raise TypeError(f"inverse must be True or False; got {inverse!r}")
    if bound is not None:
        if not bound.dtype.is_floating_point:
            raise TypeError(f"bound must be floating point; got {bound.dtype}")
        bound = bound.to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    return _affine_coupling(x, raw, shift, mask, bound, form, passive or 0, inverse)
