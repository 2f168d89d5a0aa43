"""Which run ends with the lowest held-out loss, among those whose losses compare at all.

Losses compare where they were measured on the same pictures, with the same draws and target, of the same latents; two
runs differ by chance alone, as two seeds do, and by how much is the gate's to know. Draws nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from trainscope.engine.compare.read import RAW, ObservedRun
from trainscope.engine.compare.result import Standing
from trainscope.engine.gate.measures import MEASURES
from trainscope.engine.gate.setup import UNTRAINED_LOSS, is_same

LATENTS = ("model.base", "model.vae")
SHOWN = 4
"""Of many names in a sentence."""


def standing(runs: Sequence[ObservedRun], labels: Sequence[str]) -> tuple[Standing, list[str]]:
    """The ranking, and why runs are not in it.

    It is made at the last step at which at least two, and at least half, of the runs were evaluated: so neither a run
    that ended early nor one that went on for long decides for all.
    """
    having = {index: runs[index].held_out[RAW].losses for index in _once(runs) if _trained(runs[index])}
    if len(having) < 2:
        return Standing(), []
    group = _largest(list(having), runs)
    reasons = [
        f"{labels[index]} is not ranked: {_obstacle(runs[index], runs[group[0]])}"
        for index in having
        if index not in group
    ]
    if len(group) < 2:
        return Standing(), reasons
    step = _last_shared([having[index] for index in group])
    if step is None:
        return Standing(), [*reasons, "The runs were evaluated at no common step, so none is ranked"]
    for index in group:
        if (last := max(having[index])) < step:
            reasons.append(f"{labels[index]} was evaluated up to step {last} only, and is not ranked")
        elif step not in having[index]:
            reasons.append(f"{labels[index]} was not evaluated at step {step}, and is not ranked")
    ranked = [index for index in group if step in having[index]]
    if longer := [labels[index] for index in ranked if max(having[index]) > step]:
        reasons.append(f"{listed(longer)} went on beyond step {step}, where the held-out losses are ranked")
    return _ranked({index: having[index] for index in ranked}, step, runs), reasons


def _once(runs: Sequence[ObservedRun]) -> list[int]:
    """A run that is named twice, or copied, is no rival of its own."""
    first: dict[object, int] = {}
    for index, run in enumerate(runs):
        first.setdefault((run.report.run.get("id") or index, run.last_step), index)
    return list(first.values())


def _trained(run: ObservedRun) -> bool:
    return RAW in run.held_out and any(step > 0 for step in run.held_out[RAW].losses)


def _last_shared(losses: Sequence[Mapping[int, float]]) -> int | None:
    counts = Counter(step for own in losses for step in own if step > 0)
    for least in (math.ceil(len(losses) / 2), 2):
        if shared := [step for step, count in counts.items() if count >= max(2, least)]:
            return max(shared)
    return None


def _largest(candidates: Sequence[int], runs: Sequence[ObservedRun]) -> list[int]:
    """The runs that compare with the same one: the most there are, the first ones where several groups have as many."""
    groups = [[other for other in candidates if not _obstacle(runs[other], runs[index])] for index in candidates]
    return max(groups, key=len)


def _obstacle(run: ObservedRun, other: ObservedRun) -> str:
    """Why the held-out losses of two runs do not compare; empty where they do."""
    one, two = run.held_out[RAW].basis, other.held_out[RAW].basis
    names = ("number of draws", "split", "set of held-out pictures", "target")
    differing = [name for name, old, new in zip(names, one, two, strict=True) if old and new and old != new]
    if differing:
        return f"its held-out loss was measured otherwise (another {', another '.join(differing)})"
    starts = [each.held_out[RAW].losses.get(0) for each in (run, other)]
    if None not in starts and all(is_same(UNTRAINED_LOSS, starts[0], start) for start in starts[1:]):
        return ""
    latents = [[each.config[key].value for key in LATENTS if key in each.config] for each in (run, other)]
    if len(latents[0]) == len(LATENTS) and latents[0] == latents[1]:
        return ""
    if None in starts and not all(len(each) == len(LATENTS) for each in latents):
        return ""  # nothing says that they differ
    return "it began from another model"


def _ranked(losses: Mapping[int, Mapping[int, float]], step: int, runs: Sequence[ObservedRun]) -> Standing:
    at = {index: own[step] for index, own in losses.items()}
    order = sorted(at, key=lambda index: at[index] if math.isfinite(at[index]) else math.inf)
    best = at[order[0]]
    if not math.isfinite(best) or best <= 0:
        return Standing(tuple(order), tuple(order), tuple(at[index] for index in order), step)
    half = _by_chance(best, [losses[index] for index in order], step, [runs[index] for index in order])
    alike = [index for index in order if at[index] > 0 and math.log(at[index] / best) <= half]
    return Standing(tuple(order), tuple(alike), tuple(at[index] for index in order), step)


def _by_chance(best: float, losses: Sequence[Mapping[int, float]], step: int, runs: Sequence[ObservedRun]) -> float:
    """The difference of logarithms that the gate lets pass between two runs of the same configuration."""
    measure = MEASURES["heldout-loss"]
    estimated = measure.estimated if any(run.estimates_its_lr for run in runs) else None
    falls = [abs(math.log(own[0] / own[step])) for own in losses if 0 in own and _positive(own[0], own[step])]
    return measure.half_width(estimated or measure.floor, math.log(best), max(falls, default=0.0))


def _positive(*values: float) -> bool:
    return all(math.isfinite(value) and value > 0 for value in values)


def summary(found: Standing, labels: Sequence[str]) -> str:
    """The ranking in one sentence."""
    if not found.ranked:
        return "No held-out loss tells these runs apart"
    at, best = f"at step {found.step}", found.losses[0]
    if not math.isfinite(best):
        return f"No run has a finite held-out loss {at}"
    names = [labels[index] for index in found.ranked]
    count = len(found.alike)
    if count == 1:
        second = found.losses[1]
        than = (
            f"{100 * (1 - best / second):.0f} % below {names[1]}" if math.isfinite(second) else f"{names[1]} has none"
        )
        return f"{names[0]} has the lowest held-out loss {at}: {best:.3g}, {than}"
    if len(set(found.losses)) == 1:
        return f"{listed(names)} have the same held-out loss {at}: {best:.3g}"
    told = [
        f"{name} ({f'{loss:.3g}' if math.isfinite(loss) else 'not finite'})"
        for name, loss in zip(names, found.losses, strict=True)
    ]
    behind = f"; {listed(told[count:])} {'is' if len(names) == count + 1 else 'are'} behind" if told[count:] else ""
    alike = listed(told[:count])
    return f"Too close to call {at}: another seed changes the held-out loss as much as {alike} differ{behind}"


def listed(names: Sequence[str]) -> str:
    """Several names in a sentence; of many the first ones."""
    shown = [*names[:SHOWN], f"{len(names) - SHOWN} more"] if len(names) > SHOWN + 1 else names
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
