"""What reaches the log and when, and what looking costs."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from trainscope.probes.tensors import TensorsProbe
from trainscope.proof.runs import RunSpec
from trainscope.recording.steps import DRAIN_STEPS
from trainscope.runlog.reader import Run, read_run
from trainscope.trainer.callbacks import Callback, Progress
from trainscope.trainer.session import Session
from trainscope.trainer.train import train

LORA: dict[str, Any] = {"train.method": "lora", "lora.rank": 4, "eval.every_steps": 0, "train.batch_size": 1}


def trained(folder: Path, *callbacks: Callback, **changes: Any) -> Run:
    values = {**LORA, **{key.replace("__", "."): value for key, value in changes.items()}}
    train(RunSpec(values).resolved(), out=folder / "run", callbacks=callbacks)
    return read_run(folder / "run")


def rows(run: Run, table: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.datasets[table].to_table().to_pylist()
    return found


def test_steps_and_groups_are_complete_without_any_probe(tmp_path: Path) -> None:
    run = trained(tmp_path, train__steps=23, probes__tables=[])
    for table in ("steps", "groups"):
        assert [row["step"] for row in rows(run, table)] == list(range(1, 24))
    reasons = {(row["table"], row["reason"]) for row in rows(run, "coverage")}
    assert {("tensors", "not among probes.tables"), ("adapters", "not among probes.tables")} <= reasons
    assert not rows(run, "tensors")


def test_every_step_is_told_once_and_in_order(tmp_path: Path) -> None:
    class Listener(Callback):
        def __init__(self) -> None:
            self.seen: list[Progress] = []

        def on_progress(self, progress: Progress) -> None:
            self.seen.append(progress)

    listener = Listener()
    run = trained(tmp_path, listener, train__steps=DRAIN_STEPS + 3, probes__every=4)
    assert [progress.step for progress in listener.seen] == list(range(1, DRAIN_STEPS + 4))
    assert {progress.steps for progress in listener.seen} == {DRAIN_STEPS + 3}
    assert [progress.loss for progress in listener.seen] == [row["loss"] for row in rows(run, "steps")]
    assert {progress.effective_lr for progress in listener.seen} == {1e-4}


def test_an_integer_cadence(tmp_path: Path) -> None:
    run = trained(tmp_path, train__steps=11, probes__every=4)
    assert {row["step"] for row in rows(run, "tensors")} == {4, 8, 11}
    assert {row["step"] for row in rows(run, "adapters")} == {4, 8, 11}
    assert "probe_cadence" not in {row["kind"] for row in rows(run, "events")}


class SlowSteps(Callback):
    """Steps that take their time, as those of a real model do."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def before_backward(self, session: Session) -> None:
        time.sleep(self.seconds)


def test_the_budget_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 40 ms and looks of 20 ms, a tenth of the time: from the calibration on, at most every fifth."""
    real = TensorsProbe.before_step

    def slow(self: TensorsProbe) -> None:
        time.sleep(0.02)
        real(self)

    monkeypatch.setattr(TensorsProbe, "before_step", slow)
    run = trained(tmp_path, SlowSteps(0.04), train__steps=50, probes__every="auto", probes__budget=0.1)
    (event,) = [json.loads(row["detail"]) for row in rows(run, "events") if row["kind"] == "probe_cadence"]
    assert event["every"] in (5, 10)
    probed = sorted({row["step"] for row in rows(run, "tensors")})
    assert probed == sorted({*range(1, 6), *range(event["every"], 51, event["every"])})
    after = [row for row in rows(run, "steps") if 5 < row["step"] < 50]
    share = sum(row["probe_seconds"] for row in after) / sum(row["seconds"] for row in after)
    assert share <= 0.1
    # The log says what a look cost: it is part of the step, and its own column.
    looked = [row for row in after if row["step"] in probed]
    assert all(row["probe_seconds"] >= 0.02 and row["seconds"] >= 0.06 for row in looked)


def test_cheap_probes_look_at_every_step(tmp_path: Path) -> None:
    run = trained(tmp_path, SlowSteps(0.05), train__steps=8, probes__every="auto", probes__budget=1.0)
    assert {row["step"] for row in rows(run, "tensors")} == set(range(1, 9))


def test_probe_seconds_are_part_of_the_step(tmp_path: Path) -> None:
    """Also those of the pairs and of bringing values over, which come after the loop stopped its watch."""
    run = trained(tmp_path, train__steps=40, train__batch_size=1, probes__every=1)
    for row in rows(run, "steps"):
        assert 0 < row["probe_seconds"] < row["seconds"]


def test_what_was_measured_before_a_crash_is_kept(tmp_path: Path) -> None:
    class Crash(Callback):
        def after_step(self, session: Session) -> None:
            if session.step == 7:
                raise ZeroDivisionError("crashed")

    with pytest.raises(ZeroDivisionError):
        trained(tmp_path, Crash(), train__steps=20, probes__every=2)
    run = read_run(tmp_path / "run")
    assert run.status == "crashed"
    assert [row["step"] for row in rows(run, "steps")] == list(range(1, 8))
    assert {row["step"] for row in rows(run, "tensors")} == {2, 4, 6}
    (crash,) = [json.loads(row["detail"]) for row in rows(run, "events") if row["kind"] == "crash"]
    assert crash == {"error": "ZeroDivisionError", "message": "crashed"}
