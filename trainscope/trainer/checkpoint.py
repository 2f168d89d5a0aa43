"""Checkpoints: the weights for use, and everything else that the next step depends on.

    checkpoints/step-00000100/
        weights/        raw, in the layout that diffusers loads
        weights-ema/    the average, likewise
        state/          trained.safetensors, ema.safetensors, optimizer.pt, training.json

A checkpoint is made beside and renamed, so one that has its name is whole. Knows nothing of the loop.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from trainscope.errors import TrainingError
from trainscope.runlog.rundir import RunDir, sync_folder
from trainscope.trainer.ema import DTYPES
from trainscope.trainer.models.save import save_lora, save_pipeline
from trainscope.trainer.session import Session

LORA_FILE = "pytorch_lora_weights.safetensors"


def weights_path(checkpoint: Path, method: str, which: str = "raw") -> Path:
    """What diffusers loads of a checkpoint: a LoRA file, or a pipeline's folder."""
    folder = checkpoint / ("weights" if which == "raw" else "weights-ema")
    return folder / LORA_FILE if method == "lora" else folder


def save_checkpoint(session: Session, run: RunDir) -> Path:
    """Save the session; returns the checkpoint's folder. One that is already there for this step is left as it is."""
    folder = run.checkpoints / f"step-{session.step:08d}"
    if folder.exists():
        return folder
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        beside.mkdir()
        for which in session.weight_sets:
            with session.weights(which):
                _save_weights(session, beside / ("weights" if which == "raw" else "weights-ema"))
        if session.config.checkpoint.save_state:
            _save_state(session, beside / "state")
        _sync_tree(beside)
        beside.rename(folder)
    except BaseException as error:
        # Half a checkpoint is of no use, and on a full disk it takes the room that the log still needs.
        shutil.rmtree(beside, ignore_errors=True)
        if (reason := _why_not_written(error)) is None:
            raise
        raise TrainingError(
            f"the checkpoint of step {session.step} cannot be written: {reason}",
            hint="free disk space, or name another place with --out",
        ) from error
    sync_folder(run.checkpoints)
    _prune(run, session.config.checkpoint.keep)
    return folder


def _save_weights(session: Session, folder: Path) -> None:
    dtype = DTYPES[session.config.precision.save]
    if session.config.train.method == "lora":
        save_lora(folder, session.unet, dtype=dtype, metadata={"trainscope_step": str(session.step)})
    else:
        save_pipeline(folder, session.components, dtype=dtype)


def _save_state(session: Session, folder: Path) -> None:
    folder.mkdir()
    save_file(
        {name: param.detach().contiguous() for name, param in session.params.items()}, folder / "trained.safetensors"
    )
    training: dict[str, Any] = {
        "step": session.step,
        "micro_step": session.micro_step,
        "optimizer_steps": session.optimizer_steps,
        "seed": session.seed,
    }
    state: dict[str, Any] = {
        "optimizer": session.optimizer.state_dict(),
        "param_names": list(session.params),
        "scheduler": session.scheduler.state_dict(),
        "scaler": session.scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "rounding": session.rounding.generator.get_state() if session.rounding else None,
    }
    with (folder / "optimizer.pt").open("wb") as file:  # given a path, torch would not say why it cannot write
        torch.save(state, file)
    if session.ema is not None:
        shadows = zip(session.params, session.ema.shadow_params, strict=True)
        save_file({name: shadow.contiguous() for name, shadow in shadows}, folder / "ema.safetensors")
        training["ema"] = {"optimization_step": session.ema.optimization_step}
    (folder / "training.json").write_text(json.dumps(training, indent=2), encoding="utf-8")


def _why_not_written(error: BaseException) -> str | None:
    """The disk's reason behind an error; None if the disk is not to blame."""
    if isinstance(error, SafetensorError):
        return str(error)
    for cause in (error, error.__context__):  # torch hides the system's error behind one of its own
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
    return None


def _sync_tree(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _prune(run: RunDir, keep: int) -> None:
    checkpoints = sorted(run.checkpoints.glob("step-*"))
    for old in checkpoints[:-keep] if keep else []:
        # Renamed first: a run killed in the middle of deleting would leave a checkpoint that only looks whole.
        doomed = old.rename(old.with_name(f".{old.name}.{os.getpid()}.tmp"))
        shutil.rmtree(doomed)
