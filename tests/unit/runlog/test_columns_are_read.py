"""No column is recorded that nothing reads: no rule's query, no curve or map of the report, no code named here.

Which columns a query reads is asked of DuckDB: it prunes what no expression needs, so its plan's scans name the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import duckdb
import pytest

from trainscope.engine import maps
from trainscope.engine.curves import SERIES
from trainscope.engine.loader import load_rules
from trainscope.engine.shared import SHARED
from trainscope.engine.summaries import DERIVED, ENDS, MADE_OF, SPREAD, SUMMARIES
from trainscope.runlog.tables import PARAM, RANK, SEGMENT, STEP, TABLES

KEYS = {STEP.name, SEGMENT.name, RANK.name, PARAM.name}
"""They say where a row belongs: the surviving history and the sums are made by them."""

BY_CODE = {
    "trainscope.engine.runs.facts_of": {"params.numel", "data.split", "env.key", "env.value"},
    "trainscope.engine.audit._samples": {"samples.path", "samples.prompt", "samples.weights", "samples.distance"},
    "trainscope.engine.coverage": {
        "coverage.table",
        "coverage.column",
        "coverage.reason",
        "params.requires_grad",
        "params.in_optimizer",
    },
}
"""What code reads by name. Whoever adds to it says where."""

TOLD = {
    "config.origin": "`trainscope config show` and `trainscope sql` tell from where a value came",
    "env.origin": "the same column as that of config, whose rows these resemble",
    "coverage.first_step": "what the reader finds out is told in the report; the log has the reason alone",
    "coverage.last_step": "likewise",
    "coverage.every": "likewise",
    "coverage.share_of_params": "likewise",
}
"""What is there to be told, and why nothing judges by it."""


class Reader:
    """Asks DuckDB which columns of which tables a query reads."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(":memory:")
        types = {"int64": "BIGINT", "double": "DOUBLE", "float": "FLOAT", "string": "VARCHAR", "bool": "BOOLEAN"}
        for table in {**TABLES, **DERIVED}.values():
            columns = ", ".join(f'"{column.name}" {types[str(column.type)]}' for column in table.columns)
            for name in (table.name, f"{table.name}_all"):
                self._connection.execute(f'CREATE TABLE "{name}" ({columns})')
        # With the others on, DuckDB would see that all tables are empty, and read nothing at all.
        names = [row[0] for row in self._connection.execute("SELECT name FROM duckdb_optimizers()").fetchall()]
        kept = ",".join(name for name in names if name != "unused_columns")
        self._connection.execute(f"SET disabled_optimizers = '{kept}'")

    def columns(self, sql: str, parameters: dict[str, Any] | None = None) -> set[str]:
        """As table.column."""
        plan = self._connection.execute(f"EXPLAIN (FORMAT JSON) {sql}", parameters or None).fetchall()[0][1]
        return {column for node in json.loads(plan) for column in self._scanned(node)}

    def _scanned(self, node: dict[str, Any]) -> Iterator[str]:
        info = node["extra_info"]
        if "Table" in info:
            table = str(info["Table"]).rpartition(".")[2].strip('"').removesuffix("_all")
            listed = info.get("Projections", [])
            # Where rows are counted, the one column that is read has no name.
            yield from (f"{table}.{column}" for column in ([listed] if isinstance(listed, str) else listed) if column)
        for child in node["children"]:
            yield from self._scanned(child)


def behind_a_summary(column: str) -> set[str]:
    """The columns of the log that a column of a summary is computed of; the column itself if it is the log's own."""
    table, _, name = column.partition(".")
    if table in ENDS or table in SPREAD:
        return {f"{MADE_OF[table][0]}.{name}"}
    if table in SHARED:
        return set()
    if table not in SUMMARIES:
        return {column}
    summary = SUMMARIES[table]
    for each in summary.sums:
        if each.column.name == name:
            words = set(re.findall(r"\w+", " ".join([each.of, each.where, *each.known, *each.finite])))
            return {f"{summary.of}.{known.name}" for known in TABLES[summary.of].columns if known.name in words}
    return {f"{summary.of}.{name}"} if name != "window" else set()


@pytest.fixture(scope="module")
def queried() -> set[str]:
    """The columns of the log and of its summaries that a query reads."""
    reader = Reader()
    rules, broken = load_rules()
    assert not broken
    read: set[str] = set()
    for rule in rules:
        asked = set(re.findall(r"\$(\w+)", rule.sql))
        read |= reader.columns(rule.sql, {name: value for name, value in rule.thresholds.items() if name in asked})
    for name, shared in SHARED.items():
        assert any(column.startswith(f"{name}.") for column in read), f"no rule asks for {name}"
        read |= reader.columns(shared.sql)
    for spec in SERIES.values():
        read |= reader.columns(spec.sql)
    for drawn in maps.MAPS.values():
        read |= reader.columns(maps._QUERY.format(above=drawn.above, below=drawn.below, limit=1))
    return read


def test_the_reader_reads() -> None:
    """What a query names and does not need is not read; what it needs is, through views, joins and CTEs."""
    reader = Reader()
    assert reader.columns("SELECT max(loss) FROM steps") == {"steps.loss"}
    query = """WITH a AS (SELECT *, loss AS l FROM steps_all), b AS (SELECT step, d, d0 FROM groups)
        SELECT b.d FROM a JOIN b USING (step) WHERE a.skipped AND $threshold > 0"""
    assert reader.columns(query, {"threshold": 0.5}) == {"steps.step", "steps.skipped", "groups.step", "groups.d"}
    assert behind_a_summary("tensor_steps.delivered_energy") == {"tensors.delivered", "tensors.intended_norm"}
    assert behind_a_summary("tensor_windows.nonfinite_first_step") == {"tensors.step", "tensors.weight_nonfinite"}
    assert behind_a_summary("ema_ends.lag_norm") == {"ema.lag_norm"}


def test_every_column_is_read(queried: set[str]) -> None:
    read = {column for found in queried for column in behind_a_summary(found)}.union(TOLD, *BY_CODE.values())
    unread = [
        f"{table.name}.{column.name}"
        for table in TABLES.values()
        for column in table.columns
        if column.name not in KEYS and f"{table.name}.{column.name}" not in read
    ]
    assert unread == [], "a rule's query, a curve or a report has to read it; or else nobody should record it"


def test_no_sum_is_computed_for_nobody(queried: set[str]) -> None:
    unread = [
        f"{name}.{each.column.name}"
        for name, summary in SUMMARIES.items()
        for each in summary.sums
        if f"{name}.{each.column.name}" not in queried
    ]
    assert unread == []


def test_nothing_is_excused_that_a_query_reads_or_that_is_no_column(queried: set[str]) -> None:
    known = {f"{table.name}.{column.name}" for table in TABLES.values() for column in table.columns}
    assert known >= {*TOLD, *(column for columns in BY_CODE.values() for column in columns)}
    assert not queried & TOLD.keys()
