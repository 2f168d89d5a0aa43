"""The rows of a rule's query as hits: the reserved columns checked, everything else evidence.

Knows the contract of `check.sql` and nothing of how the query was run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainscope.engine.sandbox import DEFAULT_LIMITS, Limits, run_query
from trainscope.engine.tables import TableSource
from trainscope.errors import RuleError

REQUIRED = ("where_kind", "where_name", "value", "score")
OPTIONAL = ("first_step", "last_step", "threshold")
RESERVED = (*REQUIRED, *OPTIONAL)


@dataclass(frozen=True)
class Hit:
    """A place where the defect shows. `score` is 0–1; `value` may be non-finite, where that is the defect."""

    where_kind: str
    where_name: str
    value: float | None
    score: float
    threshold: float | None
    first_step: int | None
    last_step: int | None
    evidence: dict[str, Any]

    @property
    def place(self) -> tuple[str, str]:
        return self.where_kind, self.where_name

    def values(self) -> dict[str, Any]:
        """Everything that a message or a remedy may name."""
        reserved = {name: getattr(self, name) for name in RESERVED}
        return {**reserved, **self.evidence}


def find_hits(
    source: TableSource, sql: str, thresholds: Mapping[str, Any], limits: Limits = DEFAULT_LIMITS
) -> list[Hit]:
    """Run a rule's query; RuleError where it fails or where its rows break the contract."""
    columns, rows = run_query(source, sql, thresholds, limits)
    problems = column_problems(columns)
    if problems:
        raise RuleError("; ".join(problems))
    return [_hit(dict(zip(columns, row, strict=True)), number) for number, row in enumerate(rows, start=1)]


def column_problems(columns: list[str]) -> list[str]:
    missing = [name for name in REQUIRED if name not in columns]
    twice = sorted({name for name in columns if columns.count(name) > 1})
    problems = [f"the query has no column {', '.join(missing)}"] if missing else []
    return problems + ([f"the query has two columns {', '.join(twice)}"] if twice else [])


def _hit(row: dict[str, Any], number: int) -> Hit:
    def wrong(column: str, wanted: str) -> RuleError:
        return RuleError(f"row {number}: {column} must be {wanted}, found {row[column]!r}")

    def real(column: str) -> float | None:
        value = row.get(column)
        if value is None:
            return None
        if isinstance(value, bool | int | float):
            return float(value)
        raise wrong(column, "a number")

    def step(column: str) -> int | None:
        value = row.get(column)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value % 1:
            raise wrong(column, "a step")
        return int(value)

    kind, name, score = row["where_kind"], row["where_name"], real("score")
    if not isinstance(kind, str) or not kind:
        raise wrong("where_kind", "a word such as run, group or param")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise wrong("where_name", "a name")
    # Written so that NaN fails too. A sum of shares may round to a little more than 1.
    if score is None or not 0.0 <= score <= 1.0 + 1e-6:
        raise wrong("score", "a number from 0 to 1")
    return Hit(
        where_kind=kind,
        where_name=str(name),
        value=real("value"),
        score=min(score, 1.0),
        threshold=real("threshold"),
        first_step=step("first_step"),
        last_step=step("last_step"),
        evidence={column: value for column, value in row.items() if column not in RESERVED},
    )
