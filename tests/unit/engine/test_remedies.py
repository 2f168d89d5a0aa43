from __future__ import annotations

import dataclasses
import tomllib
from typing import Any

import pytest

from trainscope.engine.remedies import chosen_patches, corrected_config, diff
from trainscope.errors import ConfigError
from trainscope.schema import Diagnosis, Finding, RankedCause, Remedy, Report

from .test_diagnose import finding

TEXT = """# my run
[train]
steps = 100   # enough?

[precision]
weights = "bf16"
"""


def test_a_value_changes_and_nothing_else() -> None:
    changed = corrected_config(TEXT, [{"precision.weights": "fp32"}])
    assert changed == TEXT.replace('"bf16"', '"fp32"')


def test_a_comment_beside_the_value_stays() -> None:
    assert "steps = 500   # enough?" in corrected_config(TEXT, [{"train.steps": 500}])


def test_tables_are_made_where_they_are_missing() -> None:
    changed = corrected_config(TEXT, [{"ema.enabled": True, "data.buckets.step": 32}, {"top": 1}, {"train.lr": 1e-4}])
    assert changed.startswith("# my run\n")
    assert tomllib.loads(changed) == {
        "top": 1,
        "train": {"steps": 100, "lr": 1e-4},
        "precision": {"weights": "bf16"},
        "ema": {"enabled": True},
        "data": {"buckets": {"step": 32}},
    }


@pytest.mark.parametrize(
    "text",
    [
        'precision = { weights = "bf16" }\n',
        'precision.weights = "bf16"\n',
        "[train]\nsteps = 1\n[precision.x]\na = 1\n",
        "[precision.x]\na = 1\n[train]\nsteps = 1\n[precision]\nweights = 1\n",
        "",
        "# only a comment",
    ],
)
def test_however_the_tables_are_written(text: str) -> None:
    changed = tomllib.loads(corrected_config(text, [{"precision.weights": "fp32"}]))
    assert changed["precision"]["weights"] == "fp32"
    before = tomllib.loads(text)
    assert changed.get("train") == before.get("train")
    assert changed["precision"].get("x") == before.get("precision", {}).get("x")


@pytest.mark.parametrize("value", [1, 1.5, True, "text", ["a", "b"], [0.9, 0.999], 1e-5])
def test_values_of_every_type(value: Any) -> None:
    assert tomllib.loads(corrected_config(TEXT, [{"optimizer.x": value}]))["optimizer"]["x"] == value


def test_what_cannot_be_corrected() -> None:
    with pytest.raises(ConfigError, match=r"train\.steps is a value"):
        corrected_config(TEXT, [{"train.steps.more": 1}])
    with pytest.raises(ConfigError, match="cannot be corrected"):
        corrected_config("[train", [{"a": 1}])


def test_a_diff() -> None:
    shown = diff(TEXT, {"precision.weights": "fp32"})
    assert '-weights = "bf16"\n+weights = "fp32"\n' in shown
    assert shown.startswith("--- cfg.toml\n+++ cfg.toml\n")
    assert diff(TEXT, {"precision.weights": "bf16"}) == ""
    assert diff("a = 1", {"a": 2}).endswith("-a = 1\n+a = 2\n")


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
