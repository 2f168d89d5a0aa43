"""A folder of eight of the shapes: as few pictures as people train a face or a thing on.

Draws with Pillow alone; knows nothing of models or of training.
"""

from __future__ import annotations

from pathlib import Path

from trainscope.proof.shapes import draw_shapes

COUNT = 8


def write_few(folder: Path) -> None:
    """Write the captioned shapes, and keep eight of them, evenly spread over the list."""
    paths = sorted(draw_shapes(folder))
    kept = set(paths[:: len(paths) // COUNT][:COUNT])
    for path in paths:
        if path not in kept:
            path.unlink()
            path.with_suffix(".txt").unlink()
