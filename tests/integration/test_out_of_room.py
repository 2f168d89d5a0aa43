"""Memory or disk that runs out at any stage: one clear message, exit 2, a checkpoint to go on from, a readable log."""

from __future__ import annotations

import errno
import functools
import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from tests.integration.commands import config_text, settings, trainscope
from trainscope.probes.tensors import TensorsProbe
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import RunDir
from trainscope.trainer import loop, training
from trainscope.trainer.checkpoints import save
from trainscope.trainer.checkpoints.folder import whole_checkpoints
from trainscope.trainer.data import cache

CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)
GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
DISK = OSError(errno.ENOSPC, "No space left on device")
CHANGES = (
    "run.device=cpu",
    "run.seed=1",
    "data.resolution=32",
    "lora.rank=4",
    "checkpoint.every_steps=2",
    "sample.every_steps=2",
    "sample.steps=1",
    "eval.every_steps=2",
    "eval.samples=2",
)
"""Four steps; saved after the second and the last."""


def failing_at(real: Callable[..., Any], error: Exception, call: int) -> Callable[..., Any]:
    """What raises from its n-th call on, in the place of a function."""
    left = call

    @functools.wraps(real)
    def fails(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left <= 0:
            raise type(error)(*error.args)  # another each time: the one that was caught holds on to where it was
        return real(*args, **kwargs)

    return fails


@dataclass(frozen=True)
class Stage:
    """`owner.name` raises `error` at its n-th `call`; then the message `says`, and `saved` are the steps on disk."""

    owner: Any
    name: str
    error: Exception
    call: int
    says: tuple[str, ...]
    saved: tuple[int, ...] = ()


BEFORE = "before the first step"
NOT_WRITTEN = "the checkpoint of step 4 cannot be written"
STAGES: dict[str, Stage] = {
    "loading the UNet": Stage(UNet2DConditionModel, "from_config", CPU, 1, ("out of memory", BEFORE, "precision.base")),
    "encoding pictures": Stage(AutoencoderKL, "encode", GPU, 1, ("out of memory", BEFORE)),
    "encoding captions": Stage(CLIPTextModel, "forward", CPU, 1, ("out of memory", BEFORE)),
    "the first forward pass": Stage(loop, "denoise", GPU, 1, ("out of memory at step 1", "train.batch_size")),
    "a later one": Stage(loop, "denoise", CPU, 4, ("out of memory at step 4", "train.batch_size"), (2,)),
    "the optimizer": Stage(loop, "_step", MemoryError(), 3, ("out of memory at step 3",), (2,)),
    "an evaluation": Stage(training, "evaluate", GPU, 3, ("out of memory in the evaluation at step 4",), (2,)),
    "samples": Stage(AutoencoderKL, "decode", GPU, 5, ("out of memory in sampling at step 4", "sample.width"), (2,)),
    "saving": Stage(save, "save_lora", CPU, 2, ("out of memory in saving at step 4", "--resume"), (2,)),
    "a full disk: samples": Stage(Image.Image, "save", DISK, 5, ("in sampling at step 4", "No space left"), (2,)),
    "a full disk: the first file": Stage(
        save, "save_lora", DISK, 2, ("the checkpoint of step 4 cannot be written",), (2,)
    ),
    "a full disk: kohya's": Stage(save, "save_kohya_lora", DISK, 2, (NOT_WRITTEN, "No space left"), (2,)),
    "a full disk: the state": Stage(
        save, "write_state", DISK, 2, ("the checkpoint of step 4 cannot be written",), (2,)
    ),
}


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES.keys())
def test_a_training_that_cannot_go_on(stage: Stage, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says where it was and what to do. With room again, it goes on from the last checkpoint to its end."""
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    with monkeypatch.context() as broken:
        broken.setattr(stage.owner, stage.name, failing_at(getattr(stage.owner, stage.name), stage.error, stage.call))
        result = trainscope("run", "cfg.toml", "--out", "run", *settings(*CHANGES))
    assert result.code == 2, (result.out, result.err)
    for text in stage.says:
        assert text in result.message
    if BEFORE in stage.says:
        assert not (here / "run").exists()
        return
    run = RunDir(here / "run")
    assert [int(path.name.removeprefix("step-")) for path in whole_checkpoints(run)] == list(stage.saved)
    assert not list(run.path.rglob("*.tmp"))
    log = read_run(run.path)
    assert log.status == "crashed"
    assert "crash" in log.datasets["events"].to_table()["kind"].to_pylist()
    if stage.saved:
        resumed = trainscope("run", "cfg.toml", "--out", "run", "--resume", "latest", "--no-audit", *settings(*CHANGES))
        assert resumed.code == 0, resumed.err
        assert read_run(run.path).status == "completed"


def test_what_is_left_can_be_audited(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    monkeypatch.setattr(loop, "denoise", failing_at(loop.denoise, CPU, 4))
    assert trainscope("run", "cfg.toml", "--out", "run", *settings(*CHANGES)).code == 2
    result = trainscope("audit", "run", "--fail-on", "never")
    assert result.code == 0
    assert "crashed" in result.out


def test_a_cache_that_cannot_be_written_costs_time_only(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    monkeypatch.setattr(cache, "write_atomically", failing_at(cache.write_atomically, DISK, 3))
    caches = ("data.cache_latents=disk", "data.cache_text=disk", "data.cache_dir=cache")
    result = trainscope("run", "cfg.toml", "--out", "run", "--no-audit", *settings(*CHANGES, *caches))
    assert result.code == 0, result.err
    assert "warning: the cache" in result.out
    assert "no space left on device; going on without" in result.out
    assert len(list((here / "cache").rglob("*.safetensors"))) == 2


@pytest.mark.parametrize("method", ["__init__", "before_step", "after_step"])
def test_a_probe_without_memory_makes_room(method: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its copies are the first thing that a training can do without; what it measured until then is kept."""
    (here / "cfg.toml").write_text(config_text(), encoding="utf-8")
    alive: list[weakref.ref[TensorsProbe]] = []

    def fails(probe: TensorsProbe, *args: Any, **kwargs: Any) -> None:
        alive.append(weakref.ref(probe))
        raise RuntimeError(*CPU.args)

    monkeypatch.setattr(TensorsProbe, method, fails)
    result = trainscope("run", "cfg.toml", "--out", "run", "--no-audit", *settings(*CHANGES))
    assert result.code == 0, result.err
    assert "can't allocate memory" in result.out
    coverage = read_run(here / "run").datasets["coverage"].to_table().to_pylist()
    assert any(row["table"] == "tensors" and "can't allocate memory" in (row["reason"] or "") for row in coverage)
    gc.collect()
    assert len(alive) == 1
    assert alive[0]() is None
