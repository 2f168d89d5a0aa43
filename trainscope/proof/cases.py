"""Runs a rule's cases and says whether they hold.

The data of the cases is the engine's, the runs are the trainer's; this brings both together. Reports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainscope.engine.audit import audit
from trainscope.engine.cases import Case
from trainscope.engine.header import Stage
from trainscope.engine.preflight import preflight_source
from trainscope.engine.rule import Rule
from trainscope.engine.runs import source_of
from trainscope.engine.sandbox import surviving
from trainscope.engine.tables import TableSource
from trainscope.proof.runs import RunSpec, make_run
from trainscope.runlog.reader import read_run
from trainscope.schema import Finding, Proof, Report

HEALTHY_MARGIN = 1.10
"""A cured run's held-out loss may be at most this many times its healthy twin's."""

EXPECTED = {
    "fires": "fired",
    "fires.innocent_looking": "fired",
    "clear": "clear",
    "clear.guilty_looking": "clear",
    "not_observable": "not_observable",
    "not_applicable": "not_applicable",
    "cured": "clear",
    "refuted": "fired",
}
"""Kind of case → what the rule has to say."""


@dataclass(frozen=True)
class Verdict:
    """Whether a case holds; `reason` says why not. `proof` is what a rerun measured."""

    case: Case
    reason: str = ""
    proof: Proof | None = None

    @property
    def holds(self) -> bool:
        return not self.reason


def judge(rule: Rule, case: Case, catalogue: Sequence[Rule]) -> Verdict:
    """Run one case. `catalogue` holds all rules: a diagnosis needs those that a rule explains."""
    if case.kind in ("cured", "refuted"):
        return _judge_rerun(rule, case, catalogue)
    source, stage = _subject(rule, case)
    report = _report(source, stage, catalogue)
    problem = _outcome_problem(rule, case, report) or _first_cause_problem(rule, case, report)
    return Verdict(case, problem or _shown_problem(case, catalogue))


def _subject(rule: Rule, case: Case) -> tuple[TableSource, Stage]:
    """The tables of a case, and the stage that they are judged at: the rule's first for rows written by hand."""
    if case.tables is not None:
        return case.source(), rule.header.stages[0]
    if case.plan is not None:
        return _planned(case.plan.set), "preflight"
    return source_of(read_run(_run(case, {}))), "run"


def _planned(changes: Mapping[str, Any]) -> TableSource:
    """The tables of a plan. A tiny model is built first: of one that is not there nothing is known."""
    from trainscope.trainer.models.tiny import tiny_folder

    resolved = RunSpec(changes).resolved()
    if resolved.config.model.base.startswith("tiny:"):
        tiny_folder(resolved.config.model.base.removeprefix("tiny:"))
    return preflight_source(resolved)


def _run(case: Case, changes: Mapping[str, Any]) -> Path:
    """The run of a case with changes; of several the last, each of which resumes the one before."""
    chain: RunSpec | None = None
    for number, spec in enumerate(case.runs):
        # Runs of a proof save no state by default; one that is resumed does.
        kept = {"checkpoint.save_state": True} if len(case.runs) > 1 and number == 0 else {}
        chain = RunSpec({**kept, **spec.set}, spec.inject, spec.stop_at, chain, spec.damage)
    assert chain is not None  # noqa: S101  a case without runs has a plan or tables
    return make_run(chain.with_changes(changes))


def _judge_rerun(rule: Rule, case: Case, catalogue: Sequence[Rule]) -> Verdict:
    """The case that it repeats must fire; with the remedy (or the advice) applied, see what the rule says."""
    original = next(other for other in rule.cases if other.name == case.of)
    if original.plan is not None:
        return _judge_replan(rule, case, original, catalogue)
    faulty = source_of(read_run(_run(original, {})))
    before = _report(faulty, "run", catalogue)
    finding = _finding(rule, before)
    if finding is None:
        return Verdict(case, f"{case.of!r} does not fire, so there is nothing to rerun")
    rerun = source_of(read_run(_run(original, _changes(case, finding))))
    after = _report(rerun, "run", catalogue)
    proof = Proof(
        case=case.name,
        rule=_outcome(rule, after),
        loss_before=final_loss(faulty),
        loss_after=final_loss(rerun),
        loss_healthy=None,
    )
    if case.kind == "refuted":
        return Verdict(case, _outcome_problem(rule, case, after), proof)
    healthy = source_of(read_run(make_run(RunSpec(case.healthy.set)))) if case.healthy else rerun
    proof = Proof(proof.case, proof.rule, proof.loss_before, proof.loss_after, final_loss(healthy))
    return Verdict(case, _outcome_problem(rule, case, after) or _cure_problem(faulty, rerun, proof), proof)


def _judge_replan(rule: Rule, case: Case, original: Case, catalogue: Sequence[Rule]) -> Verdict:
    assert original.plan is not None  # noqa: S101  the caller looked
    finding = _finding(rule, _report(_planned(original.plan.set), "preflight", catalogue))
    if finding is None:
        return Verdict(case, f"{case.of!r} does not fire, so there is nothing to change")
    changed = _planned({**original.plan.set, **_changes(case, finding)})
    after = _report(changed, "preflight", catalogue)
    proof = Proof(case.name, _outcome(rule, after), None, None, None)
    return Verdict(case, _outcome_problem(rule, case, after), proof)


def _changes(case: Case, finding: Finding) -> dict[str, Any]:
    """The patch as the finding offers it, its evidence filled in."""
    if case.kind == "refuted":
        return next(refuted.config_patch for refuted in finding.refuted if refuted.advice == case.advice)
    offered = {remedy.title: remedy.config_patch for remedy in finding.remedies}
    if case.remedy not in offered:
        raise LookupError(f"the finding does not offer the remedy {case.remedy!r}; it offers {list(offered)}")
    return offered[case.remedy]


def _cure_problem(faulty: TableSource, rerun: TableSource, proof: Proof) -> str:
    if last_step(rerun) < last_step(faulty):
        return f"the rerun has {last_step(rerun)} steps, the faulty run {last_step(faulty)}"
    if proof.loss_after is None or proof.loss_healthy is None:
        return "held-out loss was not measured"
    if not proof.loss_after <= proof.loss_healthy * HEALTHY_MARGIN:
        return f"held-out loss {proof.loss_after:.4f} is not within 10 % of the healthy {proof.loss_healthy:.4f}"
    return ""


def _outcome_problem(rule: Rule, case: Case, report: Report) -> str:
    wanted = EXPECTED[case.kind]
    found = next(outcome for outcome in report.rules if outcome.code == rule.code)
    if found.outcome == wanted:
        return ""
    return f"expected {wanted}, found {found.outcome}{f' ({found.reason})' if found.reason else ''}"


def _first_cause_problem(rule: Rule, case: Case, report: Report) -> str:
    if not case.first_cause:
        return ""
    codes = {finding.fingerprint: finding.code for finding in report.findings}
    first = [codes[cause.finding] for diagnosis in report.diagnoses[:1] for cause in diagnosis.causes]
    return "" if first[:1] == [rule.code] else f"expected to be the first cause, found {', '.join(first) or 'no cause'}"


def _shown_problem(case: Case, catalogue: Sequence[Rule]) -> str:
    """Where preflight warns, the training of the same plan shows the fault."""
    if case.plan is None or not case.shown_by:
        return ""
    report = _report(source_of(read_run(make_run(RunSpec(case.plan.set)))), "run", catalogue)
    fired = {finding.code for finding in report.findings}
    silent = [code for code in case.shown_by if code not in fired]
    return (
        f"the run does not show {', '.join(silent)}; it shows {', '.join(sorted(fired)) or 'nothing'}" if silent else ""
    )


def _report(source: TableSource, stage: Stage, catalogue: Sequence[Rule]) -> Report:
    return audit(source, {}, rules=catalogue, stage=stage)


def _finding(rule: Rule, report: Report) -> Finding | None:
    return next((finding for finding in report.findings if finding.code == rule.code), None)


def _outcome(rule: Rule, report: Report) -> Any:
    return next(outcome.outcome for outcome in report.rules if outcome.code == rule.code)


def final_loss(source: TableSource) -> float | None:
    """The last held-out loss of the weights that the run is for: the average if there is one."""
    rows = surviving(source, "evals")
    kept = [row for row in rows if row["weights"] == "ema"] or rows
    return max(kept, key=lambda row: row["step"])["loss"] if kept else None


def last_step(source: TableSource) -> int:
    return max((row["step"] for row in surviving(source, "steps")), default=0)
