"""The run directory of a training that trainscope only watches: made, shared by several processes, and finished.

Knows nothing of what is recorded in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from trainscope.errors import RunError
from trainscope.recording.description import Keys, now, record_facts, record_keys, write_description
from trainscope.recording.environment import environment
from trainscope.runlog.durable import make_folder
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.runlog.writer import RunWriter

WAIT_SECONDS = 60.0
"""How long a process waits for the first one to make the directory."""


def rank() -> int:
    """The number of this process among those that train together."""
    if "RANK" in os.environ:
        return int(os.environ["RANK"])
    together = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_rank() if together else 0


class WatchedRun:
    """A run of one segment. The first process makes it; the others find it and write their rows."""

    def __init__(self, out: Path | None, name: str, *, start_step: int = 0) -> None:
        """Raises `RunError` if the directory cannot be made, or is not made by the first process."""
        self.rank = rank()
        self._start_step = start_step
        self._keys: list[tuple[str, Any, str]] = []
        self._facts: dict[str, str] = {}
        self._held = ExitStack()
        if self.is_main:
            self.directory = create_run(Path("runs"), name, out=out)
            self._held.enter_context(self.directory.lock())
        elif out is None:
            raise RunError(
                f"process {self.rank} of several does not know the run directory of the first",
                hint="name one with out, the same for all; or attach in the first only",
            )
        else:
            self.directory = _found(out)
        self.writer = RunWriter(self.directory, rank=self.rank)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def describe(self, keys: Keys, device: torch.device, *, origin: str, facts: Mapping[str, Any]) -> None:
        """Write what the run is, as far as it is known. `facts` are for run.json."""
        if not self.is_main:
            return
        folder = self.directory.segment(0)
        make_folder(folder)
        there = environment(device)
        self._keys, self._facts = list(keys), there
        # No text: this is not a configuration that `trainscope run` could take.
        write_description(folder, text="", path=None, keys=keys, facts=there)
        segment = {"number": 0, "start_step": self._start_step, "started": now()}
        self.directory.update(origin=origin, segments=[segment], **facts)
        record_keys(self.writer, keys)
        record_facts(self.writer, there)

    def add_keys(self, keys: Mapping[str, Any], origin: str = "observed") -> None:
        """What showed later."""
        more = [(key, value, origin) for key, value in keys.items()]
        if self.is_main:
            self._keys += more
            write_description(self.directory.segment(0), text="", path=None, keys=self._keys, facts=self._facts)
            record_keys(self.writer, more)

    def finish(self, status: str, step: int) -> None:
        """The writer is closed, run.json says how it ended, and the lock is let go."""
        try:
            self.writer.close()
            if self.is_main:
                segments = self.directory.read()["segments"]
                for segment in segments[-1:]:
                    segment.update(ended=now(), end_step=step)
                planned = self.directory.read().get("steps")
                self.directory.update(status=status, segments=segments, steps=planned or step)
        finally:
            self._held.close()


def _found(out: Path) -> RunDir:
    until = time.monotonic() + WAIT_SECONDS
    while not (out / "run.json").exists():
        if time.monotonic() > until:
            raise RunError(f"{out} was not made by the first process")
        time.sleep(0.05)
    return RunDir(out)
