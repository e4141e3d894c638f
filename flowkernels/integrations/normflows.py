"""normflows (https://github.com/VincentStimper/normalizing-flows). Its `forward` maps latent to data."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from normflows import core, flows, nets
from normflows.flows.affine.coupling import AffineConstFlow as _AffineConstFlow
from normflows.flows.neural_spline import autoregressive as _autoregressive
from normflows.flows.neural_spline import coupling as _couplings
from normflows.nets import resnet
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import actnorm, affine_coupling, planar, radial, squeeze, unsqueeze
from ..nn.chain import walk
from ..nn.conv1x1 import pointwise
from ..ops import coupling_chain, perceptron
from ..ops.affine_coupling import AffineForm
from ..ops.squeeze import moves_lines
from . import nsf
from .core import Given, family, network, plain, register, takes

family(flows.Flow)

_ADDITIVE = AffineForm("additive")
_FORMS = {name: AffineForm.normflows(name) for name in ("exp", "sigmoid", "sigmoid_inv")}


def _form(coupling: Any) -> AffineForm | None:
    return _FORMS.get(coupling.scale_map) if coupling.scale else _ADDITIVE


def _fits(raw: Any, z: Tensor, channels: int, form: AffineForm) -> bool:
    """Whether the op takes what the conditioner returned; the library also broadcasts and promotes."""
    width = channels if form is _ADDITIVE else 2 * channels
    return takes(z, raw) and raw.shape == (z.shape[0], width, *z.shape[2:])


@register(nets.MLP, runs="a perceptron in one pass", note="on the CPU, in float32; linear and leaky layers alone")
class MLP(nets.MLP):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return None if perceptron.read(module.net) else ""  # a network is no layer of a flow: nothing to report

    def forward(self, x):
        y = perceptron.run(self.net, x)
        return super().forward(x) if y is None else y


@register(
    nets.ConvNet2d,
    runs="its convolutions with channels last",
    note="on the CPU, in float32, from 2 channels and 8x8 pixels on; convolutions and leaky layers alone",
)
class ConvNet2d(nets.ConvNet2d):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return None if all(type(part) in (nn.Conv2d, nn.LeakyReLU) for part in module.net) else ""

    def forward(self, x):
        if not _gains_from_channels_last(x) or type(self.net) is not nn.Sequential or not plain(self.net):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last)
        for layer in self.net:
            x = _convolve(layer, x)
        return x.contiguous()


def _convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer makes of x with channels last, where a convolution of single pixels is a product of matrices."""
    if type(layer) is not nn.Conv2d or layer.kernel_size != (1, 1) or not plain(layer):
        return layer(x)  # type: ignore[no-any-return]
    if (layer.stride, layer.padding, layer.groups) != ((1, 1), (0, 0), 1):
        return layer(x)  # type: ignore[no-any-return]
    return F.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)


def _gains_from_channels_last(x: Any) -> bool:
    """Whether x is a stack of images by channels that torch's convolutions take longer for than for the other layout.

    Below 64 pixels, and with many units, they were slower (4x4 pixels and 512 units: 0.88 times as fast).
    """
    if not takes(x) or x.dim() != 4 or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    _, channels, height, width = x.shape
    by_channels = x.stride(1) >= x.stride(2) >= x.stride(3)
    return by_channels and channels > 1 and height * width >= 64 and not torch.is_autocast_enabled("cpu")


@register(
    nets.ResidualNet,
    runs="a perceptron in one pass",
    note="on the CPU, in float32, without context, dropout and batch normalisation; relu and leaky_relu",
)
class ResidualNet(nets.ResidualNet):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return nsf.refuse_residual(module, resnet)

    def forward(self, inputs, context=None):
        if self.preprocessing is None:
            return nsf.residual(self, inputs, context, resnet)
        return nsf.residual(Given(self, preprocessing=None), self.preprocessing(inputs), context, resnet)


@register(flows.AffineCoupling, runs="fk.affine_coupling", note="every scale map; the additive one is the library's")
class AffineCoupling(flows.AffineCoupling):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return None if _form(module) else f"unknown scale map {module.scale_map!r}"

    def forward(self, z):
        return self._couple(z, flows.AffineCoupling.forward, False)

    def inverse(self, z):
        return self._couple(z, flows.AffineCoupling.inverse, True)

    def _couple(self, z, original, inverse):
        form = _form(self)
        if form is None or form is _ADDITIVE or len(z) != 2 or not takes(*z):
            return original(self, z)
        kept, x = z
        raw = network(self.param_map, kept)
        if not _fits(raw, x, x.shape[1], form):
            return original(Given(self, param_map=lambda _: raw), z)
        y, log_det = affine_coupling(x, raw, form=form, inverse=inverse)
        return [kept, y], log_det


@register(
    flows.AffineCouplingBlock, runs="fk.affine_coupling", note="by channels: no split, no merge; else: its parts do"
)
class AffineCouplingBlock(flows.AffineCouplingBlock):
    def forward(self, z):
        return self._couple(z, flows.AffineCouplingBlock.forward, False)

    def inverse(self, z):
        return self._couple(z, flows.AffineCouplingBlock.inverse, True)

    def _couple(self, z, original, inverse):
        parts = tuple(self.flows)
        kept = _passive(parts, z)
        return _couple_channels(parts, z, kept, inverse) if kept else original(self, z)


def _couple_channels(parts: Sequence[Any], z: Tensor, kept: int, inverse: bool) -> tuple[Tensor, Tensor]:
    """A block that keeps the first, or with `kept` < 0 the last, channels of z."""
    form = _form(parts[1])
    raw = network(parts[1].param_map, z[:, :kept] if kept > 0 else z[:, kept:])
    if _fits(raw, z, z.shape[1] - abs(kept), form):
        return affine_coupling(z, raw, form=form, passive=kept, inverse=inverse)
    given = Given(parts[1], param_map=lambda _: raw)
    method = flows.AffineCoupling.inverse if inverse else flows.AffineCoupling.forward
    first, second = z.split((kept, z.shape[1] - kept) if kept > 0 else (z.shape[1] + kept, -kept), 1)
    (one, other), log_det = method(given, [first, second] if kept > 0 else [second, first])
    return torch.cat([one, other] if kept > 0 else [other, one], 1), log_det


def _passive(parts: tuple[Any, ...], z: Any) -> int:
    """How many channels a block keeps, as `passive` has it; 0 where its parts have to do the work."""
    if [type(part) for part in parts] != [Split, AffineCoupling, Merge] or not all(map(plain, parts)):
        return 0
    mode = parts[0].mode
    if mode != parts[2].mode or _form(parts[1]) is None or not takes(z) or z.shape[1] < 2:
        return 0
    return {"channel": (z.shape[1] + 1) // 2, "channel_inv": -(z.shape[1] // 2)}.get(mode, 0)


def _odd_rows(z: Tensor, mode: str) -> Tensor:
    """Of each row along the last axis, whether a checkerboard's first part has its even places."""
    parity = torch.zeros((), dtype=torch.int64, device=z.device)
    for size in z.shape[1:-1]:
        parity = parity[..., None] + torch.arange(size, device=z.device)
    return (parity[..., None] + ("inv" in mode)) % 2 == 1


def _split(module: Any, z: Tensor, original: Callable) -> Any:
    if "checkerboard" not in module.mode or not takes(z) or z.shape[-1] % 2:
        return original(module, z)
    odd, first, second = _odd_rows(z, module.mode), z[..., 0::2], z[..., 1::2]
    return [torch.where(odd, first, second), torch.where(odd, second, first)], 0


def _merge(module: Any, z: Any, original: Callable) -> Any:
    if "checkerboard" not in module.mode or len(z) != 2 or not takes(*z) or z[0].shape != z[1].shape:
        return original(module, z)
    odd = _odd_rows(z[0], module.mode)
    return torch.stack((torch.where(odd, *z), torch.where(odd, z[1], z[0])), -1).flatten(-2), 0


@register(flows.Split, runs="torch.where", note="checkerboards; by channels: views already")
class Split(flows.Split):
    def forward(self, z):
        return _split(self, z, flows.Split.forward)

    def inverse(self, z):
        return _merge(self, z, flows.Split.inverse)


@register(flows.Merge, runs="torch.where", note="checkerboards; by channels: one copy already")
class Merge(flows.Merge):
    def forward(self, z):
        return _merge(self, z, flows.Merge.forward)

    def inverse(self, z):
        return _split(self, z, flows.Merge.inverse)


@register(flows.MaskedAffineFlow, runs="fk.affine_coupling", note="masks of zeros and ones")
class MaskedAffineFlow(flows.MaskedAffineFlow):
    @staticmethod
    def refuse(module: Any) -> str | None:
        if not bool(((module.b == 0) | (module.b == 1)).all()):
            return "its mask holds other numbers than 0 and 1"
        return "it has neither scale nor shift" if module.s is module.t is torch.zeros_like else None

    def forward(self, z):
        return self._couple(z, flows.MaskedAffineFlow.forward, False)

    def inverse(self, z):
        return self._couple(z, flows.MaskedAffineFlow.inverse, True)

    def _couple(self, z, original, inverse):
        b = self.b
        if not takes(z, b) or z.shape[1:] != b.shape[1:]:
            return original(self, z)
        masked = b * z
        scale, shift = network(self.s, masked), network(self.t, masked)
        if not takes(z, scale, shift) or not z.shape == scale.shape == shift.shape:
            return original(Given(self, s=lambda _: scale, t=lambda _: shift), z)
        # Interpolation from 0 with a weight of 0 or 1 is exact, and NaN where its end is not finite: as the library
        # has it, in one call each.
        zero, active = b.new_zeros(()), 1 - b
        if self.s is torch.zeros_like:
            return affine_coupling(z, torch.lerp(zero, shift, active), form=_ADDITIVE, inverse=inverse)
        raw = torch.lerp(zero, scale, active), torch.lerp(zero, shift, active)
        return affine_coupling(z, raw, inverse=inverse)


def _activation(module: Any) -> tuple[str, float] | None:
    """A planar layer's activation and slope as `planar` has them."""
    if module.act == "tanh" and module.h is torch.tanh:
        return "tanh", 0.2
    if module.act == "leaky_relu" and type(module.h) is nn.LeakyReLU and 0 <= module.h.negative_slope <= 1:
        return "leaky_relu", module.h.negative_slope
    return None


@register(flows.Planar, runs="fk.planar", note="tanh and leaky_relu; the inverse is the library's, of leaky_relu")
class Planar(flows.Planar):
    @staticmethod
    def refuse(module: Any) -> str | None:
        if _activation(module) is None:
            return f"unknown activation {module.act!r}"
        return None if _has(module, "u", "w", "b") else "parameters of other shapes than the library's own"

    def forward(self, z):
        return _planar((self,), z, False) or super().forward(z)

    def inverse(self, z):
        return _planar((self,), z, True) or super().inverse(z)


@register(flows.Radial, runs="fk.radial", note="the library has no inverse")
class Radial(flows.Radial):
    @staticmethod
    def refuse(module: Any) -> str | None:
        if _has(module, "z_0", "alpha", "beta") and int(module.d) == module.z_0.numel():
            return None
        return "parameters of other shapes than the library's own"

    def forward(self, z):
        return _radial((self,), z, False) or super().forward(z)


def _has(module: Any, *names: str) -> bool:
    """Whether a layer has parameters of these names, (1, ...) each, as the library makes them."""
    return all(t is not None and t.shape[:1] == (1,) for t in map(module._parameters.get, names))


def _stacked(layers: Sequence[Any], z: Any, vectors: Sequence[str], numbers: Sequence[str]) -> list[Tensor] | None:
    """The parameters of layers, vectors of z's features as (K, features) and numbers as (K,), if that is what they are.

    torch looks whether they are of one shape: to ask for 240 shapes here would take as long as the pass.
    """
    parameters = [layer._parameters for layer in layers]
    try:
        of_vectors, of_numbers = (
            [torch.stack([own[name] for own in parameters]) for name in names]  # type: ignore[misc]
            for names in (vectors, numbers)
        )
    except (RuntimeError, TypeError, KeyError):  # of several shapes, None, or missing
        return None
    if not takes(z, *of_vectors, *of_numbers):
        return None
    depth = len(layers)
    if any(t.shape != (depth, 1, *z.shape[1:]) for t in of_vectors) or any(t.shape != (depth, 1) for t in of_numbers):
        return None
    return [t.view(depth, -1) for t in of_vectors] + [t.view(depth) for t in of_numbers]


def _planar(layers: Sequence[nn.Module], z: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """Planar layers of one activation in one pass; None where the op does not take them."""
    activation = _activation(layers[0])
    if activation is None or (inverse and activation[0] == "tanh"):
        return None
    parameters = _stacked(layers, z, "uw", "b")
    if parameters is None:
        return None
    y, log_det = planar(
        z.flatten(1), *parameters, activation=activation[0], negative_slope=activation[1], inverse=inverse
    )
    if activation[0] == "leaky_relu" and not inverse:
        log_det = log_det.to(torch.get_default_dtype())  # the library's slopes have it, whatever z has
    return y.view(z.shape), log_det


def _radial(layers: Sequence[nn.Module], z: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """Radial layers in one pass; None where the op does not take them."""
    parameters = None if inverse else _stacked(layers, z, ("z_0",), ("alpha", "beta"))
    if parameters is None:
        return None
    center, alpha, beta = parameters
    y, log_det = radial(z.flatten(1), center, alpha.abs(), beta)
    return y.view(z.shape), log_det


def _swapping(layers: Sequence[Any], z: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """Coupling blocks, and swaps of halves between them that move nothing: what the next block keeps is the other half.

    None where a block or a swap does not go by halves.
    """
    if not takes(z) or z.shape[1] % 2:
        return None
    parts = [tuple(layer.flows) if type(layer) is AffineCouplingBlock else () for layer in layers]
    kept = [_passive(part, z) if part else int(layer.num_channels == z.shape[1]) for layer, part in zip(layers, parts)]
    if not (any(parts) and all(kept)):
        return None
    sign, couplings = 1, []
    for part, half in reversed([*zip(parts, kept)]) if inverse else zip(parts, kept):
        if part:
            couplings.append((part, sign * half))
        else:
            sign = -sign
    z, log_det = _chain(couplings, z, inverse) or walk(
        [functools.partial(_couple_channels, part, kept=half, inverse=inverse) for part, half in couplings], z
    )
    return z if sign > 0 else torch.roll(z, z.shape[1] // 2, 1), log_det


def _chain(couplings: Sequence[tuple[Sequence[Any], int]], z: Tensor, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """Coupling blocks, with what they keep, as one node of autograd's graph; None where the op does not take them."""
    if not perceptron.takes(z):
        return None
    steps = []
    for parts, kept in couplings:
        net = parts[1].param_map
        found = perceptron.read(net.net if type(net) is MLP and plain(net) else net)
        if found is None:
            return None
        steps.append(coupling_chain.Step(_form(parts[1]), kept, *found))
    return coupling_chain.run(z, steps, inverse)


class _Run:
    """Consecutive layers of one kind, as one: a layer to the methods that walk over a model's flows.

    Args:
        kind: what maps all the layers, given their input and the direction, or returns None where it cannot.
    """

    def __init__(self, kind: Callable, layers: Sequence[Any]) -> None:
        self.kind, self.layers = kind, layers

    def __call__(self, z):
        return self.kind(self.layers, z, False) or walk(self.layers, z)

    def inverse(self, z):
        return self.kind(self.layers, z, True) or walk([layer.inverse for layer in reversed(self.layers)], z)


def _kind(layer: nn.Module) -> Any:
    """What maps a run of such layers, and what they have to have in common; None for a layer that joins no run."""
    if not plain(layer):
        return None
    if type(layer) is Planar:
        return _planar, _activation(layer)
    if type(layer) is AffineCouplingBlock or (type(layer) is Permute and layer.mode == "swap"):
        return _swapping, None
    if type(layer) is GlowBlock and len(layer.flows) == 3:
        return _glow, getattr(layer.flows[1], "use_lu", None)
    return (_radial, None) if type(layer) is Radial else None


def _runs(layers: Iterable[nn.Module], apart: Callable | None = None) -> list[Any]:
    """The layers, with runs of one kind joined, but for those that `apart` would map."""
    joined: list[Any] = []
    for kind, group in itertools.groupby(layers, _kind):
        members = list(group)
        joins = kind is not None and kind[0] is not apart and len(members) > 1
        joined += [_Run(kind[0], members)] if joins else members
    return joined


def _no_runs(module: Any) -> str | None:
    """'' where a model has no run of layers: nothing to do, and nothing to say."""
    own = type(module) in (core.NormalizingFlow, core.ClassCondFlow, core.NormalizingFlowVAE, core.MultiscaleFlow)
    of_levels = isinstance(module, core.MultiscaleFlow)
    if of_levels and not own:
        return ""
    levels, swaps = (module.flows, False) if of_levels else ((module.flows,), own)
    for a, b in itertools.chain.from_iterable(map(itertools.pairwise, levels)):
        if any(isinstance(a, kind) and isinstance(b, kind) for kind in (flows.Planar, flows.Radial)):
            return None
        # Of a derived model these are faster each by itself: it is no news that they do not join.
        if own and isinstance(a, flows.GlowBlock) and isinstance(b, flows.GlowBlock):
            return None
        if swaps and _by_halves(a) and _by_halves(b) and any(isinstance(c, flows.AffineCouplingBlock) for c in (a, b)):
            return None
    return ""


def _by_halves(layer: Any) -> bool:
    """Whether a layer couples or swaps halves of the channels."""
    if isinstance(layer, flows.AffineCouplingBlock):
        return getattr(layer.flows[0], "mode", None) in ("channel", "channel_inv")
    return isinstance(layer, flows.Permute) and layer.mode == "swap"


def _walking(library: type, name: str) -> Callable:
    """A method that walks over `self.flows`, the library's own, shown runs in the place of their layers."""
    original, of_levels = getattr(library, name), issubclass(library, core.MultiscaleFlow)

    @functools.wraps(original)
    def method(self, *args, **kwargs):
        # There the first log-determinant decides the sum's dtype, and that of a swap may be another than a coupling's.
        joined = [_runs(level, apart=_swapping) for level in self.flows] if of_levels else _runs(self.flows)
        return original(Given(self, flows=joined), *args, **kwargs)

    return method


@register(flows.Permute, runs="torch.roll", note="swap; shuffle: one copy already")
class Permute(flows.Permute):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return None if module.mode == "swap" else ""  # a shuffle is one copy already

    def forward(self, z, context=None):
        return _rolled(self, z, self.num_channels // 2) or super().forward(z, context)

    def inverse(self, z, context=None):
        return _rolled(self, z, (self.num_channels + 1) // 2) or super().inverse(z, context)


def _rolled(module: Any, z: Any, first: int) -> tuple[Tensor, Tensor] | None:
    """z with its first channels behind the others: one node of autograd's graph instead of five."""
    if module.mode != "swap" or not takes(z) or z.shape[1] != module.num_channels:
        return None
    return torch.roll(z, -first, 1), torch.zeros(len(z), device=z.device)


_JOINED = (
    "planar, radial: one pass; couplings by halves and swaps: nothing is moved between; GlowBlocks: their matrices are"
    " made together"
)


@register(core.NormalizingFlow, runs="a run of layers as one", note=_JOINED)
class NormalizingFlow(core.NormalizingFlow):
    refuse = staticmethod(_no_runs)


@register(core.ClassCondFlow, runs="a run of layers as one", note=_JOINED)
class ClassCondFlow(core.ClassCondFlow):
    refuse = staticmethod(_no_runs)


@register(core.NormalizingFlowVAE, runs="a run of layers as one", note=_JOINED)
class NormalizingFlowVAE(core.NormalizingFlowVAE):
    refuse = staticmethod(_no_runs)


@register(core.MultiscaleFlow, runs="a run of layers as one", note="as in the others, but for couplings and swaps")
class MultiscaleFlow(core.MultiscaleFlow):
    refuse = staticmethod(_no_runs)


def _is_channelwise(module: Any, z: Any) -> bool:
    """Whether scale and shift have one number per channel of z."""
    s, t = module.s, module.t
    return (
        takes(z, s, t) and s.shape == t.shape and s.shape[:2] == (1, z.shape[1]) and s.dim() == z.dim()
        and s.numel() == z.shape[1]
    )  # fmt: skip


def _affine(module: Any, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    y, _ = actnorm(z, module.s.flatten(), module.t.flatten(), inverse=inverse)
    pixels = math.prod(z.shape[2:])
    return y, (-pixels if inverse else pixels) * module.s.sum()


@register(_AffineConstFlow, runs="fk.actnorm", note="one scale and shift per channel")
class AffineConstFlow(_AffineConstFlow):
    def forward(self, z):
        return _affine(self, z, False) if _is_channelwise(self, z) else super().forward(z)

    def inverse(self, z):
        return _affine(self, z, True) if _is_channelwise(self, z) else super().inverse(z)


@register(flows.Squeeze, runs="fk.squeeze", note="on the CPU, from 4096 elements on")
class Squeeze(flows.Squeeze):
    def forward(self, z):
        return (unsqueeze(z), 0) if moves_lines(z, True) else super().forward(z)

    def inverse(self, z):
        return (squeeze(z), 0) if moves_lines(z, False) else super().inverse(z)


@register(flows.ActNorm, runs="fk.actnorm", note="one scale and shift per channel; initialised by the library")
class ActNorm(flows.ActNorm):
    def forward(self, z):
        ready = _is_channelwise(self, z) and bool(self.data_dep_init_done > 0)
        return _affine(self, z, False) if ready else super().forward(z)

    def inverse(self, z):
        ready = _is_channelwise(self, z) and bool(self.data_dep_init_done)
        return _affine(self, z, True) if ready else super().inverse(z)


@register(
    flows.Invertible1x1Conv,
    runs="a product for each image",
    note="on the CPU; in a GlowBlock it also carries the normalisation",
)
class Invertible1x1Conv(flows.Invertible1x1Conv):
    def _assemble_W(self, inverse=False):
        return _mixing((self,), inverse)[0][0]

    def forward(self, z):
        return _mixed(self, z, True) if _is_mixed(self, z) else super().forward(z)

    def inverse(self, z):
        return _mixed(self, z, False) if _is_mixed(self, z) else super().inverse(z)


def _is_mixed(conv: Any, z: Any) -> bool:
    """Whether a product of matrices can be the convolution."""
    given = takes(z, conv.L if conv.use_lu else conv.W) and z.dim() == 4 and z.shape[1] == conv.num_channels
    device = z.device.type
    return given and not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device))


def _mixed(conv: Any, z: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    (weight,), per_pixel = _mixing((conv,), inverse)
    return pointwise(z, weight), per_pixel * (z.shape[2] * z.shape[3])


@register(flows.GlowBlock, runs="convolution and normalisation in one pass", note="its coupling runs as a block does")
class GlowBlock(flows.GlowBlock):
    def forward(self, z):
        return _glow((self,), z, False) or super().forward(z)

    def inverse(self, z):
        return _glow((self,), z, True) or super().inverse(z)


def _glow(blocks: Sequence[Any], z: Any, inverse: bool) -> tuple[Tensor, Tensor] | None:
    """Blocks whose convolutions carry their normalisations; None where they cannot.

    The matrices of all are made together: each is tens of calls on a few numbers.
    """
    if not all(_is_fused(block, z) for block in blocks):
        return None
    couplings, convs, norms = zip(*(block.flows for block in blocks))
    weight, log_det = _mixing(convs, not inverse)
    scale, shift = (torch.cat([getattr(norm, name) for norm in norms]).flatten(1) for name in "st")
    if inverse:
        weight = weight * torch.exp(-scale)[:, None]
        shift = -(weight @ shift[:, :, None])[:, :, 0]
    else:
        weight = scale.exp()[:, :, None] * weight
    total = (log_det - scale.sum() if inverse else log_det + scale.sum()) * (z.shape[2] * z.shape[3])
    steps = [*zip(couplings, weight.unbind(), shift.unbind())]
    for coupling, matrix, bias in reversed(steps) if inverse else steps:
        if inverse:
            z, log_det = coupling.inverse(pointwise(z, matrix, bias))
        else:
            z, log_det = coupling(z)
            z = pointwise(z, matrix, bias)
        total = total + log_det
    return z, total


def _is_fused(block: Any, z: Any) -> bool:
    """Whether a block's convolution can carry its normalisation; its first call initialises, by the library's code."""
    if len(block.flows) != 3 or not takes(z):
        return False
    _, conv, norm = block.flows
    return (
        type(conv) is Invertible1x1Conv and type(norm) is ActNorm and plain(conv) and plain(norm)
        and _is_mixed(conv, z) and _is_channelwise(norm, z) and bool(norm.data_dep_init_done > 0)
    )  # fmt: skip


def _mixing(convs: Sequence[Any], inverse: bool) -> tuple[Tensor, Tensor]:
    """The matrices of 1x1 convolutions, or their inverses, (K, C, C), and the sum of their log-determinants."""

    def stacked(name: str) -> Tensor:
        return torch.stack([getattr(conv, name) for conv in convs])

    def inverted(matrix: Tensor) -> Tensor:
        return torch.inverse(matrix.double()).to(matrix.dtype)

    if not convs[0].use_lu:
        weight = stacked("W")
        log_det = torch.linalg.slogdet(weight)[1].sum()
        return (inverted(weight), -log_det) if inverse else (weight, log_det)
    permutation, log_s = stacked("P"), stacked("log_S")
    lower = stacked("L").tril(-1) + stacked("eye")
    upper = stacked("U").triu(1) + torch.diag_embed(stacked("sign_S") * log_s.exp())
    if inverse:
        return inverted(upper) @ inverted(lower) @ permutation.mT, -log_s.sum()
    return permutation @ lower @ upper, log_s.sum()


@register(
    _couplings.PiecewiseRationalQuadraticCoupling,
    runs="fk.rational_quadratic_spline",
    note="in CoupledRationalQuadraticSpline; any mask; linear or circular tails, or none",
)
class PiecewiseRationalQuadraticCoupling(_couplings.PiecewiseRationalQuadraticCoupling):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return nsf.refuse_spline(module)

    def forward(self, inputs, context=None):
        original = _couplings.PiecewiseRationalQuadraticCoupling.forward
        return nsf.couple(self, inputs, context, original, False, nsf.spline)

    def inverse(self, inputs, context=None):
        original = _couplings.PiecewiseRationalQuadraticCoupling.inverse
        return nsf.couple(self, inputs, context, original, True, nsf.spline)


@register(
    _couplings.PiecewiseRationalQuadraticCDF,
    runs="fk.rational_quadratic_spline",
    note="what a spline coupling does to the channels that it keeps",
)
class PiecewiseRationalQuadraticCDF(_couplings.PiecewiseRationalQuadraticCDF):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return nsf.refuse_cdf(module)

    def forward(self, inputs, context=None):
        return nsf.cdf(self, inputs, False) or super().forward(inputs, context)

    def inverse(self, inputs, context=None):
        return nsf.cdf(self, inputs, True) or super().inverse(inputs, context)


@register(
    _autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive,
    runs="fk.rational_quadratic_spline",
    note="in AutoregressiveRationalQuadraticSpline; its elementwise part",
)
class MaskedPiecewiseRationalQuadraticAutoregressive(_autoregressive.MaskedPiecewiseRationalQuadraticAutoregressive):
    @staticmethod
    def refuse(module: Any) -> str | None:
        return nsf.refuse_spline(module)

    def _elementwise(self, inputs, autoregressive_params, inverse=False):
        return nsf.autoregressive_spline(self, inputs, autoregressive_params, inverse) or super()._elementwise(
            inputs, autoregressive_params, inverse
        )


for _fast, _methods in (
    (
        NormalizingFlow,
        "forward forward_and_log_det inverse inverse_and_log_det forward_kld reverse_kld reverse_alpha_div sample"
        " log_prob",
    ),
    (ClassCondFlow, "forward_kld sample log_prob"),
    (NormalizingFlowVAE, "forward"),
    (MultiscaleFlow, "forward_and_log_det inverse_and_log_det sample log_prob"),
):
    for _name in _methods.split():
        setattr(_fast, _name, _walking(_fast.__base__, _name))
