"""What differs between runs before anything was measured: keys of the configuration, the environment, recorded facts.

A value that a run did not record is no difference. Judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trainscope.engine.compare.read import ObservedRun
from trainscope.engine.compare.result import Difference, Differences, Setting
from trainscope.engine.gate.setup import DATA, FREE, UNTRAINED_LOSS, Fact, is_same, plainer

OF_THE_RUN = ("run.name", "run.dir", "checkpoint.resume")
"""Keys that every run has for itself."""
LAST = ("sample.", "eval.", "probes.", "audit.", "checkpoint.")
"""Sections that change no weight: their keys come after the others, and what they were before a resume is left out."""
PLAN = "plan."
UNSET = ("default", "derived")
"""Origins of values that nobody asked for."""
MISSING = Setting(None, known="not recorded")

TOLD_BY = {
    "optimizer": ("optimizer.type",),
    "weight decay": ("optimizer.weight_decay", "optimizer.type"),
    "betas": ("optimizer.betas", "optimizer.type"),
    "eps": ("optimizer.eps", "optimizer.type"),
    "their format": ("precision.weights", "train.method"),
    "gradient clipped": ("train.max_grad_norm",),
    "samples a step": ("train.batch_size", "train.gradient_accumulation"),
    "LoRA scale": ("lora.alpha", "lora.rank", "train.method"),
    "target": ("model.prediction_type", "model.base"),
    "average": ("ema.enabled", "ema.decay"),
    "pictures in an epoch": ("data.repeats", "data.validation_split"),
    "picture sizes": ("data.resolution",),
}
"""Facts by the beginning of their names, and the keys that say the same where they differ."""


def config_differences(runs: Sequence[ObservedRun]) -> tuple[Differences, Differences]:
    """Keys that somebody set in one of the runs, and those that differ since others do, by default or arithmetic."""
    keys = sorted(
        {key for run in runs for key in run.config} - {*OF_THE_RUN}, key=lambda key: (key.startswith(LAST), key)
    )
    asked, implied, equal = [], [], 0
    for key in keys:
        row = Difference(key, tuple(_setting(key, run, runs) for run in runs))
        if not _differs(row.settings):
            # What one run alone knows is equal to nothing.
            equal += sum(setting.known == "yes" for setting in row.settings) > 1
        elif any(setting.known == "yes" and setting.origin not in UNSET for setting in row.settings):
            asked.append(row)
        else:
            implied.append(row)
    return Differences(tuple(asked), equal), Differences(tuple(implied))


def _setting(key: str, run: ObservedRun, runs: Sequence[ObservedRun]) -> Setting:
    found = run.config.get(key)
    if found is not None:
        return replace(found, earlier=()) if key.startswith((*LAST, PLAN)) else found
    # Our own trainer records every key that its optimizer has; of other programs' keys it knows nothing.
    having = [other for other in runs if key in other.config and _is_own(other)]
    if _is_own(run) and key.startswith("optimizer.") and any(_optimizer(run) != _optimizer(other) for other in having):
        return Setting(None, known="no such key")
    return MISSING


def _is_own(run: ObservedRun) -> bool:
    return bool(run.config) and run.report.run.get("origin") == "trainscope"


def _optimizer(run: ObservedRun) -> str:
    kind = run.config.get("optimizer.type")
    return str(kind.value) if kind else ""


def _differs(settings: Sequence[Setting]) -> bool:
    # A key that is not set, and one that the optimizer does not have: neither does anything.
    known = [(each.value, each.earlier) for each in settings if each.known != "not recorded"]
    return any(each != known[0] for each in known[1:])


def environment_differences(runs: Sequence[ObservedRun]) -> Differences:
    """Versions and devices that are not the same."""
    rows = []
    names = list(dict.fromkeys(name for run in runs for name in run.environment))
    for name in names:
        values = [run.environment.get(name) for run in runs]
        if len({value for value, run in zip(values, runs, strict=True) if run.environment}) > 1:
            rows.append(
                Difference(
                    name,
                    tuple(
                        Setting(value, known="yes" if value else "no such key" if run.environment else "not recorded")
                        for value, run in zip(values, runs, strict=True)
                    ),
                )
            )
    return Differences(tuple(rows), len(names) - len(rows))


def observed_differences(runs: Sequence[ObservedRun], told: Sequence[str]) -> Differences:
    """What the log says of model, data and optimizer, but for what the keys `told` say already."""
    names = list(dict.fromkeys(name for run in runs for name in run.facts))
    names = [name for name in names if name != FREE and not name.startswith(UNTRAINED_LOSS)]
    differ = [name for name in names if _facts_differ(name, [run.facts for run in runs])]
    shown = [name for name in differ if plainer(name) not in differ and not _is_told(name, told)]
    rows = tuple(Difference(_called(name), _facts(name, runs)) for name in shown)
    return Differences(rows, len(names) - len(differ))


def _facts_differ(name: str, facts: Sequence[Mapping[str, Fact]]) -> bool:
    known = [each[name] for each in facts if name in each]
    if name.startswith("trained weights,") and len(known) < sum(bool(each) for each in facts):
        return True  # a part of the model that not all of them train
    return any(not is_same(name, known[0], other) for other in known[1:])


def _is_told(name: str, told: Sequence[str]) -> bool:
    keys = next(
        (keys for start, keys in TOLD_BY.items() if name.startswith(start)), (f"data.{name.replace(' ', '_')}",)
    )
    return any(key in told for key in keys)


def _called(name: str) -> str:
    if name.endswith(" tensors"):
        return f"trained {name}"
    return name.removesuffix(" as a whole")


def _facts(name: str, runs: Sequence[ObservedRun]) -> tuple[Setting, ...]:
    values = [run.facts.get(name) for run in runs]
    if name in DATA or name.endswith(" tensors"):
        classes = {
            value: f"set {chr(ord('A') + number)}" for number, value in enumerate(dict.fromkeys(filter(None, values)))
        }
        values = [classes.get(value) for value in values]
    # What a run does not train it has no weights of.
    absent = [name.startswith("trained weights,") and bool(run.facts) for run in runs]
    return tuple(
        Setting(value, known="yes" if value is not None else "no such key" if none else "not recorded")
        for value, none in zip(values, absent, strict=True)
    )
