"""Rows that wait to be written, in bounded memory.

When there is no room, new rows are refused and counted: those of every tensor first, so that the log keeps its steps
and events longest. Not for several threads; knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trainscope.runlog.encode import Rows
from trainscope.runlog.tables import TABLES

PER_TENSOR = frozenset(
    name for name, table in TABLES.items() if {"param", "module"} & {column.name for column in table.columns}
)
"""Tables with a row for every tensor or module: nearly all of a log's bytes."""
SHARE_OF_TENSORS = 0.75
"""Of the memory, what these may take; the rest is for all others."""


@dataclass(frozen=True)
class Loss:
    """Rows of a table that are not in the log, and between which steps they belong."""

    rows: int
    steps: tuple[int, int] | None

    def __add__(self, other: Loss) -> Loss:
        found = [steps for steps in (self.steps, other.steps) if steps is not None]
        steps = (min(first for first, _ in found), max(last for _, last in found)) if found else None
        return Loss(self.rows + other.rows, steps)


class Backlog:
    """Rows of all tables, in the order in which they came."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._waiting: dict[str, list[Rows]] = {}
        self.bytes = 0
        """Of all rows that wait or are being written."""
        self.lost: dict[str, Loss] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, rows: Rows) -> bool:
        """Whether there was room."""
        room = self._limit * (SHARE_OF_TENSORS if rows.table in PER_TENSOR else 1.0)
        if self.bytes + rows.size > room:
            loss = Loss(rows.count, rows.steps)
            self.lost[rows.table] = self.lost[rows.table] + loss if rows.table in self.lost else loss
            return False
        self._waiting.setdefault(rows.table, []).append(rows)
        self.bytes += rows.size
        return True

    def take(self) -> dict[str, list[Rows]]:
        """All that waits, to be written; what becomes of it is told by `forget` or `put_back`."""
        waiting, self._waiting = self._waiting, {}
        return waiting

    def forget(self, rows: Iterable[Rows]) -> None:
        self.bytes -= sum(one.size for one in rows)

    def put_back(self, table: str, rows: list[Rows]) -> None:
        """They wait again, before what came since."""
        self._waiting[table] = rows + self._waiting.get(table, [])

    def take_lost(self) -> dict[str, Loss]:
        lost, self.lost = self.lost, {}
        return lost
