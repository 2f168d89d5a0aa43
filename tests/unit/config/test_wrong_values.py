"""Every key of cfg.toml refuses what is not of its type or out of its range, and the message names it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.leaves import Leaf, leaves
from trainscope.config.load import parse_config
from trainscope.errors import ConfigError
from trainscope.toml import toml_value

LEAVES = leaves()
GOOD = {"model.base": "tiny:sd15", "train.steps": 10, "data.dir": "images"}
KINDS: dict[str, str] = {
    "boolean": "true",
    "integer": "3",
    "number": "2.5",
    "string": '"banana"',
    "array": "[1979-05-27]",
    "object": "{ banana = 1979-05-27 }",
    "date": "1979-05-27",
}
"""A value of each of TOML's types; a list and a table of what nobody asks for."""


def allowed_kinds(leaf: Leaf) -> set[str]:
    kinds = {branch.get("type", type(branch.get("const")).__name__) for branch in leaf.branches}
    if "number" in kinds:
        kinds.add("integer")  # TOML's 1 is a number too
    return kinds - {"array", "object"} if leaf.schema.get("type") in ("array", "object") else kinds


def refusal(leaf: Leaf, value: str) -> list[str]:
    """What is said against a value, given as TOML; the other keys are good ones."""
    good = {key: toml_value(kept) for key, kept in GOOD.items() if key != leaf.key}
    if leaf.optimizer is not None:
        good["optimizer.type"] = toml_value(leaf.optimizer)
    tables: dict[str, list[str]] = {}
    for key, shown in {**good, leaf.key: value}.items():
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {shown}")
    text = "\n".join(line for table, lines in tables.items() for line in (f"[{table}]", *lines))
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return caught.value.problems


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES.keys())
def test_a_wrong_type_is_refused_by_name(leaf: Leaf) -> None:
    wrong = {kind: value for kind, value in KINDS.items() if kind not in allowed_kinds(leaf)}
    assert "date" in wrong
    for kind, value in wrong.items():
        problems = refusal(leaf, value)
        assert all(problem.startswith(leaf.key) for problem in problems), (kind, problems)


def out_of_range(leaf: Leaf) -> Iterator[Any]:
    """Values of the right type just outside of each bound."""
    for branch in leaf.branches:
        step = 1 if branch.get("type") == "integer" else 1e-3
        if "minimum" in branch:
            yield branch["minimum"] - step
        if "maximum" in branch:
            yield branch["maximum"] + step
        if "exclusiveMinimum" in branch:
            yield branch["exclusiveMinimum"]
        if "exclusiveMaximum" in branch:
            yield branch["exclusiveMaximum"]
        if "multipleOf" in branch:
            yield 5 * branch["multipleOf"] + 1
        if "enum" in branch and isinstance(branch["enum"][0], str):
            yield "banana"
        if "pattern" in branch:
            yield "!"
        if branch.get("type") == "number":
            yield from (float("nan"), float("-inf"))
        if branch.get("type") == "array" and "minItems" in branch:
            yield []
        if branch.get("type") == "array" and "maxItems" in branch:
            yield [0.5] * (branch["maxItems"] + 1)


RANGED = {name: leaf for name, leaf in LEAVES.items() if list(out_of_range(leaf))}


@pytest.mark.parametrize("leaf", RANGED.values(), ids=RANGED.keys())
def test_a_value_out_of_range_is_refused_by_name(leaf: Leaf) -> None:
    for value in out_of_range(leaf):
        problems = refusal(leaf, toml_value(value))
        assert all(problem.startswith(leaf.key) for problem in problems), (value, problems)


FREE = {
    "run.dir", "run.device", "model.base", "model.tokenizer", "model.vae", "lora.targets", "lora.text_encoder_targets",
    "lora.init_from", "data.dir", "data.cache_dir", "data.mask_dir", "checkpoint.resume", "sample.prompts",
    "sample.negative_prompt", "audit.thresholds",
}  # fmt: skip
"""Texts that say what is wanted by a name, which only the run can look up."""


def test_whatever_has_a_range_says_so_in_its_schema() -> None:
    """Numbers, choices and lists of a fixed length have one; a truth and a number without bounds have none."""
    unbounded = {name for name, leaf in LEAVES.items() if leaf.schema.get("type") == "boolean"}
    assert set(LEAVES) - set(RANGED) - unbounded - FREE == {
        name for name, leaf in LEAVES.items() if leaf.optimizer and leaf.key == "optimizer.type"
    } | {"data.max_tokens", "probes.tables"}
