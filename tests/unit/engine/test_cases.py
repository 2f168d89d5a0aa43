from __future__ import annotations

import pytest

from trainscope.engine.cases import parse_cases
from trainscope.engine.header import RuleHeader

from .conftest import header

HEADER = RuleHeader.model_validate(
    header(
        kind="cause",
        remedies=[{"title": "Use float32", "set": {"precision.weights": "fp32"}}],
        refuted=[{"advice": "Raise lr", "set": {"optimizer.lr": 1}}],
    )
)

WHOLE = """
[[case]]
name = "broken"
kind = "fires"
runs = [{ set = { "optimizer.type" = "prodigy", precision.weights = "bf16" }, inject = ["freeze"], stop_at = 60 },
        { resume = "latest" }]
first_cause = true
note = "the seed case"

[[case]]
name = "edge"
kind = "clear"
tables.groups = [{ step = 1, d = 1 }, { step = 2, d = nan }]
tables.config = { optimizer.type = "prodigy", "x" = [1] }
tables.segment_starts = [0, 40]

[[case]]
name = "planned"
kind = "not_applicable"
plan = { set = { "train.steps" = 5 } }

[[case]]
name = "cure"
kind = "cured"
of = "broken"
remedy = "Use float32"
healthy = { set = { "precision.weights" = "fp32" } }

[[case]]
name = "no cure"
kind = "refuted"
of = "broken"
advice = "Raise lr"
"""


def problems(text: str) -> str:
    return "\n".join(parse_cases(text, HEADER)[1])


def one(text: str) -> str:
    return problems(f"[[case]]\nname = 'x'\n{text}")


def test_every_kind_of_case() -> None:
    cases, wrong = parse_cases(WHOLE, HEADER)
    assert wrong == []
    assert cases[0].runs[0].set == {"optimizer.type": "prodigy", "precision.weights": "bf16"}
    assert cases[0].runs[1].resume == "latest"
    source = cases[1].source()
    assert source.segment_starts == [0, 40]
    assert source.tables["groups"].column("d").to_pylist()[0] == 1.0
    config = {row["key"]: row["value"] for row in source.tables["config"].to_pylist()}
    assert config == {"optimizer.type": "prodigy", "x": "[1]"}
    assert cases[3].healthy is not None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("kind = 'fires'", "give exactly one of runs, tables and plan, found none"),
        ("kind = 'fires'\nruns = [{}]\nplan = {}", "found runs and plan"),
        ("kind = 'burns'", "kind:"),
        ("kind = 'fires'\nrun = [{}]", "run: unknown key (did you mean runs?)"),
        ("kind = 'fires'\nruns = [{stop = 3}]", "stop: unknown key (did you mean stop_at?)"),
        ("kind = 'fires'\nruns = [{}]\nof = 'y'", "`of` is for cured and refuted"),
        ("kind = 'fires'\nruns = [{}]\nremedy = 'Use float32'", "`remedy` is for cured"),
        ("kind = 'clear'\nruns = [{}]\nfirst_cause = true", "`first_cause` is for fires"),
        ("kind = 'fires'\nruns = [{}]\nshown_by = ['SYM001']", "`shown_by` is for fires cases with a plan"),
        ("kind = 'clear'\nplan = {}\nshown_by = ['SYM001']", "`shown_by` is for fires cases with a plan"),
        ("kind = 'fires'\nplan = {}\nshown_by = ['ABC001']", "shown_by: the rule does not explain ABC001"),
        ("kind = 'cured'\nremedy = 'Use float32'", "names the case that it repeats"),
        ("kind = 'cured'\nof = 'x'\nremedy = 'Use float32'\nruns = [{}]", "names the case that it repeats"),
        ("kind = 'cured'\nof = 'x'", "names its `remedy`"),
        ("kind = 'refuted'\nof = 'x'", "names its `advice`"),
        ("kind = 'clear'\ntables = { grops = [] }", "no table grops (did you mean groups?)"),
        ("kind = 'clear'\ntables = { groups = [{ dd = 1 }] }", "groups: no column dd"),
        ("kind = 'clear'\ntables = { groups = [{ d = 'big' }] }", "groups.d: expected a number, found 'big'"),
        ("kind = 'clear'\ntables = { groups = [{ step = 1.5 }] }", "groups.step: expected a whole number"),
        ("kind = 'clear'\ntables = { groups = [{ step = true }] }", "groups.step: expected a whole number"),
        ("kind = 'clear'\ntables = { groups = 3 }", "groups: give a list of rows"),
        ("kind = 'clear'\ntables = { segment_starts = 3 }", "segment_starts: give a list of steps"),
        ("not toml", "not TOML"),
    ],
)
def test_each_mistake_is_named(text: str, expected: str) -> None:
    assert expected in one(text)


def test_mistakes_between_cases() -> None:
    text = WHOLE.replace('remedy = "Use float32"', 'remedy = "Use float23"').replace("Raise lr", "Lower lr")
    assert "no remedy 'Use float23' (did you mean Use float32?)" in problems(text)
    assert "refutes no 'Lower lr'" in problems(text)
    assert "case 'cure': of: no case 'broke' (did you mean broken?)" in problems(
        WHOLE.replace('of = "broken"', 'of = "broke"')
    )
    assert "is a clear case" in problems(WHOLE.replace('of = "broken"', 'of = "edge"'))
    assert problems(WHOLE.replace('"planned"', '"edge"')).count("used twice") == 1


def test_tables_cannot_be_cured() -> None:
    text = "[[case]]\nname = 'a'\nkind = 'fires'\ntables = {}\n"
    text += "[[case]]\nname = 'b'\nkind = 'cured'\nof = 'a'\nremedy = 'Use float32'\n"
    assert "has inline tables" in problems(text)
