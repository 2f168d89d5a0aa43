"""What was recorded: for every column of every table where it has values, how densely, and for how many tensors.

Measures the tables as they are; the reasons come from the `coverage` table, in which the writer notes why a column is
absent. Judges nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from trainscope.engine.sandbox import connect
from trainscope.engine.summarise import Presence, presence
from trainscope.engine.tables import TableSource, as_table
from trainscope.engine.views import quoted
from trainscope.runlog.tables import TABLES
from trainscope.schema import Coverage


@dataclass(frozen=True)
class Seen:
    """A column's values: `rows` is the number of distinct steps with one (of rows, in a table without steps)."""

    table: str
    column: str
    rows: int = 0
    first_step: int | None = None
    last_step: int | None = None
    every: float | None = None
    share_of_params: float | None = None
    reason: str = ""

    def report(self) -> Coverage:
        return Coverage(
            self.table,
            self.column,
            self.first_step,
            self.last_step,
            self.every,
            self.share_of_params,
            self.reason,
        )


def measure(source: TableSource) -> dict[str, Seen]:
    """`table.column` → what was seen of it, for every column of `TABLES` and every further one of the log."""
    reasons = _logged_reasons(source)
    found: dict[str, Seen] = {}
    with connect(source) as connection:
        trained = _trained_params(connection)
        for table in source.tables:
            if table == "coverage":
                continue
            columns = _columns(source, table)
            present = presence(source, table)
            if present is None:
                measured = _measure_table(connection, table, columns)
            else:
                measured = _measure_params(present, trained)
            for column in columns:
                values = measured.get(column, {})
                reason = reasons.get((table, column)) or reasons.get((table, ""), "")
                found[f"{table}.{column}"] = Seen(table, column, reason=reason, **values)
    return found


def recorded_tables(coverage: dict[str, Seen]) -> set[str]:
    return {seen.table for seen in coverage.values() if seen.rows}


def _columns(source: TableSource, table: str) -> list[str]:
    declared = [column.name for column in TABLES[table].columns] if table in TABLES else []
    return declared + [name for name in source.tables[table].schema.names if name not in declared]


def _logged_reasons(source: TableSource) -> dict[tuple[str, str], str]:
    """The last reason noted for each column; a row without a column speaks of the whole table."""
    rows = as_table(source.tables["coverage"]).select(["table", "column", "reason"]).to_pylist()
    return {(row["table"], row["column"] or ""): row["reason"] for row in rows if row["reason"]}


def _trained_params(connection: Any) -> int:
    # What the optimizer holds is trained; where nobody looked into it, what autograd reaches.
    query = "SELECT count(DISTINCT param) FILTER (WHERE coalesce(in_optimizer, requires_grad)) FROM params"
    return int(connection.execute(query).fetchone()[0])


def _measure_table(connection: Any, table: str, columns: list[str]) -> dict[str, dict[str, Any]]:
    """Keyword arguments of `Seen` for each column, in one pass over the table."""
    if "step" not in columns:
        counts = ", ".join(f"count({quoted(column)})" for column in columns)
        row = connection.execute(f"SELECT {counts} FROM {quoted(table)}").fetchone()  # noqa: S608
        return {column: {"rows": int(count)} for column, count in zip(columns, row, strict=True)}
    measured = [column for column in columns if column != "step"]
    present = ", ".join(f"bool_or({quoted(name)} IS NOT NULL) AS c{index}" for index, name in enumerate(measured))
    query = f"SELECT step, {present} FROM {quoted(table)} WHERE step IS NOT NULL GROUP BY step ORDER BY step"  # noqa: S608
    data = connection.execute(query).fetchnumpy()
    steps = np.ma.getdata(data["step"]).astype(np.int64)
    seen = {name: _spread(steps[np.ma.getdata(data[f"c{at}"]).astype(bool)]) for at, name in enumerate(measured)}
    return {"step": _spread(steps), **seen}


def _measure_params(present: Presence, trained: int) -> dict[str, dict[str, Any]]:
    """The same of a table that is summarised anyway, and for how many of the trained tensors a column has values."""
    seen = {column: _spread(present.steps[has_value]) for column, has_value in present.by_step.items()}
    for column, tensors in present.tensors.items():
        if trained and column != "step":
            seen[column]["share_of_params"] = min(1.0, tensors / trained)
    return seen


def _spread(steps: Any) -> dict[str, Any]:
    if not len(steps):
        return {"rows": 0}
    return {
        "rows": len(steps),
        "first_step": int(steps[0]),
        "last_step": int(steps[-1]),
        "every": float(np.median(np.diff(steps))) if len(steps) > 1 else None,
    }
