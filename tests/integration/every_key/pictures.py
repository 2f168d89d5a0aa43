"""Four captioned pictures made for the keys of `[data]`: no two halves alike, two wide and two tall."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SIDE = 32
WIDE, TALL = (2 * SIDE, SIDE), (SIDE, 2 * SIDE)
SIZES = (WIDE, TALL, WIDE, TALL)
CAPTIONS = (
    "one, red, circle, left",
    "two, (green:1.5), square, top",
    f"three, {' '.join(['blue', 'star', 'on', 'white'] * 24)}",  # more than the 75 tokens of a chunk
    "four, yellow, ring, right",
)
OTHER_CAPTIONS = ("ein", "zwei", "drei", "vier")


def write_pictures(folder: Path, *, mirrored: bool = False) -> Path:
    """Colours that run from corner to corner, with a bright block off the middle; captions in .txt and .caption."""
    folder.mkdir()
    for number, (size, caption, other) in enumerate(zip(SIZES, CAPTIONS, OTHER_CAPTIONS, strict=True)):
        picture = _picture(number, size)
        (ImageOps.mirror(picture) if mirrored else picture).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
        (folder / f"{number}.caption").write_text(other, encoding="utf-8")
    return folder


def write_masks(folder: Path) -> Path:
    """The left half is repainted."""
    folder.mkdir()
    for number, (width, height) in enumerate(SIZES):
        mask = Image.new("L", (width, height), 0)
        mask.paste(255, (0, 0, width // 2, height))
        mask.save(folder / f"{number}.png")
    return folder


def _picture(number: int, size: tuple[int, int]) -> Image.Image:
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., number % 3] = np.linspace(0, 255, width, dtype=np.uint8)
    pixels[..., (number + 1) % 3] = np.linspace(255, 40, height, dtype=np.uint8)[:, None]
    for row, column in itertools.product(range(4), range(4)):
        pixels[height // 3 + row, width // 3 + 2 * column + number] = 255
    return Image.fromarray(pixels)
