"""Writers of a run log that are killed. Without torch, they fork quickly.

    python -m tests.integration.log_kills <folder> <number>

Checks what each left, and prints what was done as JSON.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.integration.log_workload import EVERY, add_step, check, new_run, read, unharmed
from trainscope.runlog.background import Background
from trainscope.runlog.rundir import RunDir
from trainscope.runlog.writer import RunWriter

SECONDS = 0.02
"""Between two flushes that are not."""

MOST_STEPS = 400


class Shared:
    """Numbers that a killed process leaves to its parent."""

    ADDED, DURABLE, FLUSHES, BETWEEN, TIMES = range(5)
    """Steps that were added and that are durable; flushes that are over; whether a file is open and not renamed."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8 * (self.TIMES + MOST_STEPS + 1))

    def __getitem__(self, place: int) -> int:
        return int(struct.unpack_from("q", self.memory, 8 * place)[0])

    def __setitem__(self, place: int, value: int) -> None:
        struct.pack_into("q", self.memory, 8 * place, value)


def write_until_killed(run: RunDir, shared: Shared, *, waits: bool) -> None:
    """Add steps and flush, every so many steps or by the clock; tell how far it came."""
    real_open, real_rename, real_pass = os.open, os.rename, Background._pass

    def opened(path: Any, flags: int, *more: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            shared[Shared.BETWEEN] = 1
        return real_open(path, flags, *more, **options)

    def renamed(old: Any, new: Any) -> None:
        real_rename(old, new)
        shared[Shared.BETWEEN] = 0

    def passed(background: Background, batch: dict[str, Any]) -> str | None:
        last = batch["steps"][-1].steps[1] if "steps" in batch else shared[Shared.DURABLE]  # added after all others
        failure = real_pass(background, batch)
        assert failure is None
        shared[Shared.DURABLE] = last
        shared[Shared.FLUSHES] += 1
        return failure

    Background._pass = passed  # type: ignore[method-assign]
    os.open, os.rename = opened, renamed  # type: ignore[assignment]
    writer = RunWriter(run, flush_seconds=1000.0 if waits else SECONDS)
    for step in range(1, MOST_STEPS + 1):
        add_step(writer, step)
        shared[Shared.TIMES + step] = time.monotonic_ns()
        shared[Shared.ADDED] = step
        if waits and step % EVERY == 0:
            assert writer.flush()
            assert shared[Shared.DURABLE] == step
        time.sleep(0.0005)
    time.sleep(60)


def killed(folder: Path, twin: dict[str, pa.Table], seed: int) -> dict[str, Any]:
    """Fork a writer, kill it at a moment that the seed chooses, and look at what it left."""
    rng = random.Random(seed)
    waits, between, flushes = seed % 2 == 0, seed % 4 < 2, rng.randrange(0, 5)
    shared, run = Shared(), new_run(folder)
    child = os.fork()
    if child == 0:
        write_until_killed(run, shared, waits=waits)
        os._exit(1)
    while shared[Shared.FLUSHES] < flushes:
        time.sleep(0.0001)
    time.sleep(rng.random() * 0.01)
    deadline = time.monotonic() + 10
    while between and not shared[Shared.BETWEEN] and time.monotonic() < deadline:
        pass
    os.kill(child, signal.SIGKILL)
    at = time.monotonic_ns()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the writer ended by itself with {status}"
    added, durable_step = shared[Shared.ADDED], shared[Shared.DURABLE]
    last = check(read(run.path), twin, durable_step=durable_step, added=added)
    assert not waits or added - last < EVERY + 1, f"{added - last} steps are lost"
    oldest = (at - shared[Shared.TIMES + last + 1]) / 1e9 if added > last else 0.0
    left = [path for path in run.log.rglob("*") if path.name.endswith(".tmp")]
    assert bool(left) <= bool(shared[Shared.BETWEEN])
    return {
        "after_first_flush": shared[Shared.FLUSHES] > 0,
        "between_open_and_rename": bool(shared[Shared.BETWEEN]),
        "lost_steps": added - last,
        "waits": waits,
        "oldest_lost_seconds": oldest,
    }


def kills(folder: Path, number: int) -> dict[str, Any]:
    twin = unharmed(folder / "twin", MOST_STEPS)
    found = []
    for seed in range(number):
        found.append(killed(folder / "killed", twin, seed))
        shutil.rmtree(folder / "killed")
    return {
        "kills": len(found),
        "after_first_flush": sum(one["after_first_flush"] for one in found),
        "between_open_and_rename": sum(one["between_open_and_rename"] for one in found),
        "flush_every_steps": EVERY,
        "most_steps_lost_where_it_waits": max(one["lost_steps"] for one in found if one["waits"]),
        "flush_seconds": SECONDS,
        "oldest_lost_seconds": round(max(one["oldest_lost_seconds"] for one in found if not one["waits"]), 3),
    }


if __name__ == "__main__":
    print(json.dumps(kills(Path(sys.argv[1]), int(sys.argv[2]))))
