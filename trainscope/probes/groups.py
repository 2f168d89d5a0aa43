"""The `groups` table: what the optimizer's parameter groups hold, read with as little knowledge of it as will do.

All of it is on the host already. Knows nothing of how an optimizer is built or stepped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

COPIED = ("d", "d0", "d_max", "d_hat", "d_numerator", "d_denom", "weight_sum", "lr_max", "scheduled_lr")


READ = ("name", "lr", "initial_lr", "weight_decay", "betas", "eps", "k", "train_mode", *COPIED)


@dataclass(frozen=True)
class GroupsState:
    """What the groups held when a step was over: numbers of their own, so that it may be looked at later."""

    used: list[dict[str, Any]]
    """What the step used, before the schedule moved on."""
    groups: list[dict[str, Any]]
    scheduler_step: int | None
    base_lrs: list[Any] | None


class GroupsProbe:
    """Call `before_step` before the optimizer and its scheduler step, `after_step` after both, and `rows` in time."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: object | None = None) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._used: list[dict[str, Any]] = []

    def before_step(self) -> None:
        """Remember the values that the step is going to use."""
        self._used = [_copied(group, ("lr", "weight_decay", "d")) for group in self._optimizer.param_groups]

    def after_step(self) -> GroupsState:
        """The rest is taken as the step left it."""
        groups = [_copied(group, READ) for group in self._optimizer.param_groups[: len(self._used)]]
        for group, copied in zip(self._optimizer.param_groups, groups, strict=False):
            if group.get("relative_step"):
                copied["relative_lr"] = self._relative_step(group)
        base_lrs = getattr(self._scheduler, "base_lrs", None)
        step = getattr(self._scheduler, "last_epoch", None)
        return GroupsState(self._used, groups, step, list(base_lrs) if base_lrs else None)

    def rows(self, step: int, state: GroupsState) -> list[dict[str, Any]]:
        """One row for each group: `lr` as the step used it, the rest as the step left it."""
        return [{"step": step, **self._row(number, state)} for number in range(len(state.used))]

    def _row(self, number: int, state: GroupsState) -> dict[str, Any]:
        used, group = state.used[number], state.groups[number]
        base_lr = state.base_lrs[number] if state.base_lrs else group.get("initial_lr", group.get("lr"))
        return {
            "group": number,
            "name": group.get("name", f"group {number}"),
            "lr": _number(used.get("lr")),
            "base_lr": _number(base_lr),
            "effective_lr": _effective_lr(used, group),
            "weight_decay": _number(used.get("weight_decay")),
            "betas": json.dumps(list(group["betas"])) if "betas" in group else None,
            "eps": _number(group.get("eps")),
            "scheduler_type": type(self._scheduler).__name__ if self._scheduler is not None else None,
            "scheduler_step": state.scheduler_step,
            **{key: _number(group.get(key)) for key in COPIED},
            "k": group.get("k"),
            "train_mode": group.get("train_mode"),
        }

    def _relative_step(self, group: Mapping[str, Any]) -> float | None:
        """Adafactor's rate (arXiv 1804.04235, section 9), before it is scaled to a tensor's size."""
        step = max((self._optimizer.state.get(param, {}).get("step", 0) for param in group["params"]), default=0)
        if step == 0:
            return None
        return float(min(1e-6 * step if group["warmup_init"] else 1e-2, step**-0.5))


def _copied(group: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Some optimizers keep their numbers in tensors, which a later step overwrites."""
    found = {key: group[key] for key in keys if key in group}
    for key, value in found.items():
        if isinstance(value, torch.Tensor):
            found[key] = float(value)
    return found


def _effective_lr(used: Mapping[str, Any], group: Mapping[str, Any]) -> float | None:
    """What multiplies the normalised update.

    lr·d for Prodigy and D-Adaptation, scheduled_lr for Schedule-Free, Adafactor's own with `relative_step`.
    """
    if "relative_lr" in group:
        return _number(group["relative_lr"])
    lr, d = _number(used.get("lr")), _number(used.get("d"))
    if d is not None and lr is not None:
        return lr * d
    scheduled = _number(group.get("scheduled_lr"))
    return scheduled if scheduled is not None else lr


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float | torch.Tensor) else None
