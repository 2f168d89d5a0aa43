"""Whether the disk has room for what a training is going to save, told before it starts.

An estimate from sizes alone. Knows nothing of the files' formats.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from trainscope.config.optimizer import Adafactor
from trainscope.errors import TrainingError
from trainscope.trainer.ema import DTYPES
from trainscope.trainer.saves import planned_saves
from trainscope.trainer.session import Session

STATE_BYTES: dict[str, float] = {
    "adamw": 8.0,
    "adamw8bit": 2.1,
    "paged-adamw8bit": 2.1,
    "lion": 4.0,
    "lion8bit": 1.05,
    "paged-lion8bit": 1.05,
    "sgd-nesterov": 4.0,
    "sgd-nesterov8bit": 1.05,
    "dadapt-adam": 12.0,
    "dadapt-adam-preprint": 12.0,
    "dadapt-adagrad": 12.0,
    "dadapt-adan": 20.0,
    "dadapt-adan-ip": 20.0,
    "dadapt-lion": 8.0,
    "dadapt-sgd": 12.0,
    "adafactor": 0.0,
    "prodigy": 16.0,
    "adamw-schedulefree": 8.0,
    "radam-schedulefree": 8.0,
    "sgd-schedulefree": 4.0,
}
"""Bytes of optimizer state for each trained weight in float32, by `optimizer.type`; Adafactor's depend on shapes."""
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
    section, weights = session.config.optimizer, session.tensors
    if isinstance(section, Adafactor):
        return sum(_adafactor_bytes(tensor, first_moment=section.beta1 is not None) for tensor in weights)
    # State has the format of the weights as the optimizer sees them; 8-bit state is what it is.
    as_weights = not section.type.endswith("8bit") and not session.config.precision.stochastic_rounding
    sizes = ((tensor.numel(), tensor.element_size() if as_weights else 4) for tensor in weights)
    return round(STATE_BYTES[section.type] * sum(numel * size / 4 for numel, size in sizes))


def _adafactor_bytes(tensor: torch.Tensor, *, first_moment: bool) -> int:
    """Sums over the last dimension and over the one before it, in float32; a vector's are its squares."""
    numel = tensor.numel()
    sums = numel if tensor.ndim < 2 else numel // tensor.shape[-1] + numel // tensor.shape[-2]
    return 4 * (sums + (numel if first_moment else 0))


def check_room(session: Session, folder: Path) -> str | None:
    """Raise `TrainingError` if not even one checkpoint fits; a warning if those that are planned do not."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    needed, free = checkpoint_bytes(session), shutil.disk_usage(there).free
    keep, saves = session.config.checkpoint.keep, 1 + planned_saves(session).ahead
    # An old checkpoint goes only when the new one is there.
    at_once = min(saves, keep + 1) if keep else saves
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
