"""The update that an optimizer's formula asks for, recomputed in float32 from the state before the step.

It is the Δ of `delivered`. Each formula takes sampled elements as flat vectors, so it is written once, as its paper
or source has it. Knows nothing of which elements are sampled or what becomes of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainscope.probes.stored import Stored


@dataclass(frozen=True)
class Before:
    """Sampled elements of one parameter group before a step; all vectors are float32 [elements].

    `state` holds what the optimizer remembers, by the names of its `StepFormula`; `step` counts the updates that each
    parameter has had, 0 where the optimizer counts by group.
    """

    theta: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    step: Tensor


@dataclass(frozen=True)
class Intended:
    """`delta` is the update asked for; `v_hat` the second moment of g that it divides by, without bias, if it does."""

    delta: Tensor
    v_hat: Tensor | None


Formula = Callable[[Before, Mapping[str, Any], Mapping[str, Any]], Intended]
"""(elements, the group before the step, the group after it) → the update."""


def adamw(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Decoupled weight decay and Adam (arXiv 1711.05101; torch.optim.AdamW; bitsandbytes 0.50, 8-bit state read)."""
    del after
    beta1, beta2 = group["betas"]
    step = before.step + 1
    m = beta1 * before.state["m"] + (1 - beta1) * before.grad
    v = beta2 * before.state["v"] + (1 - beta2) * before.grad**2
    m_hat = m / (1 - beta1**step)
    v_hat = v / (1 - beta2**step)
    direction = m_hat / (v_hat.sqrt() + group["eps"])
    return Intended(delta=-group["lr"] * (group["weight_decay"] * before.theta + direction), v_hat=v_hat)


def prodigy(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Prodigy (arXiv 2306.06101; prodigyopt 1.1.2, whose moments carry d and d²).

    The step uses the d from before it; only eps is scaled by the new one.
    """
    beta1, beta2 = group["betas"]
    d, k = group["d"], group["k"]
    correction = (1 - beta2 ** (k + 1)) ** 0.5 / (1 - beta1 ** (k + 1)) if group["use_bias_correction"] else 1.0
    dlr = d * group["lr"] * correction
    decay, decoupled = group["weight_decay"], group["decouple"]
    grad = before.grad if decoupled else before.grad + decay * before.theta
    m = beta1 * before.state["m"] + d * (1 - beta1) * grad if beta1 > 0 else d * grad
    v = beta2 * before.state["v"] + d**2 * (1 - beta2) * grad**2
    delta = -dlr * m / (v.sqrt() + after["d"] * group["eps"])
    if decoupled:
        delta = delta - dlr * decay * before.theta
    return Intended(delta=delta, v_hat=v / (d**2 * (1 - beta2 ** (before.step + 1))))


def lion(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Lion (arXiv 2302.06675; lion-pytorch 0.2): the sign of a mean of momentum and gradient, divided by nothing."""
    del after
    beta1, _ = group["betas"]
    direction = (beta1 * before.state["m"] + (1 - beta1) * before.grad).sign()
    return Intended(delta=-group["lr"] * (group["weight_decay"] * before.theta + direction), v_hat=None)


def schedule_free_adamw(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Schedule-Free AdamW (arXiv 2405.15682; schedulefree 1.4), with a linear warmup of its own."""
    del after
    step, warmup = group["k"] + 1, group["warmup_steps"]
    lr = group["lr"] * (step / warmup if step <= warmup else 1.0)
    v_hat = _group_v_hat(before, group)
    direction = before.grad / (v_hat.sqrt() + group["eps"])
    return Intended(delta=_change_of_y(before, group, lr, direction), v_hat=v_hat)


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
        return Intended(delta=_change_of_y(before, group, lr, before.grad), v_hat=None)
    rectified = ((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)) ** 0.5
    v_hat = _group_v_hat(before, group)
    direction = before.grad / (v_hat.sqrt() + group["eps"])
    return Intended(delta=_change_of_y(before, group, group["lr"] * rectified, direction), v_hat=v_hat)


def _group_v_hat(before: Before, group: Mapping[str, Any]) -> Tensor:
    """v̂ of an optimizer that counts its steps by group."""
    beta2 = group["betas"][1]
    v: Tensor = beta2 * before.state["v"] + (1 - beta2) * before.grad**2
    return v / float(1 - beta2 ** (group["k"] + 1))


def _change_of_y(before: Before, group: Mapping[str, Any], lr: float, direction: Tensor) -> Tensor:
    """What Schedule-Free does to y, the weights in train mode: towards z by the weight of the mean, and along −g̃.

    x, the mean of all z, is not stored: y = (1 − β₁)·z + β₁·x holds it.
    """
    y, z, beta1 = before.theta, before.state["z"], group["betas"][0]
    weight = (group["k"] + 1) ** group["r"] * max(lr, group["lr_max"]) ** group["weight_lr_power"]
    total = group["weight_sum"] + weight
    share = float(weight / total) if total else 0.0  # lr has been 0 so far
    along = float(lr * (beta1 * (1 - share) - 1))
    return share * (z - y) + along * (direction + float(group["weight_decay"]) * y)


@dataclass(frozen=True)
class StepFormula:
    """A formula, and where the optimizer keeps what it reads: "m" and "v" are the first and the second moment."""

    formula: Formula
    state: Mapping[str, Stored]


_ADAM = {"m": Stored("exp_avg"), "v": Stored("exp_avg_sq")}
_ADAM_8BIT = {
    "m": Stored("state1", qmap="qmap1", absmax="absmax1"),
    "v": Stored("state2", qmap="qmap2", absmax="absmax2"),
}
_SCHEDULE_FREE = {"v": Stored("exp_avg_sq"), "z": Stored("z", starts_as_parameter=True)}

FORMULAS: dict[str, StepFormula] = {
    "torch.optim.adamw.AdamW": StepFormula(adamw, _ADAM),
    "bitsandbytes.optim.adamw.AdamW8bit": StepFormula(adamw, _ADAM_8BIT),
    "prodigyopt.prodigy.Prodigy": StepFormula(prodigy, _ADAM),
    "lion_pytorch.lion_pytorch.Lion": StepFormula(lion, {"m": Stored("exp_avg")}),
    "schedulefree.adamw_schedulefree.AdamWScheduleFree": StepFormula(schedule_free_adamw, _SCHEDULE_FREE),
    "schedulefree.radam_schedulefree.RAdamScheduleFree": StepFormula(schedule_free_radam, _SCHEDULE_FREE),
}
"""By the optimizer's class, so that no optimizer's library has to be there to be known."""

VARIANTS = ("amsgrad", "maximize", "decoupled_wd")
"""Switches, of a group or of the optimizer, that make the update another one than the formula's."""

USUAL = {"m": (Stored("exp_avg"), Stored("momentum_buffer")), "v": (Stored("exp_avg_sq"),)}
"""Where optimizers without a formula keep their moments, if they do."""


def formula_of(optimizer: torch.optim.Optimizer) -> StepFormula | None:
    """The formula of an optimizer or of a class that it derives from; None where the step cannot be recomputed."""
    for switch in VARIANTS:
        if getattr(optimizer, switch, False) or any(group.get(switch) for group in optimizer.param_groups):
            return None
    names = (f"{cls.__module__}.{cls.__qualname__}" for cls in type(optimizer).__mro__)
    return next((FORMULAS[name] for name in names if name in FORMULAS), None)


def places_of(optimizer: torch.optim.Optimizer, moment: str) -> tuple[Stored, ...]:
    """Where to look for the moment "m" or "v"; nowhere if the optimizer is known to keep none."""
    formula = formula_of(optimizer)
    if formula is None:
        return USUAL[moment]
    return (formula.state[moment],) if moment in formula.state else ()
