"""`audit` and `preflight` as CI calls them: formats, files, exit codes and accepted findings of a real run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
import xmlschema

from tests.integration.commands import trainscope

SCHEMAS = Path(__file__).parents[1] / "schemas"


def sarif(text: str) -> list[dict[str, object]]:
    found = json.loads(text)
    jsonschema.validate(found, json.loads((SCHEMAS / "sarif-schema-2.1.0.json").read_text()))
    results: list[dict[str, object]] = found["runs"][0]["results"]
    return results


def test_formats_go_to_files_of_their_own(faulty_run: Path, here: Path) -> None:
    result = trainscope("audit", faulty_run, "--format", "html,json,junit,sarif", "--output", "out")
    assert result.code == 1
    assert result.out == ""
    names = {"report.html", "report.json", "report.junit.xml", "report.sarif"}
    assert {path.name for path in (here / "out").iterdir()} == names
    report = json.loads((here / "out" / "report.json").read_text())
    junit = ElementTree.fromstring((here / "out" / "report.junit.xml").read_bytes())
    xmlschema.validate(junit, SCHEMAS / "JUnit.xsd")
    errors = [finding for finding in report["findings"] if finding["severity"] == "error"]
    assert int(junit.attrib["failures"]) == len(errors) > 0
    assert len(sarif((here / "out" / "report.sarif").read_text())) == len(report["findings"])


def test_standard_output_has_nothing_else(faulty_run: Path) -> None:
    assert sarif(trainscope("audit", faulty_run, "--format", "sarif", "--output", "-").out)
    ElementTree.fromstring(trainscope("audit", faulty_run, "--format", "junit", "--output", "-").out.encode())
    told = trainscope("audit", faulty_run, "--format", "github", "--output", "-").out
    assert told
    assert all(line.startswith("::") for line in told.splitlines())


def test_annotations_point_at_the_users_file(faulty_run: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path(shutil.copytree(faulty_run, here / "run"))
    resolved = run / "segments" / "0" / "config.resolved.json"
    (here / "cfg.toml").write_bytes((run / "segments" / "0" / "config.toml").read_bytes())
    resolved.write_text(json.dumps({**json.loads(resolved.read_text()), "path": str(here / "cfg.toml")}))
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(here / "summary.md"))
    (here / "summary.md").write_text("before\n")
    told = trainscope("audit", "run", "--format", "github").out
    lines = (here / "cfg.toml").read_text().splitlines()
    (place,) = {
        line.partition("file=cfg.toml,line=")[2].partition(",")[0] for line in told.splitlines() if "PREC001" in line
    }
    assert lines[int(place) - 1].startswith("weights = ")
    summary = (here / "summary.md").read_text()
    assert summary.startswith("before\n### trainscope: ")
    assert '+weights = "fp32"' in summary


def test_accepted_findings_pass_until_they_expire(faulty_run: Path, here: Path) -> None:
    audit = ("audit", faulty_run, "--format", "sarif", "--output", "out.sarif", "--accepted", "accepted.toml")
    assert "no such file" in trainscope(*audit).message
    assert trainscope(*audit, "--update-accepted").code == 0
    result = trainscope(*audit)
    assert result.code == 0
    assert all("suppressions" in found for found in sarif((here / "out.sarif").read_text()))
    file = here / "accepted.toml"
    text = file.read_text()
    assert "say why" in text
    (day,) = {line.partition("= ")[2] for line in text.splitlines() if line.startswith("expires")}
    file.write_text(text.replace(day, "2020-01-01"))
    result = trainscope(*audit)
    assert result.code == 1
    assert "was accepted until 2020-01-01" in result.err


def test_a_plan_in_the_formats_of_ci(here: Path) -> None:
    config = '[model]\nbase = "tiny:sd15"\n\n[train]\nsteps = 20\n\n[optimizer]\ntype = "prodigy"\nlr = 1e-5\n'
    shapes = Path(__file__).parents[2] / "examples" / "shapes"
    (here / "cfg.toml").write_text(f'{config}\n[data]\ndir = "{shapes}"\nresolution = 64\n')
    results = sarif(trainscope("preflight", "cfg.toml", "--format", "sarif").out)
    low = next(found for found in results if found["ruleId"] == "PRO101")
    place = low["locations"][0]["physicalLocation"]  # type: ignore[index]
    assert place["artifactLocation"]["uri"] == "cfg.toml"
    assert (here / "cfg.toml").read_text().splitlines()[place["region"]["startLine"] - 1] == "lr = 1e-5"
    assert "file=cfg.toml,line=" in trainscope("preflight", "cfg.toml", "--format", "github").out
    ElementTree.fromstring(trainscope("preflight", "cfg.toml", "--format", "junit").out.encode())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--format", "xml"), "allowed are html, json, junit, sarif, console, github"),
        (("--format", "junit,sarif", "--output", "-"), "exactly one format"),
        (("--format", "junit,sarif", "--output", "a.sarif"), "a.sarif"),
        (("--format", "junit", "--output", "a.sarif"), "a.sarif"),
        (("--update-accepted",), "--accepted FILE"),
    ],
)
def test_what_cannot_be_is_refused(faulty_run: Path, here: Path, options: tuple[str, ...], says: str) -> None:
    result = trainscope("audit", faulty_run, *options)
    assert result.code == 2
    assert says in result.message
    assert list(here.iterdir()) == []
