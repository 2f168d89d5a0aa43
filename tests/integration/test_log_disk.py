"""A disk that takes no log costs the log's rows and nothing else: the training is the same, and it is told once."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.integration.commands import ENVIRONMENT, config_text, settings, trainscope
from tests.integration.test_bit_identity import METHODS, STEPS, Capture, assert_same, everything, finished
from trainscope.cli.progress import ProgressDisplay
from trainscope.proof.runs import RunSpec
from trainscope.runlog import background, backlog, durable
from trainscope.runlog.reader import Run, read_run
from trainscope.runlog.writer import LIMIT_BYTES, RunWriter
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.folder import whole_checkpoints
from trainscope.trainer.session import Session
from trainscope.trainer.train import train

CHANGES: dict[str, Any] = {
    **METHODS["lora"],
    "train.steps": STEPS,
    "train.batch_size": 2,
    "data.resolution": 32,
    "eval.every_steps": 3,
    "eval.samples": 4,
    "probes.every": 1,
    "ema.enabled": True,
    "optimizer.lr": 1e-3,
    "checkpoint.every_steps": 2,
}
"""A run with every probe."""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the same training leaves where the disk is in order."""
    return everything(finished(tmp_path_factory.mktemp("untouched") / "run", **CHANGES))


class Events(Callback):
    """What the console is told, and something that happens after a step."""

    def __init__(self, at: dict[int, Callable[[], None]] | None = None) -> None:
        self.at = at or {}
        self.seen: list[tuple[str, dict[str, Any]]] = []

    def after_step(self, session: Session) -> None:
        if session.step in self.at:
            self.at[session.step]()

    def on_event(self, kind: str, detail: dict[str, Any]) -> None:
        self.seen.append((kind, detail))

    @property
    def of_log(self) -> list[str]:
        return [kind for kind, _ in self.seen if kind.startswith("log_")]


class LogDisk:
    """`os.open` as of a file system that gives only errors below a run's log while it is `broken`."""

    def __init__(self, error: int, *, broken: bool) -> None:
        self.error = error
        self.broken = broken
        self.failed = 0
        self.real = os.open

    def __call__(self, path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if self.broken and "/log/" in f"{path}/" and flags & os.O_CREAT:
            self.failed += 1
            raise OSError(self.error, os.strerror(self.error), str(path))
        return self.real(path, flags, mode, **options)


def trained(out: Path, *callbacks: Callback, **changes: Any) -> Session:
    capture = Capture()
    train(RunSpec({**CHANGES, **changes}).resolved(), out=out, callbacks=[capture, *callbacks])
    return capture.session


def check_checkpoints(run: Run) -> None:
    assert run.status == "completed"
    assert [path.name for path in whole_checkpoints(run.directory)] == [f"step-{step:08d}" for step in (2, 4, 6)]
    assert not list(run.directory.path.rglob("*.tmp"))


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, pytest.param(errno.EIO, marks=pytest.mark.slow)])
def test_a_log_that_can_never_be_written(
    error: int, untouched: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training does not notice; the console says so once, and the audit that there is nothing to judge."""
    disk, events = LogDisk(error, broken=True), Events()
    monkeypatch.setattr(os, "open", disk)
    session = trained(tmp_path / "run", events)
    monkeypatch.undo()
    assert_same(everything(session), untouched)
    assert disk.failed > 1
    assert events.of_log == ["log_failed"]
    run = read_run(tmp_path / "run")
    check_checkpoints(run)
    assert not list(run.directory.log.rglob("*.parquet"))
    assert trainscope("audit", tmp_path / "run", "--fail-on", "never").code == 0


def test_a_log_that_can_be_written_again(
    untouched: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full from the second step to the fifth, with memory for all that was measured: nothing is missing."""
    disk = LogDisk(errno.ENOSPC, broken=False)
    events = Events({2: lambda: setattr(disk, "broken", True), 5: lambda: setattr(disk, "broken", False)})
    monkeypatch.setattr(os, "open", disk)
    assert_same(everything(trained(tmp_path / "run", events)), untouched)
    assert disk.failed
    assert events.of_log == ["log_failed", "log_gap"]
    run = read_run(tmp_path / "run")
    check_checkpoints(run)
    for table in ("steps", "tensors", "ema", "adapters", "order", "losses", "groups", "batches"):
        assert set(run.datasets[table].to_table()["step"].to_pylist()) == set(range(1, STEPS + 1))
    assert [kind for kind, _ in logged(run)] == ["log_failed", "log_gap"]
    assert "No space left" in logged(run)[0][1]["message"]
    assert logged(run)[1][1]["lost"] == {}


def logged(run: Run) -> list[tuple[str, dict[str, Any]]]:
    rows = run.datasets["events"].to_table().to_pylist()
    return [(row["kind"], json.loads(row["detail"])) for row in rows if row["kind"].startswith("log_")]


def test_a_gap_is_in_log_console_and_coverage(
    untouched: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory for hardly more than a step: the rows between are missing, and that is said everywhere."""
    disk = LogDisk(errno.ENOSPC, broken=False)

    def fills_up() -> None:
        disk.broken = True
        monkeypatch.setattr(backlog, "SHARE_OF_TENSORS", 40_000 / LIMIT_BYTES)

    events = Events({2: fills_up, 5: lambda: setattr(disk, "broken", False)})
    monkeypatch.setattr(os, "open", disk)
    assert_same(everything(trained(tmp_path / "run", events)), untouched)
    run = read_run(tmp_path / "run")
    check_checkpoints(run)
    (_, failed), (kind, gap) = [event for event in events.seen if event[0].startswith("log_")]
    assert kind == "log_gap"
    assert logged(run) == [("log_failed", failed), ("log_gap", gap)]
    for table, lost in gap["lost"].items():
        there = set(run.datasets[table].to_table()["step"].to_pylist())
        assert lost["rows"] > 0
        if table != "state":  # which is looked at seldom
            assert there >= set(range(1, STEPS + 1)) - set(range(lost["first_step"], lost["last_step"] + 1))
    assert "tensors" in gap["lost"]
    assert "steps" not in gap["lost"]
    said = {row["table"]: row["reason"] for row in run.datasets["coverage"].to_table().to_pylist()}
    for table, lost in gap["lost"].items():
        assert said[table].startswith(f"{lost['rows']} rows of steps {lost['first_step']} to {lost['last_step']} are")
    audit = trainscope("audit", tmp_path / "run", "--format", "json", "--output", "-", "--fail-on", "never")
    assert "are missing: the log could not be written" in audit.out


def test_a_log_that_vanishes(untouched: dict[str, bytes], tmp_path: Path) -> None:
    """Somebody deletes it while it is written: it begins again."""
    events = Events({3: lambda: shutil.rmtree(tmp_path / "run" / "log")})
    assert_same(everything(trained(tmp_path / "run", events)), untouched)
    assert events.of_log == ["log_failed", "log_gap"]
    run = read_run(tmp_path / "run")
    check_checkpoints(run)
    assert run.datasets["steps"].to_table()["step"].to_pylist() == [3, 4, 5, 6]


def test_a_disk_that_never_answers(
    untouched: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that hangs for good, as on a network that is gone: it is waited for once, and not for long."""
    answers = threading.Event()
    real, disk = os.fsync, threading.current_thread()

    def fsync(file: int) -> None:
        if threading.current_thread() is not disk:
            answers.wait(60)
        real(file)

    monkeypatch.setattr(RunWriter.flush, "__defaults__", (0.3,))
    monkeypatch.setattr(RunWriter.close, "__defaults__", (0.3,))
    events = Events()
    monkeypatch.setattr(durable.os, "fsync", fsync)
    assert_same(everything(trained(tmp_path / "run", events)), untouched)
    assert events.of_log == ["log_failed"]
    check_checkpoints(read_run(tmp_path / "run"))
    answers.set()


def test_a_writer_that_dies(untouched: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time that it writes: another one tries, and the training does not notice."""

    class Died(BaseException):
        pass

    def dies(*_: Any) -> None:
        raise Died

    monkeypatch.setattr(background.Background, "_pass", dies)
    events = Events()
    assert_same(everything(trained(tmp_path / "run", events)), untouched)
    assert events.of_log == ["log_failed"]
    check_checkpoints(read_run(tmp_path / "run"))


def test_what_the_console_says() -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, width=200)) as bar:
        bar.on_event("log_failed", {"message": "OSError: [Errno 28] No space left on device", "lost": {}})
        bar.on_event("log_gap", {"message": "the log is written again", "lost": {"tensors": {"rows": 12}}})
        bar.on_event("log_gap", {"message": "the log is written again", "lost": {}})
    assert out.getvalue().splitlines() == [
        "warning: the log cannot be written: OSError: [Errno 28] No space left on device; the training goes on",
        "warning: the log is written again; 12 rows are missing",
        "warning: the log is written again; no rows are missing",
    ]


LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
from trainscope.cli import main
main()
"""


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        pytest.param(1_000, "error: at step 1: ", marks=pytest.mark.slow),
        (200_000, "error: the checkpoint of step 4 cannot be written: "),
    ],
)
def test_files_that_cannot_grow(limit: int, says: str, tmp_path: Path) -> None:
    """A real limit of the system instead of a full disk: Parquet, safetensors and torch each fail in their own way.

    Without the segment's description there is no run, and without checkpoints no result: these end the training.
    """
    (tmp_path / "cfg.toml").write_text(config_text(), encoding="utf-8")
    options = settings("train.method=finetune", "sample.every_steps=0", "eval.every_steps=0", "run.device=cpu")
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(limit), "run", "cfg.toml", "--out", "mine", *options],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(says)
    assert "too large" in done.stderr.splitlines()[0]
    run = read_run(tmp_path / "mine")
    assert run.status == "crashed"
    assert limit == 1_000 or run.last_step() == 4
    assert not list((tmp_path / "mine").rglob("*.tmp"))
