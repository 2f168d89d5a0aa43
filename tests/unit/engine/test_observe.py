"""Coverage and what follows from it: does the rule apply, and was enough recorded?"""

from __future__ import annotations

from typing import Any

import pytest

from trainscope.engine.coverage import measure
from trainscope.engine.header import RuleHeader
from trainscope.engine.observe import obstacle
from trainscope.engine.tables import TableSource, config_values, from_rows

from .conftest import header


def source(**tables: Any) -> TableSource:
    return from_rows({"config": {"optimizer.type": "prodigy", "ema.enabled": True}, **tables})


def every(step: int, last: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"step": at, **columns} for at in range(step, last + 1, step)]


def asked(run: TableSource, **changes: Any) -> tuple[str, str] | None:
    changes.setdefault("needs", {})
    return obstacle(RuleHeader.model_validate(header(**changes)), config_values(run), measure(run))


class TestCoverage:
    def test_a_column_by_steps(self) -> None:
        rows = [{"step": step, "d": 1.0 if step % 10 == 0 else None} for step in range(1, 101)]
        seen = measure(source(groups=rows + rows))["groups.d"]
        assert (seen.rows, seen.first_step, seen.last_step, seen.every) == (10, 10, 100, 10)
        assert measure(source(groups=rows))["groups.step"].rows == 100
        assert measure(source(groups=rows))["groups.d_hat"].rows == 0

    def test_the_cadence_is_a_median(self) -> None:
        rows = [{"step": step, "loss": 1.0} for step in (1, 2, 3, 10, 20, 30, 40, 50)]
        assert measure(source(evals=rows))["evals.loss"].every == 10

    def test_non_finite_is_a_value(self) -> None:
        assert measure(source(groups=[{"step": 1, "d": float("nan")}]))["groups.d"].rows == 1

    def test_share_of_the_trained_tensors(self) -> None:
        params = [{"param": name, "in_optimizer": name != "frozen"} for name in ("a", "b", "c", "d", "frozen")]
        tensors = [{"step": 1, "param": "a", "delivered": 1.0}, {"step": 1, "param": "b", "update_norm": 1.0}]
        seen = measure(source(params=params, tensors=[*tensors, {"step": 2, "param": "a", "delivered": 0.5}]))
        assert seen["tensors.delivered"].share_of_params == 0.25
        assert seen["tensors.update_norm"].share_of_params == 0.25
        assert seen["tensors.param"].share_of_params == 0.5
        assert seen["tensors.delivered"].rows == 2
        assert measure(source(tensors=tensors))["tensors.delivered"].share_of_params is None

    def test_what_requires_grad_is_trained_where_the_optimizer_is_unknown(self) -> None:
        params = [{"param": "a", "requires_grad": True}, {"param": "b", "requires_grad": False}]
        seen = measure(source(params=params, ema=[{"step": 1, "param": "a", "delivered": 1.0}]))
        assert seen["ema.delivered"].share_of_params == 1.0

    def test_tables_without_steps_count_rows(self) -> None:
        seen = measure(source(data=[{"sample": 0, "tokens": 3}, {"sample": 1}]))["data.tokens"]
        assert (seen.rows, seen.first_step, seen.every) == (1, None, None)

    def test_superseded_rows_do_not_count(self) -> None:
        rows = [{"step": 60, "segment": 0, "d": 1.0}, {"step": 41, "segment": 1, "d": 1.0}]
        run = from_rows({"groups": rows}, segment_starts=[0, 40])
        assert measure(run)["groups.d"].last_step == 41

    def test_the_logged_reason_is_kept(self) -> None:
        logged = [
            {"table": "groups", "column": "d", "reason": "AdamW has no d"},
            {"table": "ema", "reason": "EMA is off"},
        ]
        seen = measure(source(coverage=logged))
        assert seen["groups.d"].reason == "AdamW has no d"
        assert seen["ema.lag_norm"].reason == "EMA is off"
        assert seen["groups.d"].report().reason == "AdamW has no d"

    def test_a_further_column_of_the_log_is_covered(self) -> None:
        import pyarrow as pa

        assert measure(TableSource({"steps": pa.table({"step": [1], "mine": [2]})}))["steps.mine"].rows == 1


class TestApplies:
    def test_a_match_is_asked(self) -> None:
        assert asked(source(), applies={"optimizer.type": ["prodigy"]}) is None

    def test_a_mismatch(self) -> None:
        outcome = asked(source(), applies={"optimizer.type": ["adamw", "lion"]})
        assert outcome == ("not_applicable", "applies where optimizer.type is adamw or lion; here it is prodigy")

    def test_an_unknown_key(self) -> None:
        outcome = asked(source(), applies={"optimizer.typ": ["adamw"]})
        assert outcome is not None
        assert outcome[0] == "not_observable"
        assert "optimizer.typ (did you mean optimizer.type?)" in outcome[1]

    def test_a_mismatch_decides_even_beside_an_unknown_key(self) -> None:
        outcome = asked(source(), applies={"nothing": [1], "optimizer.type": ["adamw"]})
        assert outcome is not None
        assert outcome[0] == "not_applicable"

    def test_no_configuration_at_all(self) -> None:
        outcome = asked(TableSource(), applies={"optimizer.type": ["adamw"]})
        assert outcome is not None
        assert "was not recorded" in outcome[1]

    def test_it_comes_before_the_needs(self) -> None:
        outcome = asked(source(), applies={"ema.enabled": [False]}, needs={"groups.d": {}})
        assert outcome == ("not_applicable", "applies where ema.enabled is false; here it is true")


class TestNeeds:
    @pytest.mark.parametrize(
        ("need", "reason"),
        [
            (
                {"groups.d": {"min_steps": 100}},
                "needs groups.d over at least 100 steps; recorded over 40 (steps 10 to 50)",
            ),
            ({"groups.d": {"min_rows": 6}}, "needs groups.d at 6 or more steps; recorded at 5 (steps 10 to 50)"),
            ({"groups.d": {"max_every": 5}}, "needs groups.d at least every 5 steps; recorded every 10"),
            (
                {"tensors.delivered": {"max_every": 10}},
                "needs tensors.delivered at least every 10 steps; recorded every 25: set probes.every = 10",
            ),
            (
                {"evals.loss": {"max_every": 10}},
                "needs evals.loss at least every 10 steps; recorded once: set eval.every_steps = 10",
            ),
            ({"groups.d_hat": {}}, "needs groups.d_hat, which was not recorded"),
            ({"adapters.a_norm": {}}, "no `adapters` rows were recorded"),
            ({"ema.lag_norm": {}, "ema.decay": {}}, "no `ema` rows were recorded (EMA is off)"),
            ({"tensors.g2_over_v": {}}, "needs tensors.g2_over_v, which was not recorded (Lion has no v)"),
            (
                {"tensors.delivered": {"min_share": 0.9}},
                "needs tensors.delivered for at least 90% of the trained tensors; recorded for 50%",
            ),
            ({"data.tokens": {"min_rows": 3}}, "needs at least 3 rows of data.tokens; recorded 1"),
            (
                {"groups.d_hat": {}, "groups.d": {"min_rows": 9}},
                (
                    "needs groups.d_hat, which was not recorded; "
                    "needs groups.d at 9 or more steps; recorded at 5 (steps 10 to 50)"
                ),
            ),
        ],
    )
    def test_reasons(self, need: dict[str, Any], reason: str) -> None:
        run = source(
            groups=every(10, 50, d=1.0),
            tensors=every(25, 100, param="a", delivered=1.0),
            evals=[{"step": 5, "loss": 1.0}],
            data=[{"sample": 0, "tokens": 3}],
            params=[{"param": "a", "in_optimizer": True}, {"param": "b", "in_optimizer": True}],
            coverage=[
                {"table": "ema", "column": "lag_norm", "reason": "EMA is off"},
                {"table": "tensors", "column": "g2_over_v", "reason": "Lion has no v"},
            ],
        )
        assert asked(run, needs=need) == ("not_observable", reason)

    def test_a_share_of_an_unknown_whole(self) -> None:
        run = source(tensors=[{"step": 1, "param": "a", "delivered": 1.0}])
        outcome = asked(run, needs={"tensors.delivered": {"min_share": 0.1}})
        assert outcome is not None
        assert "is not known" in outcome[1]

    def test_enough(self) -> None:
        run = source(groups=every(10, 110, d=1.0))
        needs = {"groups.d": {"min_steps": 100, "min_rows": 11, "max_every": 10}}
        assert asked(run, needs=needs) is None
