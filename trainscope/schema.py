"""The dataclasses that pass between the layers, and their JSON form.

The engine fills a `Report`; the report layer draws from its JSON alone. Knows nothing of any other layer.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Literal

REPORT_FORMAT = 1

Severity = Literal["error", "warning", "info"]
Kind = Literal["symptom", "mechanism", "cause", "risk"]
Outcome = Literal["fired", "clear", "not_applicable", "not_observable", "crashed"]

SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")
"""From the mildest to the gravest: the index is the rank."""


@dataclass(frozen=True)
class Record:
    """Rows for one table of the run log, column by column: lists or numpy arrays of the same length.

    NULL is None in a list, and masked in an array.
    """

    table: str
    columns: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One place where a rule fired; `kind` is run, group, module, param, step, sample …"""

    kind: str
    name: str
    value: float | None = None
    score: float | None = None
    first_step: int | None = None
    last_step: int | None = None


@dataclass(frozen=True)
class Reference:
    url: str
    claim: str


@dataclass(frozen=True)
class Proof:
    """What a rerun with a remedy (or with an advice that does not help) measured on the tiny models.

    Losses are held-out mean squared errors; `rule` is the outcome of the same rule after the rerun.
    """

    case: str
    rule: Outcome
    loss_before: float | None
    loss_after: float | None
    loss_healthy: float | None


@dataclass(frozen=True)
class Remedy:
    """A change of the configuration. `config_patch` maps dotted keys of cfg.toml to new values."""

    title: str
    config_patch: dict[str, Any]
    cost: str = ""
    elsewhere: dict[str, str] = field(default_factory=dict)
    proof: Proof | None = None

    @property
    def proven(self) -> bool:
        return self.proof is not None


@dataclass(frozen=True)
class RefutedAdvice:
    """A published advice that was tried and did not help."""

    advice: str
    config_patch: dict[str, Any]
    proof: Proof | None = None


@dataclass(frozen=True)
class Plot:
    """Which of the report's series show the finding; `threshold` is drawn as a horizontal line."""

    series: str
    title: str
    threshold: float | None = None


@dataclass(frozen=True)
class Finding:
    """A rule that fired, its rows merged: the worst place first."""

    code: str
    name: str
    family: str
    kind: Kind
    severity: Severity
    summary: str
    message: str
    where: list[Place]
    first_step: int | None
    last_step: int | None
    value: float | None
    threshold: float | None
    score: float
    evidence: dict[str, Any]
    remedies: list[Remedy]
    refuted: list[RefutedAdvice]
    references: list[Reference]
    plots: list[Plot]
    fingerprint: str


@dataclass(frozen=True)
class RankedCause:
    """A finding among the causes of a diagnosis; `finding` is a fingerprint."""

    finding: str
    score: float


@dataclass(frozen=True)
class Diagnosis:
    """One story: what is seen (`symptoms`), how it comes about (`mechanisms`), and why (`causes`, likeliest first).

    All three name findings by fingerprint. `remedies` are those of the causes, in the order to try them.
    """

    severity: Severity
    title: str
    symptoms: list[str]
    mechanisms: list[str]
    causes: list[RankedCause]
    remedies: list[Remedy]


@dataclass(frozen=True)
class RuleOutcome:
    code: str
    name: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Series:
    """A curve of the report: `lines` maps a name to its (step, value) columns.

    `about` explains the measure. `recorded` is the number of steps of the longest line where some of them were left
    out (each span's smallest and largest value stays), else 0.
    """

    name: str
    title: str
    unit: str
    log_scale: bool
    lines: dict[str, dict[str, list[Any]]]
    about: str = ""
    recorded: int = 0


@dataclass(frozen=True)
class HeatMap:
    """A measure of the model, `values[module][step]`; None where nothing was recorded."""

    name: str
    title: str
    unit: str
    modules: list[str]
    steps: list[int]
    values: list[list[float | None]]
    about: str = ""


@dataclass(frozen=True)
class ResumedPiece:
    """A piece of state that did not come over a resume as it was: its value when saved, loaded, and asked for."""

    item: str
    param: str
    key: str
    status: str
    saved: str
    loaded: str
    asked: str


@dataclass(frozen=True)
class Resume:
    """What was compared when a training went on: `pieces` maps an item (weights, optimizer …) to counts by status.

    A status is match, "as asked" (the configuration was changed on purpose), "not as asked" (it was, and the saved
    value outweighed it), missing, reset, changed, dtype or permuted. `differing` are the first of those that are
    neither of the first two; `replaced` says that a later resume took its place.
    """

    step: int
    segment: int
    source: str
    changed: list[ResumedPiece]
    pieces: dict[str, dict[str, int]]
    differing: list[ResumedPiece]
    replaced: bool = False


@dataclass(frozen=True)
class SampleImage:
    """A generated image; `path` is relative to the run directory."""

    step: int
    path: str
    prompt: str
    weights: str
    seed: int
    distance: float | None


@dataclass(frozen=True)
class Coverage:
    """How often a column was recorded, or why it was not."""

    table: str
    column: str
    first_step: int | None
    last_step: int | None
    every: float | None
    share_of_params: float | None
    reason: str = ""


@dataclass(frozen=True)
class Fact:
    """A line of the run's facts: what it was, on what, with which versions."""

    name: str
    value: str


@dataclass(frozen=True)
class Report:
    """Everything that a report shows. `verdict` is one sentence; diagnoses and findings: the gravest first."""

    run: dict[str, Any]
    verdict: str
    diagnoses: list[Diagnosis]
    findings: list[Finding]
    rules: list[RuleOutcome]
    coverage: list[Coverage]
    facts: list[Fact]
    series: list[Series]
    map: list[HeatMap]
    samples: list[SampleImage]
    config: str = ""
    """The text of the run's cfg.toml, for the remedies' diffs."""
    resumes: list[Resume] = field(default_factory=list)
    format: int = REPORT_FORMAT


Verdict = Literal["pass", "fail"]
Compared = Literal["pass", "fail", "missing", "not comparable"]


@dataclass(frozen=True)
class Comparison:
    """One measure of a candidate beside that of the baselines.

    `baseline` has a value for each baseline run that has one; `allowed` are the lowest and the highest value that pass
    (None: any), in `unit`. `smallest_change` is what would have failed on its own, as a share of the baseline's value
    where `relative`; an exact measure (findings, setup, continuity) has none. `parts_at` is the step from which the
    curves stay apart.
    """

    name: str
    """The measure; with `where` it is unique."""
    where: str
    """unet, low noise …; empty for the whole run."""
    title: str
    unit: str
    outcome: Compared
    baseline: tuple[float, ...]
    candidate: float | None
    allowed: tuple[float | None, float | None]
    smallest_change: float | None
    relative: bool
    parts_at: int | None
    method: str
    reason: str
    p_value: float | None = None
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class ComparedRun:
    """A run that took part; `source` is its directory, or the file that it was recorded in."""

    name: str
    id: str
    source: str
    status: str
    last_step: int


@dataclass(frozen=True)
class ChangedKey:
    """A key of the configuration that the candidate has otherwise than the first baseline."""

    key: str
    baseline: Any
    candidate: Any


@dataclass(frozen=True)
class GateResult:
    """Whether a candidate is as good as its baselines. `verdict` counts `strict`; `notes` say what was not compared."""

    verdict: Verdict
    summary: str
    method: str
    candidate: ComparedRun
    baselines: tuple[ComparedRun, ...]
    comparisons: tuple[Comparison, ...]
    changed: tuple[ChangedKey, ...]
    notes: tuple[str, ...]
    crashed: tuple[str, ...] = ()
    """Rules that crashed on the candidate."""
    strict: bool = False
    last_step: int = 0
    """Steps after it were not compared."""
    format: int = 1


def to_json(value: Any) -> Any:
    """Turn dataclasses into plain JSON values; non-finite numbers become "NaN", "Infinity" and "-Infinity"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain = {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Remedy):
            plain["proven"] = value.proven
        return plain
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value
