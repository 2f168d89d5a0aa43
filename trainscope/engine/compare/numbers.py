"""The table of numbers: held-out loss, time, memory and what the optimizer did, a row a measure and a column a run.

Each number is of the whole run, as far as it went. Judges nothing but which held-out loss is lowest (`standing`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from trainscope.engine.compare.read import AVERAGE, RAW, ObservedRun, Totals
from trainscope.engine.compare.result import NumberRow, Standing, Value
from trainscope.engine.gate.profile import Curve

Reduce = Callable[[Curve], float]

HELD_OUT, OPTIMIZER, COST = "Held-out loss", "What the optimizer did", "Time and memory"

_COST: Sequence[tuple[str, str, Callable[[Totals], float | None]]] = (
    ("Time in steps", "s", lambda totals: totals.seconds),
    ("Time of a step, median", "s", lambda totals: totals.step_seconds),
    ("Samples seen", "samples", lambda totals: totals.samples),
    ("Peak memory of the accelerator", "bytes", lambda totals: totals.memory),
    ("Peak memory of the process", "bytes", lambda totals: totals.resident),
)


def _mean(curve: Curve) -> float:
    return sum(curve.values) / len(curve.values)


def _highest(curve: Curve) -> float:
    return math.nan if any(math.isnan(value) for value in curve.values) else max(curve.values)


def _last(curve: Curve) -> float:
    return curve.values[-1]


_CURVES: Sequence[tuple[str, str, Reduce]] = (
    ("Effective learning rate, highest", "effective lr", _highest),
    ("Estimated step size d, at the end", "d", _last),
    ("Distance from the start, at the end", "distance", _last),
    ("Share of the updates that arrived in the weights (1 = all), mean", "delivered", _mean),
    ("EMA lag at the end (0 = with the weights, 1 = at the start)", "ema lag", _last),
)
"""Title, signal of the gate, and what is made of its curve."""


def numbers(runs: Sequence[ObservedRun], standing: Standing) -> tuple[NumberRow, ...]:
    """Every row that a run has a number for."""
    rows = [*_held_out(runs, standing), *_optimizer(runs), *_cost(runs)]
    return tuple(row for row in rows if any(each.value is not None for each in row.values))


def _held_out(runs: Sequence[ObservedRun], standing: Standing) -> Iterator[NumberRow]:
    best = standing.alike[0] if len(standing.alike) == 1 else None
    for kind, suffix in ((RAW, ""), (AVERAGE, ", EMA")):
        losses = [dict(run.held_out[kind].losses) if kind in run.held_out else {} for run in runs]
        if kind == RAW:
            yield _row("Before the first step", [Value(own.get(0)) for own in losses])
        ends = [_at(own, max(own, default=None)) for own in losses]
        # A row of its own for the step of the ranking, unless all that are ranked end there.
        shared = (
            standing.step if kind == RAW and any(ends[run].step != standing.step for run in standing.ranked) else None
        )
        if shared is not None:
            yield _row(f"At step {shared}", [Value(own.get(shared)) for own in losses], best)
        yield _row(f"At the end{suffix}", ends, best if kind == RAW and shared is None else None)
        lowest = [_at(own, _lowest(own)) for own in losses]
        if lowest != ends:
            yield _row(f"Lowest{suffix}", lowest)
    yield _row("Training loss, mean of the last quarter", [Value(run.totals.last_loss) for run in runs])


def _row(title: str, values: Sequence[Value], best: int | None = None) -> NumberRow:
    return NumberRow(HELD_OUT, title, "", tuple(values), best)


def _at(losses: dict[int, float], step: int | None) -> Value:
    return Value(None) if step is None else Value(losses[step], step)


def _lowest(losses: dict[int, float]) -> int | None:
    finite = [step for step, loss in losses.items() if math.isfinite(loss)]
    return min(finite, key=lambda step: losses[step]) if finite else None


def _optimizer(runs: Sequence[ObservedRun]) -> Iterator[NumberRow]:
    for title, signal, reduce in _CURVES:
        for where, curves in _by_place(signal, runs):
            values = [Value(reduce(curve) if curve is not None else None) for curve in curves]
            yield NumberRow(OPTIMIZER, f"{title}, {where}" if where else title, "", tuple(values))
    gradients = tuple(Value(run.totals.gradient) for run in runs)
    yield NumberRow(OPTIMIZER, "Gradient norm before clipping, median", "", gradients)


def _by_place(signal: str, runs: Sequence[ObservedRun]) -> Iterator[tuple[str, Sequence[Curve | None]]]:
    """Where a measure was taken (a component, a group; "" for the whole run), and each run's curve there."""
    own = [
        {key.partition("/")[2]: curve for key, curve in run.curves.items() if key.partition("/")[0] == signal}
        for run in runs
    ]
    places = list(dict.fromkeys(where for each in own for where in each))
    if len(places) > 1 and all(len(each) <= 1 for each in own):
        # One place in each run: it has another name in another program, and is all that is trained.
        yield "", [next(iter(each.values()), None) for each in own]
        return
    for where in places:
        yield where, [each.get(where) for each in own]


def _cost(runs: Sequence[ObservedRun]) -> Iterator[NumberRow]:
    yield NumberRow(COST, "Steps", "steps", tuple(Value(float(run.last_step)) for run in runs))
    for title, unit, of in _COST:
        yield NumberRow(COST, title, unit, tuple(Value(of(run.totals)) for run in runs))
