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


def largest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0)) if np.isfinite(x).all() else math.inf


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
        "grad_absmax": None
        if grad is None
        else (float(np.abs(g).max(initial=0)) if np.isfinite(g).all() else math.inf),
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


def v_hat(grad: np.ndarray, v: np.ndarray, t: int, b2: float) -> np.ndarray:
    """The second moment at step t (from 1), without bias."""
    return np.asarray((b2 * v + (1 - b2) * grad * grad) / (1 - b2**t))


def lion(theta: np.ndarray, grad: np.ndarray, m: np.ndarray, group: dict[str, Any]) -> np.ndarray:
    """Lion's update (arXiv 2302.06675, algorithm 2)."""
    b1, _ = group["betas"]
    return np.asarray(-group["lr"] * (np.sign(b1 * m + (1 - b1) * grad) + group["weight_decay"] * theta))


def sgd(theta: np.ndarray, grad: np.ndarray, buffer: np.ndarray, group: dict[str, Any]) -> np.ndarray:
    """SGD with momentum μ as torch's documentation has it: b ← μ·b + g; Nesterov steps by g + μ·b."""
    g, mu = grad + group["weight_decay"] * theta, group["momentum"]
    b = mu * buffer + g
    return np.asarray(-group["lr"] * (g + mu * b if group["nesterov"] else b))


def dadapt_adam(
    theta: np.ndarray, grad: np.ndarray, m: np.ndarray, v: np.ndarray, t: int, group: dict[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 4 of arXiv 2301.07733, and v̂; weight decay decoupled or not, Adam's bias corrected or not."""
    b1, b2 = group["betas"]
    dlr = group["d"] * group["lr"]
    if group.get("use_bias_correction"):
        dlr *= math.sqrt(1 - b2 ** (group["k"] + 1)) / (1 - b1 ** (group["k"] + 1))
    decoupled = group["decouple"]
    g = grad if decoupled else grad + group["weight_decay"] * theta
    m = b1 * m + (1 - b1) * dlr * g
    delta = -m / (np.sqrt(b2 * v + (1 - b2) * g * g) + group["eps"])
    return np.asarray(delta - (dlr * group["weight_decay"] * theta if decoupled else 0)), v_hat(g, v, t, b2)


def dadapt_adan(
    theta: np.ndarray,
    grad: np.ndarray,
    m: np.ndarray,
    c: np.ndarray,
    v: np.ndarray,
    pre: np.ndarray,
    t: int,
    group: dict[str, Any],
) -> tuple[np.ndarray, np.ndarray]:
    """Adan (arXiv 2208.06677, algorithm 1) whose step is d·lr, and v̂; decayed after the step, or before it."""
    b1, b2, b3 = group["betas"]
    dlr = float(group["d"]) * group["lr"]
    ahead = grad + b2 * (grad - pre)
    m = b1 * m + (1 - b1) * dlr * grad
    c = b2 * c + (1 - b2) * dlr * (grad - pre)
    root = np.sqrt(b3 * v + (1 - b3) * ahead * ahead) + group["eps"]
    decay = dlr * group["weight_decay"]
    after = theta * (1 - decay) - (m + b2 * c) / root
    if not group["no_prox"]:
        after = (theta - (m + b2 * c) / root) / (1 + decay)
    return np.asarray(after - theta), v_hat(ahead, v, t, b3)


def dadapt_adagrad(
    theta: np.ndarray,
    grad: np.ndarray,
    first: np.ndarray,
    total: np.ndarray,
    squares: np.ndarray,
    group: dict[str, Any],
) -> np.ndarray:
    """Dual averaging (arXiv 2301.07733, algorithm 3): from the first weights, by the sum of all gradients."""
    g = grad + group["weight_decay"] * theta
    z = first - (total + group["d"] * group["lr"] * g) / (np.sqrt(squares + g * g) + group["eps"])
    return np.asarray(group["momentum"] * theta + (1 - group["momentum"]) * z - theta)


def dadapt_sgd(
    theta: np.ndarray,
    grad: np.ndarray,
    first: np.ndarray,
    total: np.ndarray,
    first_norm: float,
    group: dict[str, Any],
) -> np.ndarray:
    """Dual averaging (arXiv 2301.07733, algorithm 2) over the first gradient's norm, and the mean of what it gives."""
    g = grad + group["weight_decay"] * theta
    z = first - (total + group["d"] * group["lr"] / first_norm * g)
    return np.asarray(group["momentum"] * theta + (1 - group["momentum"]) * z - theta)


def schedule_free(
    y: np.ndarray, z: np.ndarray, g_tilde: np.ndarray, gamma: float, b1: float, group: dict[str, Any]
) -> np.ndarray:
    """The change of y, by way of x and z as the paper has it (arXiv 2405.15682, eqs. 2-4)."""
    t = group["k"] + 1
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
    b1, b2 = group["betas"]
    return schedule_free(y, z, grad / (np.sqrt(v_hat(grad, v, t, b2)) + group["eps"]), warmed_up(t, group), b1, group)


def schedule_free_sgd(y: np.ndarray, grad: np.ndarray, z: np.ndarray, group: dict[str, Any]) -> np.ndarray:
    return schedule_free(y, z, grad, warmed_up(group["k"] + 1, group), group["momentum"], group)


def warmed_up(t: int, group: dict[str, Any]) -> float:
    return float(group["lr"] * (min(1.0, t / group["warmup_steps"]) if group["warmup_steps"] else 1.0))


def schedule_free_radam(
    y: np.ndarray, grad: np.ndarray, v: np.ndarray, z: np.ndarray, group: dict[str, Any]
) -> np.ndarray:
    """Rectified as in arXiv 1908.03265, algorithm 2; where the variance is intractable, SGD or nothing."""
    t, (b1, b2) = group["k"] + 1, group["betas"]
    rho_inf = 2 / (1 - b2) - 1
    rho = rho_inf - 2 * t * b2**t / (1 - b2**t)
    if rho <= 4:
        return schedule_free(y, z, grad, 0.0 if group["silent_sgd_phase"] else group["lr"], b1, group)
    rectifier = math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    g_tilde = grad / (np.sqrt(v_hat(grad, v, t, b2)) + group["eps"])
    return schedule_free(y, z, g_tilde, group["lr"] * rectifier, b1, group)


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


def batch_row(
    latents: Tensor, noise: Tensor, target: Tensor, weights: Tensor | None, mask: Tensor | None, *seen: Tensor
) -> dict[str, Any]:
    """The measures of `batches`; `seen` is what non-finite elements are counted in."""
    x, t = wide(latents), wide(target)
    mean = math.fsum(x) / len(x) if np.isfinite(x).all() else math.nan
    means = [np.mean(wide(noise[n, c])) for n in range(noise.shape[0]) for c in range(noise.shape[1])]
    return {
        "samples": latents.shape[0],
        "latent_pixels": latents.shape[2] * latents.shape[3],
        "latent_mean": mean,
        "latent_std": norm(x - mean) / math.sqrt(len(x)),
        "nonfinite": sum(int((~np.isfinite(wide(tensor))).sum()) for tensor in seen),
        "noise_channel_mean_var": float(np.mean([value * value for value in means])),
        "mask_area": None if mask is None else float(wide(mask).sum() / mask.numel()),
        "mask_nonbinary": None if mask is None else sum(value not in (0.0, 1.0) for value in wide(mask).tolist()),
        "target_var": float(np.mean((t - np.mean(t)) ** 2)),
        "weight_max": 1.0 if weights is None else float(np.max(wide(weights))),
    }


def loss_rows(timesteps: list[int], losses: list[float], weighted: list[float], total: int) -> list[dict[str, Any]]:
    """The rows of `losses` at one step."""
    rows = []
    for number in range(10):
        inside = [i for i, t in enumerate(timesteps) if number * total / 10 <= t < (number + 1) * total / 10]
        if inside:
            means = [math.fsum(values[i] for i in inside) / len(inside) for values in (losses, weighted)]
            rows.append({"bin": number, "count": len(inside), "loss": means[0], "weighted_loss": means[1]})
    return rows
