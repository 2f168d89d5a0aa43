"""What a comparison of runs says: the content of comparison.json, which every other format is drawn from.

A list that has one entry a run has them in the order of `RunComparison.runs`. Knows nothing of how it comes about.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainscope.schema import Severity

COMPARISON_FORMAT = 1
KIND = "trainscope comparison"
"""Tells the JSON file from others."""

Known = Literal["yes", "no such key", "not recorded"]
Cell = Literal["fired", "clear", "not_applicable", "not_observable", "crashed", "not_asked"]


@dataclass(frozen=True)
class RunSummary:
    """A run that is compared. `label` is unique; `path` is its directory."""

    label: str
    name: str
    id: str
    path: str
    origin: str
    status: str
    last_step: int
    planned_steps: int | None
    created: str
    resumed_at: tuple[int, ...]
    findings: dict[str, int]
    """How many, by severity."""
    unseen: int = 0
    """Rules that concern the run and could not look: their silence says nothing."""
    headline: str = ""
    """What its gravest diagnosis is called; empty where there is none."""


@dataclass(frozen=True)
class Earlier:
    """The value that a key had in an earlier segment; `until` is that segment's last step that counts."""

    value: Any
    until: int


@dataclass(frozen=True)
class Setting:
    """A run's value of a key. `known` says why there is none; `origin` is file, cli, default, derived …"""

    value: Any
    known: Known = "yes"
    origin: str = ""
    earlier: tuple[Earlier, ...] = ()


@dataclass(frozen=True)
class Difference:
    """A key that is not the same in all runs."""

    key: str
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Differences:
    """The keys that differ, of one kind; `equal` counts the others."""

    differing: tuple[Difference, ...] = ()
    equal: int = 0


@dataclass(frozen=True)
class FindingCell:
    """What a rule said of a run; `message` is the finding's, or why the rule could not look."""

    outcome: Cell
    message: str = ""
    first_step: int | None = None


@dataclass(frozen=True)
class FindingRow:
    """A rule that fired on at least one of the runs."""

    code: str
    name: str
    severity: Severity
    summary: str
    cells: tuple[FindingCell, ...]


@dataclass(frozen=True)
class Value:
    """A run's number; None where it was not measured. `step` is where it was, if that says something."""

    value: float | None
    step: int | None = None


@dataclass(frozen=True)
class NumberRow:
    """A measure of all runs. `unit` is bytes, s or a word; `best` is the index of the run that is clearly best."""

    group: str
    title: str
    unit: str
    values: tuple[Value, ...]
    best: int | None = None


@dataclass(frozen=True)
class Overlay:
    """A measure over the steps, one line a run: `lines` maps a label to columns `step` and `value`, and its `run`.

    Overlays of the same `panel` are small multiples of one figure. `about` explains the measure; `recorded` is the
    number of steps of the longest line where some of them were left out, else 0.
    """

    name: str
    title: str
    unit: str
    log_scale: bool
    lines: dict[str, dict[str, Any]]
    panel: str = ""
    about: str = ""
    recorded: int = 0


@dataclass(frozen=True)
class ComparedSample:
    """An image; `path` is relative to the directory of the run with the index `run`."""

    run: int
    step: int
    path: str
    prompt: str
    seed: int
    weights: str
    distance: float | None = None


@dataclass(frozen=True)
class Standing:
    """Which run ends with the lowest held-out loss. `step` is where they are compared.

    `ranked` are the runs that can be compared with each other, the best first, and `losses` what they reached there;
    `alike` those of them that differ from the best by no more than another seed would make.
    """

    ranked: tuple[int, ...] = ()
    alike: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    step: int | None = None


@dataclass(frozen=True)
class RunComparison:
    """Runs side by side. `summary` is one sentence, `notes` what a reader must know to read the rest rightly."""

    kind: str
    format: int
    summary: str
    runs: tuple[RunSummary, ...]
    notes: tuple[str, ...]
    standing: Standing
    config: Differences
    """Keys of cfg.toml that somebody set, in one run at least."""
    implied: Differences
    """Keys that differ by default or by arithmetic (`plan.*`), since others do."""
    environment: Differences
    observed: Differences
    """What the log shows of the training, whatever the configuration says."""
    findings: tuple[FindingRow, ...]
    numbers: tuple[NumberRow, ...]
    curves: tuple[Overlay, ...]
    samples: tuple[ComparedSample, ...]
    crashed: tuple[str, ...] = ()
    """Rules that crashed, each with the run and the reason."""
