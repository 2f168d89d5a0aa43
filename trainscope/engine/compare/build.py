"""Runs that were observed → their comparison. Opens no run and draws nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from trainscope.engine.compare.curves import overlays
from trainscope.engine.compare.findings import finding_rows
from trainscope.engine.compare.numbers import numbers
from trainscope.engine.compare.read import ObservedRun
from trainscope.engine.compare.result import COMPARISON_FORMAT, KIND, ComparedSample, RunComparison, RunSummary
from trainscope.engine.compare.settings import config_differences, environment_differences, observed_differences
from trainscope.engine.compare.standing import listed, standing, summary
from trainscope.schema import SEVERITIES

MOST_RUNS = 12
"""More lines in a figure cannot be told apart."""
HARDWARE = ("device", "device.name", "cpu.cores", "cpu.threads")


def compare(runs: Sequence[ObservedRun]) -> RunComparison:
    """Lay runs side by side, in the order given."""
    labels = label_runs([run.path for run in runs])
    ranking, reasons = standing(runs, labels)
    asked, implied = config_differences(runs)
    told = [row.key for row in (*asked.differing, *implied.differing)]
    return RunComparison(
        kind=KIND,
        format=COMPARISON_FORMAT,
        summary=summary(ranking, labels),
        runs=tuple(_run(run, label) for run, label in zip(runs, labels, strict=True)),
        notes=(*_notes(runs, labels), *reasons),
        standing=ranking,
        config=asked,
        implied=implied,
        environment=environment_differences(runs),
        observed=observed_differences(runs, told),
        findings=finding_rows(runs),
        numbers=numbers(runs, ranking),
        curves=overlays(runs, labels),
        samples=tuple(
            ComparedSample(index, image.step, image.path, image.prompt, image.seed, image.weights, image.distance)
            for index, run in enumerate(runs)
            for image in run.report.samples
        ),
        crashed=tuple(
            f"{label}: {rule.code}: {rule.reason}"
            for run, label in zip(runs, labels, strict=True)
            for rule in run.report.rules
            if rule.outcome == "crashed"
        ),
    )


def label_runs(paths: Sequence[Path]) -> list[str]:
    """The directories' names, with as many parents as tell them apart; one that is given twice is numbered."""
    parts = [path.resolve().parts for path in paths]
    labels = []
    for own in parts:
        others = {other for other in parts if other != own}
        depth = next((n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others)), len(own))
        labels.append("/".join(own[-depth:]) or str(Path(*own)))
    unique: list[str] = []
    for label in labels:
        names = (label, *(f"{label} ({number})" for number in range(2, len(labels) + 2)))
        unique.append(next(name for name in names if name not in unique and (name == label or name not in labels)))
    return unique


def _run(run: ObservedRun, label: str) -> RunSummary:
    report, info = run.report, run.report.run
    return RunSummary(
        label=label,
        name=str(info.get("name") or ""),
        id=str(info.get("id") or ""),
        path=str(run.path),
        origin=str(info.get("origin") or ""),
        status=str(info["status"]),
        last_step=run.last_step,
        planned_steps=info.get("planned_steps"),
        created=str(info.get("created") or ""),
        resumed_at=tuple(start for start in run.segment_starts if start > 0),
        findings={
            severity: sum(finding.severity == severity for finding in report.findings)
            for severity in reversed(SEVERITIES)
        },
        unseen=sum(rule.outcome == "not_observable" for rule in report.rules),
        headline=report.diagnoses[0].title if report.diagnoses else "",
    )


def _notes(runs: Sequence[ObservedRun], labels: Sequence[str]) -> Iterator[str]:
    by_id: dict[str, list[str]] = {}
    for run, label in zip(runs, labels, strict=True):
        if run.report.run.get("id"):
            by_id.setdefault(str(run.report.run["id"]), []).append(label)
    for same in by_id.values():
        if len(same) > 1:
            yield f"{listed(same)} are the same run"
    for run, label in zip(runs, labels, strict=True):
        info = run.report.run
        planned = f" of {info['planned_steps']}" if info.get("planned_steps") else ""
        if info["status"] == "running":
            yield f"{label} is running, up to step {run.last_step}{planned}"
        elif info["status"] != "completed":
            verb = "crashed" if info["status"] == "crashed" else f"was {info['status']}"
            yield f"{label} {verb} at step {run.last_step}{planned}"
        parents = by_id.get(str(info.get("parent")), [])
        if parents:
            yield f"{label} goes on from {parents[0]}"
        if not run.config:
            yield f"{label} has no configuration: what differs there is not known"
    known = [tuple(run.environment.get(name) for name in HARDWARE) for run in runs if run.environment]
    if len(set(known)) > 1:
        yield "The runs were made on different hardware: their times and memory do not compare"
