"""Schedule-Free optimizers, which step y. Knows nothing of where they keep their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainscope.probes.updates.elements import Before, Intended


def schedule_free_adamw(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Schedule-Free AdamW (arXiv 2405.15682; schedulefree 1.4), with a linear warmup of its own."""
    del after
    v_hat = _group_v_hat(before, group)
    direction = before.grad / (v_hat.sqrt() + group["eps"])
    delta = _change_of_y(before, group, _warmed_up(group), direction, beta=group["betas"][0])
    return Intended(delta=delta, v_hat=v_hat)


def schedule_free_radam(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Schedule-Free with RAdam's rectification (arXiv 1908.03265; schedulefree 1.4) in place of a warmup.

    While ρ ≤ 4 nothing is divided by v̂: the step is that of SGD, or with `silent_sgd_phase` none at all.
    """
    del after
    step, beta2 = group["k"] + 1, group["betas"][1]
    longest = 2 / (1 - beta2) - 1
    rho = longest - 2 * step * beta2**step / (1 - beta2**step)
    if rho <= 4:
        lr = group["lr"] * float(not group["silent_sgd_phase"])
        return Intended(delta=_change_of_y(before, group, lr, before.grad, beta=group["betas"][0]), v_hat=None)
    rectified = ((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)) ** 0.5
    v_hat = _group_v_hat(before, group)
    direction = before.grad / (v_hat.sqrt() + group["eps"])
    delta = _change_of_y(before, group, group["lr"] * rectified, direction, beta=group["betas"][0])
    return Intended(delta=delta, v_hat=v_hat)


def schedule_free_sgd(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Schedule-Free SGD (arXiv 2405.15682; schedulefree 1.4), with a linear warmup of its own."""
    del after
    delta = _change_of_y(before, group, _warmed_up(group), before.grad, beta=group["momentum"])
    return Intended(delta=delta, v_hat=None)


def _warmed_up(group: Mapping[str, Any]) -> float:
    step, warmup = group["k"] + 1, group["warmup_steps"]
    return float(group["lr"] * (step / warmup if step <= warmup else 1.0))


def _group_v_hat(before: Before, group: Mapping[str, Any]) -> Tensor:
    """v̂ of an optimizer that counts its steps by group."""
    beta2 = group["betas"][1]
    v: Tensor = beta2 * before.state["v"] + (1 - beta2) * before.grad**2
    return v / float(1 - beta2 ** (group["k"] + 1))


def _change_of_y(before: Before, group: Mapping[str, Any], lr: float, direction: Tensor, *, beta: float) -> Tensor:
    """What Schedule-Free does to y, the weights in train mode: towards z by the weight of the mean, and along −g̃.

    x, the mean of all z, is not stored: y = (1 − β)·z + β·x holds it.
    """
    y, z = before.theta, before.state["z"]
    weight = (group["k"] + 1) ** group["r"] * max(lr, group["lr_max"]) ** group["weight_lr_power"]
    total = group["weight_sum"] + weight
    share = float(weight / total) if total else 0.0  # lr has been 0 so far
    along = float(lr * (beta * (1 - share) - 1))
    return share * (z - y) + along * (direction + float(group["weight_decay"]) * y)
