"""Run a query that a stranger may have written: no files, no network, no settings, limited memory, disk and time.

Knows tables and SQL; knows nothing of what a rule is or what its rows mean.
"""

from __future__ import annotations

import contextlib
import decimal
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb

from trainscope.engine.query import check_select, one_line
from trainscope.engine.summaries import DERIVED
from trainscope.engine.summarise import summary
from trainscope.engine.tables import TableSource
from trainscope.engine.views import quoted, surviving_rows
from trainscope.errors import RuleError
from trainscope.runlog.history import RAW_SUFFIX

__all__ = ["Limits", "check_select", "connect", "execute", "run_query", "stream_query"]


@dataclass(frozen=True)
class Limits:
    """What one query may use. `seconds` is wall time; `memory` and `disk` are DuckDB sizes."""

    seconds: float = 60.0
    memory: str = "512MB"
    disk: str = "4GB"
    threads: int = 2
    rows: int = 100_000


DEFAULT_LIMITS = Limits()

# Set after the tables are registered, since most of them would forbid that too. The last one makes them final.
_LOCKS = (
    "SET enable_external_access = false",
    "SET allow_community_extensions = false",
    "SET autoinstall_known_extensions = false",
    "SET autoload_known_extensions = false",
    "SET python_enable_replacements = false",
    "SET lock_configuration = true",
)


@contextlib.contextmanager
def connect(
    source: TableSource, tables: Collection[str] | None = None, limits: Limits = DEFAULT_LIMITS
) -> Iterator[Any]:
    """A fresh, locked connection that sees `T` (surviving history) and `T_all` (raw rows) of the given tables.

    Summaries are among them where they are named; without names it is the log's tables alone.
    """
    with (
        tempfile.TemporaryDirectory(prefix="trainscope-sql-") as spill,
        duckdb.connect(":memory:", config={"threads": limits.threads, "memory_limit": limits.memory}) as connection,
    ):
        for name in sorted(source.tables if tables is None else tables):
            if name in DERIVED and name not in source.tables:
                connection.register(name, summary(source, name))
                continue
            data = source.tables[name]
            connection.register(name + RAW_SUFFIX, data)
            view = surviving_rows(name, data.schema.names, source.segment_starts)
            connection.execute(f"CREATE VIEW {quoted(name)} AS {view}")
        connection.execute("SET temp_directory = '" + spill.replace("'", "''") + "'")
        connection.execute(f"SET max_temp_directory_size = '{limits.disk}'")
        for lock in _LOCKS:
            connection.execute(lock)
        yield connection


def run_query(
    source: TableSource, sql: str, parameters: Mapping[str, Any] | None = None, limits: Limits = DEFAULT_LIMITS
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Column names and rows of a checked query; RuleError for whatever goes wrong in it.

    `parameters` may hold more than the query uses; one that it uses and that is missing is an error.
    """
    query = check_select(sql, {*source.tables, *DERIVED})
    known = dict(parameters or {})
    missing = sorted(query.parameters - known.keys())
    if missing:
        raise RuleError("no threshold for " + ", ".join(f"${name}" for name in missing))
    with connect(source, query.tables, limits) as connection:
        return execute(connection, sql, {name: known[name] for name in query.parameters}, limits)


@contextlib.contextmanager
def stream_query(
    source: TableSource, sql: str, limits: Limits = DEFAULT_LIMITS
) -> Iterator[tuple[list[str], Iterator[tuple[Any, ...]]]]:
    """Column names and the rows as they come, however many and however long: for somebody who can stop it."""
    query = check_select(sql, {*source.tables, *DERIVED})
    if query.parameters:
        raise RuleError("write values in place of " + ", ".join(f"${name}" for name in sorted(query.parameters)))
    with connect(source, query.tables, limits) as connection:
        try:
            connection.execute(sql)
        except duckdb.Error as error:
            raise RuleError(one_line(error)) from error
        yield [str(column[0]) for column in connection.description], _rows(connection)


def _rows(connection: Any) -> Iterator[tuple[Any, ...]]:
    while True:
        try:
            rows = connection.fetchmany(10_000)
        except duckdb.Error as error:
            raise RuleError(one_line(error)) from error
        if not rows:
            return
        yield from (tuple(_plain(value) for value in row) for row in rows)


def surviving(source: TableSource, table: str) -> list[dict[str, Any]]:
    """The rows of a table without those that a resume has superseded."""
    columns, rows = run_query(source, f"SELECT * FROM {quoted(table)}")  # noqa: S608 (the names are ours)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def execute(
    connection: Any, sql: str, parameters: Mapping[str, Any] | None = None, limits: Limits = DEFAULT_LIMITS
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Run a query under the limits on an open connection; values become plain Python."""
    with _deadline(connection, limits.seconds) as expired:
        try:
            connection.execute(sql, dict(parameters) if parameters else None)
            columns = [str(column[0]) for column in connection.description]
            rows = connection.fetchmany(limits.rows + 1)
        except duckdb.Error as error:
            if expired.is_set():
                raise RuleError(f"ran longer than {limits.seconds:g} s") from error
            raise RuleError(one_line(error)) from error
    if len(rows) > limits.rows:
        raise RuleError(f"returned more than {limits.rows} rows")
    return columns, [tuple(_plain(value) for value in row) for row in rows]


@contextlib.contextmanager
def _deadline(connection: Any, seconds: float) -> Iterator[threading.Event]:
    """Interrupt the connection once the time is over, again and again: an interrupt between two queries is lost."""
    done, expired = threading.Event(), threading.Event()

    def watch() -> None:
        if not done.wait(seconds):
            expired.set()
            while not done.wait(0.05):
                connection.interrupt()

    watcher = threading.Thread(target=watch, name="trainscope-sql-deadline", daemon=True)
    watcher.start()
    try:
        yield expired
    finally:
        done.set()
        watcher.join()


def _plain(value: Any) -> Any:
    """JSON's types (numbers may be non-finite). In DuckDB `0.5` is a decimal."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, decimal.Decimal):
        return float(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value)
