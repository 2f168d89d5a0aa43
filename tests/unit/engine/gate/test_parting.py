from __future__ import annotations

import math

import numpy as np
import pytest

from trainscope.engine.gate.parting import parting_step
from trainscope.engine.gate.reduce import Points


def points(values: list[float]) -> Points:
    steps = np.arange(1, len(values) + 1, dtype=np.float64)
    return Points(steps, np.array(values), np.ones(len(values)), True, len(values))


def parting(candidate: list[float], *baselines: list[float], sign: float = 1.0, half_width: float = 0.2) -> int | None:
    return parting_step(
        points(candidate), [points(each) for each in baselines], half_width=half_width, sign=sign, logarithmic=False
    )


FLAT = [0.0] * 15


@pytest.mark.parametrize("since", [1, 5, 15])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_curves_part_where_the_change_begins(since: int, sign: float) -> None:
    changed = [sign if step >= since else 0.0 for step in range(1, 16)]
    assert parting(changed, FLAT, sign=sign) == since


def test_a_spike_before_is_not_where_they_part() -> None:
    assert parting([0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1], FLAT) == 10


def test_where_the_candidate_comes_back_it_is_the_first_step_outside() -> None:
    assert parting([0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0], FLAT) == 4


def test_the_band_is_that_of_all_baselines() -> None:
    ramp = [step / 10 for step in range(1, 16)]
    assert parting(ramp, FLAT) == 2
    assert parting(ramp, FLAT, [0.5] * 15) == 7


def test_nothing_outside_is_no_step() -> None:
    assert parting(FLAT, FLAT) is None
    assert parting([], FLAT) is None


def test_the_step_of_the_first_value_that_is_no_number() -> None:
    assert parting([0.0] * 9 + [math.nan] * 6, FLAT) == 10


def test_noise_is_smoothed_in_a_long_curve() -> None:
    random = np.random.default_rng(4)
    base = (0.3 * random.standard_normal(400)).tolist()
    changed = (0.3 * random.standard_normal(400) + np.where(np.arange(400) >= 200, 1.0, 0.0)).tolist()
    step = parting(changed, base, half_width=0.5)
    assert step is not None
    assert 180 <= step <= 220
