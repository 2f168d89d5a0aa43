from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from trainscope.engine.diagnose import diagnose, verdict
from trainscope.schema import Diagnosis, Finding, Remedy, RuleOutcome

CATALOGUE = {
    "SYM001": ("symptom", []),
    "SYM002": ("symptom", []),
    "MEC001": ("mechanism", ["SYM001"]),
    "MEC002": ("mechanism", ["MEC001"]),
    "CAU001": ("cause", ["MEC001"]),
    "CAU002": ("cause", ["MEC002"]),
    "CAU003": ("cause", ["SYM001"]),
    "CAU004": ("cause", ["SYM002"]),
    "RSK001": ("risk", []),
}
SUMMARIES = {
    "SYM001": "Nothing was learned",
    "SYM002": "The samples are black.",
    "MEC001": "Updates were rounded away",
    "CAU001": "The weights are bfloat16",
    "CAU002": "EMA is bfloat16",
}
RULES: Any = [
    SimpleNamespace(code=code, header=SimpleNamespace(explains=tuple(explains)))
    for code, (_, explains) in CATALOGUE.items()
]

FindingOf = Callable[..., Finding]


def finding(code: str, score: float = 0.5, severity: str = "error", remedies: list[Remedy] | None = None) -> Finding:
    kind: Any = CATALOGUE[code][0]
    level: Any = severity
    return Finding(
        code=code,
        name=code.lower(),
        family="test",
        kind=kind,
        severity=level,
        summary=SUMMARIES.get(code, f"{code} happened"),
        message="",
        where=[],
        first_step=None,
        last_step=None,
        value=None,
        threshold=None,
        score=score,
        evidence={},
        remedies=remedies or [],
        refuted=[],
        references=[],
        plots=[],
        fingerprint=f"fp-{code}",
    )


def told(*findings: Finding, outcomes: tuple[RuleOutcome, ...] = ()) -> list[Diagnosis]:
    return diagnose(findings, RULES, outcomes)


def codes(fingerprints: list[str]) -> list[str]:
    return [one.removeprefix("fp-") for one in fingerprints]


def test_one_broken_run_is_one_story() -> None:
    (story,) = told(finding("SYM001"), finding("MEC001"), finding("CAU001", 0.9), finding("CAU003", 0.2))
    assert codes(story.symptoms) == ["SYM001"]
    assert codes(story.mechanisms) == ["MEC001"]
    assert codes([cause.finding for cause in story.causes]) == ["CAU001", "CAU003"]
    assert story.title == "Nothing was learned: The weights are bfloat16"


def test_a_cause_explains_a_symptom_through_a_mechanism_that_did_not_fire() -> None:
    assert len(told(finding("SYM001"), finding("CAU002"))) == 1


def test_what_nothing_connects_stays_apart() -> None:
    stories = told(finding("SYM001"), finding("CAU001"), finding("SYM002"), finding("CAU004"), finding("RSK001"))
    assert len(stories) == 3


def test_causes_rank_by_score_then_depth_then_code() -> None:
    (story,) = told(finding("SYM001"), finding("CAU003"), finding("CAU001"), finding("CAU002"))
    assert codes([cause.finding for cause in story.causes]) == ["CAU002", "CAU001", "CAU003"]
    (story,) = told(finding("SYM001"), finding("CAU003", 0.6), finding("CAU001"), finding("CAU002"))
    assert codes([cause.finding for cause in story.causes])[0] == "CAU003"


def test_two_causes_without_their_symptom_are_two_stories() -> None:
    assert len(told(finding("CAU001"), finding("CAU003"))) == 2


def test_severity_and_order() -> None:
    stories = told(
        finding("SYM002", severity="warning"),
        finding("CAU004", 1.0, severity="info"),
        finding("SYM001", severity="info"),
        finding("CAU001", 0.1, severity="error"),
        finding("RSK001", 0.3, severity="error"),
    )
    assert [story.severity for story in stories] == ["error", "error", "warning"]
    assert codes([stories[0].causes[0].finding]) == ["RSK001"]


@pytest.mark.parametrize(
    ("fired", "title"),
    [
        (["SYM001"], "Nothing was learned: the cause was not found"),
        (["SYM002", "CAU004"], "The samples are black: CAU004 happened"),
        (["SYM001", "MEC001"], "Nothing was learned: Updates were rounded away; the cause was not found"),
        (["MEC001"], "Updates were rounded away"),
        (["MEC001", "CAU001"], "Updates were rounded away: The weights are bfloat16"),
        (["CAU001"], "The weights are bfloat16"),
    ],
)
def test_titles(fired: list[str], title: str) -> None:
    assert told(*[finding(code) for code in fired])[0].title == title


def test_a_title_says_who_could_not_look_for_the_cause() -> None:
    blind = (
        RuleOutcome("CAU001", "x", "not_observable"),
        RuleOutcome("CAU002", "x", "crashed"),
        RuleOutcome("CAU004", "x", "not_observable"),
        RuleOutcome("CAU003", "x", "clear"),
    )
    (story,) = told(finding("SYM001"), outcomes=blind)
    assert story.title == "Nothing was learned: the cause was not found (CAU001, CAU002 could not look)"


def test_remedies_are_those_of_the_causes_each_patch_once() -> None:
    first, second = Remedy("fp32", {"a": 1}), Remedy("longer", {"b": 2})
    same, words, more_words = Remedy("also fp32", {"a": 1}), Remedy("words", {}), Remedy("more words", {})
    (story,) = told(
        finding("SYM001", remedies=[Remedy("of the symptom", {"z": 1})]),
        finding("CAU001", 0.9, remedies=[first, words]),
        finding("CAU003", 0.1, remedies=[same, second, more_words]),
    )
    assert [remedy.title for remedy in story.remedies] == ["fp32", "words", "longer", "more words"]


def test_without_a_cause_the_mechanism_is_cured_else_the_symptom() -> None:
    (story,) = told(
        finding("SYM001", remedies=[Remedy("s", {"a": 1})]), finding("MEC001", remedies=[Remedy("m", {"b": 1})])
    )
    assert [remedy.title for remedy in story.remedies] == ["m"]
    assert told(finding("SYM001", remedies=[Remedy("s", {"a": 1})]))[0].remedies[0].title == "s"


class TestVerdict:
    def say(self, *findings: Finding, outcomes: list[RuleOutcome] | None = None, **run: Any) -> str:
        return verdict(told(*findings), findings, outcomes or [], run)

    def test_problems(self) -> None:
        assert (
            self.say(finding("SYM001"), finding("CAU001"))
            == "1 problem: nothing was learned, because the weights are bfloat16"
        )
        assert self.say(finding("SYM001"), finding("CAU002")).endswith("because EMA is bfloat16")
        assert self.say(finding("SYM001"), finding("SYM002", 0.1)).startswith(
            "2 problems, the gravest: nothing was learned: "
        )

    def test_a_remark_is_no_problem(self) -> None:
        clear = [RuleOutcome("A", "a", "clear")]
        assert (
            self.say(finding("RSK001", severity="info"), outcomes=clear)
            == "Nothing wrong was found: 1 rule looked; 1 remark"
        )

    def test_nothing(self) -> None:
        outcomes = [RuleOutcome(f"CLR{number:03}", "x", "clear") for number in range(14)]
        blind = [RuleOutcome(f"BLD{number:03}", "x", "not_observable") for number in range(5)]
        away = [RuleOutcome("NAP001", "x", "not_applicable")]
        assert self.say(outcomes=outcomes + away) == "Nothing wrong was found: 14 rules looked"
        assert (
            self.say(outcomes=outcomes + blind)
            == "Nothing wrong was found: 14 rules looked, 5 could not (BLD000, BLD001, BLD002 and 2 more)"
        )
        assert self.say(outcomes=blind[:1]) == "Nothing was looked at: 1 rule could not (BLD000)"
        assert self.say(outcomes=away) == "Nothing was looked at: no rule applies to this run"

    def test_crashed_rules_are_told(self) -> None:
        outcomes = [RuleOutcome("A", "a", "clear"), RuleOutcome("B", "b", "crashed")]
        assert self.say(outcomes=outcomes) == "Nothing wrong was found: 1 rule looked; 1 rule crashed (B)"

    @pytest.mark.parametrize(
        ("run", "start"),
        [
            ({"status": "running", "last_step": 40}, "running, up to step 40: 1 problem"),
            ({"status": "crashed", "last_step": 40}, "crashed at step 40: 1 problem"),
            ({"status": "interrupted", "last_step": 40}, "interrupted at step 40: 1 problem"),
            ({"status": "running"}, "running: 1 problem"),
            ({"status": "completed", "last_step": 40}, "1 problem"),
            ({}, "1 problem"),
        ],
    )
    def test_the_state_of_the_run(self, run: dict[str, Any], start: str) -> None:
        assert self.say(finding("SYM001"), **run).startswith(start)
