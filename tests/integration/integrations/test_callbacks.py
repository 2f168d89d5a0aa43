"""The callbacks with the real libraries: loss, evaluations and saves arrive, and no bit of the training changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import ENVIRONMENT, ROOT
from tests.integration.integrations.test_exec import audited
from tests.unit.integrations.loops import reasons, rows
from trainscope.runlog.reader import read_run

EXAMPLES = ROOT / "examples"

CASES = {
    "plain-loop": (100, 0, 0, "attach"),
    "hf-trainer": (60, 4, 1, "transformers"),
    "accelerate-lora": (40, 0, 0, "accelerate"),
    "lightning": (60, 3, 4, "lightning"),
}
"""Steps, evaluations and saves of each example, and what the run says that it comes from."""


def ran(example: str, script: str, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / example / script)]
    done = subprocess.run(
        command, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, encoding="utf-8", timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("example", CASES)
def test_an_attached_training(example: str, tmp_path: Path) -> None:
    steps, evaluations, saves, origin = CASES[example]
    ran(example, "attached.py", tmp_path)
    [run] = (tmp_path / "runs").iterdir()
    info = read_run(run).info
    assert (info["status"], info["origin"]) == ("completed", origin)
    found = rows(run, "steps")
    assert [row["step"] for row in found] == list(range(1, steps + 1))
    assert all(row["loss"] is not None and row["loss"] > 0 for row in found)
    assert len(rows(run, "evals")) == evaluations
    assert [row["kind"] for row in rows(run, "events")].count("save") == saves
    assert (
        json.loads(next(row["detail"] for row in rows(run, "events") if row["kind"] == "probe_cadence"))["every"] >= 1
    )
    assert not [code for code, rule in audited(run).items() if rule["outcome"] in ("fired", "crashed")]
    assert ("tensors", "update_norm") not in reasons(run)
    assert len({row["param"] for row in rows(run, "tensors")}) == len(rows(run, "params"))


@pytest.mark.slow
def test_a_watched_trainer_saves_the_same(tmp_path: Path) -> None:
    folders = [tmp_path / script for script in ("train.py", "attached.py")]
    for folder in folders:
        folder.mkdir()
        ran("hf-trainer", folder.name, folder)
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        plain, watched = ((folder / "trained" / "checkpoint-60" / name).read_bytes() for folder in folders)
        assert plain == watched, name


@pytest.mark.slow
def test_lightnings_other_name(tmp_path: Path) -> None:
    code = """
import pytorch_lightning
from trainscope.integrations.lightning import TrainscopeCallback
assert issubclass(TrainscopeCallback, pytorch_lightning.Callback)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=True, timeout=100)


@pytest.mark.slow
def test_a_script_without_torch_does_not_import_it() -> None:
    code = "import sys, trainscope.integrations.script; print('torch' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
