"""Glow for images."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..flows import Flow
from ..nn import ActNormConv1x1, AffineCoupling, Dequantize, Split, Squeeze
from ..nn.arguments import whole
from ..nn.context import join
from ..ops.affine_coupling import AffineForm
from .image import checked_image_shape

FORMS = {"affine": AffineForm.glow(), "additive": AffineForm("additive")}


class ConvNet(nn.Module):
    """The networks of `glow`: convolutions with ReLU between them, the last of which starts at zero.

    With hidden channels 3x3, 1x1 and 3x3, as in couplings; without them one of 3x3, as in priors.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int = 0, context: int = 0) -> None:
        super().__init__()
        self.context = context
        inputs += context
        layers: list[nn.Module] = []
        if hidden:
            layers = [nn.Conv2d(inputs, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, hidden, 1), nn.ReLU()]
        last = nn.Conv2d(hidden or inputs, outputs, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, kept: Tensor, context: Tensor | None = None) -> Tensor:
        return self.layers(join(kept, context, self.context))


def glow(
    image_shape: Sequence[int],
    *,
    scales: int = 3,
    steps: int = 8,
    hidden: int = 128,
    coupling: str = "affine",
    lu: bool = False,
    levels: int | None = 256,
    alpha: float = 1e-5,
    context: int = 0,
) -> Flow:
    """Glow: at each scale a squeeze, then steps of activation normalisation, 1x1 convolution and coupling.

    Kingma and Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions" (2018). After each scale but the last,
    half of the channels is taken out and scored under a normal whose moments are a convolution of the other half. The
    last latent is standard normal. Normalisation and 1x1 convolution are one convolution (`fk.nn.ActNormConv1x1`);
    the normalisation is initialised by the first batch in training mode.

    Args:
        image_shape: (C, H, W), with H and W multiples of 2**scales.
        scales: L in the paper.
        steps: K in the paper, the number of steps at each scale.
        hidden: channels inside the networks of the couplings.
        coupling: ``"affine"``, (x + t) sigmoid(s + 2), or ``"additive"``.
        lu: learn the factors of the 1x1 convolutions.
        levels: how many values a pixel takes, for `fk.nn.Dequantize`; None for a density of continuous x without it.
        alpha: as for `fk.nn.Dequantize`.
        context: size of the context on which the density depends, a vector or an image of so many channels that has
            the pixels of every scale; 0 for none.

    Returns:
        A `Flow` over x of shape (B, C, H, W).

    Raises:
        ValueError: for a number or a name out of range, and for an image that cannot be squeezed, naming it.

    Example:
        >>> import torch, flowkernels as fk
        >>> flow = fk.models.glow((3, 16, 16), scales=2, steps=2, hidden=16)
        >>> x = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8)
        >>> flow.bits_per_dim(x).shape, flow.sample(2, temperature=0.7).shape
        (torch.Size([4]), torch.Size([2, 3, 16, 16]))
        >>> [tuple(z.shape[1:]) for z in flow.encode(x)]
        [(6, 8, 8), (24, 4, 4)]
    """
    for name, value, least in (
        ("scales", scales, 1),
        ("steps", steps, 1),
        ("hidden", hidden, 1),
        ("context", context, 0),
    ):
        whole(name, value, least)
    if coupling not in FORMS:
        raise ValueError(f"coupling must be one of {', '.join(FORMS)}; got {coupling!r}")
    channels, height, width = checked_image_shape(image_shape, scales)
    layers: list[nn.Module] = [] if levels is None else [Dequantize(levels, alpha)]
    for scale in range(scales):
        layers.append(Squeeze())
        channels, height, width = 4 * channels, height // 2, width // 2
        for _ in range(steps):
            layers += step(channels, hidden, coupling, lu, context)
        if scale < scales - 1:
            channels //= 2
            layers.append(Split(ConvNet(channels, 2 * channels, context=context)))
    return Flow(layers, event_shape=(channels, height, width))


def step(channels: int, hidden: int, coupling: str = "affine", lu: bool = False, context: int = 0) -> list[nn.Module]:
    """One step of Glow: normalisation and 1x1 convolution in one, then a coupling that keeps the first half."""
    half = channels // 2
    network = ConvNet(half, channels if coupling == "affine" else half, hidden, context)
    return [ActNormConv1x1(channels, lu), AffineCoupling(network, passive=half, form=FORMS[coupling])]
