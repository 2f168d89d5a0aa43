"""What the probes of a step do can be done where there is no data: on PyTorch's meta device any look at a value fails.

That is the strictest machine to ask whether a value is waited for: neither a number nor a size may depend on one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.unit.probes.steps import OPTIMIZERS
from trainscope.probes.adapters import AdaptersProbe
from trainscope.probes.ema import EmaProbe
from trainscope.probes.tensors import TensorsProbe

SHAPES = [(40, 30), (7,), (300, 512), (1,)]
STEPPING_ON_META = ("adamw", "sgd", "sgd-nesterov", "sgd-without-momentum", "lion", "sgd-schedulefree", "schedulefree")
"""The others ask their own state for numbers, or have kernels for real devices alone."""


def on_meta(dtype: torch.dtype) -> dict[str, torch.nn.Parameter]:
    return {
        f"p{n}": torch.nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for n, shape in enumerate(SHAPES)
    }


def test_a_look_at_a_value_fails() -> None:
    with pytest.raises(RuntimeError):
        float(torch.ones((), device="meta"))
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").cpu()


@pytest.mark.parametrize("memory_bytes", [2**30, 10_000], ids=["whole", "sampled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", STEPPING_ON_META)
def test_tensors(kind: str, dtype: torch.dtype, memory_bytes: int) -> None:
    params = on_meta(dtype)
    optimizer: Any = OPTIMIZERS[kind](params.values())
    probe = TensorsProbe(params, optimizer, memory_bytes=memory_bytes)
    for step in (1, 2):
        for name, param in params.items():
            param.grad = torch.empty_like(param) if name != "p1" else None
        probe.before_step()
        optimizer.step()
        pending = probe.after_step(step)
        assert pending.values.device.type == "meta"
        assert pending.values.shape == (len(pending.columns), len(params))


def test_ema_and_adapters() -> None:
    params = on_meta(torch.float32)
    shadows = [param.detach().clone() for param in params.values()]
    probe = EmaProbe(params, torch.device("meta"))
    probe.before_update(shadows)
    assert probe.after_update(1, shadows, 0.99).values.device.type == "meta"
    a, b = torch.empty(4, 30, device="meta"), torch.empty(40, 4, device="meta")
    pair = SimpleNamespace(
        module="m", a=a, b=b, base_weight=torch.empty(40, 30, device="meta"), rank=4, alpha=4.0, scale=1.0
    )
    assert AdaptersProbe([pair]).measure(1).values.device.type == "meta"
