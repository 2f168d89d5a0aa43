from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from trainscope.engine.audit import audit, exit_code
from trainscope.engine.tables import TableSource, from_rows
from trainscope.errors import ConfigError
from trainscope.schema import Fact, Report, RuleOutcome, to_json

from .conftest import MakeRule
from .test_diagnose import finding


def test_a_whole_report(make_rule: MakeRule, stuck: TableSource) -> None:
    symptom = "SELECT 'run' AS where_kind, 'run' AS where_name, 0.0 AS value, 0.8 AS score FROM groups LIMIT 1"
    rules = [
        make_rule("TST001", explains=["SYM001"], remedies=[{"title": "raise d0", "set": {"optimizer.d0": 1e-5}}]),
        make_rule("SYM001", kind="symptom", sql=symptom, thresholds={}, summary="Nothing was learned", message="x"),
    ]
    tables = {**stuck.tables, "samples": from_rows({"samples": [{"step": 5, "path": "a.png"}]}).tables["samples"]}
    report = audit(
        TableSource(tables),
        {"id": "x", "status": "completed", "last_step": 100},
        rules=rules,
        broken=[("TST009", "no header")],
        config_text="[optimizer]\n",
        facts=[Fact("device", "cpu")],
    )
    problem = "1 problem: nothing was learned, because d stayed near d0; why was not found"
    assert report.verdict == f"{problem}; 1 rule crashed (TST009)"
    assert [one.code for one in report.findings] == ["TST001", "SYM001"]
    assert len(report.diagnoses) == 1
    assert report.diagnoses[0].remedies[0].config_patch == {"optimizer.d0": 1e-5}
    assert {one.code: one.outcome for one in report.rules}["TST009"] == "crashed"
    assert [series.name for series in report.series] == ["d"]
    assert report.samples[0].path == "a.png"
    assert any((one.table, one.column, one.last_step) == ("groups", "d", 100) for one in report.coverage)
    assert (report.config, report.facts[0].value, report.run["id"]) == ("[optimizer]\n", "cpu", "x")
    json.dumps(to_json(report), allow_nan=False)
    assert exit_code(report) == 3


def test_select_and_ignore(make_rule: MakeRule, stuck: TableSource) -> None:
    rules = [make_rule("TST001"), make_rule("TST002"), make_rule("OTH001")]

    def looked(**options: Any) -> list[str]:
        return [one.code for one in audit(stuck, {}, rules=rules, broken=[("TST009", "x")], **options).rules]

    assert looked() == ["TST001", "TST002", "OTH001", "TST009"]
    assert looked(select=["TST"]) == ["TST001", "TST002", "TST009"]
    assert looked(select=["TST002", "OTH"]) == ["TST002", "OTH001"]
    assert looked(ignore=["TST"]) == ["OTH001"]
    assert looked(select=["TST"], ignore=["TST001", "TST009"]) == ["TST002"]
    assert looked(select=["TST001"], ignore=["TST"]) == ["TST001"], "the longer one wins"
    with pytest.raises(ConfigError) as error:
        looked(select=["TTS001"], ignore=["XYZ"])
    assert "--select TTS001: no rule begins so (did you mean TST001?)" in str(error.value)
    assert "--ignore XYZ" in str(error.value)


def test_thresholds_are_checked_against_the_whole_catalogue(make_rule: MakeRule, stuck: TableSource) -> None:
    rules = [make_rule("TST001"), make_rule("TST002")]
    overrides = {"TST002": {"min_growth": 0.1}, "TST009": {"anything": 1}}
    report = audit(stuck, {}, rules=rules, broken=[("TST009", "x")], select=["TST001"], thresholds=overrides)
    assert [one.code for one in report.findings] == ["TST001"]
    with pytest.raises(ConfigError, match="no such rule"):
        audit(stuck, {}, rules=rules, thresholds={"TST003": {}})


def test_a_deselected_cause_still_connects_nothing_but_the_catalogue_does(
    make_rule: MakeRule, stuck: TableSource
) -> None:
    rules = [
        make_rule("CAU001", kind="cause", explains=["MEC001"]),
        make_rule("MEC001", explains=["SYM001"]),
        make_rule("SYM001", kind="symptom"),
    ]
    assert len(audit(stuck, {}, rules=rules, select=["CAU", "SYM"]).diagnoses) == 1


def reported(*severities: str, outcomes: tuple[str, ...] = ()) -> Report:
    findings = [
        finding(code, severity=severity) for code, severity in zip(("SYM001", "SYM002"), severities, strict=False)
    ]
    rules: Any = [RuleOutcome(f"R{number}", "r", outcome) for number, outcome in enumerate(outcomes)]  # type: ignore[arg-type]
    return Report({}, "", [], findings, rules, [], [], [], [], [])


@pytest.mark.parametrize(
    ("report", "options", "expected"),
    [
        (reported(), {}, 0),
        (reported("error"), {}, 1),
        (reported("warning"), {}, 0),
        (reported("warning"), {"fail_on": "warning"}, 1),
        (reported("info", "error"), {"fail_on": "info"}, 1),
        (reported("error"), {"fail_on": "never"}, 0),
        (reported("error", outcomes=("crashed",)), {}, 3),
        (reported(outcomes=("crashed",)), {"fail_on": "never"}, 3),
        (reported(outcomes=("not_observable", "clear")), {}, 0),
        (reported(outcomes=("not_observable", "clear")), {"strict": True}, 1),
        (reported(outcomes=("not_applicable", "clear")), {"strict": True}, 0),
        (reported("error"), {"accepted": {"fp-SYM001"}}, 0),
        (reported("error", "error"), {"accepted": {"fp-SYM001"}}, 1),
    ],
)
def test_exit_codes(report: Report, options: dict[str, Any], expected: int) -> None:
    assert exit_code(report, **options) == expected


def test_a_wrong_level_is_an_error() -> None:
    with pytest.raises(ConfigError, match="fail-on"):
        exit_code(reported("error"), "fatal")


def test_an_audit_imports_neither_torch_nor_pandas(stuck: TableSource) -> None:
    code = """
import sys
from trainscope.engine import audit, cases, loader, proofs, remedies, tables, validate
source = tables.from_rows({"groups": [{"step": 1, "d": 1.0}], "config": {"a": 1}})
audit.audit(source, {}, rules=[])
heavy = {"torch", "pandas", "scipy", "jinja2", "tomlkit", "trainscope.report", "trainscope.trainer"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
