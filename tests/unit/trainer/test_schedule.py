"""A schedule's shape, and where a resume takes it up: the rates are those of the closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from trainscope.config.load import parse_config
from trainscope.config.model import RunConfig, SchedulerSection
from trainscope.config.optimizer import OPTIMIZERS, SCHEDULE_FREE
from trainscope.config.plan import plan_run
from trainscope.trainer.optimizers.schedule import (
    DIFFUSERS_NAME,
    Schedule,
    build_scheduler,
    move_to,
    planned_schedule,
    schedule_after_resume,
)

TYPES = get_args(SchedulerSection.model_fields["type"].annotation)
BASE = '[model]\nbase = "tiny:sd15"\n[train]\nsteps = 20\n[data]\ndir = "images"\n'


def configured(*overrides: str) -> RunConfig:
    return parse_config(BASE, overrides=overrides).config


def optimizer(*lrs: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs])


FORMS: dict[str, Callable[[int], float]] = {
    "constant": lambda step: 1.0,
    "constant-with-warmup": lambda step: min(1.0, step / 4),
    "cosine": lambda step: step / 4 if step < 4 else 0.5 * (1 + math.cos(math.pi * (step - 4) / 16)),
}
"""Over 20 steps with a warmup of 4."""


def test_every_type_has_a_form() -> None:
    assert FORMS.keys() == set(TYPES) == DIFFUSERS_NAME.keys()


@pytest.mark.parametrize("kind", TYPES)
def test_rates(kind: str) -> None:
    made = optimizer(0.5, 0.25)
    scheduler = build_scheduler(Schedule(kind, 20, 4), made)
    for step in range(20):
        wanted = [0.5 * FORMS[kind](step), 0.25 * FORMS[kind](step)]
        assert [group["lr"] for group in made.param_groups] == pytest.approx(wanted, rel=1e-12, abs=1e-18)
        made.step()
        scheduler.step()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("position", [0, 1, 3, 4, 5, 11, 19, 20])
def test_moving_there_is_stepping_there(kind: str, position: int) -> None:
    """Bit for bit, and so are the steps that follow."""
    walked, moved = optimizer(0.3, 0.7), optimizer(0.3, 0.7)
    one, other = build_scheduler(Schedule(kind, 20, 4), walked), build_scheduler(Schedule(kind, 20, 4), moved)
    for _ in range(position):
        walked.step()
        one.step()
    assert move_to(other, position) == one.get_last_lr()
    for _ in range(3):
        assert [group["lr"] for group in walked.param_groups] == [group["lr"] for group in moved.param_groups]
        mine, its = one.state_dict(), other.state_dict()
        assert {key: value for key, value in mine.items() if key != "lr_lambdas"} == {
            key: value for key, value in its.items() if key != "lr_lambdas"
        }
        for made, scheduler in ((walked, one), (moved, other)):
            made.step()
            scheduler.step()


def test_moving_uses_the_rate_that_is_asked_for() -> None:
    made = optimizer(0.5)
    assert move_to(build_scheduler(Schedule("cosine", 20, 4), made), 12) == pytest.approx([0.25])
    assert made.param_groups[0]["initial_lr"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], Schedule("constant", 20, 0)),
        (["scheduler.type=cosine"], Schedule("cosine", 20, 0)),
        (["scheduler.type=cosine", "scheduler.warmup=3"], Schedule("cosine", 20, 3)),
        (["scheduler.type=cosine", "scheduler.warmup=0.25"], Schedule("cosine", 20, 5)),
        (["scheduler.type=constant-with-warmup", "scheduler.warmup=0.1"], Schedule("constant-with-warmup", 20, 2)),
    ],
)
def test_a_schedule_that_is_planned(overrides: list[str], wanted: Schedule) -> None:
    config = configured(*overrides)
    assert planned_schedule(config, plan_run(config, samples=10)) == wanted


@pytest.mark.parametrize("kind", [name for name, model in OPTIMIZERS.items() if model in SCHEDULE_FREE])
@pytest.mark.parametrize("shape", ["constant", "cosine"])
def test_schedule_free_has_no_warmup_here(kind: str, shape: str) -> None:
    config = configured(f"optimizer.type={kind}", f"scheduler.type={shape}", "scheduler.on_resume=restart")
    plan = plan_run(config, samples=10)
    assert planned_schedule(config, plan) == Schedule(shape, 20, 0)
    assert schedule_after_resume(config, plan, Schedule(shape, 10, 0), 8) == Schedule(shape, 12, 0)


@pytest.mark.parametrize(
    ("shape", "wanted"), [("constant", "constant"), ("constant-with-warmup", "constant"), ("cosine", "cosine")]
)
def test_adamw_schedulefree_warms_up_by_itself(shape: str, wanted: str) -> None:
    """The optimizer is told of the warmup, and the schedule has none."""
    config = configured("optimizer.type=adamw-schedulefree", f"scheduler.type={shape}", "scheduler.warmup=4")
    assert planned_schedule(config, plan_run(config, samples=10)) == Schedule(wanted, 20, 0)


SAVED = Schedule("cosine", 10, 3)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (["scheduler.on_resume=continue"], SAVED),
        (["scheduler.on_resume=continue", "scheduler.type=constant", "scheduler.warmup=0"], SAVED),
        (["scheduler.on_resume=extend"], Schedule("cosine", 20, 2)),
        (["scheduler.on_resume=extend", "scheduler.warmup=0.25"], Schedule("cosine", 20, 5)),
        (["scheduler.on_resume=restart"], Schedule("cosine", 14, 2)),
        (["scheduler.on_resume=restart", "scheduler.warmup=0.25"], Schedule("cosine", 14, 4)),
        (["scheduler.on_resume=restart", "scheduler.warmup=0"], Schedule("cosine", 14, 0)),
        (["scheduler.on_resume=restart", "scheduler.type=constant", "scheduler.warmup=0"], Schedule("constant", 14, 0)),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) else "",
)
def test_a_schedule_after_a_resume(overrides: list[str], wanted: Schedule) -> None:
    """6 of 20 steps are done."""
    config = configured("scheduler.type=cosine", "scheduler.warmup=2", *overrides)
    assert schedule_after_resume(config, plan_run(config, samples=10), SAVED, 6) == wanted


def test_nothing_left_is_still_a_schedule() -> None:
    config = configured("scheduler.on_resume=restart", "scheduler.type=cosine")
    assert schedule_after_resume(config, plan_run(config, samples=10), SAVED, 20).steps == 1


def test_as_json() -> None:
    assert Schedule(**SAVED.as_json()) == SAVED
