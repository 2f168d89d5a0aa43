from __future__ import annotations

from typing import Any

import pytest

from trainscope.engine.header import Condition, RuleHeader, message_fields, parse_header, placeholder

from .conftest import header


def problems(**changes: Any) -> str:
    return "\n".join(parse_header(header(**changes))[1])


def parsed(**changes: Any) -> RuleHeader:
    found, wrong = parse_header(header(**changes))
    assert found is not None, wrong
    return found


def test_the_header_of_the_design() -> None:
    found = parsed(
        applies={"optimizer.type": ["prodigy"]},
        needs={"groups.d": {"min_steps": 100, "max_every": 10}, "tensors.update_norm": {}},
        explains=["SYM001"],
        remedies=[
            {
                "title": "Keep the trained weights in float32",
                "set": {"precision.weights": "fp32"},
                "elsewhere": {"kohya": "…"},
                "cost": "twice the memory",
                "when": {"precision.weights": ["bf16"]},
            }
        ],
        refuted=[{"advice": "Raise the learning rate", "set": {"optimizer.lr": 1e-3}}],
        references=[{"url": "https://example.org/x", "claim": "it happens"}],
        plot=[{"series": "d", "title": "d", "threshold": True}],
    )
    assert found.needs["groups.d"].max_every == 10
    assert found.applies["optimizer.type"].one_of == ("prodigy",)
    assert found.thresholds["min_growth"].value == 1.5


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"code": "pro001"}, "code:"),
        ({"name": "D never grows"}, "name:"),
        ({"kind": "smell"}, "kind:"),
        ({"severity": "fatal"}, "severity:"),
        ({"summary": ""}, "summary:"),
        ({"summary": None}, "summary: missing"),
        ({"stages": []}, "stages:"),
        ({"stages": ["training"]}, "stages"),
        ({"severty": "error"}, "severty: unknown key (did you mean severity?)"),
        ({"needs": {"group.d": {}}}, "no table group (did you mean groups?)"),
        ({"needs": {"groups.effective_rl": {}}}, "no column effective_rl (did you mean effective_lr?)"),
        ({"needs": {"groups": {}}}, "write it as table.column"),
        ({"needs": {"groups.d": {"min_step": 3}}}, "min_step: unknown key (did you mean min_steps?)"),
        ({"needs": {"groups.d": {"min_share": 0.5}}}, "has no tensors"),
        ({"needs": {"data.tokens": {"min_steps": 5}}}, "has no steps"),
        ({"needs": {"tensors.delivered": {"min_share": 1.5}}}, "min_share"),
        ({"explains": ["sym-1"]}, "not a code"),
        ({"message": "{value"}, "message:"),
        ({"message": "{}"}, "message:"),
        ({"message": "{value.__class__}"}, "message:"),
        ({"message": "{value[0]}"}, "message:"),
        ({"message": "{value:{threshold}}"}, "message:"),
        ({"thresholds": {"min-growth": {"value": 1, "why": "x"}}}, "thresholds:"),
        ({"thresholds": {"least": {"value": 1}}}, "thresholds.least.why: missing"),
        ({"references": [{"url": "example.org", "claim": "x"}]}, "references[0].url"),
        ({"remedies": [{"title": "a", "costs": "x"}]}, "remedies[0].costs: unknown key (did you mean cost?)"),
        ({"remedies": [{"title": "a"}], "refuted": [{"advice": "a"}]}, "used by two"),
        ({"applies": {"optimizer.type": "prodigy"}}, "applies.optimizer.type"),
        ({"applies": {"optimizer.type": {}}}, "give a list of allowed values"),
        ({"applies": {"optimizer.lr": {"min": 1, "not_in": [2]}}}, "give a list of allowed values"),
    ],
)
def test_each_mistake_is_named_with_its_place(changes: dict[str, Any], expected: str) -> None:
    assert expected in problems(**changes)


def test_all_mistakes_at_once() -> None:
    assert len(parse_header(header(kind="smell", severity="fatal", name="X Y"))[1]) == 3


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        (["prodigy", "lion"], "lion", True),
        (["prodigy"], "adamw", False),
        (["prodigy"], None, False),
        ([True], True, True),
        ([1], True, False),
        ([True], 1, False),
        ([1], 1.0, True),
        ({"not_in": ["constant"]}, "cosine", True),
        ({"not_in": ["constant"]}, "constant", False),
        ({"not_in": ["constant"]}, None, True),
        ({"min": 2}, 2, True),
        ({"min": 2}, 1.9, False),
        ({"max": 2}, 3, False),
        ({"min": 1, "max": 2}, 1.5, True),
        ({"min": 1}, "auto", False),
        ({"min": 0}, True, False),
        ({"min": 0}, None, False),
        ({"min": 0}, float("nan"), False),
    ],
)
def test_conditions(condition: Any, value: Any, expected: bool) -> None:
    assert Condition.model_validate(condition).matches(value) is expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (["a", True], "a or true"),
        ({"not_in": ["a"]}, "anything but a"),
        ({"min": 2}, "at least 2"),
        ({"max": 0.5}, "at most 0.5"),
        ({"min": 1, "max": 2}, "1 to 2"),
    ],
)
def test_conditions_in_words(condition: Any, expected: str) -> None:
    assert Condition.model_validate(condition).describe() == expected


def test_a_patch_may_be_written_nested() -> None:
    nested = parsed(remedies=[{"title": "a", "set": {"data": {"buckets": {"enabled": True}}, "train.steps": 5}}])
    assert nested.remedies[0].set == {"data.buckets.enabled": True, "train.steps": 5}


def test_placeholders_and_fields() -> None:
    assert placeholder("{suggested_steps}") == "suggested_steps"
    assert placeholder("up to {steps}") is None
    assert placeholder(5) is None
    assert message_fields("{{braces}} {a:.2f} {b!r}") == {"a", "b"}
