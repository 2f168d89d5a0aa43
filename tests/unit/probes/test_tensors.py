"""The `tensors` probe against its float64 reference, for every optimizer and dtype that there is a formula for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from prodigyopt import Prodigy

from tests.unit.probes import reference
from trainscope.probes.pending import collect
from trainscope.probes.sampling import SAMPLE_ELEMENTS
from trainscope.probes.tensors import TensorsProbe

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(7, 5), (3,), (4, 2, 3, 3), (1,), (33, 70)]


def make_params(dtype: torch.dtype, *, scale: float = 0.05) -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"layer{i}.weight": torch.nn.Parameter((torch.randn(shape, generator=generator) * scale).to(dtype))
        for i, shape in enumerate(SHAPES)
    }


def set_grads(params: dict[str, torch.nn.Parameter], seed: int, *, scale: float = 0.1) -> None:
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params.values():
        param.grad = (torch.randn(param.shape, generator=generator) * scale).to(param.dtype)


def make_optimizer(kind: str, params: dict[str, torch.nn.Parameter]) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(params.values(), lr=1e-3, weight_decay=0.02, betas=(0.9, 0.99), eps=1e-6)
    return Prodigy(params.values(), lr=1.0, weight_decay=0.02, betas=(0.9, 0.99), d0=1e-3)


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["adamw", "prodigy"])
def test_matches_the_reference(kind: str, dtype: torch.dtype) -> None:
    params = make_params(dtype)
    optimizer = make_optimizer(kind, params)
    start = {name: p.detach().clone() for name, p in params.items()}
    probe = TensorsProbe(params, optimizer)
    for step in range(1, 6):
        set_grads(params, step)
        before = {name: p.detach().clone() for name, p in params.items()}
        grads = {name: p.grad.clone() for name, p in params.items() if p.grad is not None}
        moments = {
            name: [
                reference.wide(optimizer.state[p][key]) if p in optimizer.state else np.zeros(p.numel())
                for key in ("exp_avg", "exp_avg_sq")
            ]
            for name, p in params.items()
        }
        group = dict(optimizer.param_groups[0])
        rows = probed_step(probe, optimizer, step)
        assert [row["param"] for row in rows] == list(params)
        for row in rows:
            name = row["param"]
            param = params[name]
            for column, value in reference.update_row(before[name], param, start[name], grads[name]).items():
                expect(row[column], value)
            state = optimizer.state[param]
            expect(row["state_m_norm"], reference.norm(reference.wide(state["exp_avg"])), rel=1e-5)
            expect(row["state_v_max"], float(reference.wide(state["exp_avg_sq"]).max()))
            expect(row["state_v_min"], float(reference.wide(state["exp_avg_sq"]).min()))
            if param.numel() > SAMPLE_ELEMENTS:
                continue  # only sampled: see test_sample_is_fair
            theta, grad = reference.wide(before[name]), reference.wide(grads[name])
            if kind == "adamw":
                intended = reference.adamw(theta, grad, *moments[name], step, group)
            else:
                intended = reference.prodigy(theta, grad, *moments[name], group, optimizer.param_groups[0]["d"])
            applied = reference.wide(param) - theta
            expect(row["intended_norm"], reference.norm(intended), rel=1e-4)
            expect(row["applied_norm"], reference.norm(applied), rel=1e-5)
            expect(row["delivered"], reference.delivered(applied, intended), rel=2e-4)


def test_float32_delivers_everything_and_bf16_nothing_of_a_tiny_step() -> None:
    for dtype, low, high in ((torch.float32, 0.99, 1.01), (torch.bfloat16, -0.01, 0.01)):
        params = make_params(dtype, scale=1.0)
        optimizer = torch.optim.AdamW(params.values(), lr=1e-5, weight_decay=0.0)
        probe = TensorsProbe(params, optimizer)
        set_grads(params, 1)
        rows = probed_step(probe, optimizer, 1)
        big = next(row for row in rows if row["param"] == "layer4.weight")
        assert low <= big["delivered"] <= high
        lost = big["lost_count"] / big["nonzero_count"]
        assert (lost < 0.01) if dtype == torch.float32 else (lost > 0.95)


def test_sample_is_fair() -> None:
    """The sampled `delivered` of a large tensor is close to that of all its elements."""
    param = torch.nn.Parameter(torch.randn(300, 512, generator=torch.Generator().manual_seed(0)).bfloat16())
    optimizer = torch.optim.AdamW([param], lr=3e-3, weight_decay=0.0)
    probe = TensorsProbe({"w": param}, optimizer)
    param.grad = torch.randn(300, 512, generator=torch.Generator().manual_seed(1)).bfloat16()
    before, group = param.detach().clone(), dict(optimizer.param_groups[0])
    grad = reference.wide(param.grad)
    [row] = probed_step(probe, optimizer, 1)
    zeros = np.zeros(param.numel())
    intended = reference.adamw(reference.wide(before), grad, zeros, zeros, 1, group)
    exact = reference.delivered(reference.wide(param) - reference.wide(before), intended)
    assert exact is not None
    assert 0.2 < exact < 1.2
    assert row["delivered"] == pytest.approx(exact, abs=0.1)


def test_missing_and_zero_gradients() -> None:
    params = make_params(torch.float32)
    optimizer = torch.optim.AdamW(params.values(), lr=1e-3, weight_decay=0.0)
    probe = TensorsProbe(params, optimizer)
    set_grads(params, 1)
    names = list(params)
    params[names[0]].grad = None
    params[names[1]].grad = torch.zeros_like(params[names[1]])
    rows = probed_step(probe, optimizer, 1)
    missing, zero, normal = rows[0], rows[1], rows[2]
    for column in ("grad_norm", "grad_absmax", "delivered", "intended_norm", "state_m_norm", "g2_over_v"):
        assert missing[column] is None
    assert missing["nonzero_count"] == missing["lost_count"] == 0
    assert missing["update_norm"] == 0
    assert zero["grad_norm"] == 0
    assert zero["grad_zero_count"] == params[names[1]].numel()
    assert zero["delivered"] is None  # nothing was asked for
    assert normal["delivered"] == pytest.approx(1, abs=1e-3)


def test_nonfinite_values_are_counted_not_dropped() -> None:
    params = make_params(torch.float32)
    optimizer = torch.optim.AdamW(params.values(), lr=1e-3)
    probe = TensorsProbe(params, optimizer)
    set_grads(params, 1)
    name = next(iter(params))
    grad = params[name].grad
    assert grad is not None
    grad.view(-1)[0], grad.view(-1)[1] = math.nan, math.inf
    row = probed_step(probe, optimizer, 1)[0]
    assert row["nonfinite"] == 2
    assert row["grad_absmax"] == math.inf
    assert math.isnan(row["grad_norm"])
    assert row["weight_nonfinite"] == 2
    assert math.isnan(row["weight_norm"])


def test_an_unknown_optimizer_has_no_delivered_and_says_why() -> None:
    params = make_params(torch.float32)
    optimizer = torch.optim.Adagrad(params.values(), lr=1e-3)
    probe = TensorsProbe(params, optimizer)
    assert "Adagrad" in probe.reasons["delivered"]
    set_grads(params, 1)
    row = probed_step(probe, optimizer, 1)[0]
    assert row["delivered"] is row["intended_norm"] is row["state_m_norm"] is None
    assert row["update_norm"] > 0


def test_probing_changes_nothing() -> None:
    results = []
    for probed in (False, True):
        params = make_params(torch.bfloat16)
        optimizer = make_optimizer("prodigy", params)
        probe = TensorsProbe(params, optimizer)
        for step in range(1, 5):
            set_grads(params, step)
            if probed:
                probed_step(probe, optimizer, step)
            else:
                optimizer.step()
        results.append([p.detach().clone() for p in params.values()])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
