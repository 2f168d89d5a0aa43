"""Models of the published sizes, with random weights, trained through the command line: what a step needs at its peak.

Each takes minutes and most of a machine's memory, so they are marked slow and are not to run beside one another.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.integration.commands import ENVIRONMENT, ROOT, SHAPES
from tests.integration.published import write_single_file
from trainscope.proof.runs import config_text
from trainscope.runlog.reader import read_run
from trainscope.trainer.checkpoints.folder import weights_path
from trainscope.trainer.models.tiny_text import END, START, byte_letters

GIB = 2**30
LIMIT = 24 * GIB
VOCABULARY = 49408
"""CLIP's."""
STEPS = 2
VALUES: dict[str, Any] = {
    "model.base": "model.safetensors",
    "model.tokenizer": "tokenizer",
    "train.steps": STEPS,
    "data.dir": "pictures",
    "data.resolution": 256,
    "run.device": "cpu",
    "run.seed": 1,
    "sample.every_steps": 0,
    "eval.every_steps": 0,
}
"""Probes are at their defaults, which look at each of the first steps."""


@dataclass(frozen=True)
class Measured:
    """What a training needed: `peak` is the most resident memory of its process, `seconds` those of each step."""

    peak: int
    seconds: list[float]
    run: Path


@pytest.fixture
def place(tmp_path: Path) -> Any:
    """A folder with four pictures and a tokenizer; gone afterwards, since what is made in it is large."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for path in sorted(SHAPES.glob("*.png"))[:4]:
        shutil.copy(path, pictures)
        shutil.copy(path.with_suffix(".txt"), pictures)
    write_tokenizer(tmp_path / "tokenizer")
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of CLIP's size that knows single bytes only: its other tokens stand for nothing."""
    letters = byte_letters()
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += [f"unused{number}</w>" for number in range(VOCABULARY - len(tokens) - 2)]
    tokens += [START, END]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def trained(place: Path, needs: int, **changes: Any) -> Measured:
    """`trainscope run` in a process of its own; `needs` is the disk space for what is written, in bytes.

    It gets no more memory than the limit, nor more than there is: better it fails than another program is killed.
    """
    memory = min(LIMIT, psutil.virtual_memory().available)
    if shutil.disk_usage(place).free < needs:
        pytest.skip(f"{place} has no room for {needs / GIB:.0f} GiB")
    (place / "cfg.toml").write_text(config_text({**VALUES, **changes}), encoding="utf-8")
    with (place / "console.txt").open("w") as console:
        child = subprocess.Popen(
            [sys.executable, "-m", "trainscope", "run", "cfg.toml", "--out", "run", "--no-audit"],
            cwd=place,
            env={**ENVIRONMENT, "OMP_NUM_THREADS": str(os.cpu_count() or 1), "PYTHONPATH": str(ROOT)},
            stdout=console,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: _limit(memory),
        )
        _, status, usage = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, (place / "console.txt").read_text()
    rows = read_run(place / "run").datasets["steps"].to_table().to_pylist()
    return Measured(usage.ru_maxrss * 1024, [row["seconds"] for row in rows], place / "run")


def _limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    mercy = Path("/proc/self/oom_score_adj")
    if mercy.exists():  # should it come to that all the same, this is the process to end
        mercy.write_text("1000")


def told(name: str, measured: Measured, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        seconds = ", ".join(f"{seconds:.0f}" for seconds in measured.seconds)
        print(f"\n{name}: peak {measured.peak / GIB:.1f} GiB, steps of {seconds} s")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_full_finetune_of_stable_diffusion_1(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """float32, AdamW, 256²; the state is not saved, since nobody goes on from it."""
    write_single_file("sd1", place / "model.safetensors")
    measured = trained(place, 8 * GIB, **{"train.method": "finetune", "checkpoint.save_state": False})
    told("Stable Diffusion 1.5, full fine-tune in float32 with AdamW at 256²", measured, capsys)
    assert measured.peak < LIMIT
    (checkpoint,) = (measured.run / "checkpoints").iterdir()
    unet = weights_path(checkpoint, "finetune") / "unet" / "diffusion_pytorch_model.safetensors"
    assert unet.stat().st_size > 859e6 * 4
    moved = read_run(measured.run).datasets["tensors"].to_table().to_pylist()
    assert len(moved) == STEPS * 686
    assert all(row["distance_from_start"] > 0 for row in moved if row["grad_norm"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_lora_of_stable_diffusion_xl_in_bf16(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_single_file("sdxl", place / "model.safetensors")
    changes = {"precision.base": "bf16", "precision.weights": "bf16", "optimizer.lr": 1e-3}
    measured = trained(place, 2 * GIB, **changes)
    told("Stable Diffusion XL, LoRA in bf16 with AdamW at 256²", measured, capsys)
    assert measured.peak < LIMIT
    adapters = read_run(measured.run).datasets["adapters"].to_table().to_pylist()
    assert len({row["module"] for row in adapters}) == 560
    assert all(row["delta_norm"] > 0 for row in adapters if row["step"] == STEPS)
