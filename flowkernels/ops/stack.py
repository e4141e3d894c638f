"""What planar and radial flows have in common: K layers over the rows of x, with three parameter tensors.

Parameters are shared by all rows, with shapes (K, D) and (K,), or belong to one row each, with shapes (B, K, D) and
(B, K). Layer 0 is applied first, and undone last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .layout import accumulation_dtype, allocate_like, allocate_log_det
from .native import DTYPES, Launch
from .plans import plans, remember

X_DTYPES = tuple(DTYPES)


def softplus(s: Tensor) -> Tensor:
    """log(1 + e^s) everywhere, without the threshold of torch.nn.functional."""
    return torch.logaddexp(s, torch.zeros_like(s))


def layers(depth: int, inverse: bool) -> Iterator[int]:
    """The layers in the order in which they are applied."""
    return reversed(range(depth)) if inverse else iter(range(depth))


def check(x: Tensor, names: tuple[str, str, str], parameters: tuple[Tensor, Tensor, Tensor]) -> None:
    """Raise TypeError or ValueError for tensors that no backend takes.

    The first parameter gives the depth; those of one dimension less than it have one number per layer.
    """
    if x.dtype not in X_DTYPES:
        raise TypeError(f"x has dtype {x.dtype}; supported are {', '.join(map(str, X_DTYPES))}")
    if x.dim() != 2:
        raise ValueError(f"x must have shape (B, D); got {tuple(x.shape)}")
    needed = accumulation_dtype(x.dtype)
    for name, parameter in zip(names, parameters):
        if parameter.device != x.device:
            raise TypeError(f"{name} is on {parameter.device} and x on {x.device}; they must be on one device")
        if parameter.dtype != needed:
            raise TypeError(f"beside x in {x.dtype} the operator takes {name} in {needed}; got {parameter.dtype}")
    first, (rows, features) = parameters[0], x.shape
    if first.dim() not in (2, 3) or first.shape[-1] != features or (first.dim() == 3 and first.shape[0] != rows):
        raise ValueError(
            f"{names[0]} must have shape ({features},), (K, {features}) or ({rows}, K, {features}) for x of shape"
            f" {tuple(x.shape)}; got {tuple(first.shape)}"
        )


def check_like(name: str, parameter: Tensor, expected: torch.Size) -> None:
    """Raise ValueError where a parameter does not fit the first one."""
    if parameter.shape != expected:
        raise ValueError(f"{name} must have shape {tuple(expected)} here; got {tuple(parameter.shape)}")


def _in_pieces(parameter: Tensor) -> bool:
    """Whether what belongs to a row is not contiguous, as kernels read it; rows may lie anywhere."""
    return not parameter.is_contiguous() and not (parameter.shape[0] > 0 and parameter[0].is_contiguous())


def _common(x: Tensor, parameters: tuple[Tensor, ...], options: dict[str, Any]) -> dict[str, Any]:
    per_example = parameters[0].dim() == 3
    return {
        "x_dtype": DTYPES[x.dtype],
        "rows": x.shape[0],
        "features": x.shape[1],
        "depth": parameters[0].shape[-2],
        "per_example": per_example,
        "parameter_strides": [p.stride(0) if per_example else 0 for p in parameters],
        **options,
    }


def _made(key: tuple, parameters: tuple[Tensor, ...], make: Callable[[tuple[Tensor, ...]], Any]) -> tuple[Any, bool]:
    """The plan that `make` makes, and whether parameters have to be copied for it."""
    copied = any(map(_in_pieces, parameters))
    return remember(key, (make(_copies(parameters) if copied else parameters), copied))


def _copies(parameters: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(p.contiguous() for p in parameters)


def forward(
    name: str,
    module: ModuleType,
    launch: Launch,
    check: Callable[..., None],
    x: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """`reference.forward` by a compiled module, or what stands in its place, whose plans are `<name>Forward`."""
    first, second, third = parameters
    # Half of the time of a small call is Python's: the key is flat.
    key = (
        name, module, *options.values(), x.shape, x.stride(), x.dtype, x.device, first.shape, first.stride(),
        first.dtype, first.device, second.shape, second.stride(), second.dtype, second.device, third.shape,
        third.stride(), third.dtype, third.device,
    )  # fmt: skip
    plan, copied = plans.get(key) or (None, False)
    if plan is None:
        check(x, *parameters, **options)
        make = functools.partial(_forward_plan, getattr(module, name + "Forward"), x, options)
        plan, copied = _made(key, parameters, make)
    if copied:
        first, second, third = _copies(parameters)
    y, log_det = allocate_like(x), allocate_log_det(x)
    launch(plan, x.device, x, first, second, third, y, log_det)
    return y, log_det


def _forward_plan(plan: Callable[..., Any], x: Tensor, options: dict[str, Any], parameters: tuple[Tensor, ...]) -> Any:
    return plan(x_strides=list(x.stride()), **_common(x, parameters, options))


def backward(
    name: str,
    module: ModuleType,
    launch: Launch,
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    parameters: tuple[Tensor, Tensor, Tensor],
    options: dict[str, Any],
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """`reference.backward` by a compiled module, or what stands in its place, whose plans are `<name>Backward`."""
    first, second, third = parameters
    key = (
        name, module, *options.values(), wanted, grad_y is not None and grad_y.stride(),
        grad_log_det is not None and grad_log_det.stride(), saved.shape, saved.stride(), saved.dtype, saved.device,
        first.shape, first.stride(), second.shape, second.stride(), third.stride(),
    )  # fmt: skip
    plan, copied = plans.get(key) or (None, False)
    if plan is None:
        given = (grad_y, grad_log_det, saved, options, wanted)
        make = functools.partial(_backward_plan, getattr(module, name + "Backward"), *given)
        plan, copied = _made(key, parameters, make)
    if copied:
        first, second, third = _copies(parameters)
    grad_x = allocate_like(saved) if wanted[0] else None
    grads: tuple[Tensor | None, ...] = (None, None, None)
    if wanted[1] or wanted[2] or wanted[3]:
        grads = tuple([torch.empty_like(p, memory_format=torch.contiguous_format) for p in parameters])
    launch(plan, saved.device, grad_y, grad_log_det, saved, first, second, third, grad_x, *grads)
    return grad_x, *[g if w else None for g, w in zip(grads, wanted[1:])]


def _backward_plan(
    plan: Callable[..., Any],
    grad_y: Tensor | None,
    grad_log_det: Tensor | None,
    saved: Tensor,
    options: dict[str, Any],
    wanted: tuple[bool, ...],
    parameters: tuple[Tensor, ...],
) -> Any:
    return plan(
        saved_strides=list(saved.stride()),
        grad_y_strides=[0, 0] if grad_y is None else list(grad_y.stride()),
        grad_log_det_stride=0 if grad_log_det is None else grad_log_det.stride(0),
        of_parameters=any(wanted[1:]),
        **_common(saved, parameters, options),
    )
