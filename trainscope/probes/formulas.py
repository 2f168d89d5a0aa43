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


@dataclass(frozen=True)
class Before:
    """Sampled elements of one parameter group before a step; all vectors are float32 [elements].

    `state` holds the optimizer's moments, zeros where it has none yet; `step` counts the updates already done.
    """

    theta: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    step: Tensor


@dataclass(frozen=True)
class Intended:
    """`delta` is the update asked for; `v_hat` the second moment of g that it divides by, without bias."""

    delta: Tensor
    v_hat: Tensor


Formula = Callable[[Before, Mapping[str, Any], Mapping[str, Any]], Intended]
"""(elements, the group before the step, the group after it) → the update."""


@dataclass(frozen=True)
class StepFormula:
    """A formula and the keys of the optimizer state that it reads."""

    state_keys: tuple[str, ...]
    formula: Formula


def adamw(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Decoupled weight decay and Adam (arXiv 1711.05101; torch.optim.AdamW)."""
    del after
    beta1, beta2 = group["betas"]
    step = before.step + 1
    m = beta1 * before.state["exp_avg"] + (1 - beta1) * before.grad
    v = beta2 * before.state["exp_avg_sq"] + (1 - beta2) * before.grad**2
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
    m = beta1 * before.state["exp_avg"] + d * (1 - beta1) * grad if beta1 > 0 else d * grad
    v = beta2 * before.state["exp_avg_sq"] + d**2 * (1 - beta2) * grad**2
    delta = -dlr * m / (v.sqrt() + after["d"] * group["eps"])
    if decoupled:
        delta = delta - dlr * decay * before.theta
    return Intended(delta=delta, v_hat=v / (d**2 * (1 - beta2 ** (before.step + 1))))


FORMULAS: dict[str, StepFormula] = {
    "torch.optim.adamw.AdamW": StepFormula(("exp_avg", "exp_avg_sq"), adamw),
    "prodigyopt.prodigy.Prodigy": StepFormula(("exp_avg", "exp_avg_sq"), prodigy),
}
"""By the optimizer's class, so that no optimizer's library has to be there to be known."""


def formula_of(optimizer: torch.optim.Optimizer) -> StepFormula | None:
    """The formula of an optimizer or of a class that it derives from; None where the step cannot be recomputed."""
    for cls in type(optimizer).__mro__:
        formula = FORMULAS.get(f"{cls.__module__}.{cls.__qualname__}")
        if formula is not None and not any(group.get("amsgrad") for group in optimizer.param_groups):
            return formula
    return None
