"""Findings while a run trains: asks a process beside it at a modest pace, shows what is new, and may stop the training.

All that it does in the training's own process is to look at the clock after a step.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainscope.trainer.callbacks import Callback

if TYPE_CHECKING:
    from trainscope.cli.auditing import FailFast
    from trainscope.trainer.session import Session

FIRST_SECONDS = 60.0
"""Before the first look: starting the process costs about a second of a processor's time."""
LEAST_SECONDS = 5.0
SHARE = 0.02
"""Of one processor's time that looking may take, in the long run."""


class Monitor(Callback):
    """Use as a context manager around the training. `say` is told what is new, a line at a time, with its severity."""

    def __init__(
        self, say: Callable[[str, str], None], stop_on: FailFast | None = None, *, first_seconds: float = FIRST_SECONDS
    ) -> None:
        self._say = say
        self._stop_on = stop_on
        self._first_seconds = first_seconds
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._child: subprocess.Popen[str] | None = None
        self._run: Path | None = None
        self._told: set[str] = set()
        self._due = float("inf")
        self.stopped_by = ""
        """The code of the finding that stopped the training."""

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def on_run(self, run: Path) -> None:
        self._run = run

    def on_start(self, session: Session) -> None:
        self._due = time.monotonic() + self._first_seconds

    def after_step(self, session: Session) -> None:
        if time.monotonic() < self._due and self._answers.empty():
            return
        with contextlib.suppress(queue.Empty):
            self._read(self._answers.get_nowait())
        if time.monotonic() >= self._due:
            self._due = float("inf")  # until there is an answer
            self._ask()

    def _ask(self) -> None:
        try:
            if self._child is None:
                self._child = self._start()
            assert self._child.stdin is not None  # noqa: S101  a pipe
            self._child.stdin.write("look\n")
            self._child.stdin.flush()
        except OSError as error:
            self._give_up(str(error))

    def _start(self) -> subprocess.Popen[str]:
        child = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, "-m", "trainscope.cli.live", str(self._run)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        # Its own queue: what a process that was given up says last is not taken for an answer of the next.
        threading.Thread(target=_listen, args=(child, self._answers), daemon=True).start()
        return child

    def _read(self, line: str) -> None:
        try:
            answer: dict[str, Any] = json.loads(line)
        except ValueError:
            return self._give_up("its process ended")
        if "error" in answer:
            return self._give_up(answer["error"])
        for finding in answer["findings"]:
            self._tell(finding)
        self._due = time.monotonic() + max(LEAST_SECONDS, answer["cpu_seconds"] / SHARE)
        return None

    def _tell(self, finding: dict[str, str]) -> None:
        code, severity = finding["code"], finding["severity"]
        if code in self._told:
            return
        self._told.add(code)
        remedy = f" → {finding['remedy']}" if finding["remedy"] else ""
        self._say(f"{severity} {code} {finding['name']}: {finding['message']}{remedy}", severity)
        if self._stop_on is not None and self._stop_on.matches(code, severity) and not self.stopped_by:
            self.stopped_by, self.wants_to_stop = code, True
            self._say(f"stopping because of {code}", severity)

    def _give_up(self, reason: str) -> None:
        self._say(f"warning: not looking at the run any more while it trains: {reason}", "warning")
        self._end()

    def _end(self) -> None:
        self._due = float("inf")
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.wait()
            self._answers = queue.SimpleQueue()


def _listen(child: subprocess.Popen[str], answers: queue.SimpleQueue[str]) -> None:
    assert child.stdout is not None  # noqa: S101  a pipe
    for line in child.stdout:
        answers.put(line)
    answers.put("")
