"""Which part of a picture is trained on: resized to cover its bucket, cropped to it, and perhaps mirrored.

Masks and SDXL's size conditions follow the same frame, so it is worked out once, from sizes alone. Knows nothing of
files.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image

from trainscope.config.buckets import Size


@dataclass(frozen=True)
class Frame:
    """Resize a picture of `original` size to `scaled`, crop `target` from there at (left, top), then mirror it.

    All in px, sizes as (width, height).
    """

    original: Size
    scaled: Size
    left: int
    top: int
    target: Size
    mirrored: bool = False

    def cut(self, picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
        """Do it to a picture, or to a mask of it."""
        right, bottom = self.left + self.target[0], self.top + self.target[1]
        cropped = picture.resize(self.scaled, resampling).crop((self.left, self.top, right, bottom))
        return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else cropped

    @property
    def size_condition(self) -> list[int]:
        """What SDXL is told (arXiv 2307.01952, section 2.2): original size, the crop's corner, target, each as (y, x).

        The corner is that of the resized and mirrored picture: the one that the crop looks cut from.
        """
        left = self.scaled[0] - self.left - self.target[0] if self.mirrored else self.left
        return [self.original[1], self.original[0], self.top, left, self.target[1], self.target[0]]


@cache
def centre_frame(original: Size, target: Size, *, mirrored: bool = False) -> Frame:
    """The middle of a picture, in the target size."""
    scaled = cover(original, target)
    left, top = (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2
    return Frame(original, scaled, left, top, target, mirrored)


def random_frame(original: Size, target: Size, *, generator: torch.Generator, mirrored: bool = False) -> Frame:
    """A crop at a place that is drawn, uniformly among all where it lies inside the picture."""
    scaled = cover(original, target)
    left, top = (
        int(torch.randint(room - side + 1, (), generator=generator)) for room, side in zip(scaled, target, strict=True)
    )
    return Frame(original, scaled, left, top, target, mirrored)


def cover(original: Size, target: Size) -> Size:
    """The smallest size of the same shape that covers `target`, to the nearest pixel."""
    scale = max(target[0] / original[0], target[1] / original[1])
    return max(target[0], round(original[0] * scale)), max(target[1], round(original[1] * scale))
