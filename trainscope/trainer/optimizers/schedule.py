"""`[scheduler]` → diffusers' schedule, and what becomes of it on resume.

A schedule is a shape (type, length, warmup) times a base learning rate, at a position. Continuing keeps the shape and
the position, extending changes the shape, restarting begins a new shape at position 0; the base learning rate is
always the one that was asked for. Knows nothing of checkpoints or of the optimizer's state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim.lr_scheduler import LambdaLR

from trainscope.config.model import RunConfig
from trainscope.config.optimizer import SCHEDULE_FREE
from trainscope.config.plan import Plan

DIFFUSERS_NAME = {
    "constant": "constant",
    "constant-with-warmup": "constant_with_warmup",
    "linear": "linear",
    "cosine": "cosine",
    "cosine-with-restarts": "cosine_with_restarts",
    "polynomial": "polynomial",
}


@dataclass(frozen=True)
class Schedule:
    """The shape of a schedule: `steps` is its length in optimizer steps, its warmup included."""

    type: str
    steps: int
    warmup_steps: int
    cycles: int = 1
    """Falls of cosine-with-restarts."""
    power: float = 1.0
    """Exponent of polynomial."""
    min_lr_ratio: float = 0.0
    """Share of the base learning rate that it falls to."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Any) -> Schedule:
        """What `as_json` gave. Raises `ValueError` for anything else."""
        if not (isinstance(found, dict) and found.keys() == {field.name for field in fields(cls)}):
            raise ValueError("a schedule has other keys")
        counts = [found[name] for name in ("steps", "warmup_steps", "cycles")]
        shares = [found[name] for name in ("power", "min_lr_ratio")]
        if not (isinstance(found["type"], str) and found["type"] in DIFFUSERS_NAME):
            raise ValueError("there is no schedule of that type")
        if any(type(value) is not int for value in counts) or any(type(value) is not float for value in shares):
            raise ValueError("a schedule's values are of another type")
        schedule = cls(**found)
        in_range = (
            min(schedule.steps, schedule.warmup_steps) >= 0
            and schedule.cycles >= 1
            and 0 < schedule.power < math.inf
            and 0 <= schedule.min_lr_ratio < 1
        )
        if not in_range:
            raise ValueError("a schedule's values are out of range")
        return schedule


def planned_schedule(config: RunConfig, plan: Plan) -> Schedule:
    """The schedule of a run from its beginning. Schedule-Free's warmup is the optimizer's own business."""
    section, kind, warmup = config.scheduler, str(config.scheduler.type), plan.warmup_steps
    if isinstance(config.optimizer, SCHEDULE_FREE):
        kind, warmup = ("constant" if kind == "constant-with-warmup" else kind), 0
    return Schedule(kind, plan.steps, warmup, section.cycles, section.power, section.min_lr_ratio)


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
    return replace(planned, steps=left, warmup_steps=warmup_steps)


def build_scheduler(schedule: Schedule, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """The schedule at position 0; it steps once for each optimizer step."""
    return LambdaLR(optimizer, shape_of(schedule))


def shape_of(schedule: Schedule) -> Callable[[int], float]:
    """Position → share of the base learning rate: diffusers' shape, which after the warmup stays above the floor.

    diffusers' polynomial ends at 1e-7 of the base learning rate instead of 0.
    """
    # It reads the rate of the optimizer that it is given: a rate of 1 makes the shape the same for every group.
    nobody = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    (shape,) = get_scheduler(
        DIFFUSERS_NAME[schedule.type],
        nobody,
        num_warmup_steps=schedule.warmup_steps,
        # Its polynomial divides by the steps after the warmup, also where there are none.
        num_training_steps=max(schedule.steps, schedule.warmup_steps + 1),
        num_cycles=schedule.cycles,
        power=schedule.power,
    ).lr_lambdas
    floor = schedule.min_lr_ratio

    def share(position: int) -> float:
        value = float(shape(position))
        return value if position < schedule.warmup_steps else floor + (1 - floor) * value

    return share


def move_to(scheduler: LambdaLR, position: int) -> list[float]:
    """Put a schedule where it would be after `position` steps, bit for bit; returns the learning rates there."""
    scheduler.last_epoch = position
    scheduler._step_count = position + 1
    lrs = [float(base) * shape(position) for base, shape in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    for group, lr in zip(scheduler.optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr
    scheduler._last_lr = list(lrs)
    return lrs
