"""The run directory: exclusive, crash-safe, and clear about what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainscope.errors import RunError
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.runlog.tables import TABLES
from trainscope.runlog.writer import RunWriter
from trainscope.schema import Record


def make(tmp_path: Path) -> RunDir:
    run = create_run(tmp_path, "run")
    run.update(segments=[{"number": 0, "start_step": 0}])
    return run


def write_steps(run: RunDir, *batches: range) -> None:
    writer = RunWriter(run)
    for steps in batches:
        writer.add(Record("steps", {"step": list(steps), "loss": [step / 2 for step in steps]}))
        writer.flush()


def test_round_trip(tmp_path: Path) -> None:
    run = make(tmp_path)
    write_steps(run, range(1, 4), range(4, 6))
    table = read_run(run.path).datasets["steps"].to_table()
    assert table["step"].to_pylist() == [1, 2, 3, 4, 5]
    assert table["loss"].to_pylist() == [0.5, 1.0, 1.5, 2.0, 2.5]
    assert table["segment"].to_pylist() == [0] * 5
    assert set(table["grad_norm"].to_pylist()) == {None}
    assert read_run(run.path).last_step() == 5


def test_every_table_is_there_even_if_nothing_was_written(tmp_path: Path) -> None:
    datasets = read_run(make(tmp_path).path).datasets
    assert set(datasets) == set(TABLES)
    assert all(dataset.count_rows() == 0 for dataset in datasets.values())


def test_leftover_temporary_files_are_ignored(tmp_path: Path) -> None:
    run = make(tmp_path)
    write_steps(run, range(1, 4))
    (run.log / "steps" / ".s0-r0-000001.parquet.99.tmp").write_bytes(b"PAR1 half")
    assert read_run(run.path).last_step() == 3


@pytest.mark.parametrize("damage", ["truncate", "overwrite", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    run = make(tmp_path)
    write_steps(run, range(1, 400))
    file = next((run.log / "steps").glob("*.parquet"))
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[: len(data) // 2])
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        data[20:120] = bytes(100)
        file.write_bytes(data)
    with pytest.raises(RunError, match=file.name):
        _ = read_run(run.path).datasets


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such run"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(RunError, match="not a run directory"):
        read_run(tmp_path)
    run = make(tmp_path)
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        read_run(run.path)
    (run.path / "run.json").write_text(json.dumps({"format": 99, "status": "completed", "segments": []}))
    with pytest.raises(RunError, match="format 99"):
        read_run(run.path)
    (run.path / "run.json").write_text(json.dumps({"format": 1, "status": "fine", "segments": 3}))
    with pytest.raises(RunError, match="damaged"):
        read_run(run.path)


def test_an_existing_directory_is_never_taken(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "precious.txt").write_text("keep")
    with pytest.raises(RunError, match="not empty"):
        create_run(tmp_path, "run", out=full)
    file = tmp_path / "file"
    file.write_text("keep")
    with pytest.raises(RunError):
        create_run(tmp_path, "run", out=file)
    assert (full / "precious.txt").read_text() == file.read_text() == "keep"
    with pytest.raises(RunError, match="cannot make"):
        create_run(file / "below", "run")


def test_runs_of_the_same_second_do_not_meet(tmp_path: Path) -> None:
    assert len({create_run(tmp_path, "run").path for _ in range(20)}) == 20


def test_a_lock_holds_and_tells_a_running_from_a_crashed_run(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert run.status() == "crashed"  # it says running, and nobody holds it
    with run.lock():
        assert run.status() == "running"
        with pytest.raises(RunError, match="in use"), run.lock():
            pass
    run.update(status="completed")
    assert run.status() == "completed"
