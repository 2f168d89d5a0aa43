from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests.unit.engine.gate.profiles import at_looks, by_step, profile, scaled
from trainscope.engine.gate.measures import MEASURES
from trainscope.engine.gate.profile import Curve
from trainscope.engine.gate.reduce import common, places_of, reduced, standard_error, trend_mean
from trainscope.engine.gate.signals import SIGNALS


def number(name: str, where: str, *curves: Any, signal: str | None = None) -> list[float]:
    """A value for each of the runs whose curve of the measure is given."""
    key = f"{MEASURES[name].signal}/{where}" if where else MEASURES[name].signal
    runs = [profile(seed, curves={signal or key: curve}) for seed, curve in enumerate(curves)]
    found = reduced(MEASURES[name], where, runs)
    assert found is not None
    (numbers,) = found.parts.values()
    return [each.value for each in numbers]


def test_wider_bins_have_the_weighted_means_of_the_narrow_ones() -> None:
    curve = Curve(width=2, steps=[2, 4, 6, 8, 10], values=[1, 2, 3, 4, 5], weights=[1, 3, 1, 1, 1])
    wide = curve.coarser(4)
    assert (wide.steps, wide.values, wide.weights) == ([4, 8], [(1 + 3 * 2) / 4, 3.5], [4, 2])
    assert curve.coarser(4, "min").values == [1, 3]


def test_runs_of_different_lengths_are_compared_over_their_common_steps() -> None:
    short, long = by_step(range(1, 41)), by_step(range(1, 101), width=2)
    one, other = common([short, long], 40)
    assert one.steps.tolist() == other.steps.tolist() == list(range(2, 41, 2))
    assert one.values.tolist() == [1.5 + 2 * number for number in range(20)]


def test_looks_count_where_all_looked_at_the_same() -> None:
    often = at_looks({1: 1.0, 5: 2.0, 10: 3.0, 20: 4.0}, agree=16)
    seldom = at_looks({1: 1.0, 7: 9.0, 20: 4.0}, agree=16)
    assert [points.steps.tolist() for points in common([often, seldom], 20)] == [[1, 20], [1, 20]]
    assert not len(common([often, at_looks({1: 1.0, 20: 4.0}, agree=8)], 20)[0].steps)


@pytest.mark.parametrize("name", ["update", "distance", "delivered"])
def test_a_look_more_changes_nothing(name: str) -> None:
    few = at_looks({1: 1.0, 30: 2.0, 60: 3.0})
    many = at_looks(dict.fromkeys(range(1, 61), 7.0) | dict(zip(few.steps, few.values, strict=True)))
    one, other = number(name, "unet", few, many)
    assert one == pytest.approx(other)


def test_level_is_that_of_the_last_common_evaluation() -> None:
    one, other = number("heldout-loss", "weights", at_looks({0: 1.0, 30: 0.7, 60: 0.5}), at_looks({0: 1.0, 30: 0.6}))
    assert (math.exp(one), math.exp(other)) == (pytest.approx(0.7), pytest.approx(0.6))


def test_slope_is_that_of_the_second_half() -> None:
    curve = at_looks({step: math.exp(-0.01 * step) * (5.0 if step < 30 else 1.0) for step in range(0, 61, 10)})
    assert number("heldout-slope", "weights", curve)[0] == pytest.approx(-0.01 * 30)


def test_slope_of_two_evaluations_is_the_one_between_them() -> None:
    assert number("heldout-slope", "weights", at_looks({20: 1.0, 60: math.exp(-1.0)}))[0] == pytest.approx(-1 / 40 * 30)


def test_a_learning_rate_is_compared_by_quarters() -> None:
    falling = by_step(np.linspace(2, 0, 64))
    rising = by_step(np.linspace(0, 2, 64))
    runs = [profile(curves={"effective lr/unet": curve}) for curve in (falling, rising)]
    found = reduced(MEASURES["effective-lr"], "unet", runs)
    assert found is not None
    assert list(found.parts) == ["steps 1 to 16", "steps 17 to 32", "steps 33 to 48", "steps 49 to 64"]
    first, last = found.parts["steps 1 to 16"], found.parts["steps 49 to 64"]
    assert first[0].value == pytest.approx(last[1].value)
    assert first[0].value > first[1].value + 1


def test_gradient_of_a_component_is_its_share_of_the_whole() -> None:
    curves = {"gradient": by_step([3.0] * 64), "gradient share/unet": at_looks({1: 0.5, 60: 0.5})}
    found = reduced(MEASURES["gradient"], "unet", [profile(curves=curves)])
    assert found is not None
    assert math.exp(found.parts[""][0].value) == pytest.approx(1.5)


def test_a_share_of_few_looks_is_known_less_well() -> None:
    def error(share: float, looks: int) -> float:
        curves = {
            "gradient": by_step([1.0] * 64),
            "gradient share/unet": at_looks(dict.fromkeys(range(1, looks + 1), share)),
        }
        found = reduced(MEASURES["gradient"], "unet", [profile(curves=curves)])
        assert found is not None
        return found.parts[""][0].error

    assert error(0.6, 4) == pytest.approx(0.35 * (1 - 0.36) / 2)
    assert error(0.6, 1) == pytest.approx(2 * error(0.6, 4))
    assert error(1.0, 1) == pytest.approx(0, abs=1e-12)


def test_the_quickest_step_counts_and_contention_widens() -> None:
    quiet, busy = [0.02] * 64, [0.02, *[0.2] * 63]
    runs = [profile(curves={"seconds": by_step(values)}) for values in (quiet, busy)]
    found = reduced(MEASURES["throughput"], "", runs)
    assert found is not None
    one, other = found.parts[""]
    assert one.value == other.value == pytest.approx(math.log(0.02))
    assert (one.error, other.error) == (0.0, pytest.approx(0.15 * math.log(10)))


@pytest.mark.parametrize("trend", [0.0, 3.0])
def test_standard_error_is_that_of_the_mean_whatever_the_trend(trend: float) -> None:
    random = np.random.default_rng(1)
    course = np.linspace(trend, 0, 200)
    means, errors = [], []
    for _ in range(300):
        values = course + random.standard_normal(200)
        means.append(values.mean())
        errors.append(standard_error(values, np.ones(200))[0])
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.15)


def test_a_trend_does_not_depend_on_where_samples_fell() -> None:
    random = np.random.default_rng(2)
    spread, plain = [], []
    for _ in range(200):
        steps = np.flatnonzero(random.random(200) < 0.4) + 1
        curve = Curve(width=1, steps=steps.tolist(), values=(2 - steps / 100).tolist(), weights=[1.0] * len(steps))
        (points,) = common([curve], 200)
        spread.append(trend_mean(points)[0])
        plain.append(float(points.values.mean()))
    assert np.std(spread) < 0.05 * np.std(plain)
    assert np.mean(spread) == pytest.approx(1.0, abs=0.02)


def test_every_measure_has_a_signal_and_a_number() -> None:
    for measure in MEASURES.values():
        assert measure.signal in SIGNALS
        run = profile(curves={measure.signal: at_looks({step: 1.0 + step for step in (1, 2, 3, 8)}, agree=16)})
        found = reduced(measure, "", [run, run])
        assert found is not None
        assert all(math.isfinite(one.value) for numbers in found.parts.values() for one in numbers)


def test_a_loss_that_is_no_number_gives_none() -> None:
    values = [1.0] * 32 + [math.nan] * 32
    assert math.isnan(number("loss", "low noise", by_step(values))[0])


def test_nothing_in_common_gives_nothing() -> None:
    runs = [profile(curves={"update/unet": at_looks({step: 1.0})}) for step in (3, 4)]
    assert reduced(MEASURES["update"], "unet", runs) is None


def test_places_are_those_of_the_curves() -> None:
    assert places_of(MEASURES["loss"], profile()) == ["low noise", "high noise"]
    assert places_of(MEASURES["throughput"], profile()) == [""]
    assert places_of(MEASURES["d"], profile()) == []


def test_scaling_a_curve_scales_its_number() -> None:
    curve = profile().curves["loss/low noise"]
    one, other = number("loss", "low noise", curve, scaled(curve, 2.0))
    assert other - one == pytest.approx(math.log(2))
