"""The crash-safe writer: rows go to buffers, buffers to whole Parquet files.

A file is written beside, fsynced and renamed, so that a run killed at any instant leaves every flushed row readable.
Knows neither what the rows mean nor who measured them; never imports torch.
"""

from __future__ import annotations

import time
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from trainscope.runlog.rundir import RunDir, write_atomically
from trainscope.runlog.tables import TABLES
from trainscope.schema import Record

FLUSH_ROWS = 100_000
"""Rows of one table that are buffered at most."""
FLUSH_SECONDS = 10.0
"""Seconds after which buffered rows are written."""


class RecordError(ValueError):
    """Buffered rows were not what their table's columns hold, and are lost; `reasons` has the tables."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("; ".join(f"table {table}: {reason}" for table, reason in reasons.items()))
        self.reasons = reasons


class RunWriter:
    """Appends rows to the tables of one segment and rank. Not for several threads."""

    def __init__(
        self,
        run: RunDir,
        *,
        segment: int = 0,
        rank: int = 0,
        flush_rows: int = FLUSH_ROWS,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._run = run
        self._segment = segment
        self._rank = rank
        self._flush_rows = flush_rows
        self._flush_seconds = flush_seconds
        self._buffers: dict[str, dict[str, list[Any]]] = {}
        self._files: dict[str, int] = {}
        self._last_flush = time.monotonic()

    def add(self, record: Record) -> None:
        """Buffer a record. Columns that it lacks are NULL; `segment` and `rank` are filled in."""
        columns = record.columns
        count = len(next(iter(columns.values()), []))
        if not count:
            return
        table = TABLES[record.table]
        unknown = columns.keys() - {column.name for column in table.columns}
        if unknown:
            raise KeyError(f"table {record.table} has no column {', '.join(sorted(unknown))}")
        if len({len(values) for values in columns.values()}) > 1:
            raise ValueError(f"table {record.table}: the columns of a record have different lengths")
        buffer = self._buffers.setdefault(record.table, {column.name: [] for column in table.columns})
        for name, values in buffer.items():
            if name in columns:
                values.extend(columns[name])
            elif name == "segment":
                values.extend([self._segment] * count)
            elif name == "rank":
                values.extend([self._rank] * count)
            else:
                values.extend([None] * count)
        if len(buffer[table.columns[0].name]) >= self._flush_rows:
            self._write(record.table)

    def add_row(self, table: str, /, **values: Any) -> None:
        """Buffer one row."""
        self.add(Record(table, {name: [value] for name, value in values.items()}))

    def flush_if_due(self) -> None:
        """Write everything buffered if the last time is long enough ago."""
        if time.monotonic() - self._last_flush >= self._flush_seconds:
            self.flush()

    def flush(self) -> None:
        """Write everything buffered.

        Raises `OSError` or `RecordError` when everything that can be written is. After an `OSError` nothing is lost.
        """
        reasons: dict[str, str] = {}
        failure: OSError | None = None
        for table in list(self._buffers):
            try:
                self._write(table)
            except RecordError as error:
                reasons |= error.reasons
            except OSError as error:
                failure = error
        self._last_flush = time.monotonic()
        if failure is not None:
            raise failure
        if reasons:
            raise RecordError(reasons)

    def _write(self, table: str) -> None:
        try:
            arrow = pa.table(self._buffers[table], schema=TABLES[table].schema)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            del self._buffers[table]
            raise RecordError({table: str(error).partition("\n")[0]}) from error
        sink = pa.BufferOutputStream()
        pq.write_table(arrow, sink, compression="zstd", write_page_checksum=True)
        folder = self._run.log / table
        folder.mkdir(exist_ok=True)
        number = self._files.get(table, 0)
        write_atomically(folder / f"s{self._segment}-r{self._rank}-{number:06d}.parquet", sink.getvalue().to_pybytes())
        # Only now: after a write that failed, the rows are still there for the next one.
        self._files[table] = number + 1
        del self._buffers[table]
