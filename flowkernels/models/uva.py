"""The image flows of the UvA deep learning tutorials."""

from __future__ import annotations

from collections.abc import Sequence

from ..flows import Flow
from ..nn import (
    AffineCoupling,
    Dequantize,
    GatedConvNet,
    Inverse,
    Split,
    Squeeze,
    VariationalDequantize,
    channel_mask,
    checkerboard_mask,
)
from ..nn.arguments import whole
from ..ops.affine_coupling import AffineForm
from .image import checked_image_shape

KINDS = ("simple", "vardeq", "multiscale")


def uva(
    kind: str = "multiscale",
    image_shape: Sequence[int] = (1, 28, 28),
    *,
    levels: int = 256,
    alpha: float = 1e-5,
    context: int = 0,
) -> Flow:
    """The image flows of the UvA deep learning tutorials.

    Lippe, "UvA Deep Learning Tutorials", tutorial 11, "Normalizing Flows for image modeling" (2020). Couplings of the
    form (x + t) exp(f tanh(s / f)) with a learned f for each channel, full-width masks that alternate, and
    `fk.nn.GatedConvNet` as the conditioner.

    ``"simple"``: uniform dequantization and 8 checkerboard couplings (hidden width 32). ``"vardeq"``: variational
    dequantization by 4 checkerboard couplings that see the image (16), and the same 8. ``"multiscale"``: variational
    dequantization, 2 checkerboard couplings (32), squeeze, 2 channel couplings (48), split, squeeze and 4 channel
    couplings (64). At (1, 28, 28) they have 556,312, 628,388 and 1,711,818 parameters, as in the tutorial.

    Args:
        kind: one of the three names.
        image_shape: (C, H, W); for ``"multiscale"`` H and W are multiples of 4.
        levels: how many values a pixel takes.
        alpha: as for `fk.nn.Dequantize`.
        context: size of the context on which the density depends, a vector or an image of so many channels that has
            the pixels of every scale; 0 for none. Variational dequantization does not see it.

    Returns:
        A `Flow` over x of shape (B, C, H, W), holding 0, ..., levels - 1.

    Raises:
        ValueError: for a number or a name out of range, and for an image that cannot be squeezed, naming it.

    Example:
        >>> import torch, flowkernels as fk
        >>> flow = fk.models.uva("multiscale", (1, 8, 8), levels=17)
        >>> x = torch.randint(17, (4, 1, 8, 8))
        >>> flow.bits_per_dim(x).shape, flow.sample(2).shape
        (torch.Size([4]), torch.Size([2, 1, 8, 8]))
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    whole("context", context, 0)
    c, h, w = checked_image_shape(image_shape, 2 if kind == "multiscale" else 0)
    if kind == "simple":
        return Flow([Dequantize(levels, alpha), *_checkerboards(8, c, h, w, 32, context)], event_shape=(c, h, w))
    # The noise is made by the tutorial's forward direction, from the first coupling to the last.
    noise = [Inverse(coupling) for coupling in reversed(_checkerboards(4, c, h, w, 16, context=c))]
    dequantize = VariationalDequantize(noise, levels, alpha)
    if kind == "vardeq":
        return Flow([dequantize, *_checkerboards(8, c, h, w, 32, context)], event_shape=(c, h, w))
    layers = [
        dequantize,
        *_checkerboards(2, c, h, w, 32, context),
        Squeeze(),
        *_channels(2, 4 * c, 48, context),
        Split(),
        Squeeze(),
        *_channels(4, 8 * c, 64, context),
    ]
    return Flow(layers, event_shape=(8 * c, h // 4, w // 4))


def _checkerboards(count: int, channels: int, h: int, w: int, hidden: int, context: int) -> list[AffineCoupling]:
    return _couplings([checkerboard_mask(h, w, i % 2 == 1) for i in range(count)], channels, hidden, context)


def _channels(count: int, channels: int, hidden: int, context: int) -> list[AffineCoupling]:
    masks = [channel_mask(channels, i % 2 == 1, spatial=True) for i in range(count)]
    return _couplings(masks, channels, hidden, context)


def _couplings(masks: Sequence, channels: int, hidden: int, context: int) -> list[AffineCoupling]:
    return [
        AffineCoupling(
            GatedConvNet(channels, hidden, context=context),
            mask=mask,
            form=AffineForm.uva(),
            learned_bound=True,
            channels=channels,
        )
        for mask in masks
    ]
