"""From tables to a report: evaluate, merge, diagnose, draw.

The caller brings the tables, the facts about the run and the rules; this module opens no file and no run directory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from trainscope.engine.coverage import measure
from trainscope.engine.diagnose import diagnose, verdict
from trainscope.engine.evaluate import Overrides, check_overrides, evaluate
from trainscope.engine.findings import findings
from trainscope.engine.header import Stage
from trainscope.engine.maps import draw_maps
from trainscope.engine.problems import did_you_mean
from trainscope.engine.proofs import Proofs
from trainscope.engine.resumes import list_resumes
from trainscope.engine.rule import Rule
from trainscope.engine.sandbox import DEFAULT_LIMITS, surviving
from trainscope.engine.series import draw_series
from trainscope.engine.tables import TableSource, config_values
from trainscope.errors import ConfigError
from trainscope.schema import SEVERITIES, Fact, Finding, Report, RuleOutcome, SampleImage


def audit(
    source: TableSource,
    run_info: Mapping[str, Any],
    *,
    rules: Sequence[Rule],
    broken: Sequence[tuple[str, str]] = (),
    stage: Stage = "run",
    select: Collection[str] = (),
    ignore: Collection[str] = (),
    thresholds: Overrides | None = None,
    proofs: Proofs | None = None,
    config_text: str = "",
    facts: Sequence[Fact] = (),
    timeout: float = DEFAULT_LIMITS.seconds,
) -> Report:
    """The report of a run (or, at the stage preflight, of a plan).

    `rules` and `broken` are what `load_rules` gave. `select` and `ignore` are codes or their beginnings, as in ruff:
    PRO is every rule of that prefix, and the longer one wins.
    """
    codes = [rule.code for rule in rules] + [name for name, _ in broken]
    _check_selectors(select, ignore, codes)
    check_overrides(thresholds or {}, rules, also_known=[name for name, _ in broken])
    chosen = [rule for rule in rules if _selected(rule.code, select, ignore)]
    wanted = {code: values for code, values in (thresholds or {}).items() if code in {rule.code for rule in chosen}}
    coverage = measure(source)
    evaluations = evaluate(chosen, source, stage, wanted, timeout=timeout, coverage=coverage)
    outcomes = [evaluation.outcome for evaluation in evaluations]
    outcomes += [
        RuleOutcome(name, name, "crashed", reason) for name, reason in broken if _selected(name, select, ignore)
    ]
    found = findings(evaluations, config_values(source), proofs)
    diagnoses = diagnose(found, rules, outcomes)
    return Report(
        run=dict(run_info),
        verdict=verdict(diagnoses, found, outcomes, run_info),
        diagnoses=diagnoses,
        findings=found,
        rules=outcomes,
        coverage=[seen.report() for seen in coverage.values()],
        facts=list(facts),
        # Nothing to draw of a training that has not begun; `run` looks at its plan before each.
        series=draw_series(source) if stage != "preflight" else [],
        map=draw_maps(source) if stage != "preflight" else [],
        samples=_samples(source),
        config=config_text,
        resumes=list_resumes(source) if stage != "preflight" else [],
    )


def exit_code(report: Report, fail_on: str = "error", strict: bool = False, accepted: Collection[str] = ()) -> int:
    """0, 1 (a finding at or above `fail_on` whose fingerprint was not accepted) or 3 (a rule crashed).

    `fail_on` is error, warning, info or never; `strict` turns a rule that could not look into 1.
    """
    if any(outcome.outcome == "crashed" for outcome in report.rules):
        return 3
    if strict and any(outcome.outcome == "not_observable" for outcome in report.rules):
        return 1
    return int(any(fails(finding, fail_on) for finding in report.findings if finding.fingerprint not in accepted))


def fails(finding: Finding, fail_on: str) -> bool:
    """Whether a finding is at or above a level."""
    if fail_on == "never":
        return False
    levels = [str(severity) for severity in SEVERITIES]
    if fail_on not in levels:
        raise ConfigError(f"fail-on: expected error, warning, info or never, found {fail_on}")
    return levels.index(finding.severity) >= levels.index(fail_on)


def _selected(code: str, select: Collection[str], ignore: Collection[str]) -> bool:
    def longest(selectors: Collection[str]) -> int:
        return max((len(selector) for selector in selectors if code.startswith(selector)), default=-1)

    included = longest(select) if select else 0
    return included >= 0 and included > longest(ignore)


def _check_selectors(select: Collection[str], ignore: Collection[str], codes: Collection[str]) -> None:
    problems = [
        f"{option} {selector}: no rule begins so{did_you_mean(selector, codes)}"
        for option, selectors in (("--select", select), ("--ignore", ignore))
        for selector in selectors
        if not selector or not any(code.startswith(selector) for code in codes)
    ]
    if problems:
        raise ConfigError("no such rules:", problems=problems, hint="`trainscope rules list` shows all codes")


def _samples(source: TableSource) -> list[SampleImage]:
    return [
        SampleImage(
            row["step"],
            row["path"],
            row["prompt"] or "",
            row["weights"] or "raw",
            row["seed"] or 0,
            row["distance"],
        )
        for row in sorted(surviving(source, "samples"), key=lambda row: row["step"] or 0)
        if row["path"] is not None and row["step"] is not None
    ]
