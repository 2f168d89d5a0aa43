"""A run directory → what is compared of it: the audit of the run as it is now, settings, curves and totals.

A fresh audit, since a report.json beside a run may be of fewer steps or of older rules. Knows the log; compares
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainscope.engine.audit import audit
from trainscope.engine.compare.result import Earlier, Setting
from trainscope.engine.gate.profile import Curve
from trainscope.engine.gate.read import curves_of
from trainscope.engine.gate.setup import Fact, setup_facts
from trainscope.engine.rule import Rule
from trainscope.engine.runs import source_of
from trainscope.engine.sandbox import connect, execute, surviving
from trainscope.engine.tables import TableSource, as_table, config_values, decode_value
from trainscope.runlog.history import last_steps
from trainscope.runlog.reader import Run
from trainscope.schema import Report

RAW, AVERAGE = "raw", "ema"

_HELD_OUT = """
    SELECT weights, coalesce(mode, '') AS mode, step, avg(loss) AS loss, max(draws) AS draws, max(split) AS split
    FROM evals WHERE loss IS NOT NULL AND step IS NOT NULL GROUP BY 1, 2, 3 ORDER BY step"""

_PICTURES = """
    SELECT list(concat_ws(' ', digest, bucket, tokens, truncated) ORDER BY digest, bucket, tokens)
    FROM data WHERE dropped IS NULL AND split = $split AND digest IS NOT NULL"""

_TARGETS = "SELECT string_agg(DISTINCT target_kind, ', ' ORDER BY target_kind) FROM batches"

# Ranks run at the same time and see different samples; the first steps are slow for reasons of their own.
_TOTALS = """
    WITH whole AS (
        SELECT step, max(seconds) AS seconds, sum(samples) AS samples, avg(loss) AS loss, avg(grad_norm) AS gradient,
            max(memory_bytes) AS memory, max(rss_bytes) AS resident
        FROM steps GROUP BY step
    )
    SELECT sum(seconds)::DOUBLE, median(seconds) FILTER (WHERE step > 3)::DOUBLE, sum(samples)::DOUBLE,
        avg(loss) FILTER (WHERE step > 0.75 * (SELECT max(step) FROM whole)),
        median(gradient) FILTER (WHERE isfinite(gradient)), max(memory)::DOUBLE, max(resident)::DOUBLE
    FROM whole"""


@dataclass(frozen=True)
class HeldOut:
    """The held-out losses of one kind of weights (`RAW`, `AVERAGE`), by step.

    `basis` is what they were measured on (pictures, draws, target): losses of another basis are other measures.
    """

    losses: Mapping[int, float]
    basis: tuple[str | None, ...]


@dataclass(frozen=True)
class Totals:
    """Of all steps: seconds in total and of a step (median), samples, mean loss of the last quarter, median gradient
    norm, and peak bytes of the accelerator and of the process. None where not recorded.
    """

    seconds: float | None = None
    step_seconds: float | None = None
    samples: float | None = None
    last_loss: float | None = None
    gradient: float | None = None
    memory: float | None = None
    resident: float | None = None


@dataclass(frozen=True)
class ObservedRun:
    """A run, reduced to what is compared. `curves` are the gate's: means or looks, at most 128 points each."""

    path: Path
    report: Report
    segment_starts: Sequence[int]
    config: Mapping[str, Setting]
    environment: Mapping[str, str]
    facts: Mapping[str, Fact]
    curves: Mapping[str, Curve]
    held_out: Mapping[str, HeldOut]
    totals: Totals

    @property
    def last_step(self) -> int:
        return int(self.report.run["last_step"])

    @property
    def estimates_its_lr(self) -> bool:
        """Prodigy and D-Adaptation, whose step size differs between seeds."""
        return "d" in self.curves


def observe(
    run: Run,
    rules: Sequence[Rule],
    broken: Sequence[tuple[str, str]] = (),
    thresholds: Mapping[str, Mapping[str, Any]] | None = None,
) -> ObservedRun:
    """Audit a run and reduce it. Raises `RunError` for a damaged one, `ConfigError` for thresholds that no rule has."""
    info = {key: run.info.get(key) for key in ("id", "name", "parent", "origin", "created")}
    info.update(status=run.status, last_step=run.last_step(), planned_steps=run.info.get("steps"))
    return observe_tables(run.directory.path, source_of(run), info, rules, broken, thresholds)


def observe_tables(
    path: Path,
    source: TableSource,
    info: Mapping[str, Any],
    rules: Sequence[Rule],
    broken: Sequence[tuple[str, str]] = (),
    thresholds: Mapping[str, Mapping[str, Any]] | None = None,
) -> ObservedRun:
    """The same of tables, wherever they come from; `info` says which run it is, how it ended and at which step."""
    report = audit(source, info, rules=rules, broken=broken, thresholds=thresholds)
    return ObservedRun(
        path=path,
        report=report,
        segment_starts=source.segment_starts,
        config=settings_of(source),
        environment={row["key"]: str(row["value"]) for row in surviving(source, "env") if row["value"] is not None},
        facts=setup_facts(source, config_values(source)),
        curves=curves_of(source, int(info["last_step"])),
        held_out=held_out_of(source),
        totals=totals_of(source),
    )


def settings_of(source: TableSource) -> dict[str, Setting]:
    """The last segment's values, and those that a resume has changed."""
    segments: dict[int, dict[str, tuple[Any, str]]] = {}
    for row in as_table(source.tables["config"]).to_pylist():
        if row["key"] is not None:
            values = segments.setdefault(row["segment"] or 0, {})
            values[row["key"]] = (decode_value(row["value"]), row["origin"] or "")
    if not segments:
        return {}
    *before, last = sorted(segments)
    ends = last_steps(source.segment_starts)
    found = {}
    for key, (value, origin) in segments[last].items():
        earlier: list[Earlier] = []
        for number in before:
            then = segments[number].get(key, (None, ""))[0]
            until = ends[number] if number < len(ends) else None
            if until is None or until <= (earlier[-1].until if earlier else 0):
                continue  # no step of it is left
            if earlier and earlier[-1].value == then:
                earlier.pop()
            earlier.append(Earlier(then, until))
        if earlier and earlier[-1].value == value:
            earlier.pop()
        found[key] = Setting(value, origin=origin, earlier=tuple(earlier))
    return found


def held_out_of(source: TableSource) -> dict[str, HeldOut]:
    """By kind of weights; losses over another number of draws than the last are left out."""
    with connect(source, ("evals", "data", "batches")) as connection:
        _, rows = execute(connection, _HELD_OUT)
        target = execute(connection, _TARGETS)[1][0][0]
        found = {}
        for kind in dict.fromkeys(str(row[0]) for row in rows):
            own = [row[1:] for row in rows if row[0] == kind]
            # Schedule-Free saves x, and trains at y.
            mode = "x" if any(row[0] == "x" for row in own) else own[0][0]
            own = [row for row in own if row[0] == mode]
            draws, split = own[-1][3:]
            pictures = execute(connection, _PICTURES, {"split": split})[1][0][0] if split else None
            digest = hashlib.sha256("\n".join(pictures).encode()).hexdigest()[:16] if pictures else None
            same = {int(step): float(loss) for _, step, loss, count, _ in own if count == draws}
            found[kind] = HeldOut(same, (str(draws), split, digest, target))
    return found


def totals_of(source: TableSource) -> Totals:
    """Over all steps of the surviving history."""
    with connect(source, ("steps",)) as connection:
        return Totals(*execute(connection, _TOTALS)[1][0])
