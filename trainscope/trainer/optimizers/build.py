"""`[optimizer]` → an object of the library that has it.

A new optimizer is a model in `config.optimizer` and an entry of `BUILDERS`. Knows nothing of what is optimized.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Groups = list[dict[str, Any]]
Build = Callable[[Groups, dict[str, Any], int], torch.optim.Optimizer]
"""(parameter groups, the section's keys but `type`, warmup steps) → the optimizer."""


def build_optimizer(
    section: Any, params: Mapping[str, Sequence[torch.nn.Parameter]], *, warmup_steps: int
) -> torch.optim.Optimizer:
    """The optimizer of an `[optimizer]` section over one group for each component, named after it.

    `warmup_steps` is for those that warm up by themselves; the others leave it to the schedule.
    """
    groups: Groups = [{"params": list(tensors), "name": component} for component, tensors in params.items()]
    return BUILDERS[section.type](groups, section.model_dump(exclude={"type"}), warmup_steps)


def _adamw(groups: Groups, options: dict[str, Any], warmup_steps: int) -> torch.optim.Optimizer:
    # foreach is torch's own choice on a GPU; on the CPU it is as exact and quicker than the loop.
    return torch.optim.AdamW(groups, **options, foreach=True)


def _adamw8bit(groups: Groups, options: dict[str, Any], warmup_steps: int) -> torch.optim.Optimizer:
    from bitsandbytes.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit(groups, **options)
    return optimizer


def _lion(groups: Groups, options: dict[str, Any], warmup_steps: int) -> torch.optim.Optimizer:
    from lion_pytorch import Lion

    optimizer: torch.optim.Optimizer = Lion(groups, **options)
    return optimizer


def _prodigy(groups: Groups, options: dict[str, Any], warmup_steps: int) -> torch.optim.Optimizer:
    from prodigyopt import Prodigy

    with contextlib.redirect_stdout(io.StringIO()):  # it prints "Using decoupled weight decay"
        optimizer: torch.optim.Optimizer = Prodigy(groups, **options)
    return optimizer


def _adamw_schedulefree(groups: Groups, options: dict[str, Any], warmup_steps: int) -> torch.optim.Optimizer:
    from schedulefree import AdamWScheduleFree

    return _in_train_mode(AdamWScheduleFree(groups, **options, warmup_steps=warmup_steps))


def _radam_schedulefree(groups: Groups, options: dict[str, Any], warmup_steps: int) -> torch.optim.Optimizer:
    from schedulefree import RAdamScheduleFree

    return _in_train_mode(RAdamScheduleFree(groups, **options))


def _in_train_mode(optimizer: Any) -> torch.optim.Optimizer:
    """Schedule-Free refuses to step before `train()`."""
    optimizer.train()
    trained: torch.optim.Optimizer = optimizer
    return trained


BUILDERS: dict[str, Build] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
    "lion": _lion,
    "prodigy": _prodigy,
    "adamw-schedulefree": _adamw_schedulefree,
    "radam-schedulefree": _radam_schedulefree,
}
"""By `optimizer.type`."""
