"""A run directory → its profile: queries over the log's tables, and the rules asked once.

Knows the log; compares nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trainscope.engine.evaluate import evaluate
from trainscope.engine.findings import findings
from trainscope.engine.gate.profile import POINTS, Broken, Curve, KnownFinding, Profile
from trainscope.engine.gate.setup import setup_facts
from trainscope.engine.gate.signals import CONTINUITY, LOOKS, MAKE_LOOKS, SIGNALS, Signal
from trainscope.engine.query import check_select
from trainscope.engine.rule import Rule
from trainscope.engine.runs import source_of
from trainscope.engine.sandbox import connect, execute, surviving
from trainscope.engine.summaries import DERIVED
from trainscope.engine.tables import TableSource, as_table, config_values
from trainscope.runlog.reader import Run

HARDWARE = ("device", "device.name", "device.memory_bytes", "cpu.cores", "cpu.threads")
"""What must be equal for seconds and bytes to compare."""

_FIRST_LOOKS = 5
"""Every cadence looks at the first steps: they are kept however many looks there are."""


def profile_of(
    run: Run, rules: Sequence[Rule], thresholds: Mapping[str, Mapping[str, Any]]
) -> tuple[Profile, list[str]]:
    """The profile of a run, and what crashed of the rules, each with the reason."""
    source = source_of(run)
    asked = {rule.code for rule in rules}
    own = {code: each for code, each in thresholds.items() if code in asked}
    evaluations = evaluate(rules, source, "run", own) if rules else []
    config = config_values(source)
    last = run.last_step()
    profile = Profile(
        id=str(run.info.get("id") or ""),
        name=str(run.info.get("name") or run.directory.path.name),
        source=str(run.directory.path),
        status=run.status,
        last_step=last,
        hardware=_hardware(source),
        facts=setup_facts(source, config),
        config={key: value for key, value in config.items() if not key.startswith("plan.")},
        curves=curves_of(source, last),
        findings=[
            KnownFinding(
                code=found.code,
                severity=found.severity,
                fingerprint=found.fingerprint,
                message=found.message[:2000],
                first_step=found.first_step,
            )
            for found in findings(evaluations, config)
        ],
        continuity=_continuity(source),
        absent=_absent(source),
    )
    crashed = [f"{each.rule.code}: {each.outcome.reason}" for each in evaluations if each.outcome.outcome == "crashed"]
    return profile, crashed


def curves_of(source: TableSource, last: int) -> dict[str, Curve]:
    """Every signal that was recorded up to the step `last`, by `signal` or `signal/where`."""
    width = bin_width(last)
    found: dict[str, Curve] = {}
    known = {*source.tables, *DERIVED, LOOKS}
    tables = {name for signal in SIGNALS.values() for name in check_select(signal.sql, known).tables} - {LOOKS}
    with connect(source, tables | {"params", "tensors"}) as connection:
        connection.execute(MAKE_LOOKS)
        for signal in SIGNALS.values():
            columns, rows = execute(connection, _reduced(signal, width, last))
            places: dict[str, list[tuple[int, float, float]]] = {}
            for place, step, value, weight in (dict(zip(columns, row, strict=True)).values() for row in rows):
                places.setdefault(place, []).append((int(step), float(value), float(weight)))
            for place, points in places.items():
                key = f"{signal.name}/{place}" if place else signal.name
                found[key] = _curve(points, width if signal.by_step else 0)
    return found


def bin_width(last: int) -> int:
    """The smallest power of two with which a run of so many steps has at most 128 bins."""
    return 1 << max(0, math.ceil(math.log2(max(last, 1) / POINTS)))


def _reduced(signal: Signal, width: int, last: int) -> str:
    """At most as many rows as a curve has points, whatever the length of the run."""
    rows = (
        f"SELECT place, step, value::DOUBLE AS value, weight FROM ({signal.sql}) WHERE value IS NOT NULL AND step > 0"  # noqa: S608
    )
    if signal.name == "heldout":
        rows = rows.replace("step > 0", "step >= 0")
    if not signal.by_step:
        return f"SELECT place, step, value, coalesce(weight, 0)::DOUBLE FROM ({rows}) ORDER BY place, step"  # noqa: S608
    pooled = "min(value)" if signal.pooled == "min" else "sum(value * weight) / sum(weight)"
    return f"""
        SELECT place, (step + {width} - 1) // {width} * {width} AS edge,
            {pooled} AS value, sum(weight)::DOUBLE AS weight
        FROM ({rows}) GROUP BY 1, 2 HAVING edge <= {last} ORDER BY 1, 2"""  # noqa: S608


def _curve(points: Sequence[tuple[int, float, float]], width: int) -> Curve:
    kept = points if width else thinned(points)
    steps, values, weights = zip(*kept, strict=True)
    # Equal weights say nothing: of bins their ratios count, and at looks 0 is what all agree on.
    plain = len(set(weights)) == 1 and (width > 0 or weights[0] == 0)
    return Curve(width=width, steps=list(steps), values=list(values), weights=[] if plain else list(weights))


def thinned(points: Sequence[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    """At most about 128 looks: those at multiples of 2, 5, 10 …, the first ones and the last, so that runs agree."""
    kept, last, scale = list(points), points[-1][0], 1
    while len(kept) > POINTS:
        for digit in (2, 5, 10):
            every = digit * scale
            kept = [each for each in points if each[0] % every == 0 or each[0] <= _FIRST_LOOKS or each[0] == last]
            if len(kept) <= POINTS:
                break
        scale *= 10
    return kept


def _hardware(source: TableSource) -> dict[str, str | None]:
    found = {row["key"]: row["value"] for row in surviving(source, "env") if row["key"] in HARDWARE}
    return {name: found.get(name) for name in HARDWARE} if found else {}


def _continuity(source: TableSource) -> list[Broken]:
    if not source.resumed:
        return []
    with connect(source, ["continuity", "resumes"]) as connection:
        _, rows = execute(connection, CONTINUITY)
    return [
        Broken(what=str(what)[:200], status=str(status), step=step, count=int(count))
        for what, status, step, count in rows[:50]
    ]


def _absent(source: TableSource) -> dict[str, str]:
    rows = as_table(source.tables["coverage"]).select(["table", "column", "reason"]).to_pylist()
    reasons = {(row["table"], row["column"] or ""): str(row["reason"]) for row in rows if row["reason"]}
    found = {}
    for name, signal in SIGNALS.items():
        table, _, column = signal.column.partition(".")
        if reason := reasons.get((table, column)) or reasons.get((table, "")):
            found[name] = reason
    return found
