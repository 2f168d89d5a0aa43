from __future__ import annotations

import dataclasses
from typing import Any

from trainscope.engine.remedies import chosen_patches
from trainscope.schema import Diagnosis, Finding, RankedCause, Remedy, Report

from .test_diagnose import finding


def report(*diagnoses: list[Finding], kind: str = "causes") -> Report:
    told = []
    for findings in diagnoses:
        prints = [one.fingerprint for one in findings]
        story = Diagnosis("error", "", [], [], [], [])
        if kind == "causes":
            causes = [RankedCause(one.fingerprint, one.score) for one in findings]
            told.append(dataclasses.replace(story, causes=causes))
        else:
            told.append(dataclasses.replace(story, mechanisms=prints))
    every = [one for findings in diagnoses for one in findings]
    return Report({}, "", told, every, [], [], [], [], [], [])


def cause(code: str, score: float, *patches: dict[str, Any]) -> Finding:
    return finding(code, score, remedies=[Remedy(f"{code} {number}", patch) for number, patch in enumerate(patches)])


def chosen(*diagnoses: list[Finding], kind: str = "causes") -> list[tuple[str, str]]:
    return [(code, remedy.title) for code, remedy in chosen_patches(report(*diagnoses, kind=kind))]


def test_the_first_remedy_of_the_likeliest_cause() -> None:
    assert chosen([cause("CAU001", 0.1, {"a": 1}, {"b": 1})]) == [("CAU001", "CAU001 0")]


def test_further_causes_that_matter_and_touch_nothing_else() -> None:
    first = cause("CAU001", 0.9, {"a": 1, "b": 1})
    assert chosen([first, cause("CAU002", 0.6, {"c": 1})]) == [("CAU001", "CAU001 0"), ("CAU002", "CAU002 0")]
    assert len(chosen([first, cause("CAU002", 0.4, {"c": 1})])) == 1
    assert len(chosen([first, cause("CAU002", 0.6, {"b": 2})])) == 1
    assert len(chosen([first], [cause("CAU004", 0.1, {"c": 1})])) == 2
    assert len(chosen([first], [cause("CAU004", 0.9, {"a": 2})])) == 1, "another diagnosis has set it"


def test_advice_in_words_is_no_patch() -> None:
    assert chosen([cause("CAU001", 0.9, {}, {"a": 1})]) == [("CAU001", "CAU001 1")]
    assert chosen([cause("CAU001", 0.9, {})]) == []


def test_without_a_cause_the_mechanism_is_corrected() -> None:
    assert chosen([cause("MEC001", 0.2, {"a": 1})], kind="mechanisms") == [("MEC001", "MEC001 0")]
