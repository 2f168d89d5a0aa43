"""Whether the disk has room for what a training is going to save, told before it starts.

An estimate from sizes alone. Knows nothing of the files' formats.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from trainscope.config.footprint import optimizer_state_bytes
from trainscope.config.saves import kept_at_once
from trainscope.errors import TrainingError
from trainscope.trainer.ema import DTYPES
from trainscope.trainer.saves import planned_saves
from trainscope.trainer.session import Session

OVERHEAD_BYTES = 2**20
"""Headers, JSON and the fingerprint."""


def checkpoint_bytes(session: Session) -> int:
    """About how large a checkpoint is going to be."""
    config = session.config
    trained = sum(param.numel() for param in session.tensors)
    stored = _bytes(session.tensors)
    for_use = trained * DTYPES[config.precision.save].itemsize
    if config.train.method == "finetune":
        frozen = [model for model in session.components.models.values() if model not in session.trained_models]
        for_use += sum(_bytes(model.parameters()) for model in (session.components.vae, *frozen))
    else:
        for_use *= 2  # in two layouts
    total = for_use * len(session.weight_sets) + OVERHEAD_BYTES
    if config.checkpoint.save_state:
        total += stored + optimizer_bytes(session)
        total += _bytes(session.ema.shadow_params) if session.ema is not None else 0
    return total


def optimizer_bytes(session: Session) -> int:
    """About how large the optimizer's state is going to be."""
    return optimizer_state_bytes(session.config, [tensor.shape for tensor in session.tensors])


def check_room(session: Session, folder: Path) -> str | None:
    """Raise `TrainingError` if not even one checkpoint fits; a warning if those that are planned do not."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, free = checkpoint_bytes(session), shutil.disk_usage(there).free
    at_once = kept_at_once(1 + planned_saves(session).ahead, session.config.checkpoint.keep)
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
