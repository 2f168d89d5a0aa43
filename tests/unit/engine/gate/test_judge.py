from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainscope.engine.gate.judge import Question, discoveries, judge, moderated
from trainscope.engine.gate.reduce import Number

RATE = 0.01


def question(baselines: list[float], candidate: float, floor: float = 0.1, worse: str = "both") -> Question:
    return Question([Number(value) for value in baselines], Number(candidate), floor, worse)


def slow_discoveries(p_values: list[float], rate: float) -> list[bool]:
    """Benjamini and Hochberg as in their paper: the largest k with p₍ₖ₎ ≤ k/m·q, and all up to it."""
    ordered = sorted(p_values)
    most = max((k for k, p in enumerate(ordered, 1) if p <= k / len(ordered) * rate), default=0)
    return [most > 0 and p <= ordered[most - 1] for p in p_values]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.sampled_from([0.01, 0.05, 0.2]))
def test_discoveries_are_those_of_the_paper(p_values: list[float], rate: float) -> None:
    edge = any(abs(p - k / len(p_values) * rate) < 1e-12 for p in p_values for k in range(1, len(p_values) + 1))
    assert edge or discoveries(p_values, rate) == slow_discoveries(p_values, rate)


def test_variance_is_moderated_as_in_limma() -> None:
    values, floor = [1.0, 1.3, 1.1], 0.5
    centre, spread, freedom = moderated(question(values, 0.0, floor))
    own = sum((value - sum(values) / 3) ** 2 for value in values) / 2
    expected = (4 * (floor / 8) ** 2 + 2 * own) / (4 + 2)
    assert centre == pytest.approx(sum(values) / 3)
    assert spread == pytest.approx(math.sqrt(expected * (1 + 1 / 3)))
    assert freedom == 6


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("worse", ["both", "higher"])
@given(st.floats(0.01, 1), st.floats(-3, 3), st.lists(st.floats(-0.05, 0.05), min_size=5, max_size=5))
def test_a_change_just_below_the_smallest_one_passes_and_twice_of_it_fails(
    worse: str, count: int, floor: float, base: float, offsets: list[float]
) -> None:
    baselines = [base + offset for offset in offsets[:count]]
    others = [[question([0.0] * count, 0.0)] for _ in range(7)]
    alone = judge([[question(baselines, base, floor, worse)], *others], RATE)[0][0].alone
    centre = sum(baselines) / count
    for factor, fails in ((0.99, False), (1.01, True), (2.0, True)):
        asked = question(baselines, centre + factor * alone, floor, worse)
        answer = judge([[asked], *others], RATE)[0][0]
        assert answer.fails is fails, factor
        assert (answer.distance > answer.half_width) is fails


def test_outcomes_and_intervals_agree_whatever_fails_beside() -> None:
    random = np.random.default_rng(3)
    for _ in range(200):
        baselines = random.normal(0, 0.02, (12, 3))
        shifts = random.choice([0.0, 0.1, 0.3], 12)
        asked = [[question(list(row), float(row.mean() + shift))] for row, shift in zip(baselines, shifts, strict=True)]
        for (answer,) in judge(asked, RATE):
            assert answer.fails is (answer.distance > answer.half_width)


@pytest.mark.parametrize("count", [2, 3, 6])
def test_equal_runs_fail_no_more_often_than_the_rate(count: int) -> None:
    """Twelve measures, each with the documented spread."""
    random = np.random.default_rng(count)
    rounds, failed = 600, 0
    for _ in range(rounds):
        values = random.normal(0, 0.1 / 8, (12, count + 1))
        answers = judge([[question(list(row[1:]), float(row[0]))] for row in values], 0.05)
        failed += any(answer.fails for parts in answers for answer in parts)
    assert stats.binomtest(failed, rounds, 0.05, alternative="greater").pvalue > 1e-3


def test_one_baseline_needs_more_than_the_floor_and_the_noise() -> None:
    noisy = Question([Number(0.0, 0.1, 30)], Number(0.3, 0.1, 30), 0.05, "both")
    half = math.hypot(0.1, 0.1) * float(stats.t.isf(5e-5, 30))
    (answer,) = judge([[noisy]], RATE)[0]
    assert (answer.fails, answer.half_width) == (False, pytest.approx(half))
    (quiet,) = judge([[question([0.0], 0.3, 0.05)]], RATE)[0]
    assert (quiet.fails, quiet.half_width, quiet.p_value) == (True, 0.05, None)


@pytest.mark.parametrize("baselines", [[0.0], [0.0, 0.01, 0.02]])
@pytest.mark.parametrize(
    ("value", "worse", "fails"),
    [
        (math.nan, "higher", True),
        (math.inf, "higher", True),
        (-math.inf, "higher", False),
        (-math.inf, "both", True),
        (-5.0, "higher", False),
        (5.0, "higher", True),
    ],
)
def test_the_better_side_passes_and_no_number_fails(
    baselines: list[float], value: float, worse: str, fails: bool
) -> None:
    (answer,) = judge([[question(baselines, value, worse=worse)]], RATE)[0]
    assert answer.fails is fails


def test_values_that_are_no_number_on_both_sides_pass() -> None:
    for value in (math.nan, -math.inf):
        for count in (1, 3):
            (answer,) = judge([[question([value] * count, value)]], RATE)[0]
            assert not answer.fails


def test_one_quarter_of_a_measure_is_enough() -> None:
    parts = [question([0.0, 0.01, 0.005], value) for value in (0.0, 0.0, 0.0, 2.0)]
    answers = judge([parts, [question([0.0, 0.01, 0.005], 0.0)]], RATE)
    assert [answer.fails for answer in answers[0]] == [False, False, False, True]
    assert not answers[1][0].fails
