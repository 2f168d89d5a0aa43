"""The example pictures in git are what their code draws."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageChops

from tests.unit.trainer.conftest import SHAPES
from trainscope.proof.shapes import COUNT, draw_shapes, plan_shapes, write_tags


def test_the_pictures_are_drawn_again_alike(tmp_path: Path) -> None:
    drawn = draw_shapes(tmp_path)
    write_tags(tmp_path)
    assert len(drawn) == COUNT == 28
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        path.name for path in SHAPES.iterdir() if path.suffix in (".png", ".txt", ".tags")
    )
    for path in drawn:
        assert ImageChops.difference(Image.open(path), Image.open(SHAPES / path.name)).getbbox() is None
        for ending in (".txt", ".tags"):
            assert path.with_suffix(ending).read_bytes() == (SHAPES / path.name).with_suffix(ending).read_bytes()


def test_the_shapes_lie_inside_and_differ() -> None:
    shapes = plan_shapes()
    assert len({shape.caption for shape in shapes}) == len(shapes)
    assert len({shape.size for shape in shapes}) > 15
    for shape in shapes:
        assert shape.colour != shape.background
        for centre, side in zip(shape.centre, shape.size, strict=True):
            assert shape.radius <= centre <= side - shape.radius
