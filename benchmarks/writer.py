"""What the log costs: the training thread's time, the writer's, and bytes a row.

A training of 5,000 tensors at 20 steps a second hands over every column of `tensors` at every step, noise in every
measure, and works between the steps. The same work is timed without a log; where there are two cores, the writer is to
have the other. Bytes a row are those of a real run: a fine-tune of the tiny model, every tensor at every step.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq
import torch

from trainscope.probes.pending import Pending, collect
from trainscope.probes.tensors import COUNTS, NULL_WHERE
from trainscope.proof.runs import RunSpec
from trainscope.runlog.rundir import create_run
from trainscope.runlog.tables import TABLES
from trainscope.runlog.writer import LIMIT_BYTES, RunWriter
from trainscope.trainer.train import train

TENSORS, STEPS_A_SECOND, SECONDS, DRAIN_STEPS = 5_000, 20, 30, 10
KEYS = ("step", "segment", "rank", "param")
MEASURES = tuple(column.name for column in TABLES["tensors"].columns if column.name not in KEYS)
NAMES = [f"unet.down_blocks.{i % 4}.attentions.{i % 3}.transformer_blocks.0.layer{i}.weight" for i in range(TENSORS)]
REAL_RUN = {
    "train.method": "finetune",
    "train.steps": 300,
    "probes.every": 1,
    "ema.enabled": True,
    "eval.every_steps": 0,
    "sample.every_steps": 0,
    "optimizer.lr": 1e-4,
}


def measured(step: int) -> Pending:
    """A step's rows as the probe returns them, as incompressible as real ones."""
    values = torch.randn((len(MEASURES), TENSORS), dtype=torch.float64).abs() * 1e-3
    for place, name in enumerate(MEASURES):
        if name in COUNTS:
            values[place] = torch.randint(0, 4_000_000, (TENSORS,))
    where = {name: conditions for name, conditions in NULL_WHERE.items() if name in MEASURES}
    return Pending("tensors", step, {"param": NAMES}, MEASURES, values, integers=COUNTS, null_where=where)


@dataclass
class Seconds:
    """Of a step, by the clock and of the processor: on a busy machine only the second says something."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    @contextmanager
    def measured(self) -> Iterator[None]:
        clock, processor = time.perf_counter(), time.thread_time()
        yield
        self.clock.append(time.perf_counter() - clock)
        self.processor.append(time.thread_time() - processor)


def work(matrix: torch.Tensor) -> None:
    """Something that takes about a third of a step, half of it in Python."""
    for _ in range(12):
        matrix @ matrix
        sum(range(12_000))


def steps(log: RunWriter | None, seconds: float) -> tuple[Seconds, Seconds, int]:
    """What the work and handing over take, and the most bytes that ever waited."""
    matrix = torch.randn(384, 384)
    pending, works, hands, most = [], Seconds(), Seconds(), 0
    prepared = [measured(0) for _ in range(DRAIN_STEPS)]
    began = time.monotonic()
    for step in range(int(seconds * STEPS_A_SECOND)):
        with works.measured():
            work(matrix)
        with hands.measured():
            if log is not None:
                pending.append(replace(prepared[step % DRAIN_STEPS], step=step))
                if step % DRAIN_STEPS == DRAIN_STEPS - 1:
                    for record in collect(pending):
                        log.add(record)
                    log.flush_if_due()
                    pending = []
                most = max(most, log._background._backlog.bytes)
        time.sleep(max(0.0, began + (step + 1) / STEPS_A_SECOND - time.monotonic()))
    return works, hands, most


def cpu_seconds() -> float:
    """Of the writer's thread."""
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "trainscope-log"]
    assert thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(thread.ident))


def bytes_a_row(log: Path) -> dict[str, tuple[float, int]]:
    """By table: bytes a row, and rows."""
    found = {}
    for folder in sorted(log.iterdir()):
        files = list(folder.glob("*.parquet"))
        if rows := sum(pq.read_metadata(file).num_rows for file in files):
            found[folder.name] = (sum(file.stat().st_size for file in files) / rows, rows)
    return found


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else SECONDS
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp())
    try:
        steps(None, 2)
        alone = steps(None, seconds / 3)[0]
        run = create_run(folder, "bench")
        run.update(segments=[{"number": 0, "start_step": 0}])
        log = RunWriter(run)
        beside, hands, most = steps(log, seconds)
        cpu = cpu_seconds()
        began = time.monotonic()
        durable = log.flush()
        rest = time.monotonic() - began
        lost = sum(loss.rows for news in log.news() for loss in news.lost.values())
        log.close()
        size, rows = bytes_a_row(run.log)["tensors"]
        expected = len(hands.clock) * TENSORS
        print(f"{TENSORS:,} tensors at {STEPS_A_SECOND} steps a second for {seconds:.0f} s, {len(MEASURES)} measures:")
        print(f"  rows written: {rows:,} of {expected:,}; lost: {lost:,}; the last flush: {rest:.2f} s, {durable=}")
        clock, processor = 1e3 * statistics.mean(hands.clock), 1e3 * statistics.mean(hands.processor)
        print(f"  the training thread: {clock:.2f} ms a step to hand them over, {processor:.2f} of the processor")
        for name in ("clock", "processor"):
            before, after = (1e3 * statistics.median(getattr(works, name)) for works in (alone, beside))
            print(f"  its own work, by the {name}: {before:.1f} ms a step, beside the writer {after / before - 1:+.1%}")
        print(f"  the writer's thread: {cpu / seconds:.1%} of a core")
        print(f"  waiting at most: {most / 2**20:.0f} MiB of {LIMIT_BYTES / 2**20:.0f}")
        print(f"  bytes a row: {size:.1f} (noise throughout)")
        train(RunSpec(REAL_RUN).resolved(), out=folder / "real")
        print("a real run, every tensor at every step, bytes a row:")
        for table, (size, rows) in bytes_a_row(folder / "real" / "log").items():
            print(f"  {table:12} {size:8.1f}   ({rows:,} rows)")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
