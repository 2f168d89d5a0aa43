"""A rule for both stages: warned by the plan, confirmed or dismissed by what the run measured."""

from __future__ import annotations

from trainscope.engine.evaluate import evaluate
from trainscope.engine.header import Stage
from trainscope.engine.rule import Rule
from trainscope.engine.tables import TableSource, from_rows

from .conftest import MakeRule

SQL = """
SELECT 'run' AS where_kind, 'run' AS where_name, 1 AS value, $most AS threshold, 1.0 AS score
FROM config, (SELECT max(lr) AS lr FROM groups) AS used
WHERE key = 'optimizer.lr' AND coalesce(used.lr, try_cast(value AS DOUBLE)) > $most
"""


def planned_rule(make_rule: MakeRule, **needs: object) -> Rule:
    return make_rule(
        "TST001",
        sql=SQL,
        kind="risk",
        message="too high",
        stages=["preflight", "run"],
        needs={"groups.lr": {"min_rows": 2}, **needs},
        thresholds={"most": {"value": 1.0, "why": "a test"}},
    )


def outcome(rule: Rule, source: TableSource, stage: Stage) -> tuple[str, str]:
    (found,) = evaluate([rule], source, stage)
    return found.outcome.outcome, found.outcome.reason


PLAN = {"config": {"optimizer.lr": 5.0}}


def test_what_only_a_run_measures_is_not_asked_of_a_plan(make_rule: MakeRule) -> None:
    rule = planned_rule(make_rule)
    assert outcome(rule, from_rows(PLAN), "preflight")[0] == "fired"
    found, reason = outcome(rule, from_rows(PLAN), "run")
    assert found == "not_observable"
    assert "groups" in reason


def test_a_run_that_measured_something_else_is_clear(make_rule: MakeRule) -> None:
    measured = from_rows({**PLAN, "groups": [{"step": 1, "lr": 0.5}, {"step": 2, "lr": 0.5}]})
    assert outcome(planned_rule(make_rule), measured, "run")[0] == "clear"


def test_what_a_plan_can_know_is_asked_of_it_too(make_rule: MakeRule) -> None:
    rule = planned_rule(make_rule, **{"data.width": {}})
    found, reason = outcome(rule, from_rows(PLAN), "preflight")
    assert found == "not_observable"
    assert "data" in reason
    known = from_rows({**PLAN, "data": [{"sample": 0, "width": 64}]})
    assert outcome(rule, known, "preflight")[0] == "fired"
