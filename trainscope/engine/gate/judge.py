"""Is a candidate's number one that the baselines would have given? With one baseline by floors, with several by
prediction intervals under control of the false discovery rate.

Knows numbers on the scale that they are judged on; knows neither runs nor what a number means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

from trainscope.engine.gate.reduce import Number

PRIOR_FREEDOM = 4.0
"""Degrees of freedom that the documented spread between seeds counts for, beside the n − 1 of the baselines."""
FLOOR_IN_SPREADS = 8.0
"""A floor is about eight times the spread between seeds that is usual: it must hold for runs that vary more, too."""
LEAST_SHARE = 0.3
"""However exactly baselines agree: a difference below this share of the floor is none (`Question.least`)."""
TAIL = 1e-4
"""How seldom two equal runs may differ by more than their own noise explains (two-sided)."""


@dataclass(frozen=True)
class Question:
    """One part of a measure: the numbers of the baselines and the candidate's, and the floor's half width."""

    baselines: Sequence[Number]
    candidate: Number
    floor: float
    worse: str
    least: float = LEAST_SHARE
    """With several baselines: the share of the floor that must be exceeded in any case."""


@dataclass(frozen=True)
class Answer:
    """`half_width` on either side of `centre` passes; `alone` is the half width if no other measure fails."""

    fails: bool
    centre: float
    half_width: float
    alone: float
    p_value: float | None

    @property
    def severity(self) -> float:
        """1 is the edge."""
        return 0.0 if self.half_width <= 0 else self.distance / self.half_width

    distance: float = 0.0
    """How far the candidate is off on the worse side."""


def judge(questions: Sequence[Sequence[Question]], rate: float) -> list[list[Answer]]:
    """The answers to the parts of each measure. `rate` is the false discovery rate over the measures.

    A measure that only one baseline has is judged by its floors beside the others.
    """
    answers = [[_by_floors(part) for part in parts] for parts in questions]
    several = [at for at, parts in enumerate(questions) if parts and len(parts[0].baselines) > 1]
    p_values = [min(1.0, len(questions[at]) * min(map(_p_value, questions[at]))) for at in several]
    found = discoveries(p_values, rate)
    alone = rate / max(len(several), 1)
    level = alone * max(1, sum(found))
    for at, rejected in zip(several, found, strict=True):
        parts = questions[at]
        answers[at] = [_by_interval(part, level / len(parts), alone / len(parts), rejected) for part in parts]
    return answers


def discoveries(p_values: Sequence[float], rate: float) -> list[bool]:
    """Benjamini and Hochberg's procedure (1995): which are false with at most `rate` false ones among them."""
    if not p_values:
        return []
    return [bool(adjusted <= rate) for adjusted in stats.false_discovery_control(np.array(p_values), method="bh")]


def _by_floors(part: Question) -> Answer:
    base, candidate = part.baselines[0], part.candidate
    noise = math.hypot(base.error * _factor(base.freedom, TAIL), candidate.error * _factor(candidate.freedom, TAIL))
    half = max(part.floor, noise)
    return _answer(part, base.value, half, half, None, True)


def _by_interval(part: Question, level: float, alone: float, rejected: bool) -> Answer:
    centre, spread, freedom = moderated(part)
    least = part.least * part.floor
    widths = [max(least, spread * _quantile(freedom, each, part.worse)) for each in (level, alone)]
    return _answer(part, centre, widths[0], widths[1], _p_value(part), rejected)


def moderated(part: Question) -> tuple[float, float, float]:
    """Centre, standard deviation of a prediction, and its degrees of freedom.

    The variance between the baselines is moderated by the documented one as in limma (Smyth 2004, equation 3):
    s̃² = (d₀s₀² + (n − 1)s²) / (d₀ + n − 1), since two or three runs say little of their own spread. A new run then
    lies within t·s̃·√(1 + 1/n) of the mean.
    """
    values = np.array([number.value for number in part.baselines])
    count = len(values)
    own = float(np.mean([number.error**2 for number in part.baselines]))
    prior = (part.floor / FLOOR_IN_SPREADS) ** 2 + own
    freedom = PRIOR_FREEDOM + count - 1
    apart = float(((values - values.mean()) ** 2).sum()) if np.isfinite(values).all() else 0.0
    variance = (PRIOR_FREEDOM * prior + apart) / freedom
    return float(values.mean()), math.sqrt(variance * (1 + 1 / count)), freedom


def _p_value(part: Question) -> float:
    centre, spread, freedom = moderated(part)
    value = part.candidate.value
    if not math.isfinite(value) or not math.isfinite(centre):
        return 0.0 if _broken(part, centre) else 1.0
    if abs(value - centre) <= part.least * part.floor:
        return 1.0
    if spread <= 0:
        return 0.0 if _off(part, value - centre) > 0 else 1.0
    score = (value - centre) / spread
    if part.worse == "both":
        return float(2 * special.stdtr(freedom, -abs(score)))
    return float(special.stdtr(freedom, -score if part.worse == "higher" else score))


def _quantile(freedom: float, level: float, worse: str) -> float:
    return -float(special.stdtrit(freedom, level / 2 if worse == "both" else level))


def _factor(freedom: float, tail: float) -> float:
    return -float(special.ndtri(tail / 2) if math.isinf(freedom) else special.stdtrit(freedom, tail / 2))


def _off(part: Question, difference: float) -> float:
    """How far on the worse side."""
    if part.worse == "both":
        return abs(difference)
    return max(0.0, difference if part.worse == "higher" else -difference)


def _broken(part: Question, centre: float) -> bool:
    """A candidate that has no number, or none that a logarithm has, where the baselines have one (or the reverse)."""
    value = part.candidate.value
    if math.isnan(value) or math.isnan(centre):
        return not math.isnan(centre)
    return value != centre and _off(part, value - centre) > 0


def _answer(part: Question, centre: float, half: float, alone: float, p: float | None, rejected: bool) -> Answer:
    value = part.candidate.value
    if not math.isfinite(value) or not math.isfinite(centre):
        broken = _broken(part, centre)
        return Answer(broken, centre, half, alone, p, math.inf if broken else 0.0)
    off = _off(part, value - centre)
    return Answer(rejected and off > half, centre, half, alone, p, off)
