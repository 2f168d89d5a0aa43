"""Computes the summaries of a source, each once: one pass over each large table, whatever number of rules asks.

The pass also counts where each column has values, which is what coverage wants to know. It runs queries of this module
only, so it may read the log's files by itself, which is several times faster than being handed their rows. Knows
nothing of rules.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from trainscope.engine.shared import SHARED
from trainscope.engine.summaries import ENDS, MADE_OF, SPREAD, SPREAD_STEPS, SUMMARIES, Facts, Summary
from trainscope.engine.tables import TableSource
from trainscope.engine.views import quoted, surviving_rows
from trainscope.runlog.history import RAW_SUFFIX
from trainscope.runlog.tables import FLAG, INT, REAL, SMALL_REAL, TABLES, TEXT

WINDOWS = 60
"""Windows of about as many looks each; two more cuts fall behind the first look and in the middle of the run."""

_TYPES = {INT: "BIGINT", REAL: "DOUBLE", SMALL_REAL: "FLOAT", TEXT: "VARCHAR", FLAG: "BOOLEAN"}


@dataclass(frozen=True)
class Presence:
    """Where a table's columns have values: `by_step[column][i]` at `steps[i]`; and for how many tensors.

    Rows without a step are left out. `tensors` is empty for a table that is not about tensors.
    """

    steps: Any
    by_step: dict[str, Any]
    tensors: dict[str, int]


@dataclass(frozen=True)
class _Pass:
    """What one pass over a table gave: rows of its summaries by name, and its presence."""

    summaries: dict[str, pa.Table]
    presence: Presence


def summary(source: TableSource, name: str) -> pa.Table:
    """A table of `DERIVED`, computed when it is first asked for."""
    if name in SUMMARIES:
        return _passed(source, SUMMARIES[name].of).summaries[name]
    if name not in source.computed:
        with _connection(source, MADE_OF[name]) as connection:
            if name in SHARED:
                source.computed[name] = _fetch(connection, SHARED[name].sql)
            elif name in ENDS:
                source.computed[name] = _rows_at(connection, ENDS[name], most=1)
            else:
                source.computed[name] = _rows_at(connection, SPREAD[name], most=SPREAD_STEPS)
    return source.computed[name]


def _rows_at(connection: Any, table: str, most: int) -> pa.Table:
    """The rows at `most` steps, in two queries, so that the second one leaves out what it can by the files' footers."""
    steps = connection.execute(
        f"SELECT DISTINCT step FROM {quoted(table)} WHERE step IS NOT NULL ORDER BY step DESC"  # noqa: S608 (our names)
    ).fetchall()
    chosen = [str(int(step)) for (step,) in steps[:: -(-len(steps) // most) or 1]]
    columns = ", ".join(quoted(column.name) for column in TABLES[table].columns)
    condition = f"step IN ({', '.join(chosen)})" if chosen else "false"
    return _fetch(connection, f"SELECT {columns} FROM {quoted(table)} WHERE {condition}")  # noqa: S608


def presence(source: TableSource, table: str) -> Presence | None:
    """Where the columns of a table have values; None for a table that has no summary."""
    if all(known.of != table for known in SUMMARIES.values()):
        return None
    return _passed(source, table).presence


def _passed(source: TableSource, table: str) -> _Pass:
    key = f"pass over {table}"
    if key not in source.computed:
        source.computed[key] = _pass_over(source, table)
    found: _Pass = source.computed[key]
    return found


def _pass_over(source: TableSource, table: str) -> _Pass:
    """One query: a grouping set for each summary of the table, and one by tensor where none of them has it."""
    summaries = [known for known in SUMMARIES.values() if known.of == table]
    columns: list[str] = source.tables[table].schema.names
    keys = {known.name: [key.name for key in known.keys] for known in summaries}
    if "param" in columns and not any("param" in names for names in keys.values()):
        keys["by param"] = ["param"]
    for names in keys.values():
        if "param" in names:
            names.append("stepless")  # presence leaves out rows without a step
    with _connection(source, [table]) as connection:
        facts = _facts(connection, source, table)
        several_ranks = _register_windows(connection, table)
        aggregates = list(dict.fromkeys(each.sql(facts) for known in summaries for each in known.sums))
        counts = [f"count({quoted(column)})" for column in columns if column not in facts.gapless]
        numbers = {aggregate: number for number, aggregate in enumerate(dict.fromkeys([*aggregates, *counts]))}
        which = _make_whole(connection, table, keys, list(numbers))
        found = {known.name: _summary(connection, known, which[known.name], numbers, facts) for known in summaries}
        if "tensor_steps" in found and several_ranks:
            found["tensor_steps"] = _counting_ranks_once(connection, found["tensor_steps"])
        # Every row has a value of a column that has no gaps.
        has = {
            column: f"bool_or(a{numbers[count]} > 0)" if (count := f"count({quoted(column)})") in counts else "true"
            for column in columns
        }
        by_step = next(which[name] for name, names in keys.items() if "step" in names)
        by_param = next((which[name] for name, names in keys.items() if "param" in names), None)
        return _Pass(found, _presence(connection, has, by_step, by_param))


def _facts(connection: Any, source: TableSource, table: str) -> Facts:
    """NULLs are counted in the files' footers, or in the table in memory; whether all is finite takes a look at all."""
    data = source.tables[table]
    files = _parquet_files(data)
    if files:
        rows = connection.execute(
            """SELECT path_in_schema FROM parquet_metadata($files) GROUP BY ALL
            HAVING bool_and(stats_null_count = 0)
                AND sum(num_values) = (SELECT sum(num_rows) FROM parquet_file_metadata($files))""",
            {"files": files},
        ).fetchall()
        gapless = {str(row[0]) for row in rows}
    else:
        gapless = {name for name in data.schema.names if isinstance(data, pa.Table) and not data[name].null_count}
    asked = sorted(
        {name for known in SUMMARIES.values() if known.of == table for each in known.sums for name in each.finite}
    )
    if not asked:
        return Facts(gapless)
    query = f"SELECT {', '.join(f'bool_or(NOT isfinite({name}))' for name in asked)} FROM {quoted(table)}"  # noqa: S608
    return Facts(
        gapless, {name for name, wild in zip(asked, connection.execute(query).fetchall()[0], strict=True) if not wild}
    )


def _make_whole(
    connection: Any, table: str, keys: Mapping[str, Sequence[str]], aggregates: Sequence[str]
) -> dict[str, str]:
    """Make the table `whole`: the aggregates a0, a1 … of every grouping set; the condition that selects each set."""
    every = list(dict.fromkeys(name for names in keys.values() for name in names))
    marks = ", ".join(quoted(name) for name in every)
    sets = ", ".join("(" + ", ".join(quoted(name) for name in names) + ")" for names in keys.values())
    rows = f"SELECT *, step IS NULL AS stepless FROM {quoted(table)}"  # noqa: S608 (the names are ours)
    if "window" in every:
        rows = f"SELECT rows.*, windows.window FROM ({rows}) AS rows LEFT JOIN windows USING (step)"  # noqa: S608
    numbered = ", ".join(f"{aggregate} AS a{number}" for number, aggregate in enumerate(aggregates))
    connection.execute(
        f"""CREATE TABLE whole AS SELECT grouping({marks}) AS which, {marks}, {numbered}
        FROM ({rows}) GROUP BY GROUPING SETS ({sets})"""  # noqa: S608
    )

    def number(names: Sequence[str]) -> int:
        # grouping() has a bit for each key, the first being the highest, set where the key is not of the set.
        return sum(1 << (len(every) - 1 - place) for place, name in enumerate(every) if name not in names)

    return {name: f"which = {number(names)}" for name, names in keys.items()}


def _summary(connection: Any, known: Summary, which: str, numbers: Mapping[str, int], facts: Facts) -> pa.Table:
    columns = [quoted(key.name) for key in known.keys]
    columns += [
        f"a{numbers[each.sql(facts)]}::{_TYPES[each.column.type]} AS {quoted(each.column.name)}" for each in known.sums
    ]
    return _fetch(connection, f"SELECT {', '.join(columns)} FROM whole WHERE {which}")  # noqa: S608


def _register_windows(connection: Any, table: str) -> bool:
    """Make the table `windows` (step, window); whether several ranks wrote."""
    ranks = "min(rank), max(rank)" if table == "tensors" else "0, 0"
    looks = connection.execute(
        f"SELECT step, {ranks} FROM {quoted(table)} WHERE step IS NOT NULL GROUP BY step ORDER BY step"  # noqa: S608
    ).fetchall()
    steps = np.array([step for step, _, _ in looks], dtype=np.int64)
    connection.register("windows", pa.table([_whole(steps), _whole(windows(steps))], names=["step", "window"]))
    return any(least != most for _, least, most in looks)


def _whole(numbers: Any) -> pa.Array:
    """What `pa.array(numbers)` gives, without importing pandas."""
    return pa.Array.from_buffers(INT, len(numbers), [None, pa.py_buffer(numbers)])


def windows(steps: Any) -> Any:
    """The window of each of the ascending steps at which something was recorded.

    `WINDOWS` runs of about as many steps each (each its own where there are fewer), cut again behind the first one, and
    in the middle, so that what a rule asks of the second half of a run is the sum of whole windows.
    """
    count = len(steps)
    cuts = np.zeros(count, dtype=bool)
    if count > 1:
        spans = np.arange(count) * min(count, WINDOWS) // count
        late = 2 * steps > steps[-1]
        cuts[1:] = (spans[1:] != spans[:-1]) | (late[1:] != late[:-1])
        cuts[1] = True
    return np.cumsum(cuts)


def _counting_ranks_once(connection: Any, looks: pa.Table) -> pa.Table:
    """Ranks hold the same weights: where several of them wrote a tensor's row, the largest counts."""
    connection.register("looks", looks)
    return _fetch(
        connection,
        """SELECT looks.* REPLACE (once.energy AS step_energy)
        FROM looks LEFT JOIN (
            SELECT segment, step, sum(norm * norm) AS energy
            FROM (
                SELECT segment, step, param, max(update_norm::DOUBLE) AS norm
                FROM tensors WHERE isfinite(update_norm) GROUP BY ALL
            )
            GROUP BY ALL
        ) AS once ON once.segment IS NOT DISTINCT FROM looks.segment AND once.step IS NOT DISTINCT FROM looks.step""",
    )


def _presence(connection: Any, has: Mapping[str, str], by_step: str, by_param: str | None) -> Presence:
    """`has` is the condition for each column that any of the rows has a value."""
    listed = ", ".join(f"{condition} AS h{number}" for number, condition in enumerate(has.values()))
    data = connection.execute(
        f"SELECT step, {listed} FROM whole WHERE {by_step} AND step IS NOT NULL GROUP BY step ORDER BY step"  # noqa: S608
    ).fetchnumpy()
    found = {column: np.ma.getdata(data[f"h{number}"]).astype(bool) for number, column in enumerate(has)}
    tensors: dict[str, int] = {}
    if by_param is not None:
        totals = ", ".join(f"count(*) FILTER (WHERE h{number})" for number in range(len(has)))
        row = connection.execute(
            f"SELECT {totals} FROM (SELECT {listed} FROM whole WHERE {by_param} AND NOT stepless GROUP BY param)"  # noqa: S608
        ).fetchall()[0]
        tensors = {column: int(total) for column, total in zip(has, row, strict=True)}
    return Presence(np.ma.getdata(data["step"]).astype(np.int64), found, tensors)


def _fetch(connection: Any, query: str) -> pa.Table:
    return connection.sql(query).to_arrow_table()


@contextlib.contextmanager
def _connection(source: TableSource, tables: Sequence[str]) -> Iterator[Any]:
    """A connection for queries of this module alone, which sees the surviving history of the tables."""
    with (
        tempfile.TemporaryDirectory(prefix="trainscope-sums-") as spill,
        duckdb.connect(
            ":memory:", config={"threads": 2, "memory_limit": "600MB", "temp_directory": spill}
        ) as connection,
    ):
        for name in tables:
            data = source.tables[name]
            raw = _from_files(connection, data)
            if raw is None:
                connection.register(name + RAW_SUFFIX, data)
            else:
                raw.create_view(name + RAW_SUFFIX)
            view = surviving_rows(name, data.schema.names, source.segment_starts)
            connection.execute(f"CREATE VIEW {quoted(name)} AS {view}")
        yield connection


def _from_files(connection: Any, data: Any) -> Any:
    """A relation over the Parquet files of a dataset, with the columns that they lack; None for what is no files."""
    files = _parquet_files(data)
    if not files:
        return None
    relation = connection.read_parquet(files, union_by_name=True)
    present = set(relation.columns)
    return relation.project(
        ", ".join(
            quoted(field.name) if field.name in present else f"NULL::{_TYPES[field.type]} AS {quoted(field.name)}"
            for field in data.schema
        )
    )


def _parquet_files(data: Any) -> list[str]:
    files = getattr(data, "files", None)
    return list(files) if files and data.format.default_extname == "parquet" else []
