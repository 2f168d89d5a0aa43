"""checkpoint.every_epochs: saved where an epoch ends, beside every_steps, and at the same steps after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.resuming import BLIND, EPOCH, LORA, resolved, trained
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.checkpoints.folder import whole_checkpoints

ACCUMULATING = {
    **LORA, **BLIND, "train.steps": 9, "train.gradient_accumulation": 2, "checkpoint.every_epochs": 1,
    "checkpoint.every_steps": 4,
}  # fmt: skip
SAVED = [3, 4, 5, 8, 9]
"""Steps use two of an epoch's five batches: epochs end in the middle of step 3, with step 5 and in the middle of 8."""


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.rpartition("-")[2]) for path in whole_checkpoints(RunDir(run)))


def saves(run: Path) -> list[int]:
    events = read_run(run).datasets["events"].to_table().to_pylist()
    rows = [row for row in events if row["kind"] == "save"]
    assert all(json.loads(row["detail"])["path"].endswith(f"{row['step']:08d}") for row in rows)
    return [row["step"] for row in rows]


def test_where_epochs_end(few: Path, tmp_path: Path) -> None:
    assert EPOCH == 5
    run = trained(resolved(few, ACCUMULATING), tmp_path / "run").run
    assert checkpoints(run) == SAVED
    assert saves(run) == SAVED


@pytest.mark.parametrize("stop_at", [2, 3, 7])
def test_a_resumed_training_saves_where_it_would_have(stop_at: int, few: Path, tmp_path: Path) -> None:
    config = resolved(few, ACCUMULATING)
    trained(config, tmp_path / "run", stop_at=stop_at)
    run = trained(config, None, resume=str(tmp_path / "run")).run
    assert checkpoints(run) == sorted({*SAVED, stop_at})
    assert saves(run) == sorted({*SAVED, stop_at})
