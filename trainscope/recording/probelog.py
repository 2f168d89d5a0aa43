"""What the probes return → the run log, and what becomes of a probe that fails: it is reported once, and done without.

Values stay on the device until they are brought over at once. Knows nothing of which probes there are, nor when they
look.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from trainscope.probes.pending import Pending, collect
from trainscope.runlog.tables import TABLES
from trainscope.runlog.writer import News, RecordError, RunWriter
from trainscope.schema import Record

T = TypeVar("T")
PER_PROCESS = ("steps", "order", "batches", "losses", "checksums")
"""Tables that every process writes; in the others all would write the same."""


class ProbeLog:
    """The way of one training's measurements into its log."""

    def __init__(
        self,
        writer: RunWriter,
        device: torch.device,
        *,
        step: Callable[[], int],
        is_main: bool = True,
        on_event: Callable[[str, dict[str, Any]], None] = lambda kind, detail: None,
        on_steps: Callable[[dict[str, list[Any]]], None] = lambda columns: None,
    ) -> None:
        """`step` says how many optimizer steps are done; `on_steps` gets the rows of `steps` as they reach the host."""
        self._writer = writer
        self._device = device
        self._step = step
        self._is_main = is_main
        self._on_event = on_event
        self._on_steps = on_steps
        self._pending: list[Pending] = []
        self._later: list[tuple[str, Callable[[], Pending | Iterable[dict[str, Any]]]]] = []
        self._rows: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        """Rows on the host by table and columns: to hand them over one by one would cost as much as to write them."""
        self.failed: set[str] = set()
        """Tables whose probe is not called any more."""
        self.spent: defaultdict[str, float] = defaultdict(float)
        """Seconds of the step under way, by table; "drain" is what bringing the values over took."""
        self.late_seconds = 0.0
        """Seconds of bringing values over after the step had been timed: part of the next."""
        self.settles = False
        """Let the device finish before and after each probe: what it costs there is not known otherwise."""

    def add(self, measured: Pending | Record | None) -> None:
        """Rows, on the device or on the host; None: there are none."""
        if isinstance(measured, Pending):
            self._pending.append(measured)
        elif measured is not None:
            self._hand_over(measured)

    def later(self, table: str, make: Callable[[], Pending | Iterable[dict[str, Any]]]) -> None:
        """Rows that are made when values are brought over: many steps' at once, when nothing waits for them.

        Between two operations of a small model the same code takes several times as long.
        """
        self._later.append((table, make))

    def add_row(self, table: str, /, **values: Any) -> None:
        """A row, handed over with the next that are brought over."""
        if self._is_main or table in PER_PROCESS:
            self._rows.setdefault((table, *values), []).append(values)

    def event(self, kind: str, **detail: Any) -> None:
        """Something happened; the detail's keys are fixed for each kind."""
        self.add_row("events", step=self._step(), time=time.time(), kind=kind, detail=json.dumps(detail, default=str))
        self._on_event(kind, detail)

    def fallback(self, message: str) -> None:
        """Something is done in another way than was asked for."""
        self.event("fallback", message=message)

    def absent(self, table: str, column: str | None, reason: str) -> None:
        """Say in `coverage` why a column, or a whole table, is not recorded."""
        names = [column] if column else [c.name for c in TABLES[table].columns]
        for name in names:
            self.add_row("coverage", table=table, column=name, reason=reason)

    @contextmanager
    def guarded(self, table: str) -> Iterator[None]:
        """Around whatever only looks. If it fails, say so in log and console, and do without it from here on."""
        self._settle()
        started = time.perf_counter()
        try:
            yield
        except Exception as error:  # whatever a probe does wrong, the training is worth more
            self._give_up(table, error)
        finally:
            self._settle()
            self.spent[table] += time.perf_counter() - started

    def attempt(self, table: str, do: Callable[[], T]) -> T | None:
        """What a probe of a table returns; None if it fails or has failed before."""
        done: T | None = None
        if table not in self.failed:
            with self.guarded(table):
                done = do()
        return done

    def drain(self) -> None:
        """Bring over what is still on the device, and let the writer write if it is time."""
        begun = time.perf_counter()
        self._make_rows()
        started = time.perf_counter()
        pending, self._pending = self._pending, []
        for record in self._collected(pending):
            self._hand_over(record)
            if record.table == "steps":
                self._on_steps(record.columns)
        self._hand_over_rows()
        self._write(self._writer.flush_if_due)
        ended = time.perf_counter()
        self.spent["drain"] += ended - started
        self.late_seconds += ended - begun

    def flush(self) -> None:
        """Everything measured so far is on disk when this returns; if the disk fails, that is told and no more."""
        self.drain()
        if self._write(self._writer.flush):  # what there was to tell
            self._hand_over_rows()
            self._write(self._writer.flush)

    def _collected(self, pending: Sequence[Pending]) -> list[Record]:
        try:
            return collect(pending)
        except Exception:  # one of them is to blame: find out which
            records: list[Record] = []
            for item in pending:
                try:
                    records += collect([item])
                except Exception as error:
                    self._give_up(item.table, error)
            return records

    def _hand_over(self, record: Record) -> None:
        try:
            self._writer.add(record)
        except Exception as error:
            self._give_up(record.table, error)

    def _make_rows(self) -> None:
        later, self._later = self._later, []
        for table, make in later:
            made: Pending | Iterable[dict[str, Any]] = ()
            with self.guarded(table):  # also what was seen before its probe failed
                made = make()
            if isinstance(made, Pending):
                self._pending.append(made)
            else:
                for row in made:
                    self.add_row(table, **row)

    def _hand_over_rows(self) -> None:
        waiting, self._rows = self._rows, {}
        for (table, *names), rows in waiting.items():
            self._hand_over(Record(table, {name: [row[name] for row in rows] for name in names}))

    def _write(self, flush: Callable[[], object]) -> bool:
        """Whether there was something to tell."""
        reasons: dict[str, str] = {}
        try:
            flush()
        except RecordError as error:
            reasons = error.reasons
        for table, reason in reasons.items():
            self._give_up(table, ValueError(reason))
        news = self._writer.news()
        for item in news:
            self._tell(item)
        return bool(reasons or news)

    def _tell(self, news: News) -> None:
        """No probe is to blame for a disk; what it took with it is in `coverage`."""
        lost: dict[str, dict[str, int]] = {}
        for table, loss in news.lost.items():
            first, last = loss.steps or (0, 0)
            lost[table] = {"rows": loss.rows, "first_step": first, "last_step": last}
            reason = f"{loss.rows} rows of steps {first} to {last} are missing: the log could not be written"
            self.absent(table, None, reason)
        self.event(news.kind, message=news.message, lost=lost)

    def _settle(self) -> None:
        if self.settles and self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _give_up(self, table: str, error: Exception) -> None:
        if table in self.failed:
            return
        self.failed.add(table)
        reason = f"the probe failed: {type(error).__name__}: {error}"
        self.absent(table, None, reason)
        self.event("probe_failed", table=table, reason=reason)
