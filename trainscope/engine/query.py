"""What SQL a rule may say: a single SELECT over the tables of the run log, and nothing else.

This reads the text only. It is the first of two fences: the connection that runs the query (`sandbox`) is locked as
well, and either alone should hold.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb

from trainscope.engine.problems import did_you_mean
from trainscope.engine.summaries import DERIVED
from trainscope.errors import RuleError
from trainscope.runlog.history import RAW_SUFFIX
from trainscope.runlog.tables import TABLES

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}

# Most table functions read files, the catalogue, or (arrow_scan, pandas_scan) raw memory addresses, and `query` and
# json_execute_serialized_sql run text that nobody has looked at. So here the list names what is allowed.
_TABLE_FUNCTIONS = {"generate_series", "json_each", "json_tree", "range", "repeat", "repeat_row", "unnest"}

# Scalar functions are many and nearly all harmless: this list names those that are not.
_REFUSED_FUNCTIONS = {
    "current_query",
    "current_setting",
    "getenv",
    "getvariable",
    "glob",
    "json_deserialize_sql",
    "json_execute_serialized_sql",
    "json_serialize_plan",
    "nextval",
    "pg_sleep",
    "setval",
    "sleep_ms",
    "which_secret",
    "write_log",
}
# These make one value of any size, and DuckDB's memory limit does not count the inside of a value.
_UNBOUNDED_FUNCTIONS = {"array_resize", "bar", "generate_series", "list_resize", "lpad", "range", "repeat", "rpad"}
_REFUSED_PREFIXES = ("duckdb_", "inet_", "parquet_", "pragma_", "read_", "sniff_")


@dataclass(frozen=True)
class Query:
    """A checked query: its parameters, and the tables and summaries that it reads (without `_all`)."""

    sql: str
    parameters: frozenset[str]
    tables: frozenset[str]


def check_select(sql: str, tables: Collection[str] | None = None) -> Query:
    """Accept a single SELECT over `tables` (by default the run log and its summaries); RuleError with the reason."""
    return _checked(sql, frozenset({*TABLES, *DERIVED} if tables is None else tables))


@functools.lru_cache(maxsize=1024)
def _checked(sql: str, tables: frozenset[str]) -> Query:
    """Kept, since a command that trains loads all rules before, and again for the audit."""
    parser = _parser()
    try:
        statements = parser.extract_statements(sql)
    except duckdb.Error as error:
        raise RuleError(f"the query does not parse: {one_line(error)}") from error
    if len(statements) != 1:
        raise RuleError(f"a rule is one SELECT, found {len(statements)} statements")
    parameters = frozenset(statements[0].named_parameters)
    if any(not name.isidentifier() for name in parameters):
        raise RuleError("parameters have names here: write $name instead of ? or $1")
    try:
        tree = json.loads(parser.execute("SELECT json_serialize_sql(?)", [sql]).fetchone()[0])
    except (RecursionError, duckdb.Error) as error:
        raise RuleError(f"the query is nested too deeply: {one_line(error)}") from error
    if tree.get("error"):
        raise RuleError(_not_a_select(statements[0]))
    known = {name.lower() for name in tables}
    return Query(sql, parameters, frozenset(_check_tree(tree["statements"], known)))


def one_line(error: BaseException) -> str:
    """An error as one line, without the piece of the query that DuckDB adds under it."""
    text = str(error).partition("\nLINE ")[0]
    return " ".join(text.split()) or type(error).__name__


@functools.cache
def _parser() -> Any:
    """A connection that only parses."""
    return duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": "false"})


def _not_a_select(statement: Any) -> str:
    kind = str(statement.type).rpartition(".")[2]
    if kind == "MULTI":
        # PIVOT without IN creates a type first, and is so more than a query.
        return "PIVOT must list its values here: PIVOT … ON column IN (value, …)"
    return f"a rule is one SELECT, found {kind}"


def _check_tree(tree: Any, known: set[str]) -> Iterator[str]:
    """Walk the parsed query: refuse what is no query, yield the tables of the log that it reads."""
    nodes = list(_nodes(tree))
    defined = {str(entry["key"]).lower() for node in nodes for entry in (node.get("cte_map") or {}).get("map", ())}
    table_functions = [node["function"] for node in nodes if node.get("type") == "TABLE_FUNCTION"]
    for node in nodes:
        kind = str(node.get("type", ""))
        if (kind.endswith("_NODE") and kind not in _QUERY_NODES) or "info_type" in node:
            raise RuleError(f"a rule only reads: {kind.removesuffix('_NODE').removesuffix('_QUERY')} is not allowed")
        if "function_name" in node:
            _check_function(str(node["function_name"]).lower(), any(node is one for one in table_functions))
        elif kind == "BASE_TABLE":
            yield from _read_table(node, known, defined)
        elif kind == "SHOW_REF" and node.get("query") is None:
            raise RuleError("a rule only reads the run log: SHOW is not allowed")


def _check_function(name: str, is_table: bool) -> None:
    if is_table:
        if name not in _TABLE_FUNCTIONS:
            allowed = ", ".join(sorted(_TABLE_FUNCTIONS))
            raise RuleError(f"table function {name}() is not allowed; allowed are {allowed}")
    elif name in _UNBOUNDED_FUNCTIONS:
        hint = f"; write FROM {name}(…)" if name in _TABLE_FUNCTIONS else ""
        raise RuleError(f"function {name}() can make a value of any size, and is not allowed in a rule{hint}")
    elif name in _REFUSED_FUNCTIONS or name.startswith(_REFUSED_PREFIXES):
        raise RuleError(f"function {name}() is not allowed in a rule")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    pending = [tree]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _read_table(node: dict[str, Any], known: set[str], defined: set[str]) -> Iterator[str]:
    name = str(node["table_name"]).lower()
    if node.get("schema_name") or node.get("catalog_name"):
        raise RuleError(f"table {name}: write it without a schema")
    table = name if name in known else name.removesuffix(RAW_SUFFIX)
    if table in DERIVED and table != name:
        raise RuleError(f"no table {name}: {table} is made of the surviving history alone")
    if table in known:
        # Also where a CTE has the same name: its body may read the table that it hides.
        yield table
    elif name not in defined:
        raise RuleError(f"no table {name}{did_you_mean(name, known | defined)}")
