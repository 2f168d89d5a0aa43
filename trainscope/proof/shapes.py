"""The 28 captioned pictures of flat shapes that the examples and the proofs train on.

Small enough to keep in git, varied enough that a model which learned differs from one which did not. Draws with
Pillow alone; knows nothing of models or of training.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

COUNT = 28
SIDES = range(48, 113, 8)
"""Side lengths in px. Multiples of 8, the VAE's downscale, so that buckets can hold some of them uncropped."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (46, 139, 60),
    "blue": (38, 84, 204),
    "yellow": (246, 205, 40),
    "purple": (128, 52, 160),
    "orange": (242, 126, 26),
    "cyan": (40, 190, 205),
    "pink": (240, 130, 170),
    "brown": (124, 78, 42),
    "black": (20, 20, 24),
    "white": (248, 248, 248),
    "grey": (136, 138, 142),
}
BACKGROUNDS = ("white", "black", "grey", "yellow", "cyan", "pink")

Point = tuple[float, float]

_SUPERSAMPLING = 4
"""Shapes are drawn this much larger and reduced, since Pillow draws jagged edges."""


@dataclass(frozen=True)
class Shape:
    """One picture: sizes in px, `centre` in px, `radius` in px."""

    name: str
    kind: str
    colour: str
    background: str
    size: tuple[int, int]
    centre: Point
    radius: float

    @property
    def caption(self) -> str:
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.kind} on a {self.background} background"


def plan_shapes(*, seed: int = 0) -> list[Shape]:
    """Choose the pictures. The same seed gives the same list on every machine: `random.Random` is specified so."""
    rng = random.Random(seed)  # noqa: S311 - pictures, no secrets
    shapes: list[Shape] = []
    seen: set[str] = set()
    kinds = list(_OUTLINES)
    while len(shapes) < COUNT:
        index = len(shapes)
        colour = list(COLOURS)[index % len(COLOURS)]
        background = rng.choice([name for name in BACKGROUNDS if name != colour])
        kind = kinds[index % len(kinds)]
        width, height = rng.choice(SIDES), rng.choice(SIDES)
        radius = min(width, height) * rng.uniform(0.26, 0.42)
        centre = (rng.uniform(radius, width - radius), rng.uniform(radius, height - radius))
        shape = Shape(f"{index:02d}-{colour}-{kind}", kind, colour, background, (width, height), centre, radius)
        if shape.caption not in seen:
            seen.add(shape.caption)
            shapes.append(shape)
    return shapes


def draw_shape(shape: Shape) -> Image.Image:
    """Draw one picture, RGB, with smooth edges."""
    factor = _SUPERSAMPLING
    width, height = shape.size
    canvas = Image.new("RGB", (width * factor, height * factor), COLOURS[shape.background])
    outline = [
        ((shape.centre[0] + x * shape.radius) * factor, (shape.centre[1] + y * shape.radius) * factor)
        for x, y in _OUTLINES[shape.kind]()
    ]
    ImageDraw.Draw(canvas).polygon(outline, fill=COLOURS[shape.colour])
    return canvas.resize(shape.size, Image.Resampling.BOX)


def draw_shapes(folder: Path) -> list[Path]:
    """Write the pictures as PNG, each with its caption in a .txt file of the same name; returns the PNGs in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shape in plan_shapes():
        path = folder / f"{shape.name}.png"
        draw_shape(shape).save(path, optimize=True)
        _write(folder, shape, ".txt", shape.caption)
        paths.append(path)
    return paths


def write_tags(folder: Path) -> None:
    """Beside each .txt a .tags: the caption as tags with commas, the subject emphasised."""
    for shape in plan_shapes():
        _write(folder, shape, ".tags", f"shape, ({shape.colour} {shape.kind}:1.2), {shape.background} background")


def write_long_captions(folder: Path) -> None:
    """Beside each .txt a .long: what it says, after more words than CLIP reads."""
    for shape in plan_shapes():
        _write(folder, shape, ".long", ", ".join([*["a shape on a background"] * 16, shape.caption]))


def _write(folder: Path, shape: Shape, ending: str, caption: str) -> None:
    (folder / f"{shape.name}{ending}").write_text(caption + "\n", encoding="utf-8", newline="\n")


# Outlines are closed polygons in the unit circle around the origin, y pointing down.


def _regular(corners: int, turn: float = -0.25) -> list[Point]:
    """A regular polygon; `turn` is the direction of its first corner, in turns clockwise from the right."""
    angles = (2 * math.pi * (corner / corners + turn) for corner in range(corners))
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    outer, inner = _regular(5), _regular(5, turn=-0.15)
    return list(_alternate(outer, [(0.42 * x, 0.42 * y) for x, y in inner]))


def _alternate(first: list[Point], second: list[Point]) -> Iterator[Point]:
    for a, b in zip(first, second, strict=True):
        yield a
        yield b


def _cross() -> list[Point]:
    arm, reach = 0.32, 0.92
    quarter = [(arm, -reach), (arm, -arm), (reach, -arm)]
    points: list[Point] = []
    for _ in range(4):
        points += quarter
        quarter = [(-y, x) for x, y in quarter]  # a quarter turn clockwise
    return points


def _heart() -> list[Point]:
    angles = (2 * math.pi * step / 64 for step in range(64))
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 17,
        )
        for a in angles
    ]


_OUTLINES: dict[str, Callable[[], list[Point]]] = {
    "circle": lambda: _regular(96),
    "square": lambda: _regular(4, turn=-0.125),
    "triangle": lambda: _regular(3),
    "star": _star,
    "hexagon": lambda: _regular(6, turn=0.0),
    "cross": _cross,
    "heart": _heart,
    "diamond": lambda: [(0.62 * x, y) for x, y in _regular(4)],
}
