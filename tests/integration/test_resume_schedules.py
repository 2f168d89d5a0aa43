"""What becomes of the learning rate on resume: continued, restarted, extended, and Schedule-Free's own warmup."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.half_done import FREE, QUICK, STEPS, STOP, Place, data_folder, groups, resume
from tests.integration.resuming import (
    Values,
    resolved,
    rows,
    trained,
)
from trainscope.config.load import parse_override

Shape = Callable[[int, int, int], float]


def constant(done: int, steps: int, warmup: int) -> float:
    return 1.0


def rising(done: int, steps: int, warmup: int) -> float:
    return min(1.0, done / warmup)


def cosine(done: int, steps: int, warmup: int) -> float:
    return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * (done - warmup) / (steps - warmup)))


SCHEDULES: dict[str, tuple[Shape, Values]] = {
    "constant": (constant, {}),
    "constant-with-warmup": (rising, {"scheduler.type": "constant-with-warmup", "scheduler.warmup": 6.0}),
    "cosine": (cosine, {"scheduler.type": "cosine", "scheduler.warmup": 2.0}),
    "warmup by share": (cosine, {"scheduler.type": "cosine", "scheduler.warmup": 0.25}),
}
WARMUPS = {"constant": (0, 0, 0), "constant-with-warmup": (6, 6, 6), "cosine": (2, 2, 2), "warmup by share": (2, 2, 3)}
"""In steps: of the saved schedule, of a new one over the 8 steps that are left to 12, of one over all 12."""


def expected(shape: Shape, schedule: tuple[int, int], begun: int, steps: int, lr: float = 1e-3) -> list[float]:
    """Learning rates of the steps from STOP + 1 to `steps`; the schedule's length and warmup, and where it began."""
    return [lr * shape(step - 1 - begun, *schedule) for step in range(STOP + 1, steps + 1)]


def check_rates(run: Path, name: str, wanted: list[float]) -> None:
    shape, _ = SCHEDULES[name]
    found = [row["lr"] for row in groups(run)]
    before = [1e-3 * shape(step, STEPS, WARMUPS[name][0]) for step in range(STOP)]
    assert found == pytest.approx([*before, *wanted], rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("name", SCHEDULES)
def test_continue(name: str, place: Place) -> None:
    """The saved schedule goes on as it was; a learning rate that is asked for is multiplied by it."""
    shape, changes = SCHEDULES[name]
    folder = place(changes)
    run = resume("optimizer.lr=0.004")
    check_rates(run, name, expected(shape, (STEPS, WARMUPS[name][0]), 0, STEPS, lr=4e-3))
    assert [row["base_lr"] for row in groups(run)] == [1e-3] * STOP + [4e-3] * (STEPS - STOP)
    assert run == folder / "runs" / "it"
    asked = [row for row in rows(run, "continuity") if row["asked"] is not None]
    assert {(row["item"], row["key"]) for row in asked} >= {("group", "lr"), ("scheduler", "base_lr")}
    assert all(row["asked"] == row["loaded"] for row in asked)
    (told,) = [row for row in asked if row["item"] == "config"]
    assert (told["key"], told["saved"], told["asked"]) == ("optimizer.lr", "0.001", "0.004")


@pytest.mark.parametrize("name", SCHEDULES)
def test_restart(name: str, place: Place) -> None:
    shape, changes = SCHEDULES[name]
    place(changes)
    run = resume('scheduler.on_resume="restart"', "train.steps=12")
    check_rates(run, name, expected(shape, (12 - STOP, WARMUPS[name][1]), STOP, 12))


@pytest.mark.parametrize("name", SCHEDULES)
def test_extend(name: str, place: Place) -> None:
    shape, changes = SCHEDULES[name]
    place(changes)
    run = resume('scheduler.on_resume="extend"', "train.steps=12", "optimizer.lr=0.002")
    check_rates(run, name, expected(shape, (12, WARMUPS[name][2]), 0, 12, lr=2e-3))


@pytest.mark.parametrize("choice", ["restart", "extend"])
def test_another_schedule(choice: str, place: Place) -> None:
    place()
    run = resume(f'scheduler.on_resume="{choice}"', 'scheduler.type="cosine"', "scheduler.warmup=1")
    length, begun = (STEPS - STOP, STOP) if choice == "restart" else (STEPS, 0)
    check_rates(run, "constant", expected(cosine, (length, 1), begun, STEPS))


def test_a_shorter_training_keeps_the_saved_schedule(place: Place) -> None:
    place(SCHEDULES["cosine"][1])
    run = resume("train.steps=6")
    check_rates(run, "cosine", expected(cosine, (STEPS, 2), 0, 6))


@pytest.mark.parametrize("name", ["constant", "constant-with-warmup"])
def test_what_never_ends_can_go_on_longer(name: str, place: Place) -> None:
    shape, changes = SCHEDULES[name]
    place(changes)
    run = resume("train.steps=12")
    check_rates(run, name, expected(shape, (STEPS, 6), 0, 12))


def test_a_schedule_goes_on_as_it_was_at_a_second_resume(place: Place) -> None:
    """What the second checkpoint holds is the restarted schedule, not the one of the configuration."""
    place(SCHEDULES["cosine"][1])
    restart = ('scheduler.on_resume="restart"', "train.steps=12")
    config = resolved(data_folder(), QUICK, SCHEDULES["cosine"][1], {"train.steps": 12})
    run = Path("runs/it")
    again = resolved(data_folder(), QUICK, SCHEDULES["cosine"][1], dict(map(parse_override, restart)))
    trained(again, run, resume="latest", stop_at=7)
    trained(config, run, resume="latest")
    check_rates(run, "cosine", expected(cosine, (8, 2), STOP, 12))


@pytest.mark.parametrize("warmup", [6.0, 0.75], ids=["steps", "share"])
@pytest.mark.parametrize(
    ("changes", "steps", "own", "lr"),
    [
        ((), 8, (6, 6), 1e-3),
        (("optimizer.lr=0.004",), 8, (6, 6), 4e-3),
        (("train.steps=12",), 12, (6, 6), 1e-3),
        (('scheduler.on_resume="extend"', "train.steps=12"), 12, (6, 9), 1e-3),
    ],
    ids=["same", "lr", "longer", "extend"],
)
def test_schedule_free_warms_up_by_itself(
    changes: tuple[str, ...], steps: int, own: tuple[int, int], lr: float, warmup: float, place: Place
) -> None:
    """Step n has lr · min(1, n / warmup), by its own counter; `own` is the warmup given in steps, and as a share."""
    place(FREE, {"scheduler.warmup": warmup})
    run = resume(*changes)
    found = [row["scheduled_lr"] for row in groups(run)]
    after = own[warmup < 1]
    before = [1e-3 * min(1, step / 6) for step in range(1, STOP + 1)]
    wanted = [*before, *(lr * min(1, step / after) for step in range(STOP + 1, steps + 1))]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert [row["k"] for row in groups(run)] == list(range(1, steps + 1))


def test_schedule_free_under_a_schedule_has_both(place: Place) -> None:
    place(FREE, {"scheduler.type": "cosine", "scheduler.warmup": 6.0})
    run = resume('scheduler.on_resume="restart"', "train.steps=12")
    lrs = [1e-3 * cosine(step, STEPS, 0) for step in range(STOP)] + expected(cosine, (8, 0), STOP, 12)
    assert [row["lr"] for row in groups(run)] == pytest.approx(lrs, rel=1e-12)
    own = [lr * min(1, step / 6) for step, lr in enumerate(lrs, start=1)]
    assert [row["scheduled_lr"] for row in groups(run)] == pytest.approx(own, rel=1e-12)
