from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trainscope.engine.evaluate import Evaluation
from trainscope.engine.findings import findings, fingerprint, format_message, merge
from trainscope.engine.hits import Hit
from trainscope.engine.proofs import load_proofs
from trainscope.errors import RuleError
from trainscope.schema import Finding, Proof, RuleOutcome

from .conftest import MakeRule


def hit(name: str = "a", **changes: Any) -> Hit:
    values: dict[str, Any] = {
        "where_kind": "param",
        "where_name": name,
        "value": 1.0,
        "score": 0.5,
        "threshold": 2.0,
        "first_step": 10,
        "last_step": 20,
        "evidence": {"d0": 1e-6},
    }
    return Hit(**{**values, **changes})


@pytest.fixture
def merged(make_rule: MakeRule):  # type: ignore[no-untyped-def]
    def merge_hits(*hits: Hit, config: dict[str, Any] | None = None, proofs: Any = None, **header: Any) -> Finding:
        rule = make_rule(**header)
        evaluation = Evaluation(rule, RuleOutcome(rule.code, "x", "fired"), list(hits), dict(rule.thresholds))
        return merge(evaluation, {"precision.weights": "bf16"} if config is None else config, proofs)

    return merge_hits


def test_the_worst_hit_speaks_for_all(merged: Any) -> None:
    found = merged(
        hit("mild", score=0.2),
        hit("worst", score=0.9, value=1.2, evidence={"d0": 3e-6}, first_step=30, last_step=90),
        hit("early", score=0.5, first_step=5),
    )
    assert found.message == "d grew 1.20x (d0 = 3.0e-06)"
    assert (found.value, found.threshold, found.score) == (1.2, 2.0, 0.9)
    assert (found.first_step, found.last_step) == (5, 90)
    assert [place.name for place in found.where] == ["worst", "early", "mild"]
    assert found.evidence == {"d0": 3e-6, "places": 3}


def test_at_the_same_score_the_one_further_beyond_the_threshold_is_worse(merged: Any) -> None:
    small_is_bad = merged(hit("a", value=1.9), hit("b", value=0.1), hit("c", value=math.nan), hit("d", value=None))
    assert [place.name for place in small_is_bad.where] == ["c", "b", "a", "d"]
    large_is_bad = merged(hit("a", value=3.0), hit("b", value=9.0), name="large")
    assert large_is_bad.value == 9.0
    without = merged(hit("a", value=3.0, threshold=None), hit("b", value=9.0, threshold=None), name="without")
    assert without.value == 9.0


def test_at_most_ten_places_but_all_are_counted(merged: Any) -> None:
    found = merged(*[hit(f"p{number:02}") for number in range(25)], message="{places} places")
    assert len(found.where) == 10
    assert found.message == "25 places"


def test_a_place_that_is_hit_twice_is_one_place(merged: Any) -> None:
    found = merged(hit("a", score=0.3, first_step=1, last_step=2), hit("a", score=0.6, first_step=8, last_step=9))
    assert len(found.where) == 1
    assert (found.where[0].score, found.where[0].first_step, found.where[0].last_step) == (0.6, 1, 9)


def test_the_fingerprint_is_of_places_not_of_steps() -> None:
    first = fingerprint("TST001", [hit("a"), hit("b")])
    assert first == fingerprint("TST001", [hit("b", first_step=99, value=7.0), hit("a"), hit("a")])
    assert len(first) == 16
    assert first != fingerprint("TST001", [hit("a")])
    assert first != fingerprint("TST002", [hit("a"), hit("b")])
    eleventh = [hit(f"p{number}") for number in range(12)]
    assert fingerprint("T", eleventh) != fingerprint("T", eleventh[:11]), "of all places, not of the ten worst"


@pytest.mark.parametrize(
    ("template", "values", "expected"),
    [
        ("{a:.2f}", {"a": 1.234}, "1.23"),
        ("{a:.2f}", {"a": None}, "n/a"),
        ("{a:.2f}", {}, "n/a"),
        ("{a:.2f}", {"a": "text"}, "text"),
        ("{a:d}", {"a": 1.5}, "1.5"),
        ("{a:.1e}", {"a": math.nan}, "nan"),
        ("{a:.0%} of {b}", {"a": 0.5, "b": "x"}, "50% of x"),
        ("{a!r}", {}, "None"),
        ("{a:,}", {"a": [1]}, "[1]"),
        ("{{a}}", {}, "{a}"),
    ],
)
def test_a_message_never_fails(template: str, values: dict[str, Any], expected: str) -> None:
    assert format_message(template, values) == expected


def test_a_message_may_name_everything(merged: Any) -> None:
    message = "{where_name} {where_kind} {value} {threshold} {score} {first_step} {last_step} {min_growth} {d0} {gone}"
    assert merged(hit(), message=message).message == "a param 1.0 2.0 0.5 10 20 1.5 1e-06 n/a"


class TestRemedies:
    def test_columns_are_filled_in_with_their_type(self, merged: Any) -> None:
        remedies = [
            {"title": "longer", "set": {"train.steps": "{suggested}", "optimizer.lr": 1e-4, "run.name": "{a} b"}}
        ]
        found = merged(hit(evidence={"suggested": 500}), remedies=remedies)
        assert found.remedies[0].config_patch == {"train.steps": 500, "optimizer.lr": 1e-4, "run.name": "{a} b"}

    @pytest.mark.parametrize("evidence", [{"suggested": None}, {}, {"suggested": math.nan}])
    def test_without_the_column_there_is_no_remedy(self, merged: Any, evidence: dict[str, Any]) -> None:
        remedies = [{"title": "longer", "set": {"train.steps": "{suggested}"}}, {"title": "other", "set": {"a.b": 1}}]
        found = merged(hit(evidence=evidence), remedies=remedies)
        assert [remedy.title for remedy in found.remedies] == ["other"]

    def test_offered_only_where_it_makes_sense(self, merged: Any) -> None:
        remedies = [
            {"title": "yes", "set": {"a.b": 1}, "when": {"precision.weights": ["bf16"]}},
            {"title": "no", "set": {"a.b": 2}, "when": {"precision.weights": {"not_in": ["bf16"]}}},
            {"title": "not a key of this run", "set": {"a.b": 3}, "when": {"optimizer.d0": {"min": 0}}},
            {"title": "is so already", "set": {"precision.weights": "bf16"}},
            {"title": "words", "elsewhere": {"kohya": "…"}},
        ]
        found = merged(hit(), remedies=remedies)
        assert [remedy.title for remedy in found.remedies] == ["yes", "words"]

    def test_where_the_configuration_is_unknown_all_are_offered(self, merged: Any) -> None:
        remedies = [{"title": "a", "set": {"a.b": 1}, "when": {"precision.weights": ["bf16"]}}]
        assert len(merged(hit(), remedies=remedies, config={}).remedies) == 1

    def test_proofs_are_attached(self, merged: Any) -> None:
        cured, refuted = (Proof(case, "clear", 1.0, 0.5, 0.5) for case in ("cure", "no cure"))
        found = merged(
            hit(),
            remedies=[{"title": "a", "set": {"a.b": 1}}, {"title": "b", "set": {"a.b": 2}}],
            refuted=[{"advice": "c", "set": {"optimizer.lr": "{value}"}}],
            proofs={"TST001": {"cured": {"a": cured}, "refuted": {"c": refuted}}},
        )
        assert [remedy.proof for remedy in found.remedies] == [cured, None]
        assert found.remedies[0].proven
        assert (found.refuted[0].proof, found.refuted[0].config_patch) == (refuted, {"optimizer.lr": 1.0})


def test_plots_take_the_threshold_of_the_hit(merged: Any) -> None:
    plot = [{"series": "d", "title": "d", "threshold": True}, {"series": "train_loss", "title": "loss"}]
    found = merged(hit(), plot=plot, references=[{"url": "https://x.org", "claim": "y"}])
    assert [one.threshold for one in found.plots] == [2.0, None]
    assert found.references[0].claim == "y"


def test_the_gravest_finding_first(make_rule: MakeRule) -> None:
    evaluations = [
        Evaluation(make_rule(code, severity=severity), RuleOutcome(code, "x", "fired"), [hit(score=score)], {})
        for code, severity, score in (("TST001", "warning", 1.0), ("TST002", "error", 0.1), ("TST003", "error", 0.2))
    ]
    assert [one.code for one in findings(evaluations, {})] == ["TST003", "TST002", "TST001"]


class TestProofs:
    def test_none_yet(self, tmp_path: Path) -> None:
        assert load_proofs(tmp_path) == {}

    def test_they_are_read_back(self, tmp_path: Path) -> None:
        proof = {"case": "x", "rule": "clear", "loss_before": "NaN", "loss_after": 0.5, "loss_healthy": None}
        (tmp_path / "proofs.json").write_text(json.dumps({"TST001": {"cured": {"title": proof}}}))
        read = load_proofs(tmp_path)["TST001"]["cured"]["title"]
        assert read.loss_before is not None
        assert math.isnan(read.loss_before)
        assert (read.case, read.loss_after, read.loss_healthy) == ("x", 0.5, None)

    @pytest.mark.parametrize("text", ["{", "[]", '{"TST001": {"cured": {"t": {"case": "x"}}}}', '{"TST001": 3}'])
    def test_a_damaged_file_is_an_error(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "proofs.json").write_text(text)
        with pytest.raises(RuleError, match=r"proofs\.json"):
            load_proofs(tmp_path)
