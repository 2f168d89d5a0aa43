"""Ask every rule about a run. One rule's failure is its own: the others go on.

Knows rules and tables; merges nothing and ranks nothing (`findings`, `diagnose`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainscope.engine.coverage import Seen, measure
from trainscope.engine.header import Stage
from trainscope.engine.hits import Hit, find_hits
from trainscope.engine.observe import obstacle
from trainscope.engine.problems import did_you_mean
from trainscope.engine.query import one_line
from trainscope.engine.rule import Rule
from trainscope.engine.sandbox import DEFAULT_LIMITS
from trainscope.engine.tables import TableSource, config_values
from trainscope.errors import ConfigError, RuleError
from trainscope.schema import Outcome, RuleOutcome

Overrides = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Evaluation:
    """What came of one rule: its outcome, the hits behind it, and the thresholds in force."""

    rule: Rule
    outcome: RuleOutcome
    hits: list[Hit]
    thresholds: dict[str, Any]


def evaluate(
    rules: Sequence[Rule],
    source: TableSource,
    stage: Stage = "run",
    thresholds: Overrides | None = None,
    *,
    timeout: float = DEFAULT_LIMITS.seconds,
    coverage: dict[str, Seen] | None = None,
) -> list[Evaluation]:
    """Evaluate the rules that belong to the stage, in the given order. ConfigError for an unknown threshold."""
    overrides = thresholds or {}
    check_overrides(overrides, rules)
    config = config_values(source)
    seen = measure(source) if coverage is None else coverage
    found = []
    for rule in rules:
        if not _belongs(rule, stage):
            continue
        started = time.perf_counter()
        values = {**rule.thresholds, **overrides.get(rule.code, {})}
        outcome, why, hits = _ask(rule, source, stage, values, config, seen, timeout)
        seconds = time.perf_counter() - started
        result = RuleOutcome(rule.code, rule.header.name, outcome, why, round(seconds, 4))
        found.append(Evaluation(rule, result, hits, values))
    return found


def _belongs(rule: Rule, stage: Stage) -> bool:
    if stage == "run":
        return bool({"run", "resume"} & set(rule.header.stages))
    return stage in rule.header.stages


def _ask(
    rule: Rule,
    source: TableSource,
    stage: Stage,
    thresholds: Mapping[str, Any],
    config: Mapping[str, Any],
    coverage: dict[str, Seen],
    timeout: float,
) -> tuple[Outcome, str, list[Hit]]:
    if stage == "run" and "run" not in rule.header.stages and not source.resumed:
        return "not_applicable", "the run was not resumed", []
    try:
        if (stop := obstacle(rule.header, config, coverage, planned=stage == "preflight")) is not None:
            return (*stop, [])
        hits = find_hits(source, rule.sql, thresholds, replace(DEFAULT_LIMITS, seconds=timeout))
    except RuleError as error:
        return "crashed", str(error), []
    except Exception as error:  # a bug here or in DuckDB must not take the other rules along
        return "crashed", f"{type(error).__name__}: {one_line(error)}", []
    return ("fired" if hits else "clear"), "", hits


def check_overrides(overrides: Overrides, rules: Sequence[Rule], also_known: Collection[str] = ()) -> None:
    """ConfigError for thresholds of rules that do not exist, for unknown names and for values of another type."""
    by_code = {rule.code: rule for rule in rules}
    problems = []
    for code, values in overrides.items():
        if code in by_code:
            problems += [_override_problem(by_code[code], name, value) for name, value in values.items()]
        elif code not in also_known:
            problems.append(f"audit.thresholds.{code}: no such rule{did_you_mean(code, by_code)}")
    if problems := [problem for problem in problems if problem]:
        raise ConfigError(
            "thresholds that no rule has:" if len(problems) > 1 else "a threshold that no rule has:",
            problems=problems,
            hint="`trainscope rules show CODE` lists the thresholds of a rule",
        )


def _override_problem(rule: Rule, name: str, value: Any) -> str:
    path = f"audit.thresholds.{rule.code}.{name}"
    if name not in rule.thresholds:
        allowed = ", ".join(rule.thresholds) or "none"
        return f"{path}: no such threshold{did_you_mean(name, rule.thresholds)}; {rule.code} has {allowed}"
    default = rule.thresholds[name]
    if isinstance(default, bool) or not isinstance(default, int | float):
        return "" if type(value) is type(default) else f"{path}: expected a {type(default).__name__}, found {value!r}"
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return f"{path}: expected a number, found {value!r}"
    return ""
