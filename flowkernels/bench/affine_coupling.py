"""The workloads of affine coupling."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from .. import functional
from ..nn.masks import checkerboard_mask
from ..ops.affine_coupling import AffineForm, cost
from ..ops.cost import Cost
from . import natural, peers
from .workloads import COMPILE, DEFAULT, EAGER, FORWARD, FULL, INVERSE, QUICK, TRAIN, Pair, Problem, Workload

OP = "affine_coupling"
ROWS = ((64, 2), (512, 32), (4096, 64), (128, 3072), (4096, 1024), (65536, 256))
LAUNCH_BOUND = (64, 2)
MAPS = {
    "exp": (AffineForm(), Pair(natural.exp, natural.inverse_exp)),
    "tanh": (AffineForm("tanh", bound=natural.BOUND), Pair(natural.tanh, natural.inverse_tanh)),
}
TANH_FORM, TANH = MAPS["tanh"]
TANH_HALF = Pair(natural.tanh_half, natural.inverse_tanh_half)

# Geometric means over the workloads marked as targets, on a CPU: what must be, and what we are out for.
TARGETS = {
    (OP, FORWARD, EAGER): (4.2, 7.0),
    (OP, FORWARD, COMPILE): (2.4, 4.0),
    (OP, TRAIN, EAGER): (3.0, 6.0),
    (OP, TRAIN, COMPILE): (1.9, 3.0),
}

# What a run without --full measures quickly, and what it compiles: small and large, both maps.
IN_QUICK = {((64, 2), "exp"), ((512, 32), "tanh"), ((4096, 64), "exp"), ((4096, 64), "tanh"), ((128, 3072), "tanh")}
COMPILED = {((64, 2), "exp"), ((512, 32), "tanh"), ((4096, 64), "exp"), ((128, 3072), "tanh"), ((4096, 1024), "exp")}

# The form of each library's own layer, the same in natural code, and the layer.
LIBRARIES: dict[str, tuple[str, AffineForm, Pair, Callable]] = {
    "normflows": (
        "sigmoid",
        AffineForm.normflows("sigmoid"),
        Pair(natural.interleaved_sigmoid_half, natural.inverse_interleaved_sigmoid_half),
        peers.normflows_sigmoid,
    ),
    "nflows": (
        "sigmoid",
        AffineForm.nflows(),
        Pair(natural.sigmoid_floor_half, natural.inverse_sigmoid_floor_half),
        peers.nflows_sigmoid,
    ),
    "FrEIA": (
        "atan",
        AffineForm.freia(clamp=natural.BOUND),
        Pair(natural.atan_half, natural.inverse_atan_half),
        peers.freia_atan,
    ),
    "zuko": (
        "softclip",
        AffineForm.zuko(),
        Pair(natural.softclip_half, natural.inverse_softclip_half),
        peers.zuko_softclip,
    ),
    "flowjax": (
        "softplus",
        AffineForm("softplus", layout="trailing_shift_scale"),
        Pair(natural.softplus_half, natural.inverse_softplus_half),
        peers.flowjax_softplus,
    ),
}


def _name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _cost(x: Tensor, raw: Tensor, form: AffineForm, mask: Tensor | None, passive: int, mode: str) -> Cost:
    inverse = mode == INVERSE
    total = cost.forward(x, raw, None, mask, None, form, passive, inverse)
    if mode == TRAIN:
        log_det = x.new_empty(x.shape[:1])
        total += cost.backward(x, log_det, x, raw, None, mask, None, form, passive, inverse)
    return total


def _problem(
    device: torch.device,
    shape: tuple[int, ...],
    form: AffineForm,
    pair: Pair,
    passive: int = 0,
    mask: Tensor | None = None,
    layers: Mapping[str, Callable[[Tensor, Tensor], object]] | None = None,
) -> Problem:
    random = torch.Generator().manual_seed(0)
    active = (shape[0], shape[1] - passive, *shape[2:])
    raw_shape = (*active, 2) if form.layout.startswith("trailing") else (active[0], 2 * active[1], *active[2:])
    x, raw = (torch.randn(s, generator=random).to(device) for s in (shape, raw_shape))
    chosen = {"form": form, "mask": mask, "passive": passive or None}
    ours = Pair(
        lambda x, raw: functional.affine_coupling(x, raw, **chosen),
        lambda y, raw: functional.affine_coupling(y, raw, **chosen, inverse=True),
    )
    terms = math.prod(active[1:])
    loaders = {name: functools.partial(layer, x, raw) for name, layer in (layers or {}).items()}
    return Problem(
        (x, raw), pair, ours, loaders, functools.partial(_cost, x, raw, form, mask, passive), (1, terms, 1, 1)
    )


def _checkerboard(device: torch.device, shape: tuple[int, ...]) -> Problem:
    mask = checkerboard_mask(*shape[2:]).to(device)
    return _problem(device, shape, TANH_FORM, Pair(*natural.tanh_masked((~mask).float())), mask=mask)


def _rows(shape: tuple[int, int], scale: str) -> Workload:
    form, pair = MAPS[scale]
    level = QUICK if (shape, scale) in IN_QUICK else DEFAULT
    return Workload(
        OP,
        f"{_name(shape)} {scale}",
        functools.partial(_problem, shape=shape, form=form, pair=pair),
        level,
        compiled=DEFAULT if (shape, scale) in COMPILED else FULL,
        target=shape != LAUNCH_BOUND,
    )


def _library(name: str, shape: tuple[int, int], level: int) -> Workload:
    scale, form, pair, layer = LIBRARIES[name]
    half = shape[1] // 2
    build = functools.partial(_problem, shape=shape, form=form, pair=pair, passive=half, layers={name: layer})
    return Workload(OP, f"{_name(shape)} half, {name} {scale}", build, level)


def _point(axis: str, size: int) -> Workload:
    shape = (size, 64) if axis == "batch" else (512, size)
    build = functools.partial(_problem, shape=shape, form=TANH_FORM, pair=TANH)
    return Workload(OP, f"{_name(shape)} tanh, {axis} curve", build, FULL, axis=axis, size=size, modes=(FORWARD, TRAIN))


def workloads() -> Iterator[Workload]:
    """Rows of vectors, pictures, the layers of other libraries, and the scaling curves."""
    for shape in ROWS:
        for scale in MAPS:
            yield _rows(shape, scale)
    picture = (64, 12, 16, 16)
    halves = functools.partial(_problem, shape=picture, form=TANH_FORM, pair=TANH_HALF, passive=6)
    yield Workload(OP, f"{_name(picture)} half, tanh", halves, QUICK, compiled=DEFAULT, target=True)
    yield Workload(OP, f"{_name(picture)} checkerboard, tanh", functools.partial(_checkerboard, shape=picture))
    for name in LIBRARIES:
        yield _library(name, (4096, 64), DEFAULT)
        yield _library(name, (512, 32), FULL)
    for exponent in range(6, 17, 2):
        yield _point("batch", 2**exponent)
    for exponent in range(1, 14, 2):
        yield _point("dimension", 2**exponent)
