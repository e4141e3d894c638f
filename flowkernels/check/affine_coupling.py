"""The calls by which affine coupling is checked: every scale map, order, layout, partition and kind of memory."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .. import functional
from ..nn.masks import channel_mask, checkerboard_mask
from ..ops.affine_coupling import AffineForm, reference
from ..ops.affine_coupling.form import BOUNDED, CONSTANTS, LAYOUTS
from .case import Call, Case

OP = "affine_coupling"
TANH = AffineForm("tanh", bound=2.0)
LEARNED = AffineForm("tanh")

# The constants that a map is checked with beside its defaults.
CONSTANTS_TOO = {"sigmoid": {"eps": 1e-3}, "softplus": {"eps": 1e-3, "maximum": 1.25}, "exp_floor": {"eps": 0.1}}


@dataclasses.dataclass(frozen=True)
class Setting:
    """A call of affine coupling but for its numbers."""

    form: AffineForm = TANH
    shape: tuple[int, ...] = (17, 48)
    mask: Tensor | None = None
    passive: int = 0
    paired: bool = False
    learned: bool = False
    inverse: bool = False
    memory: Callable[[Tensor], Tensor] = Tensor.contiguous  # of x and raw


def cases() -> Iterator[Case]:
    """Every case; where elements lie has nothing to do with the direction, so those are in one only."""
    for name, setting in (*_forms(), *_partitions()):
        yield Case(OP, name, functools.partial(_build, setting))
        inverse = dataclasses.replace(setting, inverse=True)
        yield Case(OP, f"{name}, inverse", functools.partial(_build, inverse))
    for name, setting in (*_layouts(), *_memories()):
        yield Case(OP, name, functools.partial(_build, setting))


def _forms() -> Iterator[tuple[str, Setting]]:
    for scale in CONSTANTS:
        form = AffineForm(scale, bound=1.5 if scale in BOUNDED else None)
        yield scale, Setting(form)
        if scale in CONSTANTS_TOO:
            constants = CONSTANTS_TOO[scale]
            yield " ".join((scale, *constants)), Setting(dataclasses.replace(form, **constants))
    for form in (TANH, AffineForm("sigmoid")):
        yield f"{form.scale} reciprocal", Setting(dataclasses.replace(form, reciprocal=True))
        yield f"{form.scale} shift first", Setting(dataclasses.replace(form, order="shift_first"))
        both = dataclasses.replace(form, order="shift_first", reciprocal=True)
        yield f"{form.scale} shift first reciprocal", Setting(both)


def _layouts() -> Iterator[tuple[str, Setting]]:
    for layout in LAYOUTS:
        yield f"layout {layout}", Setting(dataclasses.replace(TANH, layout=layout, prescale=0.7))
    yield "scale and shift apart", Setting(paired=True)


def _partitions() -> Iterator[tuple[str, Setting]]:
    picture = (3, 6, 8, 8)
    yield "first half kept", Setting(passive=24)
    yield "last third kept", Setting(passive=-16)
    yield "picture", Setting(shape=picture)
    yield "picture, half kept", Setting(shape=picture, passive=3)
    yield "picture, checkerboard", Setting(shape=picture, mask=checkerboard_mask(8, 8))
    yield "picture, channel mask", Setting(shape=picture, mask=channel_mask(6, spatial=True))
    yield "learned bound", Setting(LEARNED, learned=True)
    yield "learned bound, picture, half kept", Setting(LEARNED, picture, passive=3, learned=True)
    yield "learned bound, picture, checkerboard", Setting(LEARNED, picture, checkerboard_mask(8, 8), learned=True)


def _memories() -> Iterator[tuple[str, Setting]]:
    yield "odd sizes", Setting(shape=(5, 31))
    yield "two features", Setting(shape=(257, 2))
    yield "long rows", Setting(shape=(2, 20000))
    yield "no rows", Setting(shape=(0, 6))
    yield "columns of a matrix", Setting(memory=_transposed)
    yield "off by one element", Setting(memory=_offset)
    yield "channels last", Setting(shape=(3, 8, 5, 5), passive=4, memory=_channels_last)


def _transposed(values: Tensor) -> Tensor:
    return values.transpose(0, 1).contiguous().transpose(0, 1)


def _offset(values: Tensor) -> Tensor:
    return values.new_zeros(values.numel() + 1)[1:].view(values.shape).copy_(values)


def _channels_last(values: Tensor) -> Tensor:
    return values.to(memory_format=torch.channels_last)


def _build(setting: Setting, x_dtype: torch.dtype, raw_dtype: torch.dtype, device: torch.device) -> Call:
    form, passive, paired = setting.form, setting.passive, setting.paired
    mask = None if setting.mask is None else setting.mask.to(device)
    active = (setting.shape[0], setting.shape[1] - abs(passive), *setting.shape[2:])
    tensors = {
        name: setting.memory(t.to(device, x_dtype if name == "x" else raw_dtype))
        for name, t in _tensors(setting, active).items()
    }
    if setting.learned:
        channels = torch.linspace(0.5, 2.0, active[1], device=device)
        tensors["bound"] = channels.to(reference.accumulation_dtype(x_dtype))

    def fused(x, raw, shift=None, bound=None):
        given = (raw, shift) if paired else raw
        return functional.affine_coupling(
            x, given, form=form, mask=mask, passive=passive or None, bound=bound, inverse=setting.inverse
        )

    def exact(x, raw, shift=None, bound=None):
        return reference.forward(x, raw, shift, mask, bound, form, passive, setting.inverse)

    terms = {"log_det": math.prod(active[1:]), "gradient of bound": math.prod(active) // max(1, active[1])}
    return Call(tensors, fused, exact, terms)


def _tensors(setting: Setting, active: tuple[int, ...]) -> dict[str, Tensor]:
    """Numbers for x, raw and, if they are apart, shift."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(setting.shape, generator=random)
    scale, shift = (torch.randn(active, generator=random) for _ in range(2))
    if setting.form.scale == "given":  # away from 0, of both signs
        scale = scale.sign() * (0.5 + scale.abs().clamp(max=1.5))
    if setting.form.scale == "additive":
        return {"x": x, "raw": shift}
    if setting.paired:
        return {"x": x, "raw": scale, "shift": shift}
    return {"x": x, "raw": reference._join_raw(scale, shift, setting.form)}
