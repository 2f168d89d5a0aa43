"""Rows of a table → the bytes of a Parquet file.

Measures are noise in their last bits: cut into planes of bytes they compress by half, where a dictionary of them makes
them longer. Knows nothing of files, threads or what the values mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainscope.runlog.stamp import stamped
from trainscope.runlog.tables import FLAG, INT, REAL, SMALL_REAL, TABLES
from trainscope.schema import Record

LONG = 32
"""Rows of a list that is likely to come again with the next step, as the names of the tensors do."""

Column = list[Any] | np.ndarray
"""An array is masked where it has a NULL."""

_NUMPY = {INT: np.int64, REAL: np.float64, SMALL_REAL: np.float32, FLAG: np.bool_}
_DTYPES = {name: {column.name: _NUMPY.get(column.type) for column in table.columns} for name, table in TABLES.items()}
"""By table and column; to look up a type of Arrow's takes longer than to copy a column."""


@dataclass(frozen=True)
class Rows:
    """Rows of one table as they wait."""

    table: str
    columns: dict[str, Column]
    count: int
    size: int
    """Bytes that they take, about."""
    steps: tuple[int, int] | None
    """The first and the last of them, where there are steps."""


def rows_of(record: Record) -> Rows:
    """What is kept of a record: arrays are copied, since their owner may go on using them.

    Raises `KeyError` and `ValueError` if the columns are not the table's, or not of one length.
    """
    dtypes = _DTYPES[record.table]
    if unknown := record.columns.keys() - dtypes.keys():
        raise KeyError(f"table {record.table} has no column {', '.join(sorted(unknown))}")
    lengths = {len(values) for values in record.columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"table {record.table}: the columns of a record have different lengths")
    columns = {name: _kept(values, dtypes[name]) for name, values in record.columns.items()}
    return Rows(
        record.table,
        columns,
        count=lengths.pop() if lengths else 0,
        size=sum(map(_size, columns.values())),
        steps=_steps(record.columns.get("step", ())),
    )


class Encoder:
    """Makes Parquet of rows; columns that they lack are `constants` or NULL."""

    def __init__(self, constants: dict[str, int]) -> None:
        self._constants = constants
        self._known: dict[tuple[str, str], tuple[list[Any], pa.Array]] = {}
        """The last long list of a column, and what became of it."""

    def encode(self, table: str, rows: Sequence[Rows]) -> tuple[bytes | None, str]:
        """A file of all rows that are what the table holds, and what is wrong with the others; None: no row is."""
        try:
            arrow, reason = self._table(table, rows), ""
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            arrow, reason = self._valid(table, rows)
        return (None if arrow is None else _parquet(arrow)), reason

    def _valid(self, table: str, rows: Sequence[Rows]) -> tuple[pa.Table | None, str]:
        """One after the other: a few may be to blame."""
        valid, reason = [], ""
        for one in rows:
            try:
                valid.append(self._table(table, [one]))
            except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
                reason = str(error).partition("\n")[0]
        return (pa.concat_tables(valid) if valid else None), reason

    def _table(self, table: str, rows: Sequence[Rows]) -> pa.Table:
        schema = TABLES[table].schema
        return pa.table([self._column(table, field, rows) for field in schema], schema=schema)

    def _column(self, table: str, field: pa.Field, rows: Sequence[Rows]) -> pa.ChunkedArray:
        chunks: list[pa.Array] = []
        for kind, group in groupby(rows, key=lambda one: type(one.columns.get(field.name))):
            found = list(group)
            values = [one.columns.get(field.name) for one in found]
            if kind is list:
                lists = [value for value in values if isinstance(value, list)]
                chunks += _runs(lists, lambda long: self._remembered(table, field, long), field.type)
            elif issubclass(kind, np.ndarray):
                arrays = [value for value in values if isinstance(value, np.ndarray)]
                data = np.concatenate([np.ma.getdata(array) for array in arrays])
                mask = np.concatenate([np.ma.getmaskarray(array) for array in arrays])
                chunks.append(pa.array(data, mask=mask if mask.any() else None, type=field.type))
            else:
                constant = pa.scalar(self._constants.get(field.name), field.type)
                chunks.append(pa.repeat(constant, sum(one.count for one in found)))
        return pa.chunked_array(chunks, type=field.type)

    def _remembered(self, table: str, field: pa.Field, values: list[Any]) -> pa.Array:
        known = self._known.get((table, field.name))
        if known is None or known[0] != values:
            known = self._known[table, field.name] = (values, pa.array(values, type=field.type))
        return known[1]


def warm_up() -> None:
    """Let pyarrow import what its first array needs, pandas among it: a thread cannot while the program ends."""
    Encoder({}).encode("steps", [rows_of(Record("steps", {"step": [0]}))])


def _runs(lists: Sequence[list[Any]], remembered: Callable[[list[Any]], pa.Array], of: pa.DataType) -> Iterator[Any]:
    """Long lists one by one, short ones joined: to make an array costs as much as to fill it."""
    for is_long, group in groupby(lists, key=lambda values: len(values) >= LONG):
        if is_long:
            yield from map(remembered, group)
        else:
            yield pa.array([value for values in group for value in values], type=of)


def _parquet(arrow: pa.Table) -> bytes:
    floats = [field.name for field in arrow.schema if pa.types.is_floating(field.type)]
    sink = pa.BufferOutputStream()
    pq.write_table(
        arrow,
        sink,
        compression="zstd",
        use_dictionary=[name for name in arrow.schema.names if name not in floats],
        column_encoding=dict.fromkeys(floats, "BYTE_STREAM_SPLIT"),
        store_schema=False,  # Parquet's own types say all
        write_page_checksum=True,
    )
    return stamped(memoryview(sink.getvalue()))


def _kept(values: Any, dtype: type | None) -> Column:
    if not isinstance(values, np.ndarray):
        return list(values)
    if dtype is np.int64 and values.dtype.kind not in "iu":
        dtype = None  # whether they are whole numbers is seen when they are encoded
    with np.errstate(over="ignore"):  # too large for float32 is infinite there
        data = np.array(np.ma.getdata(values), dtype=dtype)
    mask = np.ma.getmask(values)
    return data if mask is np.ma.nomask else np.ma.MaskedArray(data, mask=mask.copy())


def _steps(values: Any) -> tuple[int, int] | None:
    found = [int(values[place]) for place in (0, -1) if len(values) and isinstance(values[place], int | np.integer)]
    return (found[0], found[-1]) if found else None


def _size(values: Column) -> int:
    if isinstance(values, np.ndarray):
        return int(values.nbytes + np.ma.getmask(values).nbytes)
    if len(values) >= LONG:  # references to what the caller has anyway
        return 8 * len(values)
    return sum(64 + (len(value) if isinstance(value, str) else 0) for value in values)
