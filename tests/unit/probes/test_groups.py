"""The `groups` probe with the real optimizers: what the step used, and what it left."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from transformers.optimization import Adafactor

from tests.unit.probes.steps import ESTIMATING, KINDS, OPTIMIZERS, SILENT, make_params, set_grads
from trainscope.probes.groups import COPIED, GroupsProbe

SCHEDULE_FREE = ("schedulefree", "radam", "radam-sgd", "sgd-schedulefree")
WITHOUT_BETAS = (
    "sgd",
    "sgd-nesterov",
    "sgd-without-momentum",
    "sgd-schedulefree",
    "dadapt-adagrad",
    "dadapt-adagrad-momentum",
    "dadapt-sgd",
)


def rows_of_steps(kind: str, steps: int, **more: Any) -> tuple[list[dict[str, Any]], torch.optim.Optimizer]:
    params = make_params(torch.float32)
    optimizer = OPTIMIZERS[kind]([{"params": list(params.values()), "name": "unet"}], **more)
    probe, rows = GroupsProbe(optimizer), []
    for step in range(1, steps + 1):
        set_grads(params, step)
        probe.before_step()
        optimizer.step()
        rows += probe.rows(step, probe.after_step())
    return rows, optimizer


@pytest.mark.parametrize("kind", KINDS)
def test_every_value_is_the_optimizers(kind: str) -> None:
    rows, optimizer = rows_of_steps(kind, 7)
    [group] = optimizer.param_groups
    for row in rows:
        assert row["name"] == "unet"
        assert row["lr"] == row["base_lr"] == group["lr"]
        assert row["weight_decay"] == 0.02
        assert (row["betas"] is None) == (kind in WITHOUT_BETAS)
        if row["betas"] is not None:
            assert json.loads(row["betas"]) == list(group["betas"])
        assert row["eps"] == group.get("eps")  # Lion has none
        assert row["scheduler_type"] is row["scheduler_step"] is None
    last = rows[-1]
    for name in COPIED:
        assert last[name] == group.get(name)
        assert isinstance(last[name], float | None)
    counts = kind in ESTIMATING or kind in SCHEDULE_FREE
    assert [row["k"] for row in rows] == (list(range(1, 8)) if counts else [None] * 7)
    assert {row["train_mode"] for row in rows} == ({True} if kind in SCHEDULE_FREE else {None})
    for name in ("weight_sum", "lr_max", "scheduled_lr"):
        assert (last[name] is not None) == (kind in SCHEDULE_FREE)


def test_schedule_free_adamw_warms_up() -> None:
    rows, _ = rows_of_steps("schedulefree", 5)
    warmup = [1e-3 / 3, 2e-3 / 3, 1e-3, 1e-3, 1e-3]
    assert [row["effective_lr"] for row in rows] == pytest.approx(warmup)
    assert [row["scheduled_lr"] for row in rows] == pytest.approx(warmup)
    assert [row["lr_max"] for row in rows] == pytest.approx(warmup)
    assert rows[-1]["weight_sum"] == pytest.approx(sum(lr**2 for lr in warmup))
    assert {row["lr"] for row in rows} == {1e-3}


def test_schedule_free_radam_is_silent_first() -> None:
    rows, _ = rows_of_steps("radam", 7)
    assert [row["effective_lr"] for row in rows[:SILENT]] == [0.0] * SILENT
    assert [row["weight_sum"] for row in rows[:SILENT]] == [0.0] * SILENT
    later = [row["effective_lr"] for row in rows[SILENT:]]
    assert all(0 < lr < 1e-3 for lr in later)
    assert later == sorted(later)
    loud, _ = rows_of_steps("radam-sgd", 7)
    assert [row["effective_lr"] for row in loud[:SILENT]] == [1e-3] * SILENT


def test_the_lr_without_d_or_warmup_is_the_effective_one() -> None:
    for kind in ("adamw", "adamw8bit", "lion"):
        rows, _ = rows_of_steps(kind, 2)
        assert [row["effective_lr"] for row in rows] == [1e-3, 1e-3]
    for kind in ESTIMATING:
        rows, optimizer = rows_of_steps(kind, 3, lr=0.5, d0=1e-3)
        assert rows[0]["effective_lr"] == pytest.approx(0.5e-3)  # lr·d0: the d that the step used
        assert rows[2]["effective_lr"] == pytest.approx(0.5 * rows[1]["d"])
        assert rows[2]["d"] == float(optimizer.param_groups[0]["d"])


@pytest.mark.parametrize("warmup_init", [False, True])
def test_adafactor_has_a_rate_of_its_own(warmup_init: bool) -> None:
    """The one that its source computes, where it is not scaled to the weights."""
    params = make_params(torch.float32)
    made = Adafactor(params.values(), lr=None, relative_step=True, scale_parameter=False, warmup_init=warmup_init)
    probe, state = GroupsProbe(made), made.state[next(iter(params.values()))]
    for step in (1, 2, 3, 20_000):
        if state:
            state["step"] = step - 1
        set_grads(params, 1)
        probe.before_step()
        made.step()
        (row,) = probe.rows(step, probe.after_step())
        found = row["effective_lr"]
        assert state["step"] == step
        assert found == pytest.approx(made._get_lr(made.param_groups[0], state))
