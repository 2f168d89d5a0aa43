"""The thread that writes a backlog, so that whoever adds to it never waits for a disk.

It writes when the oldest row is about to be `seconds` old, when much waits, and when it is asked to. What cannot be
written waits on and is tried again; a thread that ended is started again. Knows nothing of what is written or how.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from trainscope.runlog.backlog import Backlog, Loss
from trainscope.runlog.encode import Rows

RETRY_SECONDS = 1.0
"""Between two attempts to write, at least."""
GAP_SECONDS = 60.0
"""Between two news of missing rows, at least, unless somebody waits for the log."""


@dataclass(frozen=True)
class News:
    """Something that the log's owner should tell: "log_failed", once, or "log_gap", when it is written again."""

    kind: str
    message: str
    lost: dict[str, Loss] = field(default_factory=dict)
    """By table: what is missing, and was not told yet."""


class Background:
    """Writes a backlog. Methods may be called from any thread; in a forked process they do nothing."""

    def __init__(
        self, backlog: Backlog, write: Callable[[str, list[Rows]], str], *, seconds: float, full_bytes: int
    ) -> None:
        """`write` makes a table's rows durable and returns what is wrong with those that it had to leave out.

        It raises `OSError` or `MemoryError` if they should be tried again. `full_bytes` is so much that it is written
        at once.
        """
        self._backlog = backlog
        self._write = write
        self._seconds = seconds
        self._full_bytes = full_bytes
        self._changed = threading.Condition()  # around an RLock: a garbage collection within it may call `close`
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._asked = 0
        """How often writing was asked for, and up to which of these it was done."""
        self._answered = 0
        self._closing = False
        self._stuck = False
        """A pass takes longer than somebody was ready to wait."""
        self._oldest = 0.0
        """When the first row that waits was added; the time of the last attempt where that failed."""
        self._pass_seconds = 0.0
        self._failure: str | None = None
        """Why not everything could be written, at the last attempt."""
        self._told_failure = False
        self._told_gap: float | None = None
        """When."""
        self._news: list[News] = []
        self._rejected: dict[str, str] = {}

    def add(self, rows: Rows) -> None:
        """Never waits for the disk. Without room the rows are lost, and counted."""
        if not self._is_ours:
            return
        with self._changed:
            was_empty = not self._backlog
            if not self._backlog.add(rows):
                self._tell_failure("more comes in than can be written")
            elif was_empty and self._failure is None:
                self._oldest = time.monotonic()
            if was_empty or self._backlog.bytes >= self._full_bytes:
                self._changed.notify_all()
        self.wake()

    def wake(self) -> None:
        """See to it that there is a thread."""
        if self._is_alive or not self._is_ours:
            return
        with self._changed:
            if self._is_alive or not self._may_try:
                return
            self._closing = False
            thread = threading.Thread(target=self._work, name="trainscope-log", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # no more threads
                self._fail(str(error))
            else:
                self._thread = thread

    def flush(self, timeout: float) -> bool:
        """Wait until everything that was added is durable. False: it is not, since the disk fails or takes too long."""
        if not self._is_ours:
            return False
        with self._changed:
            self._asked += 1
            ticket = self._asked
            self._oldest = min(self._oldest, time.monotonic() - RETRY_SECONDS)
            self._changed.notify_all()
            self.wake()
            if not self._stuck:
                self._changed.wait_for(lambda: self._answered >= ticket or not self._is_alive, timeout)
            done = self._answered >= ticket
            if not done and self._is_alive:
                self._stuck = True
                self._tell_failure(f"the disk has not answered for {timeout:.0f} s")
            return done and self._failure is None

    def close(self, timeout: float) -> bool:
        """`flush`, and the end of the thread. A later `add` starts another."""
        if not self._is_ours:
            return False
        is_itself = self._thread is threading.current_thread()  # in a garbage collection
        durable = not self._backlog
        if not is_itself and (self._thread is not None or self._backlog):
            durable = self.flush(timeout)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and not is_itself and not self._stuck:
            self._thread.join(timeout)
        return durable

    def take_news(self) -> list[News]:
        if not self._is_ours:
            return []
        with self._changed:
            news, self._news = self._news, []
            return news

    def take_rejected(self) -> dict[str, str]:
        """By table: why rows of it were left out."""
        if not self._is_ours:
            return {}
        with self._changed:
            rejected, self._rejected = self._rejected, {}
            return rejected

    # ---- in the thread

    def _work(self) -> None:
        while True:
            with self._changed:
                while (left := self._seconds_left()) is None or left > 0:
                    self._changed.wait(left)
                if self._closing and (not self._backlog or self._failure is not None):
                    return
                ticket, batch = self._asked, self._backlog.take()
            started = time.monotonic()
            try:
                failure = self._pass(batch)
            except BaseException as error:
                with self._changed:
                    self._thread = None
                    self._fail(f"the writer's thread ended: {type(error).__name__}: {error}")
                return
            with self._changed:
                self._pass_seconds = time.monotonic() - started
                was_asked, self._answered, self._stuck = ticket > self._answered, ticket, False
                self._failure = None
                if failure is not None:
                    self._fail(failure)
                else:
                    self._oldest = started
                    self._tell_recovery(at_once=was_asked)
                self._changed.notify_all()

    def _pass(self, batch: dict[str, list[Rows]]) -> str | None:
        """Write every table that can be; why others cannot."""
        failure: str | None = None
        try:
            for table in list(batch):
                reason = ""
                try:
                    reason = self._write(table, batch[table])
                except (OSError, MemoryError) as error:
                    failure = f"{type(error).__name__}: {error}"
                    continue
                except Exception as error:  # it would fail again the next time
                    reason = f"{type(error).__name__}: {error}"
                with self._changed:
                    self._backlog.forget(batch.pop(table))
                    if reason:
                        self._rejected[table] = reason
        finally:
            with self._changed:
                for table, rows in batch.items():
                    self._backlog.put_back(table, rows)
        return failure

    # ---- with the lock held

    @property
    def _is_ours(self) -> bool:
        """False in a forked process, which has neither the thread nor a lock that can be trusted."""
        return os.getpid() == self._pid

    @property
    def _is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def _may_try(self) -> bool:
        return self._failure is None or time.monotonic() - self._oldest >= RETRY_SECONDS

    def _seconds_left(self) -> float | None:
        """Until it is time to write; None: until something changes."""
        if self._closing or self._asked > self._answered:
            return 0.0
        if not self._backlog:
            return None
        since = time.monotonic() - self._oldest
        if self._failure is not None:
            return max(self._seconds, RETRY_SECONDS) - since
        if self._backlog.bytes >= self._full_bytes:
            return 0.0
        # It is to be on disk by then, and not only on its way there.
        return self._seconds - min(2 * self._pass_seconds, self._seconds / 2) - since

    def _fail(self, failure: str) -> None:
        self._failure = failure
        self._oldest = time.monotonic()
        self._tell_failure(failure)
        self._changed.notify_all()

    def _tell_failure(self, failure: str) -> None:
        if not self._told_failure:
            self._told_failure = True
            self._news.append(News("log_failed", failure))

    def _tell_recovery(self, *, at_once: bool) -> None:
        """Everything is written: tell what is missing, and the first time that it goes on."""
        lately = self._told_gap is not None and time.monotonic() - self._told_gap < GAP_SECONDS
        if (self._backlog.lost and (at_once or not lately)) or (self._told_failure and self._told_gap is None):
            self._told_gap = time.monotonic()
            self._news.append(News("log_gap", "the log is written again", self._backlog.take_lost()))
