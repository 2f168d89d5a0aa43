"""What the report tells of each resume: which pieces of state came over, and which did not.

Counts what the `continuity` table compared; judges nothing.
"""

from __future__ import annotations

import json
from typing import Any

from trainscope.engine.sandbox import run_query
from trainscope.engine.tables import TableSource
from trainscope.errors import RuleError
from trainscope.schema import Resume, ResumedPiece

MOST_PIECES = 20
"""Kinds of pieces that differ, of each resume: one of each is named."""
AS_ASKED, NOT_AS_ASKED = "as asked", "not as asked"

# What a changed configuration asks for and got is no loss; what came over although another value is asked for is one.
# NULL: nothing asks for most pieces, and comparing with NULL is false.
_COMPARED = f"""
    SELECT segment, step, coalesce(item, '') AS item, coalesce(param, '') AS param, coalesce(key, '') AS key,
        CASE
            WHEN status <> 'match' AND loaded = asked THEN '{AS_ASKED}'
            WHEN status = 'match' AND loaded <> asked THEN '{NOT_AS_ASKED}'
            ELSE status
        END AS status,
        coalesce(saved, '') AS saved, coalesce(loaded, '') AS loaded, coalesce(asked, '') AS asked
    FROM continuity WHERE coalesce(rank, 0) = 0"""  # noqa: S608
_COUNTS = f"SELECT segment, item, status, count(*) FROM ({_COMPARED}) GROUP BY ALL ORDER BY ALL"  # noqa: S608
_PIECES = f"""
    SELECT segment, item, param, key, status, saved, loaded, asked
    FROM ({_COMPARED})
    WHERE status <> 'match' AND (item = 'config') = {{config}}
    QUALIFY row_number() OVER (PARTITION BY segment, item, key, status ORDER BY param) = 1
    ORDER BY segment, item, key"""  # noqa: S608
_EVENTS = "SELECT segment, detail FROM events WHERE kind = 'resume' ORDER BY time"


def list_resumes(source: TableSource) -> list[Resume]:
    """Every resume that left a trace, in the order of their segments; none where that cannot be read."""
    try:
        found = run_query(source, "SELECT segment, start, superseded FROM resumes WHERE start IS NOT NULL")[1]
        counts = run_query(source, _COUNTS)[1]
        differing, changed = (_pieces(source, config) for config in ("false", "true"))
        sources = {segment: _path(detail) for segment, detail in run_query(source, _EVENTS)[1]}
    except RuleError:
        return []
    return [
        Resume(
            step=int(start),
            segment=int(segment),
            source=sources.get(segment, ""),
            changed=changed.get(segment, []),
            pieces=_by_item([row[1:] for row in counts if row[0] == segment]),
            differing=[piece for piece in differing.get(segment, []) if piece.status != AS_ASKED][:MOST_PIECES],
            replaced=bool(superseded),
        )
        for segment, start, superseded in sorted(found)
    ]


def _pieces(source: TableSource, config: str) -> dict[int, list[ResumedPiece]]:
    pieces: dict[int, list[ResumedPiece]] = {}
    for segment, item, param, key, status, saved, loaded, asked in run_query(source, _PIECES.format(config=config))[1]:
        pieces.setdefault(segment, []).append(ResumedPiece(item, param, key, status, saved, loaded, asked))
    return pieces


def _by_item(counts: list[tuple[Any, ...]]) -> dict[str, dict[str, int]]:
    items: dict[str, dict[str, int]] = {}
    for item, status, count in counts:
        if item != "config":
            items.setdefault(item, {})[status] = int(count)
    return items


def _path(detail: str | None) -> str:
    try:
        found = json.loads(detail or "{}")
    except ValueError:
        return ""
    return str(found.get("path") or "") if isinstance(found, dict) else ""
