"""A folder of the shapes in which every picture is there twice: as it is, and smaller and re-encoded.

Draws with Pillow alone; knows nothing of models or of training.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from trainscope.proof.shapes import draw_shapes


def write_twins(folder: Path) -> None:
    """Write the captioned shapes, and beside each `x.png` an `x-small.jpg` of three quarters of its size."""
    for path in draw_shapes(folder):
        with Image.open(path) as picture:
            small = picture.resize((picture.width * 3 // 4, picture.height * 3 // 4), Image.Resampling.LANCZOS)
        small.save(path.with_name(f"{path.stem}-small.jpg"), quality=85)
        caption = path.with_suffix(".txt").read_text(encoding="utf-8")
        path.with_name(f"{path.stem}-small.txt").write_text(caption, encoding="utf-8", newline="\n")
