"""The `tensors` probe with every optimizer that it has a formula for: the cases that a mean over tensors would hide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from lion_pytorch import Lion
from transformers.optimization import Adafactor

from tests.unit.probes import reference
from tests.unit.probes.steps import (
    DTYPES,
    ESTIMATING,
    KINDS,
    OPTIMIZERS,
    SILENT,
    STEPPING_IN_FLOAT32,
    Params,
    intended,
    make_params,
    probed_step,
    remembered,
    set_grads,
)
from trainscope.probes.formulas import FORMULAS
from trainscope.probes.sampling import MEASURES
from trainscope.probes.tensors import TensorsProbe

STEPS = 7
CLEAR_OF_ROUNDING: dict[str, dict[str, float]] = {
    "radam": {"lr": 1e-2},
    "radam-sgd": {"lr": 1e-2},
    "dadapt-adam-coupled": {"d0": 1e-2},
    "dadapt-sgd": {"d0": 1.0},
}
"""RAdam's first steps at lr 1e-3 are 300 float32 spacings; half of one is then 2e-3 of a one-element tensor's step."""
SECOND = ("state_v_max", "state_v_min", "eps_dominated_fraction", "g2_over_v")


def moves(kind: str, step: int) -> bool:
    return kind != "radam" or step > SILENT


def edge_params() -> Params:
    """0-dim, empty, transposed, channels last, and long enough for 8-bit state while only sampled."""
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.nn.Parameter(tensor)
        for name, tensor in {
            "scalar": torch.tensor(0.3),
            "empty": torch.empty(0, 4),
            "transposed": torch.randn(24, 40, generator=generator).t(),
            "channels_last": torch.randn(4, 8, 3, 3, generator=generator).to(memory_format=torch.channels_last),
            "large": torch.randn(100, 90, generator=generator),
        }.items()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_what_the_library_does(kind: str) -> None:
    """In float64, where a step loses nothing (bitsandbytes computes in float32 even there)."""
    params = {name: p for name, p in make_params(torch.float64).items() if p.numel() > 1}
    optimizer = OPTIMIZERS[kind](params.values())
    for step in range(1, STEPS + 1):
        set_grads(params, step)
        before = {name: reference.wide(p).copy() for name, p in params.items()}
        grads = {name: reference.wide(p.grad).copy() for name, p in params.items() if p.grad is not None}
        states = {name: {k: v.copy() for k, v in remembered(kind, optimizer, p).items()} for name, p in params.items()}
        group = dict(optimizer.param_groups[0])
        optimizer.step()
        for name, param in params.items():
            delta, _ = intended(kind, before[name], grads[name], states[name], step, group, optimizer.param_groups[0])
            found = reference.wide(param) - before[name]
            if kind in STEPPING_IN_FLOAT32:
                np.testing.assert_allclose(found, delta, atol=2e-8, rtol=1e-5)
            else:
                np.testing.assert_allclose(found, delta, atol=1e-16, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_float32_weights_get_what_was_asked_for(kind: str) -> None:
    params = {**make_params(torch.float32), **edge_params()}
    optimizer = OPTIMIZERS[kind](params.values(), **CLEAR_OF_ROUNDING.get(kind, {}))
    probe = TensorsProbe(params, optimizer)
    for step in range(1, STEPS + 1):
        set_grads(params, step)
        rows = {row["param"]: row for row in probed_step(probe, optimizer, step)}
        empty = rows.pop("empty")
        assert [empty[column] for column in MEASURES] == [None] * len(MEASURES)
        assert empty["grad_norm"] == empty["weight_norm"] == empty["nonzero_count"] == 0
        for row in rows.values():
            if moves(kind, step):
                assert row["delivered"] == pytest.approx(1, abs=1e-3)
                assert row["applied_norm"] == pytest.approx(row["intended_norm"], rel=1e-3)
                assert row["intended_norm"] == pytest.approx(row["update_norm"], rel=0.3)  # a sample of the large ones
            else:
                assert row["delivered"] is None
                assert row["intended_norm"] == row["applied_norm"] == row["update_norm"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_comes_late(kind: str) -> None:
    """None or zeros at first; then the state is as before a first step, while groups count on."""
    params = make_params(torch.float32)
    optimizer = OPTIMIZERS[kind](params.values(), weight_decay=0.0, **CLEAR_OF_ROUNDING.get(kind, {}))
    probe = TensorsProbe(params, optimizer)
    missing, zero, *others = params
    for step in range(1, STEPS + 1):
        set_grads(params, step)
        if step < 6:
            params[missing].grad = None
            params[zero].grad = torch.zeros_like(params[zero])
        rows = {row["param"]: row for row in probed_step(probe, optimizer, step)}
        if step < 6:
            for column in ("grad_norm", "grad_absmax", "state_m_norm", *SECOND, *MEASURES):
                assert rows[missing][column] is None
            assert rows[missing]["update_norm"] == rows[zero]["update_norm"] == 0
            assert rows[zero]["grad_zero_count"] == params[zero].numel()
            assert rows[zero]["delivered"] is None  # nothing was asked for
            assert rows[zero]["intended_norm"] == 0
        else:
            assert rows[missing]["delivered"] == pytest.approx(1, abs=1e-3)
            assert rows[zero]["delivered"] == pytest.approx(1, abs=1e-3)
        for name in others if moves(kind, step) else ():
            assert rows[name]["delivered"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_stays_where_it_is(kind: str) -> None:
    """A NaN in one tensor's gradient makes that tensor's `delivered` NaN, and no other's; an estimated d is for all."""
    params = make_params(torch.float32)
    optimizer = OPTIMIZERS[kind](params.values(), **CLEAR_OF_ROUNDING.get(kind, {}))
    probe = TensorsProbe(params, optimizer)
    for step in range(1, 6):
        set_grads(params, step)
        probed_step(probe, optimizer, step)
    set_grads(params, 6)
    *others, poisoned = params
    grad = params[poisoned].grad
    assert grad is not None
    grad.view(-1)[0] = math.nan
    rows = {row["param"]: row for row in probed_step(probe, optimizer, 6)}
    row = rows[poisoned]
    assert row["nonfinite"] == 1
    if "lion" in kind:  # torch's sign of NaN is 0: the element stands still, and its momentum is NaN for good
        assert row["delivered"] == pytest.approx(1, abs=1e-3)
        assert row["weight_nonfinite"] == 0
    else:
        assert math.isnan(row["delivered"])
        assert math.isnan(row["intended_norm"])
        assert row["weight_nonfinite"] == 1
    if kind.endswith("8bit"):  # a code cannot be NaN: bitsandbytes stores some number instead
        assert math.isfinite(row["state_m_norm"])
    elif row["state_m_norm"] is not None:
        assert math.isnan(row["state_m_norm"])
    for name in others if kind not in ESTIMATING else ():
        assert rows[name]["delivered"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_probing_changes_nothing(kind: str, dtype: torch.dtype) -> None:
    """Not one bit of weights, state or groups."""
    results: list[list[Any]] = []
    for probed in (False, True):
        params = make_params(dtype)
        optimizer = OPTIMIZERS[kind](params.values())
        probe = TensorsProbe(params, optimizer)
        for step in range(1, STEPS + 1):
            set_grads(params, step)
            if probed:
                probed_step(probe, optimizer, step)
            else:
                optimizer.step()
        state = [(key, value) for p in params.values() for key, value in optimizer.state[p].items()]
        groups = [(k, repr(value)) for group in optimizer.param_groups for k, value in group.items() if k != "params"]
        results.append([*(("weight", p.detach().clone()) for p in params.values()), *state, *groups])
    for (key_a, a), (key_b, b) in zip(*results, strict=True):
        assert key_a == key_b
        if isinstance(a, torch.Tensor):  # fp16 Prodigy's state has NaN, whose bits count too
            assert torch.equal(a.detach().flatten().view(torch.uint8), b.detach().flatten().view(torch.uint8))
        else:
            assert a == b


def test_columns_that_an_optimizer_has_nothing_for_say_why() -> None:
    params = make_params(torch.float32)

    def reasons(kind: str, **more: Any) -> dict[str, str]:
        return TensorsProbe(params, OPTIMIZERS[kind](params.values(), **more)).reasons

    for kind in ("adamw", "adamw8bit", "paged-adamw8bit", "prodigy", "dadapt-adam", "dadapt-adan-ip"):
        assert reasons(kind) == {}
    for kind, name in (("sgd", "SGD"), ("sgd8bit", "SGD8bit"), ("lion8bit", "Lion8bit"), ("dadapt-lion", "DAdaptLion")):
        assert reasons(kind) == dict.fromkeys(SECOND, f"{name} keeps no second moment")
    assert reasons("dadapt-sgd").keys() == {"state_m_norm", *SECOND}
    assert reasons("lion") == dict.fromkeys(SECOND, "Lion keeps no second moment")
    assert reasons("schedulefree") == {"state_m_norm": "AdamWScheduleFree keeps no first moment"}
    assert reasons("radam") == {"state_m_norm": "RAdamScheduleFree keeps no first moment"}
    # Variants whose update is another one are not recomputed.
    assert "cannot be recomputed" in reasons("adamw", maximize=True)["delivered"]
    assert "cannot be recomputed" in reasons("sgd", dampening=0.1)["delivered"]
    assert "cannot be recomputed" in reasons("lion", decoupled_weight_decay=True)["delivered"]


class _Renamed(torch.optim.AdamW):
    """Inherits its step."""


class _StepsTwice(torch.optim.AdamW):
    """Has one of its own."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        return super().step(closure)


def test_a_class_of_ones_own_is_known_by_the_step_that_it_inherits() -> None:
    """A step of its own is not AdamW's, and `delivered` would compare it with one."""
    for kind, known in ((_Renamed, True), (_StepsTwice, False)):
        params = make_params(torch.float32)
        optimizer = kind(params.values(), lr=1e-3)
        probe = TensorsProbe(params, optimizer)
        set_grads(params, 1)
        rows = probed_step(probe, optimizer, 1)
        assert [row["delivered"] for row in rows] == [pytest.approx(1, abs=1e-3) if known else None] * len(rows)
        assert probe.reasons == (
            {} if known else dict.fromkeys(MEASURES, "the step of _StepsTwice cannot be recomputed")
        )
        assert all(row["state_v_max"] > 0 for row in rows), "its moments have the usual names"


def test_adafactor_cannot_be_recomputed_and_shows_the_moments_that_it_has() -> None:
    params = make_params(torch.float32)
    probe = TensorsProbe(params, optimizer := Adafactor(params.values(), lr=1e-3, relative_step=False, beta1=0.9))
    assert probe.reasons == dict.fromkeys(MEASURES, "the step of Adafactor cannot be recomputed")
    set_grads(params, 1)
    rows = {row["param"]: row for row in probed_step(probe, optimizer, 1)}
    vector, matrix = rows["layer1.weight"], rows["layer0.weight"]
    assert vector["state_v_max"] == optimizer.state[params["layer1.weight"]]["exp_avg_sq"].max()
    assert matrix["state_v_max"] is None, "rows and columns are no second moment"
    assert all(row["state_m_norm"] > 0 and row["delivered"] is None for row in rows.values())


def test_every_formula_names_a_class_that_there_is() -> None:
    params = make_params(torch.float32)
    classes = {type(OPTIMIZERS[kind](params.values())) for kind in KINDS}
    assert {f"{cls.__module__}.{cls.__qualname__}" for cls in classes} == FORMULAS.keys()


def test_lion_in_bf16_delivers_steps_of_one_size_or_none() -> None:
    """lr far below the spacing of bf16 at 1: nothing arrives; at the spacing: everything."""
    for lr, expected in ((1e-4, 0.0), (2**-7, 1.0)):
        params = {"w": torch.nn.Parameter(torch.full((16,), 1.5, dtype=torch.bfloat16))}
        optimizer = Lion(params.values(), lr=lr)
        probe = TensorsProbe(params, optimizer)
        set_grads(params, 1)
        [row] = probed_step(probe, optimizer, 1)
        assert row["delivered"] == pytest.approx(expected, abs=1e-6)
