"""What CI servers read of a report: valid by the formats' own schemas, and pointing at the right line of cfg.toml."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema

from trainscope.report.anchors import ConfigFile, config_file
from trainscope.report.github import commands, summary
from trainscope.report.junit import render_junit
from trainscope.report.sarif import render_sarif

SCHEMAS = Path(__file__).parents[2] / "schemas"
HOSTILE = "a\x00\x1b[31m %0A::error::x,y:z <script>alert(1)</script> ]]> | `x` *y*\nsecond line \ud7ff"


@pytest.fixture
def hostile(s0: dict[str, Any]) -> dict[str, Any]:
    """Every text of the findings is somebody's attempt."""
    report = copy.deepcopy(s0)
    report["verdict"] = report["run"]["name"] = HOSTILE
    for finding in report["findings"]:
        finding["message"] = finding["summary"] = HOSTILE
        for place in finding["where"]:
            place["name"] = HOSTILE
        for remedy in finding["remedies"]:
            remedy["title"] = HOSTILE
    for diagnosis in report["diagnoses"]:
        diagnosis["title"] = HOSTILE
    return report


def config_of(report: dict[str, Any]) -> ConfigFile:
    return ConfigFile("configs/my run.toml", report["config"])


def failing(report: dict[str, Any]) -> set[str]:
    return {finding["fingerprint"] for finding in report["findings"] if finding["severity"] == "error"}


@pytest.mark.parametrize("name", ["s0", "hostile"])
def test_junit_is_valid(name: str, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(name)
    text = render_junit(report, failing=failing(report), accepted={})
    xmlschema.validate(ElementTree.fromstring(text.encode()), SCHEMAS / "JUnit.xsd")


def test_junit_counts(s0: dict[str, Any]) -> None:
    suite = ElementTree.fromstring(render_junit(s0, failing=failing(s0), accepted={}).encode())
    cases = suite.findall("testcase")
    assert len(cases) == int(suite.attrib["tests"]) == len(s0["rules"])
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[name]) == sum(case.find(tag) is not None for case in cases)
    failed = {case.attrib["name"].split()[0] for case in cases if case.find("failure") is not None}
    assert failed == {finding["code"] for finding in s0["findings"] if finding["severity"] == "error"}


def test_an_accepted_finding_is_a_skipped_test(s0: dict[str, Any]) -> None:
    (first, *_) = sorted(failing(s0))
    text = render_junit(s0, failing=failing(s0) - {first}, accepted={first: "the card is small"})
    (skipped,) = [s for s in ElementTree.fromstring(text.encode()).iter("skipped") if "accepted" in s.attrib["message"]]
    assert skipped.attrib["message"] == "accepted: the card is small"


def test_a_crashed_rule_is_an_error(s0: dict[str, Any]) -> None:
    s0["rules"][0] = {**s0["rules"][0], "outcome": "crashed", "reason": "division by zero"}
    suite = ElementTree.fromstring(render_junit(s0, failing=set(), accepted={}).encode())
    assert suite.attrib["errors"] == "1"
    (error,) = suite.iter("error")
    assert error.attrib["message"] == "division by zero"


@pytest.mark.parametrize("name", ["s0", "hostile"])
def test_sarif_is_valid(name: str, request: pytest.FixtureRequest) -> None:
    report = request.getfixturevalue(name)
    accepted = {report["findings"][0]["fingerprint"]: "known"}
    found = json.loads(render_sarif(report, config_of(report), accepted=accepted))
    schema = json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator(schema, format_checker=validator.FORMAT_CHECKER).validate(found)
    results = found["runs"][0]["results"]
    assert [result["ruleId"] for result in results] == [finding["code"] for finding in report["findings"]]
    assert [bool(result.get("suppressions")) for result in results] == [True] + [False] * (len(results) - 1)
    location = results[0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"]["uri"] == "configs/my%20run.toml"


def test_places_are_lines_that_the_remedy_changes(s0: dict[str, Any]) -> None:
    config, lines = config_of(s0), s0["config"].split("\n")
    seen = {}
    for finding in s0["findings"]:
        seen[finding["code"]] = lines[config.line(finding, s0) - 1]
        for remedy in finding["remedies"][:1]:
            key = next(iter(remedy["config_patch"]))
            section, _, name = key.rpartition(".")
            assert seen[finding["code"]].startswith((f"{name} =", f"[{section}]"))
    assert 'weights = "bf16"   # fits the card' in seen.values()


def test_annotations_cannot_be_forged(hostile: dict[str, Any]) -> None:
    told = commands(hostile, config_of(hostile), accepted={})
    lines = told.removesuffix("\n").split("\n")
    assert len(lines) == len(hostile["findings"])
    for line in lines:
        assert line.startswith(("::error file=configs/my run.toml,line=", "::warning file=", "::notice file="))
        properties = line.removeprefix("::").partition("::")[0]
        assert len(properties.split(",")) == 3, "no property of theirs"
        assert "\r" not in line
    assert "%0A" in told
    assert "%250A" in told, "an escape that was in the text stays one"


def test_accepted_findings_are_not_annotated(s0: dict[str, Any]) -> None:
    fingerprints = [finding["fingerprint"] for finding in s0["findings"]]
    assert commands(s0, config_of(s0), accepted=dict.fromkeys(fingerprints, "so be it")) == ""
    one = commands(s0, config_of(s0), accepted=dict.fromkeys(fingerprints[1:], "so be it"))
    assert one.count("\n") == 1


def test_the_summary_says_what_to_change(s0: dict[str, Any]) -> None:
    told = summary(s0, accepted={s0["findings"][0]["fingerprint"]: "known since May"})
    assert '+weights = "fp32"' in told
    assert "known since May" in told
    for finding in s0["findings"]:
        assert f"`{finding['code']}`" in told


def test_the_summary_shows_texts_as_they_are(hostile: dict[str, Any]) -> None:
    told = summary(hostile, accepted={})
    assert "<script" not in told
    assert "\\*y\\*" in told


def test_the_file_that_was_changed_since_is_not_pointed_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cfg.toml").write_text("[run]\n")
    assert config_file(tmp_path / "cfg.toml", "[run]\n", otherwise=Path("run/config.toml")).path == "cfg.toml"
    assert config_file(tmp_path / "cfg.toml", "[eval]\n", otherwise=Path("run/config.toml")).path == "run/config.toml"
    assert config_file(None, "", otherwise=Path("/elsewhere/config.toml")).path == "/elsewhere/config.toml"
