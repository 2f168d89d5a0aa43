"""`trainscope run` looks at a run while it trains: what it finds is shown, and stops it where that is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.commands import SHAPES, trainscope
from trainscope.cli import monitor
from trainscope.runlog.reader import read_run
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.checkpoints.folder import whole_checkpoints

CONFIG = f"""
run.seed = 1
run.device = "cpu"
model.base = "tiny:sd15"
train.method = "lora"
train.steps = STEPS
data.dir = "{SHAPES}"
data.resolution = 32
eval.every_steps = 0
sample.every_steps = 0
optimizer.type = "adamw"
optimizer.lr = LR
"""


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at once and often; what is measured is on disk at once."""
    monkeypatch.setitem(monitor.Monitor.__init__.__kwdefaults__, "first_seconds", 0.0)
    monkeypatch.setattr(monitor, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(monitor, "SHARE", 10.0)
    monkeypatch.setitem(RunWriter.__init__.__kwdefaults__, "flush_seconds", 0.0)


def config(folder: Path, *, steps: int, lr: float) -> Path:
    path = folder / "cfg.toml"
    path.write_text(CONFIG.replace("STEPS", str(steps)).replace("LR", str(lr)))
    return path


def status(run: Path) -> str:
    return str(json.loads((run / "run.json").read_text())["status"])


def test_a_finding_stops_the_training(here: Path) -> None:
    """A learning rate that leads to NaN within a few steps; without the stop it would train for an hour."""
    path = config(here, steps=100_000, lr=1e30)
    result = trainscope("run", path, "--out", here / "run", "--fail-fast", "SYM004")
    assert result.code == 1, result.err + result.out
    assert result.out.count("error SYM004 not-finite") == 1
    assert "stopping because of SYM004" in result.out
    assert "interrupted at step" in result.out
    assert "--resume" in result.out
    assert result.last_line == str(here / "run")
    assert status(here / "run") == "interrupted"
    run = read_run(here / "run")
    step = run.last_step()
    assert 0 < step < 100_000
    assert [path.name for path in whole_checkpoints(run.directory)] == [f"step-{step:08d}"]


def test_a_finding_at_the_end_counts_as_well(here: Path) -> None:
    """It depends on the machine's speed whether there was a look before the run was over; the exit code does not."""
    path = config(here, steps=3, lr=1e30)
    result = trainscope("run", path, "--out", here / "run", "--fail-fast", "error")
    assert result.code == 1, result.err + result.out


def test_a_healthy_run_is_left_alone(here: Path) -> None:
    path = config(here, steps=30, lr=1e-3)
    result = trainscope("run", path, "--out", here / "run", "--fail-fast", "SYM004", "--no-audit")
    assert result.code == 0, result.err + result.out
    assert "SYM004" not in result.out
    assert status(here / "run") == "completed"


def test_what_cannot_be_asked_for(here: Path) -> None:
    path = config(here, steps=3, lr=1e-3)
    for options, said in (
        (("--fail-fast", "SCH001"), "only the end of a run can tell"),
        (("--fail-fast", "grave"), "no rule begins so"),
        (("--fail-fast", "error", "--set", "audit.live=false"), "nobody looks while it trains"),
        (("--set", "audit.on_finding=stop", "--set", "audit.live=false"), "nobody looks while it trains"),
        (("--set", "audit.on_finding=stop", "--set", "audit.fail_on=never"), "no finding would stop it"),
        (("--set", "audit.on_finding=halt"), "audit.on_finding"),
        (("--set", "audit.live=3"), "audit.live"),
        (("--set", "sample.sampler=lcm", "--set", "sample.steps=60"), "at most 50"),
        (("--set", "sample.steps=501"), "sample.steps"),
        (("--set", "sample.sampler=euler_a"), "sample.sampler"),
        (("--set", "checkpoint.every_epochs=-1"), "checkpoint.every_epochs"),
        (("--set", "checkpoint.every_epochs=0.5"), "checkpoint.every_epochs"),
        (("--set", "ema.device=cuda"), "ema.device"),
    ):
        result = trainscope("run", path, "--out", here / "run", *options)
        assert result.code == 2
        assert said in result.message
    assert not (here / "run").exists()
