"""Draw the pictures of this folder again: `python examples/shapes/make.py [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from trainscope.proof.shapes import draw_shapes, write_tags

if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent
    for path in draw_shapes(folder):
        print(path)
    write_tags(folder)
