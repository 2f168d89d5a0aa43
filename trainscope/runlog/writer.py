"""The crash-safe writer: rows go to a bounded memory, and from there to whole Parquet files, in the background.

A file is written beside, fsynced and renamed, so that a run killed at any instant leaves every flushed row readable.
Where rows are added, no disk, however full or slow, is waited for or raises. Knows neither what the rows mean nor who
measured them; never imports torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from trainscope.runlog.background import Background, News
from trainscope.runlog.backlog import Backlog
from trainscope.runlog.durable import make_folder, write_atomically
from trainscope.runlog.encode import Encoder, Rows, rows_of, warm_up
from trainscope.runlog.rundir import RunDir
from trainscope.schema import Record

__all__ = ["News", "RecordError", "RunWriter"]

FLUSH_SECONDS = 10.0
"""Seconds after which a row is on disk, at the latest, where the disk keeps up."""
FULL_BYTES = 32 * 2**20
"""Bytes of waiting rows that are written before that."""
LIMIT_BYTES = 128 * 2**20
"""Bytes of waiting rows that are kept at most, where the disk does not keep up."""
WAIT_SECONDS = 30.0
"""How long a flush waits for a disk that does not answer."""


class RecordError(ValueError):
    """Rows were not what their table's columns hold, and are lost; `reasons` has the tables."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__("; ".join(f"table {table}: {reason}" for table, reason in reasons.items()))
        self.reasons = reasons


class RunWriter:
    """Appends rows to the tables of one segment and rank."""

    def __init__(
        self,
        run: RunDir,
        *,
        segment: int = 0,
        rank: int = 0,
        flush_seconds: float = FLUSH_SECONDS,
        full_bytes: int = FULL_BYTES,
        limit_bytes: int = LIMIT_BYTES,
    ) -> None:
        warm_up()
        files = _Files(run, segment, rank)
        self._background = Background(
            Backlog(limit_bytes), files.write, seconds=flush_seconds, full_bytes=min(full_bytes, limit_bytes // 2)
        )
        # Where nobody closes it: when it is forgotten, or when the interpreter ends.
        self._finalizer = weakref.finalize(self, self._background.close, WAIT_SECONDS)

    def add(self, record: Record) -> None:
        """Keep a record until it is written. Columns that it lacks are NULL; `segment` and `rank` are filled in.

        Never waits, and knows no `OSError`. Raises `KeyError` and `ValueError` if the columns are not the table's.
        """
        rows = rows_of(record)
        if rows.count:
            self._background.add(rows)

    def add_row(self, table: str, /, **values: Any) -> None:
        """Keep one row."""
        self.add(Record(table, {name: [value] for name, value in values.items()}))

    def flush_if_due(self) -> None:
        """See to it that the rows are being written in time; does not wait. Raises `RecordError`."""
        self._background.wake()
        self._raise_rejected()

    def flush(self, timeout: float = WAIT_SECONDS) -> bool:
        """Wait until every row is durable. False: not all are, and `news` says why; they will be tried again.

        Raises `RecordError` when everything that can be written is.
        """
        durable = self._background.flush(timeout)
        self._raise_rejected()
        return durable

    def close(self, timeout: float = WAIT_SECONDS) -> bool:
        """`flush` without its error, and the end of the thread. Rows that are added later start another."""
        return self._background.close(timeout)

    def news(self) -> Sequence[News]:
        """What happened to the log since the last call: to be told by whoever owns it."""
        return self._background.take_news()

    def _raise_rejected(self) -> None:
        if reasons := self._background.take_rejected():
            raise RecordError(reasons)


class _Files:
    """The files of one segment and rank."""

    def __init__(self, run: RunDir, segment: int, rank: int) -> None:
        self._run = run
        self._prefix = f"s{segment}-r{rank}"
        self._encoder = Encoder({"segment": segment, "rank": rank})
        self._next: dict[str, int] = {}
        self._has_folder: set[str] = set()

    def write(self, table: str, rows: list[Rows]) -> str:
        """Make the rows durable; what is wrong with those that cannot be. `OSError`: none of them is."""
        data, reason = self._encoder.encode(table, rows)
        if data is not None:
            number = self._next.get(table, 0)
            try:
                self._write(table, f"{self._prefix}-{number:06d}.parquet", memoryview(data))
            except OSError:
                self._has_folder.clear()  # it may be gone with all the others
                raise
            # Only now: after a write that failed, the rows come again and take the same name.
            self._next[table] = number + 1
        return reason

    def _write(self, table: str, name: str, data: memoryview) -> None:
        folder = self._run.log / table
        if table not in self._has_folder:
            make_folder(self._run.log)
            make_folder(folder)
            self._has_folder.add(table)
        write_atomically(folder / name, data)
