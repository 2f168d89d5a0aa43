"""The report's curves of several runs, laid over each other: a figure a measure, a line a run.

Training loss is averaged over spans of steps, since steps of several runs would hide each other; all others are thinned
as in a report, their extremes kept (`engine.series`). Judges nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trainscope.engine.compare.read import ObservedRun
from trainscope.engine.compare.result import Overlay
from trainscope.engine.curves import SERIES
from trainscope.engine.series import downsample
from trainscope.schema import Series

Columns = dict[str, Any]

FAR = 10
"""Runs whose highest values differ by more are drawn on a logarithmic scale."""
MOST_POINTS, LEAST_POINTS = 4800, 400
"""Of a figure, and of a line whatever the number of runs: twelve runs leave a page below 10 MB."""
MOST_MEANS = 40
"""Of a run's training loss."""
ABOUT_TRAINING = (
    "Means of spans of steps: noise and timesteps are drawn anew at every step, so single values say little."
)
BY_TIMESTEP = "loss_by_timestep"
TRAINING = "train_loss"
OF_ONE_RUN = ("ema_distance",)
"""Series that lay two things of one run over each other, and say nothing of several runs that others do not."""
NAMES = {"raw x": "raw", "ema x": "ema"}
"""Schedule-Free is evaluated at what it saves, x: other optimizers have one set of weights."""
CALLED = {("eval_loss", "raw"): "", ("eval_loss", "ema"): "EMA"}


def overlays(runs: Sequence[ObservedRun], labels: Sequence[str]) -> tuple[Overlay, ...]:
    """Every measure that a run has, in the order of `SERIES`."""
    own = [{series.name: series for series in run.report.series} for run in runs]
    return tuple(
        overlay
        for name in SERIES
        if name not in OF_ONE_RUN
        for overlay in _overlays(name, [each.get(name) for each in own], runs, labels)
    )


def _overlays(
    name: str, series: Sequence[Series | None], runs: Sequence[ObservedRun], labels: Sequence[str]
) -> Iterator[Overlay]:
    spec = SERIES[name]
    if name == TRAINING:
        lines = dict(_lines([_averaged(run) for run in runs], labels))
        if lines:
            log = _far_apart(lines.values())
            yield Overlay(name, spec.title, spec.unit, log, lines, about=ABOUT_TRAINING)
        return
    named = [
        {NAMES.get(line, line): columns for line, columns in each.lines.items()} if each else {} for each in series
    ]
    if all(len(each) <= 1 for each in named) and name != "eval_loss":
        # Each run has one line, whatever it is called: a group of another optimizer has another name.
        named = [dict(zip([""], each.values(), strict=False)) for each in named]
    most = max((len(line["step"]) for each in named for line in each.values()), default=0)
    recorded = max((each.recorded for each in series if each), default=0)
    if most > max(LEAST_POINTS, MOST_POINTS // len(labels)):
        recorded = max(recorded, most)
    for line in dict.fromkeys(line for each in named for line in each):
        lines = dict(_lines([each.get(line) for each in named], labels))
        suffix = CALLED.get((name, line), line)
        panel = name if name == BY_TIMESTEP else ""
        title = suffix if panel else ", ".join(filter(None, (spec.title, suffix)))
        log = spec.log_scale or (spec.unit != "share" and _far_apart(lines.values()))
        yield Overlay(name, title, spec.unit, log, lines, panel, spec.about, recorded)


def _far_apart(lines: Iterable[Columns]) -> bool:
    """Whether one run would press the others to the ground of a linear scale."""
    highest = [max(filter(math.isfinite, line["value"]), default=0.0) for line in lines]
    positive = [value for value in highest if value > 0]
    return len(positive) > 1 and max(positive) > FAR * min(positive)


def _lines(columns: Sequence[Columns | None], labels: Sequence[str]) -> Iterator[tuple[str, Columns]]:
    limit = max(LEAST_POINTS, MOST_POINTS // len(labels))
    for index, (found, label) in enumerate(zip(columns, labels, strict=True)):
        if found is not None:
            yield label, {**downsample(found["step"], found["value"], limit), "run": index}


def _averaged(run: ObservedRun) -> Columns | None:
    curve = run.curves.get("training loss")
    if curve is None or not curve.steps:
        return None
    width = max(curve.width, 1)
    while run.last_step > MOST_MEANS * width:
        width *= 2
    means = curve.coarser(width)
    return {"step": means.steps, "value": means.values}
