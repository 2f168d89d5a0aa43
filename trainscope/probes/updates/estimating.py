"""Optimizers that estimate their step size `d`. Knows nothing of where they keep their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from trainscope.probes.updates.elements import Before, Intended


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


def dadapt_adam(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """D-Adaptation on Adam (arXiv 2301.07733; dadaptation 3.2), whose first moment carries d·lr.

    The preprint's differs in the estimate only. At a learning rate of 0 nothing moves, not even the moments.
    """
    del after
    beta1, beta2 = group["betas"]
    k, decay, decoupled = group["k"], group["weight_decay"], group["decouple"]
    correction = (1 - beta2 ** (k + 1)) ** 0.5 / (1 - beta1 ** (k + 1)) if group.get("use_bias_correction") else 1.0
    dlr = group["d"] * group["lr"] * correction
    grad = before.grad if decoupled else before.grad + decay * before.theta
    m = beta1 * before.state["m"] + group.get("layer_scale", 1.0) * dlr * (1 - beta1) * grad
    v = beta2 * before.state["v"] + (1 - beta2) * grad**2
    delta = -m / (v.sqrt() + group["eps"])
    if decoupled:
        delta = delta - dlr * decay * before.theta
    if group["lr"] == 0:
        delta = torch.zeros_like(delta)
    return Intended(delta=delta, v_hat=v / (1 - beta2 ** (before.step + 1)))


def dadapt_adan(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """D-Adaptation on Adan (arXiv 2208.06677; dadaptation 3.2), whose moments carry d·lr.

    "pre" is the gradient of the step before, which at the first step is the gradient itself.
    """
    del after
    beta1, beta2, beta3 = group["betas"]
    dlr = group["d"] * group["lr"]
    change = torch.where(before.step == 0, 0.0, before.grad - before.state["pre"])
    m = beta1 * before.state["m"] + dlr * (1 - beta1) * before.grad
    c = beta2 * before.state["c"] + dlr * (1 - beta2) * change
    v = beta3 * before.state["v"] + (1 - beta3) * (before.grad + beta2 * change) ** 2
    step = (m + beta2 * c) / (v.sqrt() + group["eps"])
    shrink = dlr * group["weight_decay"]
    delta = -step - shrink * before.theta
    if not group["no_prox"]:
        delta = delta / (1 + shrink)
    return Intended(delta=delta, v_hat=v / (1 - beta3 ** (before.step + 1)))


def dadapt_lion(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """D-Adaptation on Lion (dadaptation 3.2): its moment carries d·lr, and the gradient beside it does not."""
    del after
    beta1, _ = group["betas"]
    dlr = group["d"] * group["lr"]
    direction = (beta1 * before.state["m"] + (1 - beta1) * before.grad).sign()
    return Intended(delta=-dlr * (group["weight_decay"] * before.theta + direction), v_hat=None)


def dadapt_adagrad(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """D-Adaptation on AdaGrad (arXiv 2301.07733; dadaptation 3.2): from the first weights along all gradients' sum."""
    del after
    grad = before.grad + group["weight_decay"] * before.theta
    total = before.state["sum"] + group["d"] * group["lr"] * grad
    denominator = (before.state["squares"] + grad**2).sqrt() + group["eps"]
    return _towards(total / denominator, before, group)


def dadapt_sgd(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """D-Adaptation on SGD (arXiv 2301.07733; dadaptation 3.2), relative to the first gradient's norm."""
    grad = before.grad + group["weight_decay"] * before.theta
    dlr = group["d"] * group["lr"] / after["g0_norm"]
    return _towards(before.state["sum"] + dlr * grad, before, group)


def _towards(walked: torch.Tensor, before: Before, group: Mapping[str, Any]) -> Intended:
    """Towards where the weights began, less what was walked since."""
    # In this order float32 is enough: the first difference is exact where the weights have moved little.
    away = (before.state["first"] - before.theta) - walked
    return Intended(delta=(1 - group["momentum"]) * away, v_hat=None)
