"""The `continuity` table: two fingerprints compared by name, and each difference told by its kind.

Knows nothing of how either was taken, or of whether a difference was meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from trainscope.probes.fingerprint import Piece

Name = tuple[str, str | None, str]

FIRST_VALUES: dict[str, tuple[float, ...]] = {"lr_max": (-1.0,), "scale": (65536.0,)}
"""What a fresh counter holds, where that is not 0."""


def compare(
    saved: Iterable[Piece],
    loaded: Iterable[Piece],
    *,
    asked: Mapping[Name, str] | None = None,
    read_as: Mapping[Name, str] | None = None,
) -> list[dict[str, Any]]:
    """One row for each piece of either side.

    `asked` holds what the new configuration asks for, by name, as JSON. `read_as` holds the dtype of a tensor as its
    file had it, where it had to be converted.
    """
    before, after = ({piece.name: piece for piece in pieces} for pieces in (saved, loaded))
    asked, read_as = asked or {}, read_as or {}
    owners = _owners(before.values())
    rows = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        rows.append(
            {
                "item": name[0],
                "param": name[1],
                "key": name[2],
                "saved": _shown(old),
                "loaded": _shown(new, read_as.get(name)),
                "asked": asked.get(name),
                "status": _status(old, new, after, owners, read_as.get(name)),
            }
        )
    return rows


def _status(
    old: Piece | None,
    new: Piece | None,
    after: Mapping[Name, Piece],
    owners: Mapping[tuple[str, str, str], set[str | None]],
    read_as: str | None,
) -> str:
    if new is None:
        return "missing"
    if old is None:
        return "changed"
    if read_as is not None and read_as != old.dtype:
        return "dtype"
    if old.value == new.value and old.dtype == new.dtype and old.shape == new.shape:
        return "match"
    if old.dtype != new.dtype:
        return "dtype"
    if new.dtype is None:
        return "reset" if _is_first_value(new, after) else "changed"
    if new.zero:
        return "reset"
    if owners.get((new.item, new.key, new.value), set()) - {new.param}:
        return "permuted"
    return "changed"


def _owners(pieces: Iterable[Piece]) -> dict[tuple[str, str, str], set[str | None]]:
    """Whose tensor had a digest. Zeros are nobody's."""
    owners: dict[tuple[str, str, str], set[str | None]] = {}
    for piece in pieces:
        if piece.dtype is not None and not piece.zero:
            owners.setdefault((piece.item, piece.key, piece.value), set()).add(piece.param)
    return owners


def _is_first_value(piece: Piece, after: Mapping[Name, Piece]) -> bool:
    """Whether a number is what a fresh optimizer, schedule, average or scaler begins with."""
    try:
        value = json.loads(piece.value)
    except ValueError:
        return False
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    d0 = after.get((piece.item, piece.param, "d0"))
    if piece.key in ("d", "d_max") and d0 is not None:
        return bool(value == json.loads(d0.value))
    return value in FIRST_VALUES.get(piece.key, (0.0,))


def _shown(piece: Piece | None, dtype: str | None = None) -> str | None:
    """A number as it is; of a tensor its format and the beginning of its digest."""
    if piece is None:
        return None
    if piece.dtype is None:
        return piece.value
    return f"{dtype or piece.dtype}{piece.shape} {piece.value[:16]}"
