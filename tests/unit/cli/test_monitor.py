"""Findings while a run trains: each told once, at a modest pace, from a process of its own; some stop the training."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainscope.cli.auditing import FailFast, fail_fast
from trainscope.cli.monitor import LEAST_SECONDS, SHARE, Monitor
from trainscope.engine.loader import load_rules
from trainscope.errors import ConfigError
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.runlog.writer import RunWriter

SESSION: Any = SimpleNamespace()
RULES = load_rules(strict=True)[0]


class Said(list[tuple[str, str]]):
    def __call__(self, text: str, severity: str) -> None:
        self.append((text, severity))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of a hundred planned steps whose loss was not finite once."""
    run = create_run(tmp_path, "run")
    run.update(segments=[{"number": 0, "start_step": 0}], status="running")
    run.segment(0).mkdir(parents=True)
    (run.segment(0) / "config.resolved.json").write_text(json.dumps({"path": None, "keys": []}))
    writer = RunWriter(run)
    for step in range(1, 11):
        writer.add_row("steps", step=step, loss=float("nan") if step == 7 else 1.0, grad_norm=1.0)
    writer.add_row("config", key="plan.steps", value="100", origin="derived")
    writer.flush()
    return run


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def monitor(run: RunDir, said: Said) -> Iterator[Monitor]:
    with Monitor(said, first_seconds=0.0) as monitor:
        monitor.on_run(run.path)
        monitor.on_start(SESSION)
        yield monitor


def step_until(monitor: Monitor, said: Said, count: int) -> None:
    """Steps of a training, until so much was said."""
    deadline = time.monotonic() + 60
    while len(said) < count:
        monitor.after_step(SESSION)
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def test_a_finding_is_told_once_and_stops_nothing(monitor: Monitor, said: Said) -> None:
    step_until(monitor, said, 1)
    [(text, severity)] = said
    assert severity == "error"
    assert text.startswith("error SYM004 not-finite: ")
    assert not monitor.wants_to_stop
    # Asked again, the same process says the same; it is no news.
    monitor._due = 0.0
    monitor.after_step(SESSION)
    deadline = time.monotonic() + 60
    while monitor._answers.empty():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    monitor.after_step(SESSION)
    assert len(said) == 1


@pytest.mark.parametrize("wanted", ["SYM004", "SYM", "error", "info"])
def test_a_finding_that_was_to_stop_the_training_does(run: RunDir, said: Said, wanted: str) -> None:
    with Monitor(said, FailFast(wanted), first_seconds=0.0) as monitor:
        monitor.on_run(run.path)
        monitor.on_start(SESSION)
        step_until(monitor, said, 2)
        assert monitor.wants_to_stop
        assert monitor.stopped_by == "SYM004"
        child = monitor._child
    assert said[1] == ("stopping because of SYM004", "error")
    assert child is not None
    assert child.poll() is not None


def test_another_finding_does_not_stop_it(monitor: Monitor, said: Said) -> None:
    monitor._stop_on = FailFast("PREC001")
    step_until(monitor, said, 1)
    assert not monitor.wants_to_stop


def test_looking_keeps_to_its_share(monitor: Monitor) -> None:
    for cpu_seconds in (0.001, 0.4, 3.0):
        before = time.monotonic()
        monitor._read(json.dumps({"findings": [], "cpu_seconds": cpu_seconds}))
        wait = monitor._due - before
        assert wait >= LEAST_SECONDS
        assert cpu_seconds / wait <= SHARE or cpu_seconds < SHARE * LEAST_SECONDS


def test_there_is_no_look_before_the_first_is_due(run: RunDir, said: Said) -> None:
    with Monitor(said) as monitor:
        monitor.on_run(run.path)
        monitor.on_start(SESSION)
        for _ in range(5):
            monitor.after_step(SESSION)
        assert monitor._child is None


def test_a_run_that_cannot_be_read_is_said_once(monitor: Monitor, run: RunDir, said: Said) -> None:
    (run.log / "steps" / "s0-r0-000000.parquet").write_bytes(b"nonsense")
    step_until(monitor, said, 1)
    assert said[0][0].startswith("warning: not looking at the run any more while it trains: ")
    assert "is damaged" in said[0][0]
    for _ in range(5):
        monitor.after_step(SESSION)
    assert len(said) == 1
    assert not monitor.wants_to_stop


def test_a_process_that_dies_takes_nothing_along(monitor: Monitor, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: real([sys.executable, "-c", ""], **options))
    step_until(monitor, said, 1)
    assert said[0][0].startswith("warning: not looking at the run any more while it trains: ")


def test_the_process_beside_the_training_never_imports_torch() -> None:
    code = "import sys, trainscope.cli.live, trainscope.engine.live; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("wanted", ["error", "warning", "info", "PREC001", "PREC", "RES"])
def test_levels_and_codes(wanted: str) -> None:
    assert fail_fast(wanted, RULES) == FailFast(wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("never", "no rule begins so; allowed are error, warning, info, or a code"),
        ("prec001", "no rule begins so"),
        ("", "no rule begins so"),
        ("SCH001", "only the end of a run can tell"),
        ("PREC101", "only the end of a run can tell"),
    ],
)
def test_what_cannot_stop_a_training(wanted: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        fail_fast(wanted, RULES)
    assert caught.value.hint


def test_what_matches() -> None:
    assert FailFast("warning").matches("X1", "error")
    assert FailFast("warning").matches("X1", "warning")
    assert not FailFast("warning").matches("X1", "info")
    assert FailFast("PREC").matches("PREC001", "info")
    assert not FailFast("PREC002").matches("PREC001", "error")
