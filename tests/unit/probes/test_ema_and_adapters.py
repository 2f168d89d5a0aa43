"""The `ema` and `adapters` probes against their float64 references."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from diffusers.training_utils import EMAModel

from tests.unit.probes import reference
from tests.unit.probes.steps import expect, make_params, rows_of
from trainscope.probes.adapters import AdaptersProbe
from trainscope.probes.ema import EmaProbe


@pytest.mark.parametrize("shadow_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_ema_matches_the_reference(dtype: torch.dtype, shadow_dtype: torch.dtype) -> None:
    params = make_params(dtype)
    ema = EMAModel(params.values(), decay=0.9, foreach=True)
    ema.to(dtype=shadow_dtype)
    start = {name: p.detach().clone() for name, p in params.items()}
    probe = EmaProbe(params)
    generator = torch.Generator().manual_seed(3)
    for step in range(1, 6):
        for p in params.values():
            p.data += (torch.randn(p.shape, generator=generator) * 1e-3).to(dtype)
        before = [s.clone() for s in ema.shadow_params]
        probe.before_update(ema.shadow_params)
        ema.step(params.values())
        rows = rows_of(probe.after_update(step, ema.shadow_params, ema.cur_decay_value))
        for row, old, new in zip(rows, before, ema.shadow_params, strict=True):
            name = row["param"]
            expected = reference.ema_row(params[name], old, new, start[name], ema.cur_decay_value)
            for column, value in expected.items():
                expect(row[column], value, rel=1e-9)
            assert row["dtype"] == str(shadow_dtype).removeprefix("torch.")
            assert row["decay"] == ema.cur_decay_value


def test_a_bf16_shadow_loses_what_a_float32_shadow_receives() -> None:
    delivered = {}
    for shadow_dtype in (torch.float32, torch.bfloat16):
        params = make_params(torch.float32, scale=1.0)
        ema = EMAModel(params.values(), decay=0.999, min_decay=0.999, foreach=True)
        ema.to(dtype=shadow_dtype)
        ema.optimization_step = 1  # past the first update, which copies
        probe = EmaProbe(params)
        for p in params.values():
            p.data *= 1.001
        probe.before_update(ema.shadow_params)
        ema.step(params.values())
        delivered[shadow_dtype] = rows_of(probe.after_update(1, ema.shadow_params, ema.cur_decay_value))[4]["delivered"]
    assert delivered[torch.float32] == pytest.approx(1, abs=1e-2)
    assert abs(delivered[torch.bfloat16]) < 0.01


def test_a_converged_shadow_has_no_delivered() -> None:
    params = make_params(torch.float32)
    ema = EMAModel(params.values(), decay=0.9)
    probe = EmaProbe(params)
    probe.before_update(ema.shadow_params)
    ema.step(params.values())
    row = rows_of(probe.after_update(1, ema.shadow_params, 0.9))[0]
    assert row["delivered"] is None
    assert row["nonzero_count"] == row["lost_count"] == 0


@dataclass
class Pair:
    module: str
    a: torch.Tensor
    b: torch.Tensor
    base_weight: torch.Tensor
    rank: int
    alpha: float
    scale: float


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_match_the_product(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    linear = Pair("to_q", torch.randn(4, 20, generator=g).to(dtype), torch.randn(30, 4, generator=g).to(dtype),
                  torch.randn(30, 20, generator=g), 4, 8.0, 2.0)  # fmt: skip
    conv = Pair("conv", torch.randn(2, 3, 3, 3, generator=g).to(dtype), torch.randn(5, 2, 1, 1, generator=g).to(dtype),
                torch.randn(5, 3, 3, 3, generator=g), 2, 1.0, 0.5)  # fmt: skip
    fresh = Pair("to_v", linear.a, torch.zeros(30, 4, dtype=dtype), linear.base_weight, 4, 8.0, 2.0)
    rows = rows_of(AdaptersProbe([linear, conv, fresh]).measure(7))
    for row, pair in zip(rows, (linear, conv, fresh), strict=True):
        a, b = pair.a.double().flatten(1), pair.b.double().flatten(1)
        delta = pair.scale * (b @ a)
        expect(row["delta_norm"], reference.norm(reference.wide(delta)), rel=1e-9)
        expect(row["a_norm"], reference.norm(reference.wide(pair.a)), rel=1e-9)
        expect(row["b_norm"], reference.norm(reference.wide(pair.b)), rel=1e-9)
        expect(row["base_norm"], reference.norm(reference.wide(pair.base_weight)), rel=1e-9)
        assert (row["rank"], row["alpha"], row["scale"], row["step"]) == (pair.rank, pair.alpha, pair.scale, 7)
    assert rows[2]["delta_norm"] == 0
