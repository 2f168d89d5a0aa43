from __future__ import annotations

from typing import Any

import pytest

from trainscope.engine.validate import validate

from .conftest import CASES, SQL, MakeRule

CAUSE_CASES = """
[[case]]
name = "fires"
kind = "fires"
runs = [{}]
[[case]]
name = "clear"
kind = "clear"
runs = [{}]
[[case]]
name = "looks guilty"
kind = "clear.guilty_looking"
runs = [{}]
[[case]]
name = "looks innocent"
kind = "fires.innocent_looking"
runs = [{}]
[[case]]
name = "cure"
kind = "cured"
of = "fires"
remedy = "a"
[[case]]
name = "no cure"
kind = "refuted"
of = "fires"
advice = "b"
"""
REMEDIES: dict[str, Any] = {
    "kind": "cause",
    "remedies": [{"title": "a", "set": {"optimizer.d0": "{d0}"}}],
    "refuted": [{"advice": "b", "set": {"optimizer.lr": 1}}],
}


def test_a_sound_rule(make_rule: MakeRule) -> None:
    assert validate(make_rule("TST001")) == []
    assert validate(make_rule("TST002", cases=CAUSE_CASES, **REMEDIES)) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sql": SQL.replace("FROM groups", "FROM groups JOIN steps USING (stepp)")}, "fails on empty tables"),
        ({"sql": SQL.replace("1.0 AS score,", "")}, "no column score"),
        ({"sql": SQL.replace("AS d0", "AS score")}, "two columns score"),
        ({"sql": SQL.replace("AS d0", "AS min_growth")}, "column min_growth of the query has the name of a threshold"),
        ({"sql": SQL.replace("AS d0", "AS places")}, "has the name of the count of places"),
        ({"message": "{growth} {d0}"}, "message: {growth} is no column of the query and no threshold"),
        (
            {"thresholds": {"min_growth": {"value": 1, "why": "x"}, "idle": {"value": 1, "why": "x"}}},
            "idle is not used",
        ),
        ({"plot": [{"series": "eval_los", "title": "x"}]}, "plot: no series eval_los (did you mean eval_loss?)"),
        ({"remedies": [{"title": "a", "set": {"x.y": "{dd0}"}}]}, "{dd0} is no column of the query (did you mean d0?)"),
        ({"needs": {}}, "reads groups but needs nothing of it"),
        ({"cases": CASES.replace('"clear"', '"not_observable"')}, "no clear case"),
        ({"cases": CASES.replace('"fires"', '"not_observable"')}, "no fires case"),
        ({"cases": "[[case]]"}, "case[0].name: missing"),
        ({"kind": "cause"}, "no clear.guilty_looking case"),
        ({"kind": "cause"}, "no fires.innocent_looking case"),
        (REMEDIES, "no cured case for remedy 'a'"),
        (REMEDIES, "no refuted case for 'b'"),
    ],
)
def test_each_mistake_is_named_with_its_file(make_rule: MakeRule, changes: dict[str, Any], expected: str) -> None:
    problems = validate(make_rule(**changes))
    found = [problem for problem in problems if expected in problem]
    assert found, problems
    assert ".toml: " in found[0] or ".sql: " in found[0]


def test_a_cause_that_only_a_plan_can_show_needs_no_lookalikes(make_rule: MakeRule) -> None:
    cases = CASES.replace('kind = "fires"', 'kind = "fires"\nnote = "no run can show it"', 1)
    assert validate(make_rule(kind="cause", stages=["preflight"], cases=cases)) == []


PLANNED = """
[[case]]
name = "planned"
kind = "fires"
plan = {}
shown_by = ["SYM001"]

[[case]]
name = "planned otherwise"
kind = "clear"
plan = { set = { "optimizer.lr" = 1.0 } }
"""


@pytest.mark.parametrize(("severity", "asked"), [("warning", True), ("error", True), ("info", False)])
def test_what_a_plan_warns_of_is_shown_by_a_run(severity: str, asked: bool, make_rule: MakeRule) -> None:
    planned: dict[str, Any] = {"kind": "risk", "stages": ["preflight"], "severity": severity, "explains": ["SYM001"]}
    silent = PLANNED.replace('shown_by = ["SYM001"]', "")
    assert any("shown_by" in problem for problem in validate(make_rule("TST001", cases=silent, **planned))) is asked
    assert validate(make_rule("TST002", cases=PLANNED, **planned)) == []
