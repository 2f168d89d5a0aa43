"""The gate: a candidate's profile beside those of the baselines, measure by measure, and the verdict.

Opens no run and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from trainscope.engine.gate.exact import exact_comparisons
from trainscope.engine.gate.judge import LEAST_SHARE, Answer, Question, judge
from trainscope.engine.gate.measures import MEASURES, Floor, Measure, with_floor
from trainscope.engine.gate.notes import changed_keys, notes
from trainscope.engine.gate.parting import parting_step
from trainscope.engine.gate.policy import Policy
from trainscope.engine.gate.profile import Profile
from trainscope.engine.gate.reduce import Reduced, places_of, reduced
from trainscope.errors import RunError
from trainscope.schema import Compared, ComparedRun, Comparison, GateResult

FLOORS = "floors"
"""The method with one baseline."""


def gate(
    candidate: Profile,
    baselines: Sequence[Profile],
    policy: Policy | None = None,
    *,
    strict: bool = False,
    crashed: Sequence[str] = (),
) -> GateResult:
    """Compare a candidate with its baselines. Raises `RunError` where there is nothing to compare."""
    policy = policy or Policy()
    for profile in (candidate, *baselines):
        if profile.last_step == 0:
            raise RunError(f"{profile.source or profile.name} has no step to compare: it ended before the first one")
    comparisons = [*exact_comparisons(candidate, baselines, policy), *_numbers(candidate, baselines, policy)]
    comparisons = [_ignored(one, policy) for one in comparisons]
    strict = strict or policy.strict
    outcomes = {one.outcome for one in comparisons}
    return GateResult(
        verdict="fail" if "fail" in outcomes or (strict and "missing" in outcomes) else "pass",
        summary=_summary(comparisons, strict=strict),
        method=_interval(len(baselines)) if len(baselines) > 1 else FLOORS,
        candidate=_run(candidate),
        baselines=tuple(_run(profile) for profile in baselines),
        comparisons=tuple(comparisons),
        changed=changed_keys(candidate, baselines[0]),
        notes=notes(candidate, baselines),
        crashed=tuple(crashed),
        strict=strict,
        last_step=min(profile.last_step for profile in (candidate, *baselines)),
    )


def _interval(count: int) -> str:
    return f"prediction interval of {count} runs"


def _run(profile: Profile) -> ComparedRun:
    return ComparedRun(profile.name, profile.id, profile.source, profile.status, profile.last_step)


def _summary(comparisons: Sequence[Comparison], *, strict: bool) -> str:
    """One sentence; a measure at several places counts once."""

    def names(*outcomes: Compared) -> list[str]:
        return list(dict.fromkeys(one.name for one in comparisons if one.outcome in outcomes))

    compared, failed, missing = len(names("pass", "fail")), names("fail"), names("missing")
    if failed:
        return f"{len(failed)} of {compared} measures fail: {', '.join(failed)}"
    if missing and strict:
        return f"no measure fails, but signals are missing: {', '.join(missing)}"
    return f"none of {compared} measures fails"


def _ignored(one: Comparison, policy: Policy) -> Comparison:
    if one.outcome in ("fail", "missing") and policy.ignores(one.name, one.where):
        return replace(one, outcome="not comparable", reason=f"ignored by the policy: {one.reason}")
    return one


@dataclass(frozen=True)
class _Pair:
    """A measure at a place that can be judged."""

    reduced: Reduced
    floor: Floor
    count: int


def _numbers(candidate: Profile, baselines: Sequence[Profile], policy: Policy) -> Iterator[Comparison]:
    learned = _learned(baselines)
    estimated = any(profile.estimates_its_lr for profile in baselines)
    pairs: list[_Pair] = []
    order: list[Comparison | int] = []
    for measure in _measures(candidate, baselines, policy):
        floor = measure.estimated if estimated and measure.estimated is not None else measure.floor
        if measure.on_cpu is not None and candidate.hardware.get("device") == "cpu":
            floor = measure.on_cpu
        for where in _places(measure, candidate, baselines):
            found = _comparable(measure, where, candidate, baselines)
            if isinstance(found, Comparison):
                order.append(found)
            else:
                order.append(len(pairs))
                pairs.append(_Pair(found, floor, len(next(iter(found.parts.values()))) - 1))
    answers = judge([_questions(pair, learned) for pair in pairs], policy.false_discovery_rate)
    for entry in order:
        yield entry if isinstance(entry, Comparison) else _judged(pairs[entry], answers[entry])


def _measures(candidate: Profile, baselines: Sequence[Profile], policy: Policy) -> Iterator[Measure]:
    """The measures with the policy's floors; a log without timesteps has its loss as a whole."""
    by_timestep = any(key.startswith("loss/") for profile in (candidate, *baselines) for key in profile.curves)
    for name, measure in MEASURES.items():
        if measure.signal == "loss" and not by_timestep:
            measure = replace(measure, signal="training loss")
        if name in policy.floors:
            own = policy.floors[name]
            measure = with_floor(measure, Floor(own.relative, own.absolute))
        if name == "resident-memory" and all("memory" in profile.curves for profile in (candidate, *baselines)):
            continue  # what a process holds beside the accelerator's memory says little
        yield measure


def _places(measure: Measure, candidate: Profile, baselines: Sequence[Profile]) -> list[str]:
    profiles = (candidate, *baselines)
    if measure.signal == "gradient":
        shares = replace(measure, signal="gradient share")
        if all(places_of(shares, profile) for profile in profiles):
            measure = shares
    found = dict.fromkeys(place for profile in profiles for place in places_of(measure, profile))
    if measure.reduction == "slope":
        found.pop("average", None)  # the average's loss follows that of the weights
    return list(found) or ([""] if measure.expected else [])


def _comparable(measure: Measure, where: str, candidate: Profile, baselines: Sequence[Profile]) -> Reduced | Comparison:
    """The numbers of a measure, or why there are none."""
    having = [profile for profile in baselines if where in _own_places(measure, where, profile)]
    if where not in _own_places(measure, where, candidate):
        reason = candidate.absent.get(measure.signal, "")
        where_from = "the candidate did not record it" if having else "neither the candidate nor a baseline recorded it"
        return _without(measure, where, "missing", f"{where_from} ({reason})" if reason else where_from)
    if not having:
        return _without(measure, where, "not comparable", "no baseline recorded it")
    if measure.same_hardware and (other := _other_hardware(candidate, having)):
        return _without(measure, where, "not comparable", other)
    found = reduced(measure, where, [candidate, *having])
    if found is None:
        return _without(measure, where, "not comparable", "the runs were measured at no common step, or otherwise")
    if (known := min(len(points.steps) for points in found.curves)) < measure.least_points:
        return _without(
            measure, where, "not comparable", f"{known} steps are too few, {measure.least_points} are needed"
        )
    return found


def _own_places(measure: Measure, where: str, profile: Profile) -> list[str]:
    if measure.signal == "gradient" and where:
        measure = replace(measure, signal="gradient share")
    return places_of(measure, profile)


def _other_hardware(candidate: Profile, baselines: Sequence[Profile]) -> str:
    for baseline in baselines:
        if not candidate.hardware or not baseline.hardware:
            return "the hardware of a run is not known"
        for name, value in baseline.hardware.items():
            if candidate.hardware.get(name) != value:
                return f"other hardware: {name} {value} → {candidate.hardware.get(name)}"
    return ""


def _without(measure: Measure, where: str, outcome: Compared, reason: str) -> Comparison:
    return Comparison(
        name=measure.name,
        where=where,
        title=measure.title,
        unit=measure.unit,
        outcome=outcome,
        baseline=(),
        candidate=None,
        allowed=(None, None),
        smallest_change=None,
        relative=measure.logarithmic,
        parts_at=None,
        method="",
        reason=reason,
    )


def _learned(baselines: Sequence[Profile]) -> float:
    """|ln| of the factor by which the held-out loss fell, the largest of the baselines'; 0 where it is not known."""
    found = [0.0]
    for profile in baselines:
        curve = profile.curves.get("heldout/weights")
        if curve and len(curve.values) > 1 and min(curve.values[0], curve.values[-1]) > 0:
            ratio = curve.values[0] / curve.values[-1]
            found.append(abs(math.log(ratio)) if 0 < ratio < math.inf else 0.0)
    return max(found)


def _questions(pair: _Pair, learned: float) -> list[Question]:
    measure = pair.reduced.measure
    questions = []
    for candidate, *others in pair.reduced.parts.values():
        base = sum(other.value for other in others) / len(others)
        half = measure.half_width(pair.floor, base, learned)
        # Baselines that ran one after another do not show how busy the machine is at another time.
        least = 1.0 if measure.same_hardware else LEAST_SHARE
        questions.append(Question(others, candidate, half, measure.worse, least))
    return questions


def _judged(pair: _Pair, answers: Sequence[Answer]) -> Comparison:
    found = pair.reduced
    measure = found.measure
    at = max(range(len(answers)), key=lambda number: (answers[number].fails, answers[number].severity))
    answer = answers[at]
    label, numbers = list(found.parts.items())[at]
    candidate, *others = numbers
    low = None if measure.worse == "higher" else _natural(measure, answer.centre - answer.half_width)
    high = None if measure.worse == "lower" else _natural(measure, answer.centre + answer.half_width)
    sign = 1.0 if candidate.value > answer.centre or math.isnan(candidate.value) else -1.0
    parts_at = None
    if answer.fails:
        own, *curves = found.curves
        parts_at = parting_step(
            own,
            curves,
            half_width=answer.half_width,
            sign=sign,
            logarithmic=measure.logarithmic,
        )
    return Comparison(
        name=measure.name,
        where=found.where,
        title=measure.title,
        unit=measure.unit,
        outcome="fail" if answer.fails else "pass",
        baseline=tuple(_natural(measure, number.value) for number in others),
        candidate=_natural(measure, candidate.value),
        allowed=(low, high),
        smallest_change=math.expm1(answer.alone) if measure.logarithmic else answer.alone,
        relative=measure.logarithmic,
        parts_at=parts_at,
        method=_interval(len(others)) if len(others) > 1 else FLOORS,
        reason=_reason(answer, sign, label),
        p_value=answer.p_value,
    )


def _natural(measure: Measure, value: float) -> float:
    if not measure.logarithmic:
        return value
    return math.exp(value) if value < 700 else math.inf


def _reason(answer: Answer, sign: float, label: str) -> str:
    within = f", in {label}" if label else ""
    if not answer.fails:
        return ""
    if math.isinf(answer.severity):
        return f"one of them is no finite positive number{within}"
    side = "too high" if sign > 0 else "too low"
    return f"{side}, {answer.severity:.1f} times the change that fails{within}"
