"""A run log that is always the same, so that what survives of it can be compared row by row. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.runlog.writer import RunWriter
from trainscope.schema import Record

NAMES = [f"unet.layer{number}.weight" for number in range(40)]
EVERY = 7
"""Steps between two flushes that are waited for."""
TABLES = {"steps": 1, "tensors": len(NAMES), "order": 2}
"""The tables of the log, and their rows a step."""


def add_step(writer: RunWriter, step: int) -> None:
    """A step's rows, always the same, some of them NULL."""
    values = np.random.default_rng(step).normal(size=(3, len(NAMES)))
    absent = np.ma.MaskedArray(values[1], mask=values[1] < 0)
    steps = np.full(len(NAMES), step)
    writer.add(Record("tensors", {"step": steps, "param": NAMES, "weight_norm": values[0], "grad_norm": absent}))
    writer.add(Record("order", {"step": [step, step], "sample": [2 * step, 2 * step + 1]}))
    writer.add_row("steps", step=step, loss=float(values[2, 0]))


def new_run(folder: Path) -> RunDir:
    run = create_run(folder.parent, "run", out=folder)
    run.update(segments=[{"number": 0, "start_step": 0}])
    return run


def unharmed(folder: Path, steps: int) -> dict[str, pa.Table]:
    """The same log of a writer that nobody kills."""
    run = new_run(folder)
    writer = RunWriter(run)
    for step in range(1, steps + 1):
        add_step(writer, step)
    assert writer.close()
    return read(run.path)


def read(path: Path) -> dict[str, pa.Table]:
    datasets = read_run(path).datasets
    return {table: datasets[table].to_table(use_threads=False) for table in TABLES}


def check(found: dict[str, pa.Table], twin: dict[str, pa.Table], *, durable_step: int, added: int) -> int:
    """Every table is the beginning of the twin's, with all steps that are durable; the last step that all have."""
    last = []
    for table, rows_a_step in TABLES.items():
        rows = found[table].num_rows
        assert rows % rows_a_step == 0, f"{table} has a part of a step"
        assert found[table].equals(twin[table].slice(0, rows)), f"{table} has other rows than its twin"
        last.append(rows // rows_a_step)
        assert durable_step <= last[-1] <= added + 1, f"{table} ends at {last[-1]}, of {durable_step} to {added}"
    return min(last)
