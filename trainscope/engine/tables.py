"""The tables that a rule sees, wherever they come from: a run log, a plan in memory, a case's inline rows.

Knows nothing of files, run directories or rules.
"""

from __future__ import annotations

import json
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from trainscope.engine.problems import did_you_mean
from trainscope.errors import RuleError
from trainscope.runlog.tables import FLAG, INT, RANK, REAL, SEGMENT, SMALL_REAL, TABLES, TEXT, Table


@dataclass
class TableSource:
    """The tables of a run, each a pyarrow Table or Dataset, and the step at which each segment started.

    Completes itself: a table that is not given is empty, a column that an older log lacks is NULL. Rules may so rely on
    every column of `TABLES`.
    """

    tables: dict[str, Any] = field(default_factory=dict)
    segment_starts: list[int] = field(default_factory=lambda: [0])
    computed: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What was computed of the tables, for whoever asks again (`summarise`)."""

    def __post_init__(self) -> None:
        given = dict(self.tables)
        self.tables = {
            name: _completed(given.pop(name), table) if name in given else pa.Table.from_batches([], table.schema)
            for name, table in TABLES.items()
        }
        self.tables.update(given)

    @property
    def resumed(self) -> bool:
        """Whether the run continues something: a segment of its own, or (starting late) another run."""
        return len(self.segment_starts) > 1 or any(start > 0 for start in self.segment_starts)


def _completed(data: Any, table: Table) -> Any:
    missing = [wanted for wanted in table.schema if wanted.name not in data.schema.names]
    if not missing:
        return data
    if isinstance(data, pa.Table):
        for wanted in missing:
            data = data.append_column(wanted, pa.nulls(data.num_rows, wanted.type))
        return data
    return data.replace_schema(pa.schema([*data.schema, *missing]))


def as_table(data: Any) -> pa.Table:
    """A small table in memory. Datasets have `to_table`; `pyarrow.dataset` itself is not imported, it takes 0.3 s."""
    return data if isinstance(data, pa.Table) else data.to_table()


def from_rows(tables: Mapping[str, Any], *, segment_starts: Sequence[int] = (0,)) -> TableSource:
    """Tables from rows as people write them: `{"groups": [{"step": 1, "d": 1e-6}], "config": {"optimizer.type": …}}`.

    A missing column is NULL, but `segment` and `rank` are 0; `config` and `env` may be a mapping. RuleError lists every
    unknown table or column and every cell of the wrong type.
    """
    problems: list[str] = []
    built: dict[str, pa.Table] = {}
    for name, given in tables.items():
        if name not in TABLES:
            problems.append(f"no table {name}{did_you_mean(name, TABLES)}")
            continue
        rows = key_value_rows(given, "case") if name in ("config", "env") and isinstance(given, Mapping) else given
        if not isinstance(rows, list | tuple) or not all(isinstance(row, Mapping) for row in rows):
            problems.append(f"{name}: give a list of rows")
            continue
        built[name] = _table_of(TABLES[name], rows, problems)
    if problems:
        raise RuleError("\n".join(problems))
    return TableSource(dict(built), list(segment_starts))


def key_value_rows(values: Mapping[str, Any], origin: str, segment: int = 0) -> list[dict[str, Any]]:
    """Rows of `config` or `env` from a mapping: text as it is, everything else as JSON."""
    return [
        {"segment": segment, "key": key, "value": encode_value(value), "origin": origin}
        for key, value in values.items()
    ]


def encode_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def decode_value(text: str | None) -> Any:
    """The value behind a cell of `config`: JSON where it is any (but text), else the text itself."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, str) else value


def config_values(source: TableSource) -> dict[str, Any]:
    """The configuration of the last segment, by dotted key."""
    table = as_table(source.tables["config"])
    keys, values = table.column("key").to_pylist(), table.column("value").to_pylist()
    segments = [segment or 0 for segment in table.column("segment").to_pylist()]
    last = max(segments, default=0)
    return {
        key: decode_value(value)
        for key, value, segment in zip(keys, values, segments, strict=True)
        if segment == last and key is not None
    }


def _table_of(table: Table, rows: Sequence[Mapping[str, Any]], problems: list[str]) -> pa.Table:
    names = [column.name for column in table.columns]
    unknown = sorted({str(key) for row in rows for key in row} - set(names))
    problems += [f"{table.name}: no column {column}{did_you_mean(column, names)}" for column in unknown]
    arrays = []
    for column in table.columns:
        # Whoever writes rows by hand means the first segment and the only process. (`rank` of `adapters` is a LoRA's.)
        default = 0 if column in (SEGMENT, RANK) else None
        values = [row.get(column.name, default) for row in rows]
        wrong = next((value for value in values if value is not None and not _fits(value, column.type)), None)
        if wrong is not None:
            problems.append(f"{table.name}.{column.name}: expected {_NAMES[column.type]}, found {wrong!r}")
            values = [None] * len(values)
        arrays.append(_array(values, column.type))
    return pa.table(arrays, schema=table.schema)


_NAMES = {INT: "a whole number", REAL: "a number", SMALL_REAL: "a number", TEXT: "text", FLAG: "true or false"}


def _fits(value: Any, kind: pa.DataType) -> bool:
    if kind in (TEXT, FLAG):
        return isinstance(value, str if kind == TEXT else bool | np.bool_)
    # In Python true is a 1; in a table it is a mistake. `lr = 1` is an integer in TOML, and fine.
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    return kind != INT or (isinstance(value, numbers.Integral) and -(2**63) <= int(value) < 2**63)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """What `pa.array(values, kind)` gives. That one imports pandas if given a list, and so is slow."""
    valid = _bits([value is not None for value in values])
    if kind == TEXT:
        pieces = [b"" if value is None else value.encode() for value in values]
        ends = np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int32)
        return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(ends), pa.py_buffer(b"".join(pieces))])
    if kind == FLAG:
        return pa.Array.from_buffers(kind, len(values), [valid, _bits([bool(value) for value in values])])
    stored = np.array([0 if value is None else value for value in values], dtype=kind.to_pandas_dtype())
    return pa.Array.from_buffers(kind, len(values), [valid, pa.py_buffer(stored)])


def _bits(flags: Sequence[bool]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(np.array(flags, dtype=bool), bitorder="little"))
