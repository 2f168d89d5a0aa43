"""What the tests of the `tensors` probe share: parameters, gradients, the real optimizers, and a probed step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.optim import AdamW8bit, Lion8bit, PagedAdamW8bit, PagedLion8bit, SGD8bit
from dadaptation import DAdaptAdaGrad, DAdaptAdam, DAdaptAdan, DAdaptLion, DAdaptSGD
from dadaptation.experimental import DAdaptAdamPreprint, DAdaptAdanIP
from lion_pytorch import Lion
from prodigyopt import Prodigy
from schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree

from tests.unit.probes import reference
from trainscope.probes.pending import collect
from trainscope.probes.tensors import TensorsProbe

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(7, 5), (3,), (4, 2, 3, 3), (1,), (33, 70), (20, 40)]
"""(33, 70) is sampled; (20, 40) is four blocks of 8-bit state, the last one short."""

Params = dict[str, torch.nn.Parameter]
Array = np.ndarray

_DECAY: dict[str, Any] = {"weight_decay": 0.02}
_COMMON: dict[str, Any] = {**_DECAY, "betas": (0.9, 0.99)}
_SMALL: dict[str, Any] = {"lr": 1e-3, "min_8bit_size": 64}
_ESTIMATED: dict[str, Any] = {**_DECAY, "lr": 1.0, "d0": 1e-3}
_ADAN: dict[str, Any] = {**_ESTIMATED, "betas": (0.9, 0.8, 0.99), "eps": 1e-6}


def _training(optimizer: Any) -> Any:
    optimizer.train()
    return optimizer


def _made(
    cls: Callable[..., torch.optim.Optimizer], *, train: bool = False, **usual: Any
) -> Callable[..., torch.optim.Optimizer]:
    def make(params: Any, **more: Any) -> torch.optim.Optimizer:
        optimizer = cls(params, **{**usual, **more})
        return _training(optimizer) if train else optimizer  # type: ignore[no-any-return]

    return make


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": _made(torch.optim.AdamW, **_COMMON, lr=1e-3, eps=1e-6),
    "adamw8bit": _made(AdamW8bit, **_COMMON, **_SMALL, eps=1e-6),
    "paged-adamw8bit": _made(PagedAdamW8bit, **_COMMON, **_SMALL, eps=1e-6),
    "sgd": _made(torch.optim.SGD, **_DECAY, lr=1e-2, momentum=0.9),
    "sgd-nesterov": _made(torch.optim.SGD, **_DECAY, lr=1e-2, momentum=0.9, nesterov=True),
    "sgd-without-momentum": _made(torch.optim.SGD, **_DECAY, lr=1e-2),
    "sgd8bit": _made(SGD8bit, **_DECAY, lr=1e-2, momentum=0.9, nesterov=True, min_8bit_size=64),
    "prodigy": _made(Prodigy, **_COMMON, lr=1.0, d0=1e-3),
    "lion": _made(Lion, **_COMMON, lr=1e-3),
    "lion8bit": _made(Lion8bit, **_COMMON, **_SMALL),
    "paged-lion8bit": _made(PagedLion8bit, **_COMMON, **_SMALL),
    "dadapt-adam": _made(DAdaptAdam, **_ESTIMATED, betas=(0.9, 0.99), eps=1e-6, decouple=True),
    "dadapt-adam-coupled": _made(DAdaptAdam, **_ESTIMATED, betas=(0.9, 0.99), eps=1e-6, use_bias_correction=True),
    "dadapt-adam-preprint": _made(DAdaptAdamPreprint, **_ESTIMATED, betas=(0.9, 0.99), eps=1e-6, decouple=True),
    "dadapt-adan": _made(DAdaptAdan, **_ADAN),
    "dadapt-adan-no-prox": _made(DAdaptAdan, **_ADAN, no_prox=True),
    "dadapt-adan-ip": _made(DAdaptAdanIP, **_ADAN),
    "dadapt-lion": _made(DAdaptLion, **_ESTIMATED, betas=(0.9, 0.99)),
    "dadapt-adagrad": _made(DAdaptAdaGrad, **_ESTIMATED),
    "dadapt-adagrad-momentum": _made(DAdaptAdaGrad, **_ESTIMATED, momentum=0.5),
    "dadapt-sgd": _made(DAdaptSGD, **{**_ESTIMATED, "d0": 0.1}, momentum=0.5),
    "schedulefree": _made(AdamWScheduleFree, train=True, **_COMMON, lr=1e-3, eps=1e-6, warmup_steps=3),
    "radam": _made(RAdamScheduleFree, train=True, **_COMMON, lr=1e-3, eps=1e-6),
    "radam-sgd": _made(RAdamScheduleFree, train=True, **_COMMON, lr=1e-3, eps=1e-6, silent_sgd_phase=False, r=1.0),
    "sgd-schedulefree": _made(SGDScheduleFree, train=True, **_DECAY, lr=1e-2, momentum=0.8, warmup_steps=3),
}
ESTIMATING = tuple(kind for kind in OPTIMIZERS if kind.startswith(("prodigy", "dadapt")))
"""They estimate one step size for all tensors."""
STEPPING_IN_FLOAT32 = ("adamw8bit", "paged-adamw8bit", "sgd8bit", "lion8bit", "paged-lion8bit")
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
    columns = {name: np.ma.asanyarray(values).tolist() for name, values in record.columns.items()}
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


KEYS = {
    "m": ("exp_avg", "momentum_buffer", "state1"),
    "v": ("exp_avg_sq", "state2"),
    "z": ("z",),
    "c": ("exp_avg_diff",),
    "pre": ("pre_grad",),
    "sum": ("sk", "s"),
    "squares": ("alphak",),
    "first": ("x0",),
}


def remembered(kind: str, optimizer: torch.optim.Optimizer, param: torch.nn.Parameter) -> dict[str, Array]:
    """The state of a parameter in float64, flat, by `KEYS`; what the optimizer has not made yet is not there."""
    state, found = optimizer.state.get(param, {}), {}
    for name, keys in KEYS.items():
        for key in keys:
            if isinstance(state.get(key), torch.Tensor):
                number = key.removeprefix("state")
                found[name] = (
                    reference.dequantised(state[key], state[f"qmap{number}"], state[f"absmax{number}"])
                    if state[key].dtype == torch.uint8
                    else reference.wide(state[key])
                )
    if kind == "dadapt-adan-ip" and found:  # it calls the one by the other's name
        found["c"], found["v"] = found["v"], found["c"]
    return found


def intended(
    kind: str,
    theta: Array,
    grad: Array,
    state: dict[str, Array],
    step: int,
    group: dict[str, Any],
    after: Mapping[str, Any],
) -> tuple[Array, Array | None]:
    """The reference's update and v̂ (None: nothing is divided by it), from what `remembered` gave before the step."""
    zeros = np.zeros_like(theta)
    m, v, z = state.get("m", zeros), state.get("v", zeros), state.get("z", theta)
    if kind in ("adamw", "adamw8bit", "paged-adamw8bit"):
        return reference.adamw(theta, grad, m, v, step, group), reference.v_hat(grad, v, step, group["betas"][1])
    if kind == "prodigy":
        v_hat = reference.v_hat(grad, v / group["d"] ** 2, step, group["betas"][1])
        return reference.prodigy(theta, grad, m, v, group, after["d"]), v_hat
    if kind in ("lion", "lion8bit", "paged-lion8bit"):
        return reference.lion(theta, grad, m, group), None
    if kind == "sgd8bit":
        return reference.sgd(theta, grad, m, {**group, "momentum": group["betas"][0], "nesterov": False}), None
    if kind in ("sgd", "sgd-nesterov", "sgd-without-momentum"):
        return reference.sgd(theta, grad, m, group), None
    if kind.startswith("dadapt-adam"):
        return reference.dadapt_adam(theta, grad, m, v, step, group)
    if kind.startswith("dadapt-adan"):
        return reference.dadapt_adan(theta, grad, m, state.get("c", zeros), v, state.get("pre", grad), step, group)
    if kind == "dadapt-lion":
        scaled = {**group, "lr": group["lr"] * float(group["d"])}
        return reference.lion(theta, grad, m, scaled), None
    first, total = state.get("first", theta), state.get("sum", zeros)
    if kind.startswith("dadapt-adagrad"):
        return reference.dadapt_adagrad(theta, grad, first, total, state.get("squares", zeros + 1e-6), group), None
    if kind == "dadapt-sgd":
        return reference.dadapt_sgd(theta, grad, first, total, after["g0_norm"], group), None
    if kind == "sgd-schedulefree":
        return reference.schedule_free_sgd(theta, grad, z, group), None
    v_hat = reference.v_hat(grad, v, step, group["betas"][1])
    if kind == "schedulefree":
        return reference.schedule_free_adamw(theta, grad, v, z, group), v_hat
    return reference.schedule_free_radam(theta, grad, v, z, group), v_hat if step > SILENT else None
