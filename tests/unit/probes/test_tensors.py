"""The `tensors` probe against its float64 reference, for every optimizer and dtype that there is a formula for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.unit.probes import reference
from tests.unit.probes.steps import (
    DTYPES,
    KINDS,
    OPTIMIZERS,
    expect,
    intended,
    make_params,
    probed_step,
    remembered,
    set_grads,
)
from trainscope.probes.sampling import SAMPLE_ELEMENTS
from trainscope.probes.tensors import TensorsProbe


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_matches_the_reference(kind: str, dtype: torch.dtype) -> None:
    params = make_params(dtype)
    optimizer = OPTIMIZERS[kind](params.values())
    start = {name: p.detach().clone() for name, p in params.items()}
    probe = TensorsProbe(params, optimizer)
    for step in range(1, 8):
        set_grads(params, step)
        before = {name: p.detach().clone() for name, p in params.items()}
        grads = {name: p.grad.clone() for name, p in params.items() if p.grad is not None}
        states = {name: remembered(kind, optimizer, p) for name, p in params.items()}
        group = dict(optimizer.param_groups[0])
        rows = probed_step(probe, optimizer, step)
        assert [row["param"] for row in rows] == list(params)
        for row in rows:
            name = row["param"]
            param = params[name]
            for column, value in reference.update_row(before[name], param, start[name], grads[name]).items():
                expect(row[column], value)
            state = remembered(kind, optimizer, param)
            expect(row["state_m_norm"], reference.norm(state["m"]) if "m" in state else None, rel=1e-5)
            expect(row["state_v_max"], float(state["v"].max()) if "v" in state else None)
            expect(row["state_v_min"], float(state["v"].min()) if "v" in state else None)
            if param.numel() > SAMPLE_ELEMENTS:
                continue  # only sampled: see test_sample_is_fair
            theta, grad = reference.wide(before[name]), reference.wide(grads[name])
            delta, v_hat = intended(kind, theta, grad, states[name], step, group, optimizer.param_groups[0])
            applied = reference.wide(param) - theta
            expect(row["intended_norm"], reference.norm(delta), rel=1e-4)
            expect(row["applied_norm"], reference.norm(applied), rel=1e-5)
            expect(row["delivered"], reference.delivered(applied, delta), rel=2e-4)
            if v_hat is None:
                assert row["eps_dominated_fraction"] is row["g2_over_v"] is None
            else:
                expect(row["eps_dominated_fraction"], float(np.mean(np.sqrt(v_hat) < 10 * group["eps"])))
                expect(row["g2_over_v"], float(np.mean(grad**2) / np.mean(v_hat)), rel=1e-4)


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
