"""Preflight on the command line, and at the beginning of `trainscope run`."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.commands import ENVIRONMENT, QUIET, ROOT, config_text, refused, settings, trainscope
from trainscope.trainer.models.tiny import tiny_folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg.toml").write_text(config_text(), encoding="utf-8")
    return tmp_path


def test_run_looks_first_and_goes_on(here: Path) -> None:
    """Four steps are too few, which preflight says before torch is loaded; the training goes on all the same."""
    result = trainscope("run", "cfg.toml", *settings(*QUIET), "--no-audit")
    assert result.code == 0, result.err
    assert "SCH104" in result.out
    assert 0 <= result.out.index("SCH104") < result.out.index("loading torch") < result.out.index("completed at step 4")


@pytest.mark.parametrize(("level", "trains"), [("warning", False), ("error", True)])
def test_run_stops_before_the_training_where_that_is_asked(level: str, trains: bool, here: Path) -> None:
    result = trainscope("run", "cfg.toml", *settings(*QUIET), "--no-audit", "--fail-on", level)
    assert (result.code, "loading torch" in result.out) == ((0, True) if trains else (1, False))
    assert ("not trained: --fail-on warning" in result.out) is not trains
    assert (here / "runs").exists() is trains


def test_a_plan_without_risk_is_one_line(here: Path) -> None:
    changes = settings(*QUIET, "train.steps=1", "audit.thresholds.SCH104.min_seen=0")
    result = trainscope("run", "cfg.toml", *changes, "--no-audit", "--fail-on", "info")
    assert result.code == 0, result.out
    assert result.out.startswith("preflight: nothing found (")


def test_what_preflight_cannot_read_is_left_to_the_training(here: Path) -> None:
    (here / "model.ckpt").write_bytes(b"\x80\x02")
    result = trainscope("run", "cfg.toml", "--set", "model.base=model.ckpt")
    assert result.code == 2
    assert "preflight could not look: model.base = 'model.ckpt' is a pickled checkpoint" in result.out
    assert "save_file" in result.message  # how to convert it


def test_a_damaged_model_is_one_error(here: Path) -> None:
    for content in (b"", b"\xff" * 9, b"<html>", (2**40).to_bytes(8, "little") + b"{}"):
        (here / "model.safetensors").write_bytes(content)
        refused(
            "preflight", "cfg.toml", "--set", "model.base=model.safetensors", says=("model.safetensors",), folder=here
        )


# ---- the memory that a plan needs, against what a run has


LARGE = ("lora.conv_rank=32768", "lora.rank=16", "data.resolution=32", "train.batch_size=1", "train.steps=1")
"""On the tiny model a LoRA of a hundred million weights: 2 GiB with their gradients and AdamW's state."""


def in_so_much_memory(here: Path, limit: int, *command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainscope", *map(str, command)],
        cwd=here,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_where_preflight_says_too_little_memory_the_run_has_too_little(here: Path) -> None:
    """And where it says nothing, the run has enough, with what the libraries take besides."""
    tiny_folder("sd15")
    changes, asked = settings(*QUIET, *LARGE), ("--select", "MEM101", "--fail-on", "warning")
    for limit, fits in ((2 * 2**30, False), (8 * 2**30, True)):
        seen = in_so_much_memory(here, limit, "preflight", "cfg.toml", *changes, *asked)
        assert ("MEM101" in seen.stdout, seen.returncode) == (not fits, int(not fits)), seen.stdout + seen.stderr
        ran = in_so_much_memory(here, limit, "run", "cfg.toml", *changes, "--no-audit")
        assert ran.returncode == (0 if fits else 2), ran.stdout + ran.stderr
        assert ("memory" in ran.stderr) is not fits
