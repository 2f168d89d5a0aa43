"""What other programs do to a checkpoint between its save and its resume.

Each takes the checkpoint's folder and changes files in it. Knows nothing of runs or rules.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Damage = Callable[[Path], None]


def _deleted(*names: str) -> Damage:
    """OneTrainer and accelerate both go on without a file that is not there."""

    def damage(checkpoint: Path) -> None:
        for name in names:
            (checkpoint / "state" / name).unlink()

    return damage


def _tensors_changed(name: str, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Damage:
    """A script that loads a file, changes its tensors and saves it again."""

    def damage(checkpoint: Path) -> None:
        path = checkpoint / "state" / name
        metadata = _metadata(path)
        save_file({key: value.contiguous() for key, value in change(load_file(path)).items()}, path, metadata=metadata)

    return damage


def _metadata(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = file.metadata() or {}
    return found


def _in_bf16(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A converter that halves a checkpoint's size."""
    return {
        key: value.bfloat16() if value.is_floating_point() and value.dim() else value for key, value in tensors.items()
    }


def _rotated(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """State given to the next parameter of the same shape: what loading by position does after an order has changed."""
    changed = dict(tensors)
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name, value in tensors.items():
        if value.dim():
            alike.setdefault((name.rpartition("::")[2] if "::" in name else "", tuple(value.shape)), []).append(name)
    for names in alike.values():
        for name, other in zip(names, [*names[1:], names[0]], strict=True):
            changed[name] = tensors[other]
    return changed


def _average_as_weights(checkpoint: Path) -> None:
    """The average's file put where the weights are expected: the one that looks best is taken to go on from."""
    state = checkpoint / "state"
    shutil.copyfile(state / "ema.safetensors", state / "trained.safetensors")


def _moments_zeroed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) if value.dim() else value for key, value in tensors.items()}


def _optimizer_of_an_older_checkpoint(checkpoint: Path) -> None:
    """Files of two folders put together by hand, or a loader that finds the oldest where it means the newest."""
    oldest = min(checkpoint.parent.glob("step-*"))
    for name in ("optimizer.safetensors", "optimizer.json"):
        shutil.copyfile(oldest / "state" / name, checkpoint / "state" / name)


DAMAGES: dict[str, Damage] = {
    "optimizer-of-an-older-checkpoint": _optimizer_of_an_older_checkpoint,
    "optimizer-deleted": _deleted("optimizer.safetensors", "optimizer.json"),
    "optimizer-groups-deleted": _deleted("optimizer.json"),
    "scaler-deleted": _deleted("scaler.json"),
    "scheduler-deleted": _deleted("scheduler.json"),
    "average-deleted": _deleted("ema.safetensors"),
    "random-states-deleted": _deleted("random.safetensors"),
    "fingerprint-deleted": lambda checkpoint: (checkpoint / "fingerprint.parquet").unlink(),
    "optimizer-in-bf16": _tensors_changed("optimizer.safetensors", _in_bf16),
    "weights-in-bf16": _tensors_changed("trained.safetensors", _in_bf16),
    "optimizer-rotated": _tensors_changed("optimizer.safetensors", _rotated),
    "weights-rotated": _tensors_changed("trained.safetensors", _rotated),
    "average-in-bf16": _tensors_changed("ema.safetensors", _in_bf16),
    "average-rotated": _tensors_changed("ema.safetensors", _rotated),
    "average-as-weights": _average_as_weights,
    "moments-zeroed": _tensors_changed("optimizer.safetensors", _moments_zeroed),
}
