"""Slow float64 twins of the probes: the definitions of the tables, one tensor and one line at a time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor


def wide(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().flatten().numpy()


def bits(tensor: Tensor) -> np.ndarray:
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integer).flatten().numpy()


def norm(x: np.ndarray) -> float:
    return math.sqrt(math.fsum(x * x)) if np.isfinite(x).all() else float(np.sqrt(np.sum(x * x)))


def update_row(before: Tensor, after: Tensor, start: Tensor, grad: Tensor | None) -> dict[str, Any]:
    """The columns of `tensors` that need no optimizer."""
    g = np.zeros(before.numel()) if grad is None else wide(grad)
    unchanged = bits(before) == bits(after)
    return {
        "weight_norm": norm(wide(after)),
        "weight_nonfinite": int((~np.isfinite(wide(after))).sum()),
        "update_norm": norm(wide(after) - wide(before)),
        "distance_from_start": norm(wide(after) - wide(start)),
        "grad_norm": None if grad is None else norm(g),
        "grad_absmax": None if grad is None else (float(np.abs(g).max()) if np.isfinite(g).all() else math.inf),
        "nonfinite": int((~np.isfinite(g)).sum()),
        "grad_zero_count": int((g == 0).sum()),
        "nonzero_count": int((g != 0).sum()),
        "lost_count": int(((g != 0) & unchanged).sum()),
    }


def delivered(applied: np.ndarray, intended: np.ndarray) -> float | None:
    """⟨applied, intended⟩ / ‖intended‖²."""
    total = float(np.dot(intended, intended))
    return None if total == 0 else float(np.dot(applied, intended)) / total


def adamw(
    theta: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, t: int, group: dict[str, Any]
) -> np.ndarray:
    """AdamW's update at step t (from 1)."""
    b1, b2 = group["betas"]
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad * grad
    step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + group["eps"])
    return np.asarray(-group["lr"] * group["weight_decay"] * theta - group["lr"] * step)


def prodigy(
    theta: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, before: dict[str, Any], d_after: float
) -> np.ndarray:
    """Prodigy's update, decoupled decay, without bias correction."""
    b1, b2 = before["betas"]
    d, lr = before["d"], before["lr"]
    m = b1 * m + d * (1 - b1) * grad
    v = b2 * v + d * d * (1 - b2) * grad * grad
    return np.asarray(-d * lr * before["weight_decay"] * theta - d * lr * m / (np.sqrt(v) + d_after * before["eps"]))


def v_hat(grad: np.ndarray, v: np.ndarray, t: int, group: dict[str, Any]) -> np.ndarray:
    """The second moment at step t (from 1), without bias."""
    b2 = group["betas"][1]
    return np.asarray((b2 * v + (1 - b2) * grad * grad) / (1 - b2**t))


def lion(theta: np.ndarray, grad: np.ndarray, m: np.ndarray, group: dict[str, Any]) -> np.ndarray:
    """Lion's update (arXiv 2302.06675, algorithm 2)."""
    b1, _ = group["betas"]
    return np.asarray(-group["lr"] * (np.sign(b1 * m + (1 - b1) * grad) + group["weight_decay"] * theta))


def schedule_free(y: np.ndarray, z: np.ndarray, g_tilde: np.ndarray, gamma: float, group: dict[str, Any]) -> np.ndarray:
    """The change of y, by way of x and z as the paper has it (arXiv 2405.15682, eqs. 2-4)."""
    b1, t = group["betas"][0], group["k"] + 1
    x = (y - (1 - b1) * z) / b1
    weight = t ** group["r"] * max(gamma, group["lr_max"]) ** group["weight_lr_power"]
    total = group["weight_sum"] + weight
    c = weight / total if total > 0 else 0.0
    z = z - gamma * (g_tilde + group["weight_decay"] * y)
    x = (1 - c) * x + c * z
    return np.asarray((1 - b1) * z + b1 * x - y)


def schedule_free_adamw(
    y: np.ndarray, grad: np.ndarray, v: np.ndarray, z: np.ndarray, group: dict[str, Any]
) -> np.ndarray:
    t = group["k"] + 1
    gamma = group["lr"] * (min(1.0, t / group["warmup_steps"]) if group["warmup_steps"] else 1.0)
    return schedule_free(y, z, grad / (np.sqrt(v_hat(grad, v, t, group)) + group["eps"]), gamma, group)


def schedule_free_radam(
    y: np.ndarray, grad: np.ndarray, v: np.ndarray, z: np.ndarray, group: dict[str, Any]
) -> np.ndarray:
    """Rectified as in arXiv 1908.03265, algorithm 2; where the variance is intractable, SGD or nothing."""
    t, b2 = group["k"] + 1, group["betas"][1]
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
    if rho <= 4:
        return schedule_free(y, z, grad, 0.0 if group["silent_sgd_phase"] else group["lr"], group)
    rectifier = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    g_tilde = grad / (np.sqrt(v_hat(grad, v, t, group)) + group["eps"])
    return schedule_free(y, z, g_tilde, group["lr"] * rectifier, group)


def dequantised(codes: Tensor, qmap: Tensor, absmax: Tensor, block: int = 256) -> np.ndarray:
    """Values of 8-bit state, one at a time."""
    flat, table, scale = codes.flatten().tolist(), qmap.double().tolist(), absmax.double().tolist()
    return np.asarray([table[code] * scale[i // block] for i, code in enumerate(flat)])


def ema_row(theta: Tensor, before: Tensor, after: Tensor, start: Tensor, decay: float) -> dict[str, Any]:
    """The columns of `ema`."""
    gap = wide(theta) - wide(before)
    intended, applied = (1 - decay) * gap, wide(after) - wide(before)
    unchanged = bits(before) == bits(after)
    return {
        "lag_norm": norm(wide(theta) - wide(after)),
        "intended_norm": norm(intended),
        "applied_norm": norm(applied),
        "delivered": delivered(applied, intended),
        "nonzero_count": int((gap != 0).sum()),
        "lost_count": int(((gap != 0) & unchanged).sum()),
        "distance_from_start": norm(wide(after) - wide(start)),
    }
