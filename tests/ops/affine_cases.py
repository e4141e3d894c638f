"""Calls of affine coupling that between them reach every branch of every backend."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

import flowkernels as fk
from flowkernels.ops.affine_coupling.form import BOUNDED, CONSTANTS, LAYOUTS

FORMS = [
    *(fk.AffineForm(scale, bound=1.5 if scale in BOUNDED else None) for scale in CONSTANTS),
    fk.AffineForm("sigmoid", eps=1e-3, layout="shift_scale"),
    fk.AffineForm("softplus", eps=1e-3, maximum=1.25, reciprocal=True),
    fk.AffineForm("exp_floor", eps=0.1, order="shift_first"),
    fk.AffineForm("given", order="shift_first", prescale=0.5),
    *(fk.AffineForm("tanh", bound=2.0, layout=layout, prescale=0.7) for layout in LAYOUTS),
    *(
        fk.AffineForm("exp", order=order, reciprocal=r)
        for order in ("scale_first", "shift_first")
        for r in (False, True)
    ),
    *(fk.AffineForm("sigmoid", order=order, reciprocal=True) for order in ("scale_first", "shift_first")),
    *map(fk.AffineForm.normflows, ("exp", "sigmoid", "sigmoid_inv")),
    *map(fk.AffineForm.nflows, ("default", "general", "additive")),
    *(fk.AffineForm.freia(2.0, activation) for activation in ("ATAN", "TANH", "SIGMOID")),
    fk.AffineForm.glow(),
    fk.AffineForm.zuko(),
]

DTYPES = [
    *(
        (x, raw)
        for x in (torch.float32, torch.float16, torch.bfloat16)
        for raw in (torch.float32, torch.float16, torch.bfloat16)
    ),
    (torch.float64, torch.float64),
    (torch.float64, torch.float32),
]


TANH = fk.AffineForm("tanh", bound=2.0)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call: the form, x's shape, and how its elements are divided."""

    form: fk.AffineForm = TANH
    shape: tuple[int, ...] = (5, 7)
    passive: int | None = None
    mask: str | None = None
    paired: bool = False
    learned: bool = False
    inverse: bool = False
    strides: str = "contiguous"

    def __str__(self) -> str:
        set_fields = [f.name for f in dataclasses.fields(self) if getattr(self, f.name) != f.default]
        texts = [str(getattr(self, n)) if n in ("shape", "mask", "strides") else n for n in set_fields if n != "form"]
        return "-".join([self.form.spec.replace(" ", ",") or "exp", *texts]).replace("(", "").replace(")", "")


def active_shape(call: Call) -> tuple[int, ...]:
    """The shape of what a call transforms."""
    return (call.shape[0], call.shape[1] - abs(call.passive or 0), *call.shape[2:])


def raw_shape(call: Call) -> tuple[int, ...]:
    """The shape of raw for a call, each of the two where it is a pair."""
    shape = active_shape(call)
    if call.form.scale == "additive" or call.paired:
        return shape
    if call.form.layout.startswith("trailing"):
        return (*shape, 2)
    return (shape[0], 2 * shape[1], *shape[2:])


def strided(values: Tensor, how: str) -> Tensor:
    """The same values in other memory layouts."""
    if how == "contiguous":
        return values.contiguous()
    if how == "offset":  # one element into a buffer: no 16-byte alignment
        buffer = values.new_zeros(values.numel() + 1)
        return buffer[1:].view(values.shape).copy_(values)
    if how == "slice":  # a window of a larger tensor in every dimension but the batch
        large = values.new_full([n + 3 if d else n for d, n in enumerate(values.shape)], 7.0)
        window = large[tuple(slice(None) if d == 0 else slice(1, 1 + n) for d, n in enumerate(values.shape))]
        return window.copy_(values)
    if how == "transposed":  # batch innermost
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if how == "channels_last":
        return values.contiguous(memory_format=torch.channels_last)
    if how == "expanded":  # one row, read by all
        return values[:1].expand(values.shape)
    raise AssertionError(how)


@dataclasses.dataclass
class Inputs:
    """The tensors of a call, all float64; what else `fk.affine_coupling` takes is in `options`."""

    tensors: dict[str, Tensor]
    options: dict[str, object]

    def run(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`fk.affine_coupling` on tensors of the same names."""
        raw = tensors["raw"] if "shift" not in tensors else (tensors["raw"], tensors["shift"])
        return fk.affine_coupling(tensors["x"], raw, bound=tensors.get("bound"), **self.options)


def mask_of(call: Call) -> Tensor | None:
    event = call.shape[1:]
    if call.mask is None:
        return None
    if call.mask == "channel":
        return fk.nn.channel_mask(event[0], spatial=len(event) > 1)
    if call.mask == "checkerboard":
        return fk.nn.checkerboard_mask(*event[-2:])
    return torch.rand(event) < 0.5


def inputs(call: Call) -> Inputs:
    """Random inputs of a call, in values that every scale map takes."""
    tensors = {"x": torch.randn(call.shape, dtype=torch.float64)}
    tensors["raw"] = 1.5 * torch.randn(raw_shape(call), dtype=torch.float64)
    if call.form.scale == "given":  # away from 0, where the logarithm has no bound
        tensors["raw"] = tensors["raw"] + 0.5 * tensors["raw"].sign()
    if call.paired:
        tensors["shift"] = torch.randn(raw_shape(call), dtype=torch.float64)
    form = call.form
    if call.learned:
        form = dataclasses.replace(form, bound=None)
        tensors["bound"] = 0.5 + torch.rand(active_shape(call)[1], dtype=torch.float64)
    if call.strides != "contiguous":
        for name in ("x", "raw", "shift"):
            if name in tensors and (call.strides != "channels_last" or tensors[name].dim() == 4):
                tensors[name] = strided(tensors[name], call.strides)
    options = {"form": form, "passive": call.passive, "mask": mask_of(call), "inverse": call.inverse}
    return Inputs(tensors, options)


def cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Another dtype in the same memory layout: strides, those of 0 among them, and the offset into the storage."""
    if values.dtype == dtype:
        return values
    storage = torch.empty(0, dtype=values.dtype, device=values.device).set_(values.untyped_storage())
    return storage.to(dtype).as_strided(values.shape, values.stride(), values.storage_offset())


BY_FORM = [
    Call(form=form, shape=shape, inverse=inverse, passive=passive)
    for form in FORMS
    for inverse in (False, True)
    for shape, passive in (((5, 7), 3), ((2, 3, 2, 2), -1))
]

BY_SHAPE = [
    *(Call(shape=(rows, 33)) for rows in (0, 1, 31, 33, 127)),
    *(Call(shape=(3, n), passive=p) for n in (1, 2, 4, 31, 32, 127, 128, 1025) for p in (0, n // 2)),
    *(Call(shape=(2, n), form=fk.AffineForm("softplus", eps=1e-3)) for n in (16384, 20001)),
    Call(shape=(130, 2), passive=1),
    Call(shape=(3, 0)),
    Call(shape=(3, 5), passive=5),
    Call(shape=(3, 5), passive=-5),
    Call(shape=(0, 4, 3, 3), passive=2),
    Call(shape=(3, 4, 0, 2)),
    Call(shape=(2, 6, 5, 3), passive=2),
    Call(shape=(2, 4, 64, 40), passive=-2),
    Call(shape=(2, 3, 2, 2, 2)),
    Call(shape=(2, 2, 2, 3, 2, 2), strides="slice"),
]

BY_DIVISION = [
    dataclasses.replace(call, inverse=inverse)
    for inverse in (False, True)
    for call in (
        Call(shape=(4, 6, 6), mask="dense"),
        Call(shape=(3, 4, 6, 5), mask="checkerboard"),
        Call(shape=(3, 5, 4, 4), mask="channel", strides="channels_last"),
        Call(shape=(4, 1100), mask="channel", form=fk.AffineForm("sigmoid", order="shift_first")),
        Call(shape=(6, 9), mask="channel", learned=True),
        Call(shape=(6, 9), passive=4, learned=True, form=fk.AffineForm("atan_legacy", bound=1.0, order="shift_first")),
        Call(shape=(5, 4, 3, 6), passive=-1, learned=True, form=fk.AffineForm("softclip", bound=1.0)),
        Call(shape=(70, 4, 3, 2), mask="checkerboard", learned=True, form=fk.AffineForm("tanh_scaled", bound=1.0)),
        Call(shape=(5, 4, 3, 2), learned=True, form=fk.AffineForm("atan", bound=1.0), strides="channels_last"),
        Call(shape=(5, 6), learned=True, form=fk.AffineForm("sigmoid_centered", bound=1.0)),
        Call(shape=(5, 6), paired=True),
        Call(shape=(5, 6, 3), paired=True, passive=2, form=fk.AffineForm("given", order="shift_first")),
    )
]

BY_STRIDES = [
    Call(shape=shape, passive=passive, strides=strides, form=form)
    for shape, passive in (((9, 12), 4), ((4, 6, 4, 5), -2))
    for strides in ("offset", "slice", "transposed", "expanded", "channels_last")
    if len(shape) == 4 or strides != "channels_last"
    for form in (
        fk.AffineForm("tanh", bound=2.0),
        fk.AffineForm("exp", layout="interleaved_shift_scale", order="shift_first"),
    )
]

ALL = [*BY_FORM, *BY_SHAPE, *BY_DIVISION, *BY_STRIDES]
SMALL = [call for call in ALL if 0 < math.prod(call.shape) < 60]
