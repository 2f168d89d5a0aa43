"""A half-finished run in a folder of its own, and resuming it by the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file

from tests.integration.commands import bits, refused, settings, trainscope
from tests.integration.resuming import (
    BLIND,
    LORA,
    SMALL,
    Values,
    rows,
    surviving,
)
from trainscope.config.load import load_config
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.checkpoints.folder import LORA_FILE, whole_checkpoints

STEPS, STOP = 8, 4
QUICK: Values = {**SMALL, **LORA, **BLIND, "train.steps": STEPS}

FREE: Values = {"optimizer.type": "adamw-schedulefree", "optimizer.lr": 1e-3}
WEIGHTS = f"runs/it/checkpoints/step-{STOP:08d}/weights/{LORA_FILE}"

Place = Callable[..., Path]


def resume(*changes: str, wanted: object = "latest", options: tuple[str, ...] = ()) -> Path:
    """`trainscope run cfg.toml --resume …` to its end; the run that it went on in."""
    result = trainscope("run", "cfg.toml", "--resume", wanted, "--no-audit", *options, *settings(*changes))
    assert result.code == 0, result.err
    return Path(result.last_line).absolute()


def refusal(*changes: str, says: tuple[str, ...], wanted: object = "latest", options: tuple[str, ...] = ()) -> str:
    command = ("cfg.toml", "--resume", wanted, "--no-audit", *options, *settings(*changes))
    return refused("run", *command, says=says, folder=Path.cwd())


def groups(run: Path) -> list[Values]:
    """The surviving rows of the run's one group, by step."""
    starts = {segment["number"]: segment["start_step"] for segment in RunDir(run).read()["segments"]}
    return sorted(surviving(rows(run, "groups"), starts), key=lambda row: row["step"])


def newest(run: Path) -> Path:
    return whole_checkpoints(RunDir(run))[-1]


def trained_weights(checkpoint: Path) -> dict[str, bytes]:
    return {name: bits(tensor) for name, tensor in load_file(checkpoint / "state" / "trained.safetensors").items()}


def data_folder() -> Path:
    """`data.dir` of the working directory's cfg.toml."""
    return Path(load_config(Path("cfg.toml")).config.data.dir)
