"""What the tests of the `tensors` probe share: parameters, gradients, the real optimizers, and a probed step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from lion_pytorch import Lion
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree, RAdamScheduleFree

from tests.unit.probes import reference
from trainscope.probes.pending import collect
from trainscope.probes.tensors import TensorsProbe

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(7, 5), (3,), (4, 2, 3, 3), (1,), (33, 70), (20, 40)]
"""(33, 70) is sampled; (20, 40) is four blocks of 8-bit state, the last one short."""

Params = dict[str, torch.nn.Parameter]
Array = np.ndarray

_COMMON: dict[str, Any] = {"weight_decay": 0.02, "betas": (0.9, 0.99)}


def _training(optimizer: Any) -> Any:
    optimizer.train()
    return optimizer


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": lambda params, **more: torch.optim.AdamW(params, **{**_COMMON, "lr": 1e-3, "eps": 1e-6, **more}),
    "adamw8bit": lambda params, **more: AdamW8bit(
        params, **{**_COMMON, "lr": 1e-3, "eps": 1e-6, "min_8bit_size": 64, **more}
    ),
    "prodigy": lambda params, **more: Prodigy(params, **{**_COMMON, "lr": 1.0, "d0": 1e-3, **more}),
    "lion": lambda params, **more: Lion(params, **{**_COMMON, "lr": 1e-3, **more}),
    "schedulefree": lambda params, **more: _training(
        AdamWScheduleFree(params, **{**_COMMON, "lr": 1e-3, "eps": 1e-6, "warmup_steps": 3, **more})
    ),
    "radam": lambda params, **more: _training(
        RAdamScheduleFree(params, **{**_COMMON, "lr": 1e-3, "eps": 1e-6, **more})
    ),
    "radam-sgd": lambda params, **more: _training(
        RAdamScheduleFree(params, **{**_COMMON, "lr": 1e-3, "eps": 1e-6, "silent_sgd_phase": False, "r": 1.0, **more})
    ),
}
KINDS = list(OPTIMIZERS)
SILENT = 4
"""Steps of Schedule-Free RAdam with β₂ = 0.99 before it divides by v̂."""


def make_params(dtype: torch.dtype, *, scale: float = 0.05) -> Params:
    generator = torch.Generator().manual_seed(0)
    return {
        f"layer{i}.weight": torch.nn.Parameter((torch.randn(shape, generator=generator) * scale).to(dtype))
        for i, shape in enumerate(SHAPES)
    }


def set_grads(params: Params, seed: int, *, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params.values():
        param.grad = (torch.randn(param.shape, generator=generator) * scale).to(param.dtype)


def rows_of(pending: Any) -> list[dict[str, Any]]:
    [record] = collect([pending])
    columns = record.columns
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def probed_step(probe: TensorsProbe, optimizer: torch.optim.Optimizer, step: int) -> list[dict[str, Any]]:
    probe.before_step()
    optimizer.step()
    return rows_of(probe.after_step(step))


def expect(found: Any, expected: Any, rel: float = 2e-6) -> None:
    if expected is None:
        assert found is None
    elif isinstance(expected, int):
        assert found == expected
    else:
        assert found == pytest.approx(expected, rel=rel, abs=1e-12, nan_ok=True)


def remembered(optimizer: torch.optim.Optimizer, param: torch.nn.Parameter) -> dict[str, Array]:
    """The state of a parameter in float64, flat: m, v, z; what the optimizer has not made yet is not there."""
    state, found = optimizer.state.get(param, {}), {}
    for name, key in (("m", "exp_avg"), ("v", "exp_avg_sq"), ("z", "z"), ("m", "state1"), ("v", "state2")):
        if key in state:
            number = key.removeprefix("state")
            found[name] = (
                reference.dequantised(state[key], state[f"qmap{number}"], state[f"absmax{number}"])
                if state[key].dtype == torch.uint8
                else reference.wide(state[key])
            )
    return found


def intended(
    kind: str, theta: Array, grad: Array, state: dict[str, Array], step: int, group: dict[str, Any], d_after: float
) -> tuple[Array, Array | None]:
    """The reference's update and v̂ (None: nothing is divided by it), from what `remembered` gave before the step."""
    zeros = np.zeros_like(theta)
    m, v, z = state.get("m", zeros), state.get("v", zeros), state.get("z", theta)
    v_hat = reference.v_hat(grad, v, step, group)
    if kind in ("adamw", "adamw8bit"):
        return reference.adamw(theta, grad, m, v, step, group), v_hat
    if kind == "prodigy":
        v_hat = reference.v_hat(grad, v / group["d"] ** 2, step, group)
        return reference.prodigy(theta, grad, m, v, group, d_after), v_hat
    if kind == "lion":
        return reference.lion(theta, grad, m, group), None
    if kind == "schedulefree":
        return reference.schedule_free_adamw(theta, grad, v, z, group), v_hat
    return reference.schedule_free_radam(theta, grad, v, z, group), v_hat if step > SILENT else None
