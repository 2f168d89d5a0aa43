"""Every case of every rule holds, by real runs of the trainer; and what is recorded of them is what they measure."""

from __future__ import annotations

import itertools
import json

import pytest

from trainscope.engine.cases import RERUNS, Case, ChangeSpec
from trainscope.engine.catalogue import explains_graph, reachable
from trainscope.engine.loader import builtin_root, load_rules
from trainscope.engine.rule import Rule
from trainscope.proof.cases import judge

RULES = load_rules(strict=True)[0]
GRAPH = explains_graph(RULES)
QUICK = [
    rule
    for _, family in itertools.groupby(RULES, lambda rule: rule.header.family)
    for rule in [rule for rule in family if rule.header.severity == "error"][:2]
]
"""Rules whose faults `make test` trains."""
CASES = [(rule, case) for rule in RULES for case in rule.cases]
RECORDED = json.loads((builtin_root() / "proofs.json").read_text(encoding="utf-8"))


def is_slow(rule: Rule, case: Case) -> bool:
    """Inline tables are quick. Of those that train, `make test` has the first fault of a few rules of each family that
    find errors; of those that train twice, only the family that is about resuming.

    That rules are silent where nothing is wrong is then shown by the inline tables and `test_healthy_runs`.
    """
    if not case.runs:
        return case.kind in RERUNS or bool(case.shown_by)
    if rule not in QUICK or (len(case.runs) > 1 and rule.header.family != "resume"):
        return True
    return case is not next((other for other in rule.cases if other.kind == "fires" and other.runs), None)


PARAMETERS = [
    pytest.param(
        rule,
        case,
        id=f"{rule.code}-{case.kind}-{case.name}",
        marks=[pytest.mark.slow] if is_slow(rule, case) else [],
    )
    for rule, case in CASES
]


def asked(rule: Rule, case: Case) -> list[Rule]:
    """All rules; of rows written by hand, which are for one rule alone, only what it explains beside it."""
    if case.runs or case.first_cause:
        return RULES
    return [other for other in RULES if other is rule or other.code in reachable(GRAPH, rule.code)]


@pytest.mark.parametrize(("rule", "case"), PARAMETERS)
def test_case_holds(rule: Rule, case: Case) -> None:
    verdict = judge(rule, case, asked(rule, case))
    assert verdict.holds, verdict.reason
    if verdict.proof is None:
        return
    title = case.remedy if case.kind == "cured" else case.advice
    recorded = RECORDED[rule.code][case.kind][title]
    if recorded["case"] != case.name:
        return  # of several cases for one remedy the first is on record
    assert recorded["rule"] == verdict.proof.rule
    for key in ("loss_before", "loss_after", "loss_healthy"):
        measured = getattr(verdict.proof, key)
        # Another machine's last bits lead a run elsewhere, but not far.
        expected = None if measured is None else pytest.approx(measured, rel=0.1, abs=0.02, nan_ok=True)
        assert (None if recorded[key] is None else float(recorded[key])) == expected


def test_every_proof_on_record_has_a_case() -> None:
    """None is left over from a case that is gone."""
    kept = {
        (rule.code, case.kind, case.remedy if case.kind == "cured" else case.advice)
        for rule, case in CASES
        if case.kind in ("cured", "refuted")
    }
    recorded = {
        (code, kind, title) for code, kinds in RECORDED.items() for kind, titles in kinds.items() for title in titles
    }
    assert recorded == kept


@pytest.mark.slow
def test_a_warning_that_the_run_does_not_show_is_no_proof() -> None:
    """A plan of three steps is warned of as too short, and shows nothing of low precision."""
    (rule,) = [rule for rule in RULES if rule.code == "SCH104"]
    plan = ChangeSpec(set={"train.steps": 3, "eval.every_steps": 0, "probes.every": 1})
    case = Case(name="three steps", kind="fires", plan=plan, shown_by=("PREC001",))
    assert judge(rule, case.model_copy(update={"shown_by": ()}), RULES).holds
    assert judge(rule, case, RULES).reason.startswith("the run does not show PREC001")
