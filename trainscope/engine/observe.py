"""Whether a rule can say anything about a run: does it apply, and was enough recorded?

Compares a header with the configuration and the coverage; runs no query. Reasons are sentences that a user can act on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from trainscope.engine.coverage import Seen, recorded_tables
from trainscope.engine.header import Need, RuleHeader, shown_value
from trainscope.engine.problems import did_you_mean
from trainscope.runlog.tables import TABLES

_CADENCE_KEYS = {
    "tensors": "probes.every",
    "ema": "probes.every",
    "adapters": "probes.every",
    "evals": "eval.every_steps",
    "samples": "sample.every_steps",
}
"""What sets how often a table is written; the others are written at every step."""


def obstacle(
    header: RuleHeader, config: Mapping[str, Any], coverage: dict[str, Seen], *, planned: bool = False
) -> tuple[Literal["not_applicable", "not_observable"], str] | None:
    """Why the rule cannot be asked; None where it can.

    Of a training that is only planned nothing is asked that a training measures: a rule for both stages warns by the
    plan, and is confirmed or dismissed by what the run shows.
    """
    unknown = [key for key in header.applies if key not in config]
    for key, condition in header.applies.items():
        if key not in unknown and not condition.matches(config[key]):
            return (
                "not_applicable",
                f"applies where {key} is {condition.describe()}; here it is {shown_value(config[key])}",
            )
    if unknown:
        return "not_observable", _unknown_keys(unknown, config)
    needs = {column: need for column, need in header.needs.items() if not (planned and _is_measured(column))}
    missing = _missing(needs, coverage)
    return ("not_observable", "; ".join(missing)) if missing else None


def _unknown_keys(unknown: list[str], config: Mapping[str, Any]) -> str:
    keys = " and ".join(f"{key}{did_you_mean(key, config)}" for key in unknown)
    if not config:
        return f"needs to know {keys}; the configuration of this run was not recorded"
    return f"needs to know {keys}; the configuration of this run does not say"


def _is_measured(column: str) -> bool:
    return "step" in TABLES[column.partition(".")[0]].schema.names


def _missing(needs: Mapping[str, Need], coverage: dict[str, Seen]) -> list[str]:
    reasons: list[str] = []
    tables = recorded_tables(coverage)
    for column, need in needs.items():
        table, _, name = column.partition(".")
        seen = coverage.get(column) or Seen(table, name)
        if seen.table in tables:
            reason, why = _unmet(column, need, seen), seen.reason
        else:
            reason, why = f"no `{seen.table}` rows were recorded", seen.reason or _any_reason(seen.table, coverage)
        if reason:
            reason += f" ({why})" if why else ""
            reasons += [reason] if reason not in reasons else []
    return reasons


def _any_reason(table: str, coverage: dict[str, Seen]) -> str:
    return next((seen.reason for seen in coverage.values() if seen.table == table and seen.reason), "")


def _unmet(column: str, need: Need, seen: Seen) -> str:
    if not seen.rows:
        return f"needs {column}, which was not recorded"
    span = (seen.last_step or 0) - (seen.first_step or 0)
    between = f"steps {seen.first_step} to {seen.last_step}" if seen.rows > 1 else f"step {seen.first_step}"
    if span < need.min_steps:
        return f"needs {column} over at least {need.min_steps} steps; recorded over {span} ({between})"
    if seen.rows < need.min_rows:
        if seen.first_step is None:
            return f"needs at least {need.min_rows} rows of {column}; recorded {seen.rows}"
        return f"needs {column} at {need.min_rows} or more steps; recorded at {seen.rows} ({between})"
    if need.max_every is not None and (seen.every is None or seen.every > need.max_every):
        recorded = "once" if seen.every is None else f"every {seen.every:g}"
        key = _CADENCE_KEYS.get(seen.table)
        advice = f": set {key} = {need.max_every:g}" if key else ""
        return f"needs {column} at least every {need.max_every:g} steps; recorded {recorded}{advice}"
    if need.min_share and seen.share_of_params is None:
        return (
            f"needs {column} for at least {need.min_share:.0%} of the trained tensors; which are trained is not known"
        )
    if seen.share_of_params is not None and seen.share_of_params < need.min_share:
        share = f"{need.min_share:.0%} of the trained tensors; recorded for {seen.share_of_params:.0%}"
        return f"needs {column} for at least {share}"
    return ""
