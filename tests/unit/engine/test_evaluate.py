from __future__ import annotations

import pytest

from trainscope.engine import evaluate as module
from trainscope.engine.evaluate import Evaluation, check_overrides, evaluate
from trainscope.engine.hits import find_hits
from trainscope.engine.tables import TableSource, from_rows
from trainscope.errors import ConfigError, RuleError

from .conftest import MakeRule

HIT = "SELECT 'run' AS where_kind, 'run' AS where_name, 1 AS value, 1 AS score FROM groups LIMIT 1"


def outcomes(evaluations: list[Evaluation]) -> dict[str, str]:
    return {one.outcome.code: one.outcome.outcome for one in evaluations}


def test_fired_clear_and_the_rest(make_rule: MakeRule, stuck: TableSource) -> None:
    rules = [
        make_rule("TST001"),
        make_rule("TST002", sql=HIT + " OFFSET 1000", thresholds={}),
        make_rule("TST003", applies={"optimizer.type": ["adamw"]}),
        make_rule("TST004", needs={"ema.delivered": {}}),
        make_rule("TST005", sql="SELECT nothing FROM groups", thresholds={}),
        make_rule("TST006", applies={"no.such.key": [1]}),
    ]
    found = evaluate(rules, stuck)
    assert outcomes(found) == {
        "TST001": "fired",
        "TST002": "clear",
        "TST003": "not_applicable",
        "TST004": "not_observable",
        "TST005": "crashed",
        "TST006": "not_observable",
    }
    assert [hit.where_name for hit in found[0].hits] == ["unet"]
    assert "nothing" in found[4].outcome.reason
    assert found[0].outcome.seconds > 0


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ("'run' AS where_kind, 1 AS value, 1 AS score", "no column where_name"),
        (
            "'run' AS where_kind, 'a' AS where_name, 1 AS value, 1.5 AS score",
            "row 1: score must be a number from 0 to 1",
        ),
        ("'run' AS where_kind, 'a' AS where_name, 1 AS value, -0.1 AS score", "score must be"),
        ("'run' AS where_kind, 'a' AS where_name, 1 AS value, 'nan'::DOUBLE AS score", "score must be"),
        ("'run' AS where_kind, 'a' AS where_name, 1 AS value, NULL AS score", "score must be"),
        ("'run' AS where_kind, 'a' AS where_name, 'x' AS value, 1 AS score", "value must be a number, found 'x'"),
        ("'run' AS where_kind, NULL AS where_name, 1 AS value, 1 AS score", "where_name must be a name"),
        ("'' AS where_kind, 'a' AS where_name, 1 AS value, 1 AS score", "where_kind must be a word"),
        (
            "'run' AS where_kind, 'a' AS where_name, 1 AS value, 1 AS score, 1.5 AS first_step",
            "first_step must be a step",
        ),
        ("'run' AS where_kind, 'a' AS where_name, 1 AS value, 1 AS score, 2 AS score", "two columns score"),
    ],
)
def test_rows_that_break_the_contract_crash_the_rule(
    make_rule: MakeRule, stuck: TableSource, columns: str, reason: str
) -> None:
    rule = make_rule(sql=f"SELECT {columns} FROM groups LIMIT 1", thresholds={})
    outcome = evaluate([rule], stuck)[0].outcome
    assert outcome.outcome == "crashed"
    assert reason in outcome.reason


def test_what_a_row_may_hold(stuck: TableSource) -> None:
    sql = """SELECT 'group' AS where_kind, 3 AS where_name, 'inf'::DOUBLE AS value, 1.0000000001 AS score,
        5.0 AS last_step, [1, 2] AS list, NULL AS nothing"""
    hit = find_hits(stuck, sql, {})[0]
    assert (hit.where_name, hit.value, hit.score, hit.last_step) == ("3", float("inf"), 1.0, 5)
    assert (hit.first_step, hit.threshold) == (None, None)
    assert hit.evidence == {"list": [1, 2], "nothing": None}


def test_thresholds_may_be_overridden(make_rule: MakeRule, stuck: TableSource) -> None:
    rule = make_rule()
    assert outcomes(evaluate([rule], stuck, thresholds={"TST001": {"min_growth": 0.5}})) == {"TST001": "clear"}
    found = evaluate([rule], stuck, thresholds={"TST001": {"min_growth": 1000}})[0]
    assert len(found.hits) == 2
    assert found.thresholds == {"min_growth": 1000}


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ({"TST002": {"min_growth": 1}}, "audit.thresholds.TST002: no such rule (did you mean TST001?)"),
        ({"TST001": {"min_grow": 1}}, "min_grow: no such threshold (did you mean min_growth?); TST001 has min_growth"),
        ({"TST001": {"min_growth": "2"}}, "expected a number, found '2'"),
        ({"TST001": {"min_growth": True}}, "expected a number"),
        ({"TST001": {"min_growth": float("nan")}}, "expected a number"),
    ],
)
def test_a_threshold_that_no_rule_has_is_the_users_mistake(
    make_rule: MakeRule, stuck: TableSource, overrides: dict[str, dict[str, object]], reason: str
) -> None:
    with pytest.raises(ConfigError) as error:
        evaluate([make_rule()], stuck, thresholds=overrides)
    assert reason in str(error.value)
    assert error.value.exit_code == 2


def test_text_and_flags_keep_their_type(make_rule: MakeRule) -> None:
    rule = make_rule(thresholds={"kind": {"value": "x", "why": "y"}, "min_growth": {"value": 1, "why": "y"}})
    check_overrides({"TST001": {"kind": "z", "min_growth": 0.5}}, [rule])
    with pytest.raises(ConfigError, match="expected a str"):
        check_overrides({"TST001": {"kind": 1}}, [rule])
    check_overrides({"TST009": {"kind": 1}}, [rule], also_known=["TST009"])


def test_stages(make_rule: MakeRule, stuck: TableSource) -> None:
    rules = [
        make_rule("TST001", stages=["run"]),
        make_rule("TST002", stages=["preflight"]),
        make_rule("TST003", stages=["resume"]),
        make_rule("TST004", stages=["preflight", "run"]),
    ]
    found = evaluate(rules, stuck)
    assert outcomes(found) == {"TST001": "fired", "TST003": "not_applicable", "TST004": "fired"}
    assert found[1].outcome.reason == "the run was not resumed"
    assert outcomes(evaluate(rules, stuck, "preflight")) == {"TST002": "fired", "TST004": "fired"}
    assert outcomes(evaluate(rules, stuck, "resume")) == {"TST003": "fired"}
    resumed = TableSource(stuck.tables, [0, 50])
    assert outcomes(evaluate(rules, resumed))["TST003"] == "fired"


def test_a_slow_rule_crashes_alone(make_rule: MakeRule, stuck: TableSource) -> None:
    slow = "SELECT count(*) FROM range(10000000000) a, range(1000000) b, groups"
    rules = [make_rule("TST001", sql=slow, thresholds={}), make_rule("TST002")]
    found = evaluate(rules, stuck, timeout=0.2)
    assert outcomes(found) == {"TST001": "crashed", "TST002": "fired"}
    assert found[0].outcome.reason == "ran longer than 0.2 s"


def test_a_bug_in_one_rule_is_its_own(make_rule: MakeRule, stuck: TableSource, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(source: TableSource, sql: str, *rest: object) -> object:
        if "HAVING" in sql:
            raise ZeroDivisionError("oh")
        return find_hits(source, sql, {})

    monkeypatch.setattr(module, "find_hits", broken)
    found = evaluate([make_rule("TST001"), make_rule("TST002", sql=HIT, thresholds={})], stuck)
    assert outcomes(found) == {"TST001": "crashed", "TST002": "fired"}
    assert found[0].outcome.reason == "ZeroDivisionError: oh"


def test_the_last_segment_counts(make_rule: MakeRule) -> None:
    rows = [{"step": step, "segment": 0, "d": 1e-6} for step in range(1, 61)]
    rows += [{"step": step, "segment": 1, "d": 1e-6 * step} for step in range(41, 101)]
    run = from_rows({"groups": rows}, segment_starts=[0, 40])
    hits = evaluate([make_rule(thresholds={"min_growth": {"value": 1000, "why": "x"}})], run)[0].hits
    assert hits[0].value == pytest.approx(100)


def test_one_missing_threshold_is_a_rule_error(stuck: TableSource) -> None:
    with pytest.raises(RuleError, match="no threshold"):
        find_hits(stuck, HIT.replace("LIMIT", "WHERE d > $x LIMIT"), {})
