"""How often the probes look: an integer is kept whatever it costs, auto keeps to its budget and is no sparser."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainscope.recording.cadence import CALIBRATION_STEPS, LADDER, Cadence

SECONDS = st.floats(1e-6, 10.0)


def settled(
    step: float, look: float, always: float = 0.0, *, budget: float = 0.02, last_step: int | None = 10_000
) -> Cadence:
    cadence = Cadence("auto", budget, last_step=last_step)
    answers = [
        cadence.learn(step_seconds=step, look_seconds=look, always_seconds=always) for _ in range(CALIBRATION_STEPS)
    ]
    assert answers == [False] * (CALIBRATION_STEPS - 1) + [True]
    return cadence


def test_the_ladder_climbs() -> None:
    assert LADDER[:6] == (1, 2, 5, 10, 20, 50)
    assert list(LADDER) == sorted(set(LADDER))


@pytest.mark.parametrize("every", [1, 3, 7, 1000])
def test_an_integer_is_kept_whatever_it_costs(every: int) -> None:
    cadence = Cadence(every, 1e-6, last_step=100)
    for step in range(1, 50):
        assert cadence.due(step) == (step % every == 0)
        assert not cadence.learn(step_seconds=1e-3, look_seconds=10.0)
    assert cadence.every == every


def test_a_run_of_unknown_length_is_seen_in_its_second_half() -> None:
    cadence = settled(1e-3, 100.0, last_step=None)
    assert cadence.every == LADDER[-1]
    seen = [step for step in range(1, 10_001) if cadence.due(step)]
    assert all(later <= 2 * sooner for sooner, later in pairwise(seen))
    assert len(seen) < 20
    fixed = Cadence(30, 0.02)
    assert [step for step in range(1, 100) if fixed.due(step)] == [30, 60, 90]


@pytest.mark.parametrize("every", ["auto", 30])
def test_the_last_step_is_always_looked_at(every: int | str) -> None:
    cadence = Cadence(every, 0.02, last_step=101)  # type: ignore[arg-type]
    for _ in range(CALIBRATION_STEPS):
        cadence.learn(step_seconds=0.1, look_seconds=1.0)
    assert not cadence.due(99)
    assert cadence.due(101)


def test_every_step_is_looked_at_until_the_cost_is_known() -> None:
    cadence = Cadence("auto", 0.02, last_step=1000)
    for step in range(1, CALIBRATION_STEPS + 1):
        assert cadence.every is None
        assert cadence.due(step)
        cadence.learn(step_seconds=1.0, look_seconds=1.0)
    assert cadence.every == 50
    assert not cadence.due(CALIBRATION_STEPS + 1)
    assert cadence.due(50)


def test_once_settled_it_stays() -> None:
    cadence = settled(1.0, 0.1)
    assert cadence.every == 5
    assert not cadence.learn(step_seconds=1.0, look_seconds=100.0)
    assert cadence.every == 5


def test_the_first_step_is_not_timed() -> None:
    """It is slow for other reasons: kernels are chosen, memory is claimed."""
    cadence = Cadence("auto", 0.02, last_step=1000)
    cadence.learn(step_seconds=60.0, look_seconds=30.0)
    for _ in range(CALIBRATION_STEPS - 1):
        cadence.learn(step_seconds=1.0, look_seconds=0.01)
    assert cadence.every == 1


def test_one_slow_step_among_them_does_not_decide() -> None:
    cadence = Cadence("auto", 0.02, last_step=1000)
    for look in (0.01, 0.01, 9.0, 0.01, 0.01):
        cadence.learn(step_seconds=1.0, look_seconds=look)
    assert cadence.every == 1


@given(step=SECONDS, look=SECONDS, budget=st.floats(1e-3, 1.0))
def test_the_densest_that_keeps_to_the_budget(step: float, look: float, budget: float) -> None:
    cadence = settled(step, look, budget=budget)
    assert cadence.every in LADDER
    if cadence.every != LADDER[-1]:
        assert look / cadence.every <= budget * step
    if cadence.every != 1:
        denser = LADDER[LADDER.index(cadence.every) - 1]
        assert look / denser > budget * step


@given(
    step=st.floats(1e-3, 1.0),
    look=st.floats(1e-5, 1.0),
    always=st.floats(0, 1e-5),
    budget=st.floats(0.02, 0.5),
)
def test_the_share_of_a_run_is_within_the_budget(step: float, look: float, always: float, budget: float) -> None:
    """Simulated: from the end of the calibration to the last step, which is looked at whatever it costs."""
    cadence = settled(step, look, always, budget=budget)
    assert cadence.every is not None
    steps = range(CALIBRATION_STEPS + 1, CALIBRATION_STEPS + 1 + 20 * cadence.every)
    looks = sum(1 for number in steps if number % cadence.every == 0)
    assert looks * look + len(steps) * always <= budget * len(steps) * step * (1 + 1e-9)


def test_what_is_looked_at_every_step_counts_too() -> None:
    assert settled(1.0, 0.02).every == 1
    assert settled(1.0, 0.02, 0.015).every == 5


def test_where_that_alone_is_too_much_there_are_still_some_looks() -> None:
    assert settled(1.0, 0.02, 0.5).every == 10


@pytest.mark.parametrize(("step", "look"), [(0.0, 1.0), (-1.0, 1.0), (1e-9, 1e3)])
def test_nonsense_makes_it_look_rarely(step: float, look: float) -> None:
    assert settled(step, look).every == LADDER[-1]


def test_probes_that_cost_nothing() -> None:
    assert settled(1.0, 0.0).every == 1
