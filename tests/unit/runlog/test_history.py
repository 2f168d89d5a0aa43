"""Which rows survive, told alike by the arithmetic, by the frames and by the engine's views."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trainscope
from trainscope.engine.runs import source_of
from trainscope.engine.sandbox import run_query
from trainscope.errors import RunError
from trainscope.runlog import opened
from trainscope.runlog.frames import UnknownTableError
from trainscope.runlog.history import last_steps
from trainscope.runlog.reader import Run, read_run
from trainscope.runlog.rundir import create_run
from trainscope.runlog.tables import TABLES
from trainscope.runlog.writer import RunWriter
from trainscope.schema import Record


def written(folder: Path, starts: list[int], steps: int = 10, files: int = 3) -> Run:
    """A run whose segments went on at `starts`, `steps` steps each, with an event outside of any step."""
    run = create_run(folder, "run", out=folder)
    run.update(segments=[{"number": number, "start_step": start} for number, start in enumerate(starts)])
    for segment, start in enumerate(starts):
        writer = RunWriter(run, segment=segment)
        for part in np.array_split(np.arange(start, start + steps + 1), files):
            writer.add(Record("steps", {"step": part.tolist(), "loss": [float(step) for step in part]}))
            writer.flush()
        writer.add_row("events", kind="warning")
        writer.add_row("config", key="train.steps", value=str(segment))
        writer.flush()
    return read_run(folder)


@pytest.mark.parametrize("starts", [[0], [5], [0, 7], [0, 9, 3], [0, 3, 9], [0, 0, 0], [0, 8, 8, 2, 5], [4, 0]])
def test_what_survives(tmp_path: Path, starts: list[int]) -> None:
    ends = last_steps(starts)
    for segment, end in enumerate(ends):
        assert end == min(starts[segment + 1 :], default=None)
    run = written(tmp_path / "run", starts)
    frame = run.tables["steps"]
    found = sorted(zip(frame["segment"], frame["step"], strict=True))
    expected = [
        (segment, step)
        for segment, start in enumerate(starts)
        for step in range(start, start + 11)
        if not any(later < step for later in starts[segment + 1 :])
    ]
    assert found == expected
    source = source_of(run)
    assert run_query(source, "SELECT segment, step FROM steps ORDER BY ALL")[1] == expected
    assert len(run.tables["steps_all"]) == 11 * len(starts)
    assert list(run.tables["config"]["value"]) == [str(len(starts) - 1)]
    assert len(run.tables["config_all"]) == len(starts)
    assert len(run.tables["events"]) == len(starts), "what happened outside of any step is superseded by nothing"


def test_what_is_large_stays_on_disk_and_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = written(tmp_path / "run", [0, 7])
    assert not hasattr(small.dataset("steps"), "files")
    monkeypatch.setattr(opened, "KEPT_BYTES", 0)
    large = read_run(tmp_path / "run")
    assert len(large.dataset("steps").files) == 6
    for name in large.tables:
        assert large.tables[name].equals(small.tables[name]), name
    rows = "SELECT * FROM steps ORDER BY segment, step"
    assert run_query(source_of(small), rows) == run_query(source_of(large), rows)


def test_frames_of_every_table(tmp_path: Path) -> None:
    tables = written(tmp_path / "run", [0]).tables
    assert set(tables) == {*TABLES, *(f"{name}_all" for name in TABLES)}
    assert len(tables) == len(list(tables))
    for name, table in TABLES.items():
        assert list(tables[name].columns) == [column.name for column in table.columns]
    assert "tensors" in tables
    assert tables.get("tensor") is None


@pytest.mark.parametrize(("name", "near"), [("tensor", "tensors"), ("steps_al", "steps_all"), ("qqq", None), (3, None)])
def test_a_wrong_name_is_told_with_those_that_are_near(tmp_path: Path, name: Any, near: str | None) -> None:
    tables = written(tmp_path / "run", [0]).tables
    with pytest.raises(UnknownTableError) as error:
        tables[name]
    assert isinstance(error.value, KeyError | RunError)
    assert str(error.value).startswith(f"no table {name}")
    assert ("did you mean" in str(error.value)) == (near is not None)
    assert near is None or near in str(error.value)


def test_only_the_table_that_is_asked_for_is_opened(tmp_path: Path) -> None:
    written(tmp_path / "run", [0])
    next((tmp_path / "run/log/config").glob("*.parquet")).write_bytes(b"")
    run = trainscope.read_run(tmp_path / "run")
    assert len(run.tables["steps"]) == 11
    with pytest.raises(RunError, match="damaged"):
        run.tables["config"]


def test_reading_a_run_needs_no_torch_and_importing_trainscope_next_to_nothing() -> None:
    code = """
import sys, trainscope
print(sorted({"torch", "pandas", "pyarrow", "duckdb"} & set(sys.modules)))
trainscope.read_run
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
