"""`[scheduler]` → diffusers' schedule, and what becomes of it on resume.

A schedule is a shape (type, length, warmup) times a base learning rate, at a position. Continuing keeps the shape and
the position, extending changes the shape, restarting begins a new shape at position 0; the base learning rate is
always the one that was asked for. Knows nothing of checkpoints or of the optimizer's state.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from trainscope.config.model import RunConfig
from trainscope.config.optimizer import SCHEDULE_FREE
from trainscope.config.plan import Plan

DIFFUSERS_NAME = {"constant": "constant", "constant-with-warmup": "constant_with_warmup", "cosine": "cosine"}


@dataclass(frozen=True)
class Schedule:
    """The shape of a schedule: `steps` is its length in optimizer steps, its warmup included."""

    type: str
    steps: int
    warmup_steps: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def planned_schedule(config: RunConfig, plan: Plan) -> Schedule:
    """The schedule of a run from its beginning. Schedule-Free's warmup is the optimizer's own business."""
    kind, warmup = config.scheduler.type, plan.warmup_steps
    if isinstance(config.optimizer, SCHEDULE_FREE):
        kind, warmup = ("constant" if kind == "constant-with-warmup" else kind), 0
    return Schedule(kind, plan.steps, warmup)


def schedule_after_resume(config: RunConfig, plan: Plan, saved: Schedule, done: int) -> Schedule:
    """The shape in effect after `done` steps, by `scheduler.on_resume`."""
    if config.scheduler.on_resume == "continue":
        return saved
    planned = planned_schedule(config, plan)
    if config.scheduler.on_resume == "extend":
        return planned
    left = max(1, plan.steps - done)
    warmup = config.scheduler.warmup
    warmup_steps = 0 if planned.warmup_steps == 0 else round(warmup * left) if warmup < 1 else round(warmup)
    return Schedule(planned.type, left, warmup_steps)


def build_scheduler(schedule: Schedule, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """The schedule at position 0; it steps once for each optimizer step."""
    scheduler: LambdaLR = get_scheduler(
        DIFFUSERS_NAME[schedule.type],
        optimizer,
        num_warmup_steps=schedule.warmup_steps,
        num_training_steps=schedule.steps,
    )
    return scheduler


def move_to(scheduler: LambdaLR, position: int) -> list[float]:
    """Put a schedule where it would be after `position` steps, bit for bit; returns the learning rates there."""
    scheduler.last_epoch = position
    scheduler._step_count = position + 1
    lrs = [float(base) * shape(position) for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, lr in zip(scheduler.optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr
    scheduler._last_lr = list(lrs)
    return lrs
