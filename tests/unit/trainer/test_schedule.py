"""A schedule's shape, and where a resume takes it up: the rates are those of the closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import get_args

import pytest
import torch

from trainscope.config.load import parse_config
from trainscope.config.model import RunConfig, SchedulerSection
from trainscope.config.optimizer import OPTIMIZERS, SCHEDULE_FREE, WARMED_UP
from trainscope.config.plan import plan_run
from trainscope.trainer.optimizers.build import build_optimizer
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


def falling(shape: Callable[[float], float], floor: float = 0.0) -> Callable[[int], float]:
    """A warmup of 4, then a shape of the share of the other 16 steps that is done, above a floor."""
    return lambda step: step / 4 if step < 4 else floor + (1 - floor) * shape(min(1.0, (step - 4) / 16))


def cosine(done: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * done))


END = 1e-7
"""Where diffusers' polynomial ends."""
FORMS: dict[str, tuple[Schedule, Callable[[int], float]]] = {
    "constant": (Schedule("constant", 20, 4), lambda step: 1.0),
    "constant-with-warmup": (Schedule("constant-with-warmup", 20, 4), lambda step: min(1.0, step / 4)),
    "linear": (Schedule("linear", 20, 4), falling(lambda done: 1 - done)),
    "linear-floor": (Schedule("linear", 20, 4, min_lr_ratio=0.25), falling(lambda done: 1 - done, 0.25)),
    "cosine": (Schedule("cosine", 20, 4), falling(cosine)),
    "cosine-floor": (Schedule("cosine", 20, 4, min_lr_ratio=0.1), falling(cosine, 0.1)),
    "cosine-with-restarts": (Schedule("cosine-with-restarts", 20, 4), falling(cosine)),
    "cosine-with-restarts-2": (
        Schedule("cosine-with-restarts", 20, 4, cycles=2, min_lr_ratio=0.5),
        falling(lambda done: cosine(2 * done % 1), 0.5),
    ),
    "polynomial": (Schedule("polynomial", 20, 4), falling(lambda done: END + (1 - END) * (1 - done))),
    "polynomial-3": (
        Schedule("polynomial", 20, 4, power=3.0, min_lr_ratio=0.2),
        falling(lambda done: END + (1 - END) * (1 - done) ** 3, 0.2),
    ),
}
"""Over 20 steps with a warmup of 4."""


def test_every_type_has_a_form() -> None:
    assert {schedule.type for schedule, _ in FORMS.values()} == set(TYPES) == DIFFUSERS_NAME.keys()


@pytest.mark.parametrize("name", FORMS)
def test_rates(name: str) -> None:
    schedule, form = FORMS[name]
    made = optimizer(0.5, 1e-8)  # diffusers' polynomial refuses rates below its end
    scheduler = build_scheduler(schedule, made)
    for step in range(20):
        wanted = [0.5 * form(step), 1e-8 * form(step)]
        assert [group["lr"] for group in made.param_groups] == pytest.approx(wanted, rel=1e-12, abs=1e-24)
        made.step()
        scheduler.step()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("position", [0, 1, 3, 4, 5, 11, 19, 20])
def test_moving_there_is_stepping_there(name: str, position: int) -> None:
    """Bit for bit, and so are the steps that follow."""
    schedule, _ = FORMS[name]
    walked, moved = optimizer(0.3, 0.7), optimizer(0.3, 0.7)
    one, other = build_scheduler(schedule, walked), build_scheduler(schedule, moved)
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


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(("steps", "warmup"), [(5, 5), (5, 9), (1, 0), (1, 1)])
def test_a_warmup_that_the_run_does_not_outlast(kind: str, steps: int, warmup: int) -> None:
    """Rules warn of it; it rises as far as it comes."""
    made = optimizer(1.0)
    scheduler = build_scheduler(Schedule(kind, steps, warmup), made)
    for step in range(steps):
        wanted = 1.0 if kind == "constant" or warmup == 0 else step / warmup
        assert made.param_groups[0]["lr"] == pytest.approx(wanted)
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
        (["scheduler.type=cosine-with-restarts", "scheduler.cycles=3"], Schedule("cosine-with-restarts", 20, 0, 3)),
        (
            ["scheduler.type=polynomial", "scheduler.power=2", "scheduler.min_lr_ratio=0.1"],
            Schedule("polynomial", 20, 0, power=2.0, min_lr_ratio=0.1),
        ),
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


@pytest.mark.parametrize("kind", [name for name, model in OPTIMIZERS.items() if model in WARMED_UP])
@pytest.mark.parametrize(
    ("shape", "wanted"), [("constant", "constant"), ("constant-with-warmup", "constant"), ("cosine", "cosine")]
)
def test_some_warm_up_by_themselves(kind: str, shape: str, wanted: str) -> None:
    """The optimizer is told of the warmup, and the schedule has none."""
    config = configured(f"optimizer.type={kind}", f"scheduler.type={shape}", "scheduler.warmup=4")
    plan = plan_run(config, samples=10)
    assert planned_schedule(config, plan) == Schedule(wanted, 20, 0)
    params = {"unet": [torch.nn.Parameter(torch.zeros(1))]}
    made = build_optimizer(config.optimizer, params, warmup_steps=plan.warmup_steps)
    assert made.param_groups[0]["warmup_steps"] == 4


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
        (["scheduler.on_resume=restart", "scheduler.min_lr_ratio=0.1"], Schedule("cosine", 14, 2, min_lr_ratio=0.1)),
        (["scheduler.on_resume=extend", "scheduler.min_lr_ratio=0.1"], Schedule("cosine", 20, 2, min_lr_ratio=0.1)),
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


@pytest.mark.parametrize("name", FORMS)
def test_as_json(name: str) -> None:
    schedule, _ = FORMS[name]
    assert Schedule.from_json(json.loads(json.dumps(schedule.as_json()))) == schedule


@pytest.mark.parametrize(
    "changes",
    [
        {"type": "cosine_with_restarts"},
        {"type": ["cosine"]},
        {"steps": -1},
        {"steps": 2.0},
        {"steps": True},
        {"warmup_steps": "3"},
        {"cycles": 0},
        {"power": 0.0},
        {"power": math.inf},
        {"power": 2},
        {"min_lr_ratio": 1.0},
        {"min_lr_ratio": -0.1},
        {"min_lr_ratio": math.nan},
        {"more": 1},
    ],
    ids=str,
)
def test_what_is_no_schedule(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="schedule"):
        Schedule.from_json({**SAVED.as_json(), **changes})


@pytest.mark.parametrize("key", SAVED.as_json())
def test_a_schedule_that_lacks_a_key(key: str) -> None:
    left = {name: value for name, value in SAVED.as_json().items() if name != key}
    for found in (left, None, []):
        with pytest.raises(ValueError, match="a schedule has other keys"):
            Schedule.from_json(found)
