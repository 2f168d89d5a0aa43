"""`[optimizer]` and `[scheduler]` → the objects of torch, prodigyopt and diffusers.

Knows nothing of what is optimized.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from trainscope.config.model import SchedulerSection
from trainscope.config.optimizer import AdamW, Prodigy

DIFFUSERS_NAME = {"constant": "constant", "constant-with-warmup": "constant_with_warmup", "cosine": "cosine"}


def build_optimizer(section: AdamW | Prodigy, params: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over one group named "unet"."""
    groups: list[dict[str, Any]] = [{"params": list(params), "name": "unet"}]
    options = section.model_dump(exclude={"type"})
    if isinstance(section, AdamW):
        # foreach is torch's own choice on a GPU; on the CPU it is as exact and quicker than the loop.
        return torch.optim.AdamW(groups, **options, foreach=True)
    from prodigyopt import Prodigy as ProdigyOptimizer

    with contextlib.redirect_stdout(io.StringIO()):  # it prints "Using decoupled weight decay"
        optimizer: torch.optim.Optimizer = ProdigyOptimizer(groups, **options)
    return optimizer


def build_scheduler(
    section: SchedulerSection, optimizer: torch.optim.Optimizer, *, steps: int, warmup_steps: int
) -> LambdaLR:
    """The schedule over `steps` optimizer steps; it steps once for each of them."""
    scheduler: LambdaLR = get_scheduler(
        DIFFUSERS_NAME[section.type], optimizer, num_warmup_steps=warmup_steps, num_training_steps=steps
    )
    return scheduler
