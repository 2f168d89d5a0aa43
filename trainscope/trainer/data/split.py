"""Holds samples out for evaluation: by what the files contain and not by where they stand in the list.

Adding a picture to the folder leaves the others on their side, and copies of a picture never end up on both, which
would let a run that memorises look as if it had learned. Knows nothing of images or of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol, TypeVar

from trainscope.errors import DataError


class Identified(Protocol):
    """What this module asks of a sample: `digest` names its content; `dropped` says why it is not used."""

    @property
    def digest(self) -> str: ...

    @property
    def dropped(self) -> str | None: ...


S = TypeVar("S", bound=Identified)


def split_validation(samples: Sequence[S], fraction: float, seed: int) -> tuple[list[S], list[S]]:
    """Split into (train, validation), each in the order of `samples`; dropped samples are in neither.

    About `fraction` of the samples is held out: at least one when `fraction` > 0 and two different pictures exist, and
    never all. With a single different picture nothing is held out. Raises `DataError` unless 0 <= fraction < 1.
    """
    if not 0 <= fraction < 1:
        raise DataError(
            f"data.validation_split must be at least 0 and below 1, found {fraction}",
            hint="0.1 holds out every tenth picture; 0 switches the held-out loss off",
        )
    used = [sample for sample in samples if sample.dropped is None]
    copies: dict[str, int] = {}
    for sample in used:
        copies[sample.digest] = copies.get(sample.digest, 0) + 1
    wanted = max(1, round(fraction * len(used))) if fraction > 0 else 0
    held_out: set[str] = set()
    count = 0
    for digest in sorted(copies, key=lambda digest: _rank(seed, digest)):
        if count >= wanted or len(held_out) + 1 >= len(copies):
            break
        held_out.add(digest)
        count += copies[digest]
    train = [sample for sample in used if sample.digest not in held_out]
    return train, [sample for sample in used if sample.digest in held_out]


def _rank(seed: int, digest: str) -> bytes:
    return hashlib.sha256(f"{seed} validation {digest}".encode()).digest()
