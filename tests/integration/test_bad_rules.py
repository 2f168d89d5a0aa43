"""Rules that strangers wrote, broken in every way, and what rules say of a log that shows too little."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import ENVIRONMENT, config_text, digest, in_a_process, refused, trainscope
from trainscope.proof.runs import RunSpec, make_run

# ---- rules that strangers wrote


@pytest.fixture
def own_rule(here: Path) -> Path:
    """A sound rule of the user's own that looks at every run."""
    result = trainscope("rules", "new", "OWN001", "loss-too-high", "--family", "own", "--root", "mine")
    assert result.code == 0, result.err
    folder = here / "mine" / "own" / "OWN001-loss-too-high"
    header = folder / "rule.toml"
    text = header.read_text(encoding="utf-8").replace('{ "steps.loss" = { min_steps = 50 } }', "{}")
    header.write_text(text.replace("… {value:.3g} …", "loss {value:.3g}"), encoding="utf-8")
    return folder


def outcomes(run: Path, *options: object) -> tuple[int | None, dict[str, dict[str, Any]]]:
    result = trainscope("audit", run, "--format", "json", "--output", "-", "--fail-on", "never", *options)
    assert result.err == "", result.err
    return result.code, {rule["code"]: rule for rule in json.loads(result.out)["rules"]}


@pytest.fixture(scope="session")
def others(short_run: Path) -> dict[str, str]:
    """What trainscope's own rules say of the short run."""
    return {code: rule["outcome"] for code, rule in outcomes(short_run)[1].items()}


def test_a_rule_of_ones_own(own_rule: Path, short_run: Path) -> None:
    code, found = outcomes(short_run, "--rules", "mine")
    assert (code, found["OWN001"]["outcome"]) == (0, "fired")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("check.sql", "SELECT CAST('x' AS INTEGER) AS value FROM steps", "Conversion Error"),
        ("check.sql", "SELECT error('boom') AS value FROM steps", "boom"),
        ("check.sql", "SELECT nope FROM steps", "nope"),
        ("check.sql", "SELECT * FROM nope", "no table nope"),
        ("check.sql", "SELEC 1", "does not parse"),
        ("check.sql", "COPY steps TO 'stolen.parquet'", "COPY"),
        ("check.sql", "SELECT 1; DROP TABLE steps", "2 statements"),
        ("check.sql", "SELECT value FROM steps WHERE loss > $nope", "$nope"),
        ("rule.toml", "[[[", "not TOML"),
        ("rule.toml", 'code = "OWN001"', "rule.toml"),
        ("README.md", "# nothing", "no heading"),
    ],
    ids=["cast", "error()", "column", "table", "syntax", "copy", "two", "parameter", "toml", "header", "readme"],
)
def test_a_broken_rule_is_its_own_problem(
    file: str, content: str, says: str, own_rule: Path, own_run: Path, others: dict[str, str]
) -> None:
    (own_rule / file).write_text(content, encoding="utf-8")
    before = digest(own_run.parent)
    code, found = outcomes(own_run, "--rules", "mine")
    assert code == 3
    assert found["OWN001"]["outcome"] == "crashed"
    assert says in found["OWN001"]["reason"]
    assert {code: rule["outcome"] for code, rule in found.items() if code != "OWN001"} == others
    assert digest(own_run.parent) == before


def test_a_crashed_rule_is_shown_and_can_be_ignored(own_rule: Path, own_run: Path) -> None:
    (own_rule / "check.sql").write_text("SELECT error('boom') AS value FROM steps", encoding="utf-8")
    shown = trainscope("audit", own_run, "--rules", "mine", "--format", "console", "--fail-on", "never")
    assert shown.code == 3
    assert "OWN001" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert trainscope("audit", own_run, "--rules", "mine", "--ignore", "OWN001", "--fail-on", "never").code == 0


def test_a_rule_may_not_take_the_code_of_another(own_rule: Path, short_run: Path, here: Path) -> None:
    taken = own_rule.with_name("PREC001-loss-too-high")
    shutil.move(own_rule, taken)
    header = taken / "rule.toml"
    header.write_text(header.read_text(encoding="utf-8").replace("OWN001", "PREC001"), encoding="utf-8")
    refused("rules", "validate", "mine", says=("PREC001 is taken",), folder=here)


# ---- what a log is too short for


def test_a_log_that_is_too_short_says_so(short_run: Path) -> None:
    code, found = outcomes(short_run)
    blind = {name: rule["reason"] for name, rule in found.items() if rule["outcome"] == "not_observable"}
    assert code == 0
    assert blind
    assert any("at least 20 steps; recorded over 11" in reason for reason in blind.values()), blind
    assert all(reason for reason in blind.values())
    assert trainscope("audit", short_run, "--strict", "--fail-on", "never").code == 1


def test_a_log_that_is_too_sparse_says_so() -> None:
    run = make_run(RunSpec({"train.steps": 30, "ema.enabled": True, "eval.every_steps": 10, "probes.every": 15}))
    _, found = outcomes(run)
    for code in ("EMA001", "EMA003"):
        assert found[code]["outcome"] == "not_observable"
        assert "recorded at 2" in found[code]["reason"], found[code]["reason"]


def test_a_table_that_was_not_asked_for_says_so() -> None:
    _, found = outcomes(make_run(RunSpec({"train.steps": 12, "eval.every_steps": 6, "probes.tables": []})))
    assert found["PREC001"]["outcome"] in ("not_observable", "not_applicable")
    assert any("probes.tables" in rule["reason"] for rule in found.values() if rule["outcome"] == "not_observable")


# ---- as real processes


def test_as_processes(short_run: Path, own_rule: Path, here: Path) -> None:
    """The same through a shell: exit codes, both streams, no traceback."""
    (here / "cfg.toml").write_text(config_text("[lora]", "rnk = 3"), encoding="utf-8")
    refusals: list[tuple[tuple[object, ...], str]] = [
        (("run", "cfg.toml"), "did you mean lora.rank?"),
        (("audit", "nope"), "no such run: nope"),
        (("run", "cfg.toml", "--nonsense"), "--nonsense"),
        (("sql", short_run, "COPY steps TO 'stolen'"), "COPY"),
    ]
    for command, says in refusals:
        result = in_a_process(*command, cwd=here)
        assert (result.code, result.out) == (2, ""), (command, result)
        assert says in result.message
    (own_rule / "check.sql").write_text("SELECT error('boom') AS value FROM steps", encoding="utf-8")
    crashed = in_a_process(
        "audit", short_run, "--rules", "mine", "--format", "json", "--output", "-", "--fail-on", "never", cwd=here
    )
    assert (crashed.code, crashed.err) == (3, "")
    assert json.loads(crashed.out)["rules"]


def test_the_traceback_is_there_for_those_who_ask(here: Path) -> None:
    result = in_a_process("--debug", "audit", "nope", cwd=here)
    assert result.code == 2
    assert "Traceback" in result.err
    assert "RunError" in result.err
    assert result.err.splitlines()[-2].startswith("error: no such run")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_console_that_has_not_every_character(encoding: str, tmp_path: Path) -> None:
    for command in (("rules", "show", "PREC001"), ("config", "show", "lora")):
        result = in_a_process(*command, cwd=tmp_path, PYTHONIOENCODING=encoding)
        assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("command", [("config", "schema"), ("config", "show")], ids=["click", "rich"])
def test_a_reader_that_goes_away(command: tuple[str, ...], tmp_path: Path) -> None:
    """`trainscope … | head -c 10`: no complaint, no traceback, and not the 1 that means findings."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trainscope", *command],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141
