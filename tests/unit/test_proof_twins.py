"""The folder of pictures that are there twice."""

from __future__ import annotations

import itertools
from pathlib import Path

from PIL import Image

from trainscope.proof.twins import write_twins
from trainscope.trainer.data.images import difference_hash


def test_copies_are_nearer_than_any_two_pictures(tmp_path: Path) -> None:
    """As near and as far as the rules about copies take for granted."""
    write_twins(tmp_path)
    hashes = {}
    for path in sorted([*tmp_path.glob("*.png"), *tmp_path.glob("*.jpg")]):
        with Image.open(path) as picture:
            hashes[path.stem] = int(difference_hash(picture), 16)
        assert path.with_suffix(".txt").read_text(encoding="utf-8").strip()
    originals = [name for name in hashes if not name.endswith("-small")]
    assert len(hashes) == 2 * len(originals) == 56
    assert all((hashes[name] ^ hashes[f"{name}-small"]).bit_count() <= 3 for name in originals)
    assert all((hashes[a] ^ hashes[b]).bit_count() > 6 for a, b in itertools.combinations(originals, 2))
