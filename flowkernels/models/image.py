"""The checks of image shapes."""

from __future__ import annotations

from collections.abc import Sequence

from ..nn.arguments import whole


def checked_image_shape(image_shape: Sequence[int], squeezes: int) -> tuple[int, int, int]:
    """(C, H, W), or ValueError for what is no image or cannot be squeezed that often."""
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (channels, height, width); got {tuple(image_shape)}")
    for size in image_shape:
        whole("image_shape", size, 1)
    channels, height, width = image_shape
    if height % 2**squeezes or width % 2**squeezes:
        raise ValueError(
            f"height and width must be multiples of {2**squeezes} to be squeezed {squeezes} times;"
            f" got image_shape={tuple(image_shape)}"
        )
    return channels, height, width
