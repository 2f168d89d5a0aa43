from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema
from rich.console import Console

from trainscope.report.gate import allowed, print_gate, smallest, value, values
from trainscope.report.gate_ci import gate_commands, gate_junit, gate_summary
from trainscope.schema import ChangedKey, ComparedRun, Comparison, GateResult, to_json

SCHEMAS = Path(__file__).parents[2] / "schemas"


def comparison(**changes: Any) -> Comparison:
    given: dict[str, Any] = {
        "name": "heldout-loss",
        "where": "weights",
        "title": "Held-out loss at the end",
        "unit": "mean squared error",
        "outcome": "pass",
        "baseline": (0.4, 0.42),
        "candidate": 0.41,
        "allowed": (None, 0.45),
        "smallest_change": 0.1,
        "relative": True,
        "parts_at": None,
        "method": "prediction interval of 2 runs",
        "reason": "",
    }
    return Comparison(**{**given, **changes})


def result(*comparisons: Comparison, **changes: Any) -> dict[str, Any]:
    run = ComparedRun("good", "id", "runs/good", "completed", 60)
    failed = any(one.outcome == "fail" for one in comparisons)
    given: dict[str, Any] = {
        "verdict": "fail" if failed else "pass",
        "summary": "1 of 2 measures fail: setup" if failed else "none of 2 measures fails",
        "method": "prediction interval of 2 runs",
        "candidate": ComparedRun("new", "id2", "runs/new", "completed", 60),
        "baselines": (run, ComparedRun("old", "id3", "baseline.json", "completed", 60)),
        "comparisons": comparisons,
        "changed": (ChangedKey("optimizer.lr", 1e-3, None),),
        "notes": (),
        "last_step": 60,
    }
    return to_json(GateResult(**{**given, **changes}))  # type: ignore[no-any-return]


def shown(plain: dict[str, Any], *, encoding: str = "utf-8", width: int = 80) -> str:
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding=encoding, write_through=True)
    print_gate(plain, Console(file=stream, width=width, force_terminal=False))
    return buffer.getvalue().decode(encoding)


FAILED = comparison(
    outcome="fail", candidate=0.6, parts_at=17, reason="too high, 3.8 times the change that fails", p_value=1e-5
)


def test_a_pass_is_one_line_and_a_table() -> None:
    text = shown(result(comparison()))
    first, second, *rest = text.splitlines()
    assert first == "✓ passed: none of 2 measures fails"
    assert second == "runs/new against runs/good, baseline.json"
    (row,) = (line for line in rest if "heldout-loss" in line)
    assert row.split("  ")[0] == "✓"
    for part in ("heldout-loss, weights", "0.41", "0.41", "up to 0.45", "+10 %"):
        assert part in row
    assert "optimizer.lr" not in text


def test_runs_of_one_file_are_counted() -> None:
    runs = tuple(ComparedRun(f"seed-{number}", "id", "baseline.json", "completed", 60) for number in range(3))
    assert "runs/new against baseline.json (3 runs)" in shown(result(comparison(), baselines=runs))


def test_a_failure_names_measure_both_values_the_step_and_what_was_set_otherwise() -> None:
    text = shown(result(FAILED))
    assert "✕ failed: 1 of 2 measures fail" in text
    assert "heldout-loss, weights  Held-out loss at the end" in text
    assert "0.4–0.42 → 0.6, from step 17 on" in text
    assert "allowed is up to 0.45: too high, 3.8 times the change that fails" in text
    assert "optimizer.lr: 0.001 → not set" in text
    assert text.index("optimizer.lr") < text.index("Held-out loss at the end")


def test_details_of_what_is_equal_or_not_and_what_was_not_seen() -> None:
    setup = comparison(
        name="setup", where="", title="What is trained", outcome="fail", method="equal or not", parts_at=1,
        details=tuple(f"thing {number}: a → b" for number in range(9)),
    )  # fmt: skip
    missing = comparison(name="update", outcome="missing", reason="the candidate did not record it")
    text = shown(result(setup, missing, notes=("the candidate still runs: compared up to step 40",)))
    assert "thing 5: a → b" in text
    assert "thing 6" not in text
    assert "and 3 more, from step 1 on" in text
    assert "update, weights: the candidate did not record it" in text
    assert "note: the candidate still runs" in text


def test_hostile_text_and_poor_terminals() -> None:
    run = ComparedRun("[red]x\x1b[31m", "id", "runs/[bold]\x1b]0;x", "completed", 1)
    text = shown(result(FAILED, candidate=run), encoding="ascii")
    assert "\x1b" not in text
    assert "[bold]" in text
    assert "x failed" in text
    assert "0.4-0.42 -> 0.6" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = shown(result(FAILED, comparison(), comparison(outcome="missing")), width=width).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0.02, "s", "20 ms"),
        (2.0, "s", "2 s"),
        (3 * 2**30, "bytes", "3 GiB"),
        (1.5 * 2**20, "bytes", "1.5 MiB"),
        (1e-6, "", "1e-6"),
        (0.123456, "", "0.1235"),
        ("NaN", "", "NaN"),
        ("Infinity", "", "∞"),
        (None, "", "–"),
    ],
)
def test_values_have_units(number: Any, unit: str, text: str) -> None:
    assert value(number, unit) == text


def test_ranges_and_changes_in_words() -> None:
    assert values([0.2, 0.1, 0.3], "") == "0.1–0.3"
    assert values([0.2], "") == "0.2"
    assert values([], "") == "–"
    both = to_json(comparison(allowed=(0.3, 0.5)))
    assert (allowed(both), smallest(both)) == ("0.3–0.5", "±10 %")
    large = to_json(comparison(allowed=(0.1, 0.9), smallest_change=2.0))
    assert smallest(large) == "×3, ÷3"
    plain = to_json(comparison(allowed=(0.9, None), smallest_change=0.04, relative=False, unit=""))
    assert (allowed(plain), smallest(plain)) == ("from 0.9", "-0.04")


HOSTILE = "a\x00\x1b[31m\n::error::forged | <script> ]]>"


def of_every_outcome(**changes: Any) -> dict[str, Any]:
    exact = comparison(
        name="setup", where="", outcome="fail", method="equal or not", details=("optimizer: adamw → lion", HOSTILE)
    )
    missing = comparison(name="d", where="", outcome="missing", reason=HOSTILE, candidate=None)
    other = comparison(name="ema-lag", where="", outcome="not comparable", reason="no average", candidate=None)
    return result(comparison(), FAILED, exact, missing, other, **changes)


@pytest.mark.parametrize("strict", [False, True])
def test_junit_has_a_test_for_each_measure(strict: bool) -> None:
    text = gate_junit(of_every_outcome(strict=strict, crashed=("PREC001: division by zero",)))
    suite = ElementTree.fromstring(text.encode())
    xmlschema.validate(suite, SCHEMAS / "JUnit.xsd")
    counts = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 6, "failures": 2 + strict, "errors": 1, "skipped": 2 - strict}
    failure = next(iter(suite.iter("failure")))
    assert "0.4–0.42 → 0.6, from step 17 on" in failure.attrib["message"]


def test_annotations_are_one_line_a_failure() -> None:
    told = gate_commands(of_every_outcome())
    lines = told.removesuffix("\n").split("\n")
    assert len(lines) == 2
    assert all(line.startswith("::error title=gate%3A ") for line in lines)
    assert gate_commands(result(comparison())) == ""
    assert len(gate_commands(of_every_outcome(strict=True)).splitlines()) == 3


def test_the_job_summary_has_every_measure() -> None:
    told = gate_summary(of_every_outcome())
    assert told.startswith("### trainscope gate: fail")
    assert "<script" not in told
    table = [line for line in told.splitlines() if line.startswith("| ")][1:]
    assert len(table) == 5
    assert all(line.replace("\\|", "").count("|") == 7 for line in table)
    assert "optimizer.lr: 0.001" in told
