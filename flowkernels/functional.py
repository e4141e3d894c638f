"""The public operations: tensors in and out, differentiable any number of times, traceable by torch.compile."""

from __future__ import annotations

import torch
from torch import Tensor

from .ops.actnorm import actnorm as _actnorm
from .ops.affine_coupling import AffineForm
from .ops.affine_coupling import affine_coupling as _affine_coupling
from .ops.dequantize import dequantize as _dequantize
from .ops.dequantize import quantize as _quantize
from .ops.layout import accumulation_dtype
from .ops.planar import planar as _planar
from .ops.radial import radial as _radial
from .ops.rational_quadratic_spline import SplineForm
from .ops.rational_quadratic_spline import rational_quadratic_spline as _rational_quadratic_spline
from .ops.split import split as _split
from .ops.squeeze import squeeze as _squeeze
from .ops.squeeze import unsqueeze as _unsqueeze

_EXP = AffineForm()
_EIGHT_BINS = SplineForm()
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


def _check_passive(passive: object) -> None:
    if passive is not None and type(passive) is not int and not isinstance(passive, torch.SymInt):
        raise TypeError(f"passive must be an integer or None; got {passive!r}")


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
    _check_passive(passive)
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


def rational_quadratic_spline(
    x: Tensor,
    raw: Tensor,
    *,
    form: SplineForm = _EIGHT_BINS,
    mask: Tensor | None = None,
    passive: int | None = None,
    inverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """A monotone rational-quadratic spline of each element, and its log-determinant, in one pass.

    Durkan, Bekasov, Murray and Papamakarios, "Neural Spline Flows" (2019), section 3.1, with the parameterisations
    that the libraries in this field use (`SplineForm`). Knots, bin search and evaluation happen inside: nothing with a
    number per bin is written to memory but the gradient of raw.

    Args:
        x: shape (B, C, ...), floating point, any strides.
        raw: output of the conditioner that `form` turns into the splines of the transformed elements: their shape,
            with dimension 1 ``form.parameters`` times as long, or with a last axis of that size for the ``trailing``
            layout.
        form: how raw output becomes knots and derivatives, and what happens outside of the box.
        mask: boolean, True = passive (kept), broadcastable to x's event shape. `raw` then has full width, and what it
            holds at passive elements is not used, even NaN.
        passive: the first `passive` channels are kept (negative: the last), and raw describes the others only.
            Neither mask nor passive: every element is transformed.
        inverse: undo the map: x is its output, and log_det changes sign. It is the closed form of the paper, without
            the cancellation that makes other implementations fail.

    Returns:
        y of x's shape and dtype, channels_last where x is and contiguous otherwise; and log_det = sum of log dy/dx over
        the transformed elements, shape (B,), float64 where x is, else float32. The passive part of y is x, bit for bit.

    Raises:
        ValueError: for shapes that do not fit, naming them, and for both mask and passive.
        TypeError: for dtypes that are not supported or do not go together, and for tensors on different devices.

    Example:
        >>> import torch, flowkernels as fk
        >>> form = fk.SplineForm(bins=8, bound=3.0)
        >>> x, raw = torch.randn(8, 6), 0.1 * torch.randn(8, 3 * form.parameters)  # splines of the last three channels
        >>> y, log_det = fk.rational_quadratic_spline(x, raw, form=form, passive=3)
        >>> back, _ = fk.rational_quadratic_spline(y, raw, form=form, passive=3, inverse=True)
        >>> torch.allclose(back, x, atol=1e-4), log_det.shape
        (True, torch.Size([8]))
    """
    _check_tensor("x", x, False)
    _check_tensor("raw", raw, False)
    _check_tensor("mask", mask, True)
    if not isinstance(form, SplineForm):
        raise TypeError(f"form must be a SplineForm; got {type(form).__name__}")
    _check_passive(passive)
    _check_inverse(inverse)
    return _rational_quadratic_spline(x, raw, mask, form, passive or 0, inverse)


def _check_factor(x: Tensor, factor: int) -> None:
    _check_tensor("x", x, False)
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise ValueError(f"factor must be a positive integer; got {factor!r}")
    if x.dim() != 4:
        raise ValueError(f"x must have shape (B, C, H, W); got {tuple(x.shape)}")


def squeeze(x: Tensor, factor: int = 2) -> Tensor:
    """Turn blocks of pixels into channels: (B, C, H, W) to (B, C f², H / f, W / f), in one pass.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 3.6. Channel c f² + i f + j of
    the result holds channel c of the pixels in row i and column j of each block, as in Glow, nflows and normflows. It
    is a volume-preserving permutation: log |det J| = 0.

    Each element is read and written once, forward and backward: by the compiled module on the CPU where factor is 2, by
    torch's permuted copy elsewhere.

    Args:
        x: shape (B, C, H, W), any dtype and strides.
        factor: f, the side of a block; H and W are multiples of it.

    Returns:
        A tensor of x's dtype, channels_last where x is and contiguous otherwise.

    Raises:
        ValueError: for a factor that is not positive, and for a shape that it does not divide.

    Example:
        >>> import torch, flowkernels as fk
        >>> x = torch.arange(8.0).view(1, 1, 2, 4)
        >>> fk.squeeze(x).flatten(1).tolist()
        [[0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]]
        >>> torch.equal(fk.unsqueeze(fk.squeeze(x)), x)
        True
    """
    _check_factor(x, factor)
    height, width = x.shape[2:]
    if height % factor or width % factor:
        raise ValueError(f"height and width must be multiples of factor={factor}; got x of shape {tuple(x.shape)}")
    return _squeeze(x, factor)


def unsqueeze(y: Tensor, factor: int = 2) -> Tensor:
    """Undo `squeeze`: (B, C f², H, W) to (B, C, H f, W f).

    Args:
        y: shape (B, C f², H, W), any dtype and strides.
        factor: f.

    Returns:
        A tensor of y's dtype, channels_last where y is and contiguous otherwise.

    Raises:
        ValueError: for a factor that is not positive, and for channels that are no multiple of f².

    Example:
        >>> import torch, flowkernels as fk
        >>> fk.unsqueeze(torch.arange(4.0).view(1, 4, 1, 1))
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """
    _check_factor(y, factor)
    if y.shape[1] % factor**2:
        raise ValueError(f"channels must be a multiple of factor² = {factor**2}; got y of shape {tuple(y.shape)}")
    return _unsqueeze(y, factor)


def split(x: Tensor, mean: Tensor | None = None, log_std: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Factor out the second half of the channels, and its log-density under the prior.

    Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP" (2017), section 3.6; with mean and log_std from
    the kept half, Kingma and Dhariwal, "Glow" (2018). The log-density is evaluated and summed in one read of the half
    that is scored; the two halves are views of x.

    Args:
        x: shape (B, C, ...), floating point, any strides.
        mean: of the prior of the factored half; its shape, or one that broadcasts to it. None: 0.
        log_std: logarithm of the prior's standard deviation, likewise. None: 0.

    Returns:
        kept, the first C - C // 2 channels; out, the other ones as they are; and log_prob = log N(out; mean, std),
        shape (B,), float64 where x is, else float32.

    Raises:
        ValueError: for fewer than two channels, and for shapes that do not fit.
        TypeError: for dtypes that are not supported or do not go together, and for tensors on different devices.

    Example:
        >>> import torch, flowkernels as fk
        >>> x = torch.randn(8, 4, 6, 6)
        >>> kept, out, log_prob = fk.split(x)
        >>> kept.shape, out.shape, log_prob.shape
        (torch.Size([8, 2, 6, 6]), torch.Size([8, 2, 6, 6]), torch.Size([8]))
        >>> torch.equal(fk.merge(kept, out), x)
        True
    """
    _check_tensor("x", x, False)
    if x.dim() < 2 or x.shape[1] < 2:
        raise ValueError(f"x must have shape (B, C, ...) with at least two channels; got {tuple(x.shape)}")
    half = x.shape[1] // 2
    kept, out = x.split_with_sizes((x.shape[1] - half, half), 1)  # chunk(2, 1) in less time
    return kept, out, _score(out, mean, log_std)


def log_normal(value: Tensor, mean: Tensor | None = None, log_std: Tensor | None = None) -> Tensor:
    """The log-density of each row of a batch under independent normal distributions: what `split` scores with.

    Args:
        value: shape (B, ...), floating point, any strides.
        mean: value's shape, or one that broadcasts to it. None: 0.
        log_std: logarithm of the standard deviation, likewise. None: 0.

    Returns:
        Shape (B,), float64 where the value is, else float32.

    Raises:
        ValueError: for shapes that do not fit.
        TypeError: for dtypes that are not supported or do not go together, and for tensors on different devices.

    Example:
        >>> import torch, flowkernels as fk
        >>> fk.log_normal(torch.zeros(3, 2))
        tensor([-1.8379, -1.8379, -1.8379])
    """
    _check_tensor("value", value, False)
    return _score(value, mean, log_std)


def _score(value: Tensor, mean: Tensor | None, log_std: Tensor | None) -> Tensor:
    if mean is log_std is None:
        return _split(value, None, None)
    shape = value.shape
    return _split(value, _of_prior("mean", mean, shape), _of_prior("log_std", log_std, shape))


def _of_prior(name: str, parameter: Tensor | None, shape: torch.Size) -> Tensor | None:
    """A parameter of the prior in the shape of what is scored."""
    if parameter is None:
        return None
    _check_tensor(name, parameter, True)
    if parameter.shape == shape:
        return parameter
    try:
        return parameter.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to {tuple(shape)}, the shape of what is scored; got {tuple(parameter.shape)}"
        ) from None


def merge(kept: Tensor, out: Tensor) -> Tensor:
    """Undo `split`: join the two halves, bit for bit.

    Args:
        kept: shape (B, C - C // 2, ...).
        out: shape (B, C // 2, ...).

    Raises:
        ValueError: for shapes that are not those of the halves of one tensor.

    Example:
        >>> import torch, flowkernels as fk
        >>> fk.merge(torch.zeros(2, 2), torch.ones(2, 1)).tolist()
        [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]
    """
    _check_tensor("kept", kept, False)
    _check_tensor("out", out, False)
    fits = kept.dim() == out.dim() >= 2 and kept.shape[0] == out.shape[0] and kept.shape[2:] == out.shape[2:]
    if not fits or kept.shape[1] - out.shape[1] not in (0, 1):
        raise ValueError(f"kept and out must be halves of one tensor; got {tuple(kept.shape)} and {tuple(out.shape)}")
    return torch.cat((kept, out), 1)


def dequantize(x: Tensor, noise: Tensor, *, levels: int = 256, alpha: float = 1e-5) -> tuple[Tensor, Tensor]:
    """Whole numbers and noise to the real line, z = logit of (x + noise) / levels, and its log-determinant.

    With ``q = (x + noise) (1 - alpha) / levels + alpha / 2``, ``z = logit(q)`` in one pass over x as it is stored.
    Theis, van den Oord and Bethge, "A note on the evaluation of generative models" (2016); Dinh, Sohl-Dickstein and
    Bengio, "Density estimation using Real NVP" (2017), section 4.1. For noise from a density r(noise | x),
    log p(z) + log_det - log r has an expectation that is a lower bound on the log-probability of the discrete x.

    Args:
        x: shape (B, ...), holding 0, ..., levels - 1 (not checked), of any dtype; uint8 is read as it is. It has no
            gradient.
        noise: x's shape, floating point, in (0, 1); its gradient is computed.
        levels: how many values x takes, from 2 to 65536.
        alpha: keeps q away from 0 and 1, by alpha / 2 on either side; in [0, 1).

    Returns:
        z of x's shape and noise's dtype; and log_det, log |dz / d noise| summed over each row, shape (B,), float64
        where the noise is, else float32.

    Raises:
        ValueError: for shapes that differ, and for numbers out of range, naming them.
        TypeError: for dtypes that are not supported, and for tensors on different devices.

    Example:
        >>> import torch, flowkernels as fk
        >>> x = torch.randint(256, (4, 1, 8, 8), dtype=torch.uint8)
        >>> z, log_det = fk.dequantize(x, torch.rand(4, 1, 8, 8).clamp(2**-12, 1 - 2**-12))
        >>> torch.equal(fk.quantize(z), x), log_det.shape
        (True, torch.Size([4]))
    """
    _check_tensor("x", x, False)
    _check_tensor("noise", noise, False)
    if x.dtype.is_complex:
        raise TypeError(f"x must hold whole numbers; got {x.dtype}")
    if x.dtype != torch.uint8:
        x = x.detach().to(accumulation_dtype(noise.dtype))
    return _dequantize(noise, x, levels, float(alpha))


def quantize(z: Tensor, *, levels: int = 256, alpha: float = 1e-5) -> Tensor:
    """The whole numbers that `dequantize` made z of, whatever the noise was, in one pass.

    Exact in float32 up to 256 levels for noise in [2^-12, 1 - 2^-12]: closer to 0 or 1, x + noise may round to the
    next number.

    Args:
        z: shape (B, ...), floating point.
        levels, alpha: as for `dequantize`.

    Returns:
        z's shape, between 0 and levels - 1; uint8 for at most 256 levels, else int32. It has no gradient. NaN gives 0.

    Raises:
        ValueError: for numbers out of range, naming them.
        TypeError: for a dtype that is not supported.

    Example:
        >>> import torch, flowkernels as fk
        >>> fk.quantize(torch.tensor([[-100.0, 0.0, 100.0]]))
        tensor([[  0, 128, 255]], dtype=torch.uint8)
    """
    _check_tensor("z", z, False)
    return _quantize(z, levels, float(alpha))


def actnorm(x: Tensor, log_scale: Tensor, shift: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Scale and shift each channel: y = exp(log_scale) x + shift, and its log-determinant, in one pass.

    Kingma and Dhariwal, "Glow" (2018), section 3.1. Backward is one pass too, which also sums the gradients of scale
    and shift over the batch. The compiled module does both on the CPU in float32 and float64, elsewhere torch's batch
    normalisation with fixed statistics, which is this map.

    Args:
        x: shape (B, C, ...), floating point, any strides.
        log_scale: shape (C,).
        shift: shape (C,).
        inverse: undo the map: x is its output, and log_det changes sign.

    Returns:
        y of x's shape and dtype; and log_det = sum of log_scale times the number of pixels, shape (B,), float64 where
        x is, else float32.

    Raises:
        ValueError: for shapes that do not fit, naming them.
        TypeError: for dtypes that are not supported or do not go together, and for tensors on different devices.

    Example:
        >>> import torch, flowkernels as fk
        >>> x = torch.randn(8, 3, 4, 4)
        >>> y, log_det = fk.actnorm(x, torch.full((3,), 0.5), torch.ones(3))
        >>> log_det[0].item(), torch.allclose(y, x * 0.5**0.5 + 1)
        (24.0, False)
        >>> torch.allclose(fk.actnorm(y, torch.full((3,), 0.5), torch.ones(3), inverse=True)[0], x, atol=1e-6)
        True
    """
    for name, value in (("x", x), ("log_scale", log_scale), ("shift", shift)):
        _check_tensor(name, value, False)
        if not value.dtype.is_floating_point:
            raise TypeError(f"{name} must be floating point; got {value.dtype}")
        if value.dtype == torch.float64 and x.dtype != torch.float64:
            raise TypeError(f"{name} has dtype float64 and x has {x.dtype}; cast {name} down or x up")
        if value.device != x.device:
            raise TypeError(f"{name} is on {value.device} and x on {x.device}; they must be on one device")
    _check_inverse(inverse)
    if x.dim() < 2:
        raise ValueError(f"x must have shape (B, C, ...); got {tuple(x.shape)}")
    channels = x.shape[1:2]
    for name, value in (("log_scale", log_scale), ("shift", shift)):
        if value.shape != channels:
            raise ValueError(
                f"{name} must have shape ({x.shape[1]},), one number per channel; got {tuple(value.shape)}"
            )
    return _actnorm(x, log_scale, shift, inverse)
