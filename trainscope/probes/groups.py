"""The `groups` table: what the optimizer's parameter groups hold, read with as little knowledge of it as will do.

All of it is on the host already. Knows nothing of how an optimizer is built or stepped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

COPIED = ("d", "d0", "d_max", "d_hat", "d_numerator", "d_denom", "weight_sum", "lr_max", "scheduled_lr")


class GroupsProbe:
    """Call `before_step` before the optimizer and its scheduler step, `after_step` after both."""

    def __init__(self, optimizer: torch.optim.Optimizer, scheduler: object | None = None) -> None:
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._used: list[dict[str, Any]] = []

    def before_step(self) -> None:
        """Remember the values that the step is going to use."""
        self._used = [
            {key: group.get(key) for key in ("lr", "weight_decay", "d")} for group in self._optimizer.param_groups
        ]

    def after_step(self, step: int) -> list[dict[str, Any]]:
        """One row for each group: `lr` as the step used it, the rest as the step left it."""
        return [{"step": step, **self._row(number, used)} for number, used in enumerate(self._used)]

    def _row(self, number: int, used: Mapping[str, Any]) -> dict[str, Any]:
        group = self._optimizer.param_groups[number]
        lr = _number(used["lr"])
        return {
            "group": number,
            "name": group.get("name", f"group {number}"),
            "lr": lr,
            "base_lr": _number(self._base_lr(number, group)),
            "effective_lr": self._effective_lr(lr, used, group),
            "weight_decay": _number(used["weight_decay"]),
            "betas": json.dumps(list(group["betas"])) if "betas" in group else None,
            "eps": _number(group.get("eps")),
            "scheduler_type": type(self._scheduler).__name__ if self._scheduler is not None else None,
            "scheduler_step": getattr(self._scheduler, "last_epoch", None),
            **{key: _number(group.get(key)) for key in COPIED},
            "k": group.get("k"),
            "train_mode": group.get("train_mode"),
        }

    def _base_lr(self, number: int, group: Mapping[str, Any]) -> object:
        base_lrs = getattr(self._scheduler, "base_lrs", None)
        return base_lrs[number] if base_lrs else group.get("initial_lr", group.get("lr"))

    def _effective_lr(self, lr: float | None, used: Mapping[str, Any], group: Mapping[str, Any]) -> float | None:
        """What multiplies the normalised update.

        lr·d for Prodigy and D-Adaptation, scheduled_lr for Schedule-Free, Adafactor's own with `relative_step`.
        """
        if group.get("relative_step"):
            return self._relative_step(group)
        d = _number(used["d"])
        if d is not None and lr is not None:
            return lr * d
        scheduled = _number(group.get("scheduled_lr"))
        return scheduled if scheduled is not None else lr

    def _relative_step(self, group: Mapping[str, Any]) -> float | None:
        """Adafactor's rate (arXiv 1804.04235, section 9), before it is scaled to a tensor's size."""
        step = max((self._optimizer.state.get(param, {}).get("step", 0) for param in group["params"]), default=0)
        if step == 0:
            return None
        return float(min(1e-6 * step if group["warmup_init"] else 1e-2, step**-0.5))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float | torch.Tensor) else None
