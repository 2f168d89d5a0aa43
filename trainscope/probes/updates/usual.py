"""Optimizers whose step size is the learning rate. Knows nothing of where they keep their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainscope.probes.updates.elements import Before, Intended


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


def lion(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Lion (arXiv 2302.06675; lion-pytorch 0.2): the sign of a mean of momentum and gradient, divided by nothing."""
    del after
    beta1, _ = group["betas"]
    direction = (beta1 * before.state["m"] + (1 - beta1) * before.grad).sign()
    return Intended(delta=-group["lr"] * (group["weight_decay"] * before.theta + direction), v_hat=None)


def sgd(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """SGD with momentum (torch.optim.SGD, without dampening); Nesterov's looks one step ahead."""
    del after
    grad = before.grad + group["weight_decay"] * before.theta
    momentum = group["momentum"] * before.state["m"] + grad
    direction = grad + group["momentum"] * momentum if group["nesterov"] else momentum
    return Intended(delta=-group["lr"] * direction, v_hat=None)


def sgd_8bit(before: Before, group: Mapping[str, Any], after: Mapping[str, Any]) -> Intended:
    """Plain momentum (bitsandbytes 0.50, which ignores `nesterov` and keeps the momentum as the first beta)."""
    del after
    momentum = group["betas"][0] * before.state["m"] + before.grad + group["weight_decay"] * before.theta
    return Intended(delta=-group["lr"] * momentum, v_hat=None)
