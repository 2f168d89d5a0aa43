"""Whether the disk has room for what a training is going to save, told before it starts.

An estimate from sizes alone. Knows nothing of the files' formats.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from trainscope.errors import TrainingError
from trainscope.trainer.ema import DTYPES
from trainscope.trainer.session import Session

STATE_BYTES: dict[str, float] = {
    "adamw": 8.0,
    "adamw8bit": 2.1,
    "lion": 4.0,
    "prodigy": 16.0,
    "adamw-schedulefree": 8.0,
    "radam-schedulefree": 8.0,
}
"""Bytes of optimizer state for each trained weight in float32, by `optimizer.type`."""
OVERHEAD_BYTES = 2**20
"""Headers, JSON and the fingerprint."""


def checkpoint_bytes(session: Session) -> int:
    """About how large a checkpoint is going to be."""
    config = session.config
    trained = sum(param.numel() for param in session.tensors)
    stored = _bytes(session.tensors)
    for_use = trained * DTYPES[config.precision.save].itemsize
    if config.train.method == "finetune":
        for_use += _bytes(session.components.vae.parameters()) + _bytes(session.components.text_encoder.parameters())
    total = for_use * len(session.weight_sets) + OVERHEAD_BYTES
    if config.checkpoint.save_state:
        # State has the format of the weights as the optimizer sees them; 8-bit state is what it is.
        as_weights = config.optimizer.type != "adamw8bit" and not config.precision.stochastic_rounding
        share = stored / (4 * trained) if as_weights and trained else 1.0
        total += stored + round(STATE_BYTES[config.optimizer.type] * share * trained)
        total += _bytes(session.ema.shadow_params) if session.ema is not None else 0
    return total


def check_room(session: Session, folder: Path) -> str | None:
    """Raise `TrainingError` if not even one checkpoint fits; a warning if those that are planned do not."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, free = checkpoint_bytes(session), shutil.disk_usage(there).free
    section, steps = session.config.checkpoint, session.plan.steps - session.step
    saves = 1 + (max(0, steps - 1) // section.every_steps if section.every_steps else 0)
    # An old checkpoint goes only when the new one is there.
    at_once = min(saves, section.keep + 1) if section.keep else saves
    if free < needed:
        raise TrainingError(
            f"a checkpoint needs about {_shown(needed)}, and the disk of {folder} has {_shown(free)} free",
            hint="free disk space, name another place with --out, or set checkpoint.save_state = false",
        )
    if free < needed * at_once:
        return (
            f"{at_once} checkpoints of about {_shown(needed)} need {_shown(needed * at_once)}, and {_shown(free)} are "
            "free: set checkpoint.keep, or save less often"
        )
    return None


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _shown(count: int) -> str:
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
