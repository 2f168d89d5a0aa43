"""Opens a table of a run directory: every file of it is read once, so that a damaged one is named and never judged.

What is small is kept in memory then: a long run has a file for every few seconds, and opening thousands of them costs
more than what is in them. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from trainscope.errors import RunError
from trainscope.runlog.rundir import RunDir
from trainscope.runlog.stamp import check_stamp
from trainscope.runlog.tables import TABLES

if TYPE_CHECKING:
    import pyarrow.dataset as ds

KEPT_BYTES = 24 * 2**20
"""A table of at most so many bytes in memory stays there."""


def open_table(run: RunDir, name: str) -> ds.Dataset:
    """A table with all its raw rows; one that was never written is empty. Raises `RunError` if a file is damaged."""
    import pyarrow.dataset as ds  # imports pandas where there is one: a third of a second that only reading needs

    schema, folder = TABLES[name].schema, run.log / name
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is damaged: it is a file, and a table is a folder of Parquet files")
    files = sorted(folder.glob("s*.parquet"))
    kept = _Kept(schema)
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for batches in pool.map(lambda file: _read(file, schema, kept), files):
            kept.add(batches)
    if kept.full:
        return ds.dataset(files, schema=schema, format="parquet")
    return ds.dataset(kept.table())


class _Kept:
    """The rows of a table as long as they are few."""

    def __init__(self, schema: pa.Schema) -> None:
        self.full = False
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []
        self._bytes = 0

    def add(self, batches: Sequence[pa.RecordBatch]) -> None:
        self._bytes += sum(batch.nbytes for batch in batches)
        self.full = self.full or self._bytes > KEPT_BYTES
        if self.full:
            self._batches.clear()
        else:
            self._batches.extend(batches)

    def table(self) -> pa.Table:
        tables = [_completed(pa.Table.from_batches([batch]), self._schema) for batch in self._batches]
        return pa.concat_tables(tables).combine_chunks() if tables else self._schema.empty_table()


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of the schema in its order: an older log lacks some, a newer one has more."""
    columns = [
        table[field.name] if field.name in table.schema.names else pa.nulls(len(table), field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)


def _read(file: Path, schema: pa.Schema, kept: _Kept) -> list[pa.RecordBatch]:
    """Check a file, and its rows unless there are too many already.

    A renamed file was whole when it was written: one that does not read now was damaged since.
    """
    batches: list[pa.RecordBatch] = []
    rows = 0
    try:
        # Without the checksums, every third flipped bit would be read as another number.
        content = file.read_bytes()
        check_stamp(memoryview(content))
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as parquet:
            found = parquet.schema_arrow
            for batch in parquet.iter_batches(use_threads=False):
                batch.validate(full=True)  # pyarrow hands out some that are not whole
                rows += batch.num_rows
                if not kept.full:
                    batches.append(batch)
            if rows != parquet.metadata.num_rows:
                raise ValueError(f"it has {rows} rows instead of {parquet.metadata.num_rows}")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise RunError(f"{file} is damaged: {_first_line(error)}", hint="restore the file, or move it away") from error
    for field in found:
        if field.name in schema.names and not field.type.equals(schema.field(field.name).type):
            raise RunError(f"{file} is damaged: {field.name} is {field.type}, not {schema.field(field.name).type}")
    return batches


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
