"""Curves of several runs → a number for each run, over the steps that all of them have.

A reduction depends neither on how often a run was looked at nor on its seed. Judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trainscope.engine.gate.measures import Measure, Reduction
from trainscope.engine.gate.profile import Curve, Profile
from trainscope.engine.gate.signals import SIGNALS

Array = NDArray[np.float64]
LATENT_CHANNELS = 4
QUARTERS = 4
SHARE_SPREAD = 0.35
"""How much a small component's share of the gradient varies between looks, as measured; relative."""
CONTENTION = 0.15
"""The quickest step's standard error as a share of ln(median / quickest), as measured on a machine that was shared."""


@dataclass(frozen=True)
class Points:
    """A curve on the common steps: steps [n], values [n], weights [n].

    `counted`: a weight is the number of values behind one; else it is what must agree between runs.
    """

    steps: Array
    values: Array
    weights: Array
    counted: bool
    last: float
    """The last step that all runs have."""


@dataclass(frozen=True)
class Number:
    """A run's value on the scale that it is judged on, and its standard error where the run itself shows one."""

    value: float
    error: float = 0.0
    freedom: float = math.inf
    """Degrees of freedom of the error."""


@dataclass(frozen=True)
class Reduced:
    """A measure at one place: `parts` have a number for each run, in their order; the curves belong to them.

    Most measures have one part; a learning rate has one for each quarter of the run, so that its course counts.
    """

    measure: Measure
    where: str
    parts: Mapping[str, Sequence[Number]]
    curves: Sequence[Points]


def places_of(measure: Measure, profile: Profile) -> list[str]:
    """Where the profile has the measure: components, groups, ranges of timesteps; "" for the whole run."""
    return [key.partition("/")[2] for key in profile.curves if key.partition("/")[0] == measure.signal]


def reduced(measure: Measure, where: str, profiles: Sequence[Profile]) -> Reduced | None:
    """The measure of all profiles; None where they have no step in common."""
    name = f"{measure.signal}/{where}" if where and measure.signal != "gradient" else measure.signal
    last = min(profile.last_step for profile in profiles)
    curves = common([profile.curves[name] for profile in profiles], last, SIGNALS[measure.signal].pooled)
    if measure.reduction in ("last", "mean") and measure.signal == "heldout":
        curves = [_after(points, 0) for points in curves]
    if any(not len(points.steps) for points in curves):
        return None
    parts = _REDUCTIONS[measure.reduction](curves, measure)
    if measure.signal == "gradient" and where:
        shares = common([profile.curves[f"gradient share/{where}"] for profile in profiles], last)
        if any(not len(points.steps) for points in shares):
            return None
        totals = parts[""]
        portions = [
            _share(number, len(points.steps)) for number, points in zip(_mean(shares, measure)[""], shares, strict=True)
        ]
        parts = {"": [_product(total, portion) for total, portion in zip(totals, portions, strict=True)]}
        # What differs more shows where the runs part.
        curves = shares if _range(portions) > _range(totals) else curves
    return Reduced(measure, where, parts, curves)


def _share(number: Number, looks: int) -> Number:
    """A share of a few looks shows too little of how much it varies; the whole's, which is 1, does not vary."""
    error = SHARE_SPREAD * max(0.0, 1 - math.exp(2 * number.value)) / math.sqrt(looks)
    return number if number.error > error else Number(number.value, error)


def _range(numbers: Sequence[Number]) -> float:
    return max(number.value for number in numbers) - min(number.value for number in numbers)


def common(curves: Sequence[Curve], last: int, pooled: Literal["mean", "min"] = "mean") -> list[Points]:
    """Bins of one width up to the step `last`; of looks those at which all looked, at the same draws."""
    width = max(curve.width for curve in curves)
    if width:
        whole = last // width * width
        points = [_points(curve.coarser(width, pooled), whole) for curve in curves]
        return [_chosen(each, each.steps <= whole) for each in points]
    points = [_points(curve, last) for curve in curves]
    shared = set.intersection(*({*zip(each.steps, each.weights, strict=True)} for each in points))
    return [_chosen(each, [pair in shared for pair in zip(each.steps, each.weights, strict=True)]) for each in points]


def _points(curve: Curve, last: float) -> Points:
    counts = curve.weights or [1.0 if curve.width else 0.0] * len(curve.steps)
    steps, values, weights = (np.array(column, dtype=np.float64) for column in (curve.steps, curve.values, counts))
    return Points(steps, values, weights, curve.width > 0, last)


def _chosen(points: Points, which: NDArray[np.bool_] | Sequence[bool]) -> Points:
    mask = np.asarray(which, dtype=bool)
    return Points(points.steps[mask], points.values[mask], points.weights[mask], points.counted, points.last)


def _after(points: Points, step: int) -> Points:
    return _chosen(points, points.steps > step)


def standard_error(values: Array, weights: Array) -> tuple[float, float]:
    """Of a weighted mean of a noisy curve, and its degrees of freedom; 0 for fewer than 4 values.

    The variance is that of successive differences, which a trend does not enter (von Neumann et al. 1941).
    """
    if len(values) < 4 or not np.isfinite(values).all() or weights.sum() <= 0:
        return 0.0, math.inf
    deviations = weights * (values - np.average(values, weights=weights)) / weights.mean()
    variance = float((np.diff(deviations) ** 2).mean()) / 2
    return math.sqrt(variance / len(values)), len(values) - 1


def trend_mean(points: Points) -> tuple[float, float, float]:
    """The mean of a curve over all steps, its standard error and degrees of freedom.

    A parabola is fitted by weighted least squares and averaged over every step: at which of them a sample happened to
    fall into a range of timesteps then does not matter. The error is that of what is left.
    """
    values, weights = points.values, points.weights if points.counted else np.ones_like(points.values)
    if len(values) < 8 or not np.isfinite(values).all():
        error, freedom = standard_error(values, weights)
        return float(np.average(values, weights=weights)), error, freedom
    fit = np.polynomial.Polynomial.fit(points.steps, values, 2, w=np.sqrt(weights), domain=[0, points.last])
    error, freedom = standard_error(values - fit(points.steps), weights)
    return float(fit(np.linspace(0, points.last, 201)[1:]).mean()), error, freedom


def _logarithm(value: float) -> float:
    return math.log(value) if value > 0 else (-math.inf if value == 0 else math.nan)


def _scaled(measure: Measure, mean: float, error: float, freedom: float) -> Number:
    if not measure.logarithmic:
        return Number(mean, error, freedom)
    return Number(_logarithm(mean), error / mean if mean > 0 else 0.0, freedom)


def _mean(curves: Sequence[Points], measure: Measure) -> dict[str, list[Number]]:
    found = []
    for points in curves:
        mean, error, freedom = trend_mean(points)
        if measure.signal == "noise":
            # The squared mean of white noise over a channel is χ² with one degree of freedom, variance 2.
            draws = LATENT_CHANNELS * max(1.0, float(points.weights.sum()))
            error, freedom = mean * math.sqrt(2 / draws), math.inf
        found.append(_scaled(measure, mean, error, freedom))
    return {"": found}


def _rms(curves: Sequence[Points], measure: Measure) -> dict[str, list[Number]]:
    return {"": [_scaled(measure, float(np.sqrt((points.values**2).mean())), 0.0, math.inf) for points in curves]}


def _last(curves: Sequence[Points], measure: Measure) -> dict[str, list[Number]]:
    return {"": [_scaled(measure, float(points.values[-1]), 0.0, math.inf) for points in curves]}


def _slope(curves: Sequence[Points], measure: Measure) -> dict[str, list[Number]]:
    """Change of ln(loss) over the second half, by least squares through the evaluations in it."""
    found = []
    for points in curves:
        later = _chosen(points, points.steps >= points.steps[-1] / 2)
        later = later if len(later.steps) > 1 else _chosen(points, points.steps >= points.steps[-2:][0])
        values = np.log(later.values) if (later.values > 0).all() else np.full_like(later.values, math.nan)
        slope = float(np.polyfit(later.steps, values, 1)[0]) if len(later.steps) > 1 else math.nan
        found.append(Number(slope * float(points.steps[-1]) / 2))
    return {"": found}


def _quarters(curves: Sequence[Points], measure: Measure) -> dict[str, list[Number]]:
    """The mean of each quarter of the common steps."""
    last = curves[0].last
    found: dict[str, list[Number]] = {}
    for number in range(QUARTERS):
        low, high = last * number / QUARTERS, last * (number + 1) / QUARTERS
        inside = [_chosen(points, (points.steps > low) & (points.steps <= high)) for points in curves]
        if all(len(points.steps) for points in inside):
            label = f"steps {math.floor(low) + 1} to {math.floor(high)}"
            found[label] = [_scaled(measure, float(points.values.mean()), 0.0, math.inf) for points in inside]
    return found


def _quick(curves: Sequence[Points], measure: Measure) -> dict[str, list[Number]]:
    """The quickest; other programs on the machine widen the distance from there to the median."""
    found = []
    for points in curves:
        quickest, middle = float(points.values.min()), float(np.median(points.values))
        error = CONTENTION * math.log(middle / quickest) if quickest > 0 else 0.0
        found.append(Number(_logarithm(quickest), error))
    return {"": found}


def _peak(curves: Sequence[Points], measure: Measure) -> dict[str, list[Number]]:
    return {"": [_scaled(measure, float(points.values.max()), 0.0, math.inf) for points in curves]}


def _growth(curves: Sequence[Points], measure: Measure) -> dict[str, list[Number]]:
    """From the first step, since a process may have held more before it began."""
    return {"": [Number(float(points.values.max() - points.values[0])) for points in curves]}


def _product(one: Number, other: Number) -> Number:
    """Of logarithms; the degrees of freedom are Welch's and Satterthwaite's."""
    variances = (one.error**2, other.error**2)
    parts = variances[0] ** 2 / one.freedom + variances[1] ** 2 / other.freedom
    freedom = sum(variances) ** 2 / parts if parts > 0 else math.inf
    return Number(one.value + other.value, math.sqrt(sum(variances)), freedom)


_REDUCTIONS: Mapping[Reduction, Callable[[Sequence[Points], Measure], dict[str, list[Number]]]] = {
    "mean": _mean,
    "last": _last,
    "rms": _rms,
    "slope": _slope,
    "quarters": _quarters,
    "quick": _quick,
    "peak": _peak,
    "growth": _growth,
}
