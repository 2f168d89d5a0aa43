"""The writer: what is added is written in time, by a thread that no disk, fork or exit can turn against the caller."""

from __future__ import annotations

import errno
import gc
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from trainscope.runlog import background, writer
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.runlog.tables import TABLES
from trainscope.runlog.writer import RecordError, RunWriter
from trainscope.schema import Record


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = create_run(tmp_path, "run")
    made.update(segments=[{"number": 0, "start_step": 0}])
    return made


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.02)


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    assert within(lambda: "trainscope-log" not in [thread.name for thread in threading.enumerate()])


class Disk:
    """`write_atomically`, with a fault while there is an `error`."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.real = writer.write_atomically
        self.calls = 0

    def __call__(self, path: Path, data: Any) -> None:
        self.calls += 1
        if self.error is not None:
            raise self.error
        self.real(path, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(writer, "write_atomically", made)
    return made


FULL = OSError(errno.ENOSPC, "No space left on device")


def within(true: Callable[[], object], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.002)
    return bool(true())


def steps(*numbers: int) -> Record:
    return Record("steps", {"step": list(numbers), "loss": [number / 2 for number in numbers]})


def tensors(step: int, count: int = 100) -> Record:
    values = np.random.default_rng(step).random(count)
    names = [f"unet.layer{number}.weight" for number in range(count)]
    return Record("tensors", {"step": np.full(count, step), "param": names, "weight_norm": values})


def written(run: RunDir, table: str = "steps") -> list[int]:
    found: list[int] = read_run(run.path).datasets[table].to_table()["step"].to_pylist()
    return found


# ---- what is written


def test_arrays_and_lists_come_back_as_they_were(run: RunDir) -> None:
    real = np.array([1.5, math.nan, math.inf, 3.0])
    with_null = np.ma.MaskedArray(real, mask=[False, False, False, True])
    log = RunWriter(run, segment=3, rank=1)
    for _ in range(2):
        log.add(
            Record(
                "tensors",
                {
                    "step": np.full(4, 7),
                    "param": ["a", "b", "c", "d"],
                    "weight_norm": real,
                    "grad_norm": with_null,
                    "nonfinite": np.ma.MaskedArray(np.array([1, 2, 3, -1]), mask=with_null.mask),
                    "delivered": [0.5, None, math.nan, 1e300],
                },
            )
        )
        real[0] = 9.0  # its owner may go on using it
    log.close()
    table = read_run(run.path).datasets["tensors"].to_table()
    assert table.column("weight_norm").to_pylist()[0] == 1.5
    rows = table.slice(4).to_pylist()
    assert [row["step"] for row in rows] == [7] * 4
    assert [row["param"] for row in rows] == ["a", "b", "c", "d"]
    assert [(row["segment"], row["rank"]) for row in rows] == [(3, 1)] * 4
    assert repr([row["weight_norm"] for row in rows]) == "[9.0, nan, inf, 3.0]"
    assert repr([row["grad_norm"] for row in rows]) == "[9.0, nan, inf, None]"
    assert [row["nonfinite"] for row in rows] == [1, 2, 3, None]
    assert repr([row["delivered"] for row in rows]) == "[0.5, None, nan, inf]"
    assert {row["lost_count"] for row in rows} == {None}


def test_columns_that_come_as_lists_arrays_and_not_at_all(run: RunDir) -> None:
    """Every record for itself: a probe may begin or cease to give a column, and names may change."""
    with RunWriterClosed(run) as log:
        log.add(Record("tensors", {"step": [1], "weight_norm": [1.0]}))
        log.add(Record("tensors", {"step": np.array([2]), "weight_norm": np.array([2.0])}))
        log.add(Record("tensors", {"step": [3]}))
        for step, first in ((4, "a"), (5, "a"), (6, "b")):
            log.add(Record("tensors", {"step": [step] * 300, "param": [first] * 300}))
    table = read_run(run.path).datasets["tensors"].to_table()
    assert table["step"].to_pylist() == [1, 2, 3] + [4] * 300 + [5] * 300 + [6] * 300
    assert table["weight_norm"].to_pylist() == [1.0, 2.0] + [None] * 901
    assert table["param"].to_pylist() == [None] * 3 + ["a"] * 600 + ["b"] * 300


class RunWriterClosed:
    """A writer that is closed at the end of a block."""

    def __init__(self, run: RunDir, **options: Any) -> None:
        self.writer = RunWriter(run, **options)

    def __enter__(self) -> RunWriter:
        return self.writer

    def __exit__(self, *_: object) -> None:
        self.writer.close()


@pytest.mark.parametrize("table", TABLES)
def test_every_table_reads_with_its_types(table: str, run: RunDir) -> None:
    """The files carry no schema of Arrow's beside Parquet's: the types are the same without."""
    samples: dict[str, Any] = {"int64": 3, "double": 0.1, "float": 0.5, "string": "text", "bool": True}
    row = {column.name: samples[str(column.type)] for column in TABLES[table].columns}
    with RunWriterClosed(run) as log:
        log.add_row(table, **row)
    assert read_run(run.path).datasets[table].to_table().to_pylist() == [row]
    (file,) = (run.log / table).glob("*.parquet")
    assert pq.read_schema(file).equals(TABLES[table].schema)


def test_what_a_table_does_not_hold_is_left_out_alone(run: RunDir) -> None:
    log = RunWriter(run)
    log.add(steps(1))
    log.add(Record("steps", {"step": [2], "loss": ["much"]}))
    log.add(steps(3))
    log.add_row("order", step=1, sample=5)
    with pytest.raises(RecordError, match=r"table steps: .*much") as caught:
        log.flush()
    assert set(caught.value.reasons) == {"steps"}
    assert (written(run), written(run, "order")) == ([1, 3], [1])
    assert log.flush()  # told once
    log.close()


def test_what_is_no_record_is_said_at_once(run: RunDir) -> None:
    with RunWriterClosed(run) as log:
        with pytest.raises(KeyError, match="colour"):
            log.add(Record("steps", {"step": [1], "colour": ["red"]}))
        with pytest.raises(ValueError, match="different lengths"):
            log.add(Record("steps", {"step": [1, 2], "loss": [0.5]}))
        log.add(Record("steps", {}))
        log.add(Record("steps", {"step": []}))
    assert written(run) == []


# ---- when it is written


def test_a_row_is_written_before_it_is_old(run: RunDir) -> None:
    """By the thread alone: the training may be in a long step."""
    with RunWriterClosed(run, flush_seconds=0.2) as log:
        started = time.monotonic()
        log.add(steps(1))
        assert within(lambda: written(run) == [1])
        assert time.monotonic() - started >= 0.1
        log.add(steps(2))
        assert within(lambda: written(run) == [1, 2])


def test_much_is_written_at_once(run: RunDir) -> None:
    with RunWriterClosed(run, flush_seconds=1000, full_bytes=20_000) as log:
        log.add(steps(1))
        time.sleep(0.05)
        assert not list(run.log.rglob("*.parquet"))
        for step in range(1, 40):
            log.add(tensors(step))
        assert within(lambda: written(run, "tensors"))
        assert log.flush()
        assert len(written(run, "tensors")) == 3900


def test_a_flush_waits_until_all_is_durable(run: RunDir, disk: Disk) -> None:
    with RunWriterClosed(run) as log:
        for step in range(1, 30):
            log.add(steps(step))
            if step % 3 == 0:
                assert log.flush()
                assert written(run) == list(range(1, step + 1))
    assert disk.calls == 10  # nothing is written twice, and an empty flush writes nothing


def test_rows_that_nobody_flushes_are_written_when_the_writer_is_forgotten(run: RunDir) -> None:
    RunWriter(run, flush_seconds=1000).add(steps(1))
    gc.collect()
    assert within(lambda: written(run) == [1])


def test_a_closed_writer_goes_on_if_something_comes(run: RunDir) -> None:
    log = RunWriter(run)
    log.add(steps(1))
    assert log.close()
    log.add(steps(2))
    assert log.close()
    assert log.close()
    assert written(run) == [1, 2]


def test_adding_from_several_threads(run: RunDir) -> None:
    log = RunWriter(run, flush_seconds=0.0)

    def add(first: int) -> None:
        for step in range(first, first + 200):
            log.add(steps(step))

    threads = [threading.Thread(target=add, args=(first,)) for first in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(written(run)) == [step for first in (0, 1000, 2000) for step in range(first, first + 200)]


# ---- a disk that fails


def test_a_full_disk_is_told_once_and_nothing_is_lost(run: RunDir, disk: Disk) -> None:
    log = RunWriter(run, flush_seconds=0.01)
    disk.error = FULL
    for step in range(1, 20):
        log.add(steps(step))
        log.flush_if_due()
        time.sleep(0.005)
    assert not log.flush()
    assert disk.calls > 1
    (told,) = log.news()
    assert (told.kind, told.lost) == ("log_failed", {})
    assert "No space left" in told.message
    disk.error = None
    assert within(lambda: written(run) == list(range(1, 20)))
    (told,) = within_news(log)
    assert (told.kind, told.lost) == ("log_gap", {})
    log.close()


def within_news(log: RunWriter) -> list[background.News]:
    found: list[background.News] = []
    assert within(lambda: found.extend(log.news()) or found)  # type: ignore[func-returns-value]
    return found


def test_memory_is_bounded_and_the_loss_is_counted(run: RunDir, disk: Disk) -> None:
    """Rows of every tensor go first; then the disk is back, and the log goes on."""
    log = RunWriter(run, flush_seconds=1000, limit_bytes=100_000)
    disk.error = FULL
    backlog = log._background._backlog
    for step in range(1, 2001):
        log.add(tensors(step))
        log.add(steps(step))
        assert backlog.bytes <= 100_000
    kept = backlog.bytes
    assert not log.flush()
    assert backlog.bytes == kept
    disk.error = None
    assert log.flush()
    assert backlog.bytes == 0
    failed, gap = log.news()
    assert (failed.kind, gap.kind) == ("log_failed", "log_gap")
    for table, per_step in (("tensors", 100), ("steps", 1)):
        last = max(written(run, table))
        loss = gap.lost[table]
        assert loss.rows + len(written(run, table)) == 2000 * per_step
        assert loss.steps is not None
        assert loss.steps[1] == 2000
    assert gap.lost["tensors"].steps < gap.lost["steps"].steps  # type: ignore[operator]
    log.add(tensors(2001))
    assert log.flush()
    assert written(run, "tensors")[-1] == 2001 > last
    assert not log.news()
    log.close()


def test_a_gap_after_the_first_is_told_too(run: RunDir, disk: Disk) -> None:
    log = RunWriter(run, flush_seconds=1000, limit_bytes=30_000)
    kinds = []
    for step in (1, 2, 3):
        disk.error = FULL
        for _ in range(50):
            log.add(tensors(step))
        assert not log.flush()
        disk.error = None
        assert log.flush()
        kinds += [news.kind for news in log.news()]
    assert kinds == ["log_failed", "log_gap", "log_gap", "log_gap"]
    log.close()


def test_one_table_that_cannot_be_written_does_not_hold_up_the_others(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.write_atomically

    def write(path: Path, data: Any) -> None:
        if path.parent.name == "tensors":
            raise FULL
        real(path, data)

    monkeypatch.setattr(writer, "write_atomically", write)
    log = RunWriter(run)
    log.add(tensors(1))
    log.add(steps(1))
    assert not log.flush()
    assert (written(run), written(run, "tensors")) == ([1], [])
    monkeypatch.setattr(writer, "write_atomically", real)
    assert log.flush()
    assert (written(run), len(written(run, "tensors"))) == ([1], 100)
    log.close()


def test_a_rename_that_was_not_synced_is_not_done_twice(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is there, its folder could not be synced: the rows come again, in the place of the same file."""
    from trainscope.runlog import durable

    log = RunWriter(run)
    log.add(steps(1))
    assert log.flush()
    real = durable.sync_folder

    def fails(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(durable, "sync_folder", fails)
    log.add(steps(2))
    assert not log.flush()
    monkeypatch.setattr(durable, "sync_folder", real)
    log.add(steps(3))
    assert log.flush()
    assert written(run) == [1, 2, 3]
    log.close()


def test_a_log_that_vanishes_begins_again(run: RunDir) -> None:
    import shutil

    log = RunWriter(run)
    log.add(steps(1))
    assert log.flush()
    shutil.rmtree(run.log)
    log.add(steps(2))
    assert not log.flush()
    assert log.flush()
    assert written(run) == [2]
    assert [news.kind for news in log.news()] == ["log_failed", "log_gap"]
    log.close()


def test_a_run_that_vanishes_stays_away(run: RunDir) -> None:
    import shutil

    log = RunWriter(run)
    log.add(steps(1))
    assert log.flush()
    shutil.rmtree(run.path)
    for step in (2, 3):
        log.add(steps(step))
        assert not log.flush()
    assert not run.path.exists()
    assert not log.close()


def test_a_disk_that_does_not_answer_is_waited_for_once(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    real = writer.write_atomically

    def write(path: Path, data: Any) -> None:
        answers.wait(30)
        real(path, data)

    monkeypatch.setattr(writer, "write_atomically", write)
    log = RunWriter(run, limit_bytes=50_000)
    log.add(steps(1))
    assert not log.flush(timeout=0.1)
    started = time.monotonic()
    for step in range(2, 400):
        log.add(tensors(step))
        assert not log.flush(timeout=10)
    assert time.monotonic() - started < 5
    assert log._background._backlog.bytes <= 50_000
    (told,) = log.news()
    assert "not answered" in told.message
    answers.set()
    assert within(lambda: log.flush())
    assert written(run) == [1]
    log.close()


# ---- a thread that dies


class Died(BaseException):
    pass


def test_a_thread_that_dies_is_told_and_another_goes_on(run: RunDir, disk: Disk) -> None:
    log = RunWriter(run, flush_seconds=0.01)
    log.add(steps(1))
    disk.error = Died("for no reason")
    assert not log.flush()
    (told,) = log.news()
    assert told.kind == "log_failed"
    assert "the writer's thread ended: Died: for no reason" in told.message
    disk.error = None
    log.add(steps(2))
    assert within(lambda: log.flush_if_due() or sorted(written(run)) == [1, 2])  # type: ignore[func-returns-value]
    assert log.flush()
    log.close()


def test_no_thread_can_be_had(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:

        def start(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        patched.setattr(threading.Thread, "start", start)
        log = RunWriter(run)
        log.add(steps(1))
        log.flush_if_due()
        assert not log.flush()
        assert not log.close()
        assert [news.message for news in log.news()] == ["can't start new thread"]
    assert log.flush()
    assert written(run) == [1]
    log.close()


# ---- processes

IN_A_PROCESS = """
import os, sys
from pathlib import Path
from trainscope.runlog.rundir import RunDir
from trainscope.runlog.writer import RunWriter
from trainscope.schema import Record

log = RunWriter(RunDir(Path(sys.argv[1])), flush_seconds=float(sys.argv[2]))
for step in range(50):
    log.add(Record("steps", {"step": [step]}))
"""
FORKED = """
import time
for child in range(3):
    log.add(Record("steps", {"step": [100 + child]}))
    if (pid := os.fork()) == 0:
        log.add(Record("steps", {"step": [1000 + child]}))
        log.flush_if_due(), log.flush(), log.news(), log.close()
        sys.exit(0)  # and not os._exit: what happens at the end of an interpreter happens here too
    assert os.waitpid(pid, 0)[1] == 0
"""
ENDS = {"nothing": "", "an error": "raise SystemExit(3)", "os._exit": "log.flush(); os._exit(0)", "a fork": FORKED}


@pytest.mark.parametrize("seconds", [0.0, 1000.0])
@pytest.mark.parametrize("end", ENDS)
def test_an_interpreter_that_ends(end: str, seconds: float, run: RunDir) -> None:
    """It writes what waits, and ends; a forked process neither writes nor hangs."""
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS + ENDS[end], str(run.path), str(seconds)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == (3 if end == "an error" else 0)
    assert written(run) == [*range(50), *(range(100, 103) if end == "a fork" else ())]


HANGS = """
import time
import trainscope.runlog.durable as durable
import trainscope.runlog.writer as writer

durable.os.fsync = lambda file: time.sleep(600)
writer.WAIT_SECONDS = 0.2
"""


def test_an_interpreter_that_ends_while_the_disk_hangs(run: RunDir) -> None:
    program = HANGS + IN_A_PROCESS
    done = subprocess.run(
        [sys.executable, "-c", program, str(run.path), "0"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_needs_no_torch(run: RunDir) -> None:
    program = IN_A_PROCESS + "log.close(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program, str(run.path), "10"], check=True, timeout=60, env=dict(os.environ))
