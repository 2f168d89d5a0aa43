"""Rules asked while a run goes on: only those that say so, each when it can tell, and none that the end takes back."""

from __future__ import annotations

import pyarrow.compute as pc
import pytest

from trainscope.engine.cases import Case
from trainscope.engine.evaluate import evaluate
from trainscope.engine.header import RuleHeader
from trainscope.engine.live import last_step, look, share_done
from trainscope.engine.loader import load_rules
from trainscope.engine.rule import Rule
from trainscope.engine.tables import TableSource, as_table, from_rows

from .conftest import MakeRule, header

LIVE = [rule for rule in load_rules(strict=True)[0] if rule.header.live is not None]


def run(steps: int, *, planned: int | None = 100, warmup: int = 0) -> TableSource:
    config = {"optimizer.type": "prodigy", "plan.steps": planned, "plan.warmup_steps": warmup}
    return from_rows(
        {
            "steps": [{"step": step, "loss": 1.0} for step in range(1, steps + 1)],
            "groups": [{"step": step, "name": "unet", "d": 1e-6, "d0": 1e-6} for step in range(1, steps + 1)],
            "config": {key: value for key, value in config.items() if value is not None},
        }
    )


def codes(source: TableSource, rules: list[Rule]) -> list[str]:
    return [finding.code for finding in look(source, rules)]


def test_only_rules_that_say_so_are_asked(make_rule: MakeRule) -> None:
    rules = [make_rule("TST001"), make_rule("TST002", live=0)]
    assert codes(run(50), rules) == ["TST002"]
    finding = look(run(50), rules)[0]
    assert finding.message == "d grew 1.00x (d0 = 1.0e-06)"
    assert codes(run(50), rules[:1]) == []


def test_each_from_its_share_of_the_run_on(make_rule: MakeRule) -> None:
    rules = [make_rule("TST001", live=0), make_rule("TST002", live=0.25)]
    assert codes(run(24), rules) == ["TST001"]
    assert codes(run(25), rules) == ["TST001", "TST002"]
    # The warmup does not count: 20 of 80 steps after it.
    assert codes(run(39, warmup=20), rules) == ["TST001"]
    assert codes(run(40, warmup=20), rules) == ["TST001", "TST002"]
    # A run whose plan is not known may have hardly begun.
    assert codes(run(90, planned=None), rules) == ["TST001"]


def test_needs_and_thresholds_count_as_in_an_audit(make_rule: MakeRule) -> None:
    rules = [make_rule("TST001", live=0, needs={"groups.d": {"min_steps": 40}})]
    assert codes(run(40), rules) == []
    assert codes(run(41), rules) == ["TST001"]
    assert look(run(41), rules, {"TST001": {"min_growth": 0.5}, "OTHER1": {"x": 1.0}}) == []


def test_a_rule_that_crashes_finds_nothing(make_rule: MakeRule) -> None:
    rules = [make_rule("TST001", live=0, sql="SELECT nothing FROM groups", thresholds={}), make_rule("TST002", live=0)]
    assert codes(run(50), rules) == ["TST002"]


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (10, 0.0), (11, 1 / 90), (55, 0.5), (100, 1.0), (120, 1.0)])
def test_the_share_that_is_done(step: int, share: float) -> None:
    assert share_done({"plan.steps": 100, "plan.warmup_steps": 10}, step) == pytest.approx(share)
    assert share_done({"plan.warmup_steps": 10}, step) == 0
    # A warmup that outlives the run is no part of what it is for.
    assert share_done({"plan.steps": 100, "plan.warmup_steps": 500}, step) == 0


def test_a_log_without_steps() -> None:
    assert last_step(from_rows({})) == 0
    assert look(from_rows({}), LIVE) == []


def test_the_header() -> None:
    assert RuleHeader.model_validate(header()).live is None
    assert RuleHeader.model_validate(header(live=0)).live == 0
    for wrong in ({"live": 1}, {"live": -0.1}, {"live": 0.5, "stages": ["preflight"]}):
        with pytest.raises(ValueError, match="live"):
            RuleHeader.model_validate(header(**wrong))


def _until(source: TableSource, step: int) -> TableSource:
    """What the log said when the last segment was at this step."""
    last = len(source.segment_starts) - 1
    tables = {}
    for name, data in source.tables.items():
        table = as_table(data)
        if {"step", "segment"} <= set(table.schema.names):
            early = pc.less(pc.fill_null(table["segment"], 0), last)
            table = table.filter(pc.or_(early, pc.less_equal(pc.fill_null(table["step"], 0), step)))
        tables[name] = table
    return TableSource(tables, source.segment_starts)


INLINE = [
    pytest.param(rule, case, id=f"{rule.code}-{case.name}")
    for rule in LIVE
    for case in rule.cases
    if case.tables is not None and case.kind != "not_observable"
]


@pytest.mark.parametrize(("rule", "case"), INLINE)
def test_what_fires_early_still_stands_at_the_end(rule: Rule, case: Case) -> None:
    source = case.source()

    def fires(tables: TableSource) -> bool:
        return evaluate([rule], tables)[0].outcome.outcome == "fired"

    steps = {
        step for data in source.tables.values() if "step" in data.schema.names for step in data["step"].to_pylist()
    }
    if any(fires(_until(source, step)) for step in sorted(step for step in steps if step is not None)):
        assert fires(source)


def test_rules_that_only_the_end_can_answer_are_not_live() -> None:
    live = {rule.code for rule in LIVE}
    # Early on, every run is too short, has hardly moved and has not learned.
    assert not live & {"SYM001", "SYM002", "SYM003", "SCH001", "SCH002", "SCH003", "LORA001", "EMA001", "EMA003"}
    assert {"SYM004", "PREC001", "PRO001", "RES001"} <= live
