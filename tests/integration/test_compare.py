"""`trainscope compare` on real runs of the tiny models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from tests.integration.commands import digest, refused, trainscope
from trainscope.cli.compare import compared_runs
from trainscope.engine.compare.result import RunComparison
from trainscope.proof.runs import RunSpec, make_run
from trainscope.runlog.rundir import create_run


@pytest.fixture(scope="module")
def slower() -> Path:
    """The short run with another seed and half the learning rate, as the gate's tests have it. Read only."""
    return make_run(RunSpec({"train.steps": 12, "eval.every_steps": 6, "run.seed": 3, "optimizer.lr": 5e-5}))


@pytest.fixture(scope="module")
def twice(short_run: Path) -> RunComparison:
    """The short run beside itself, without rules, which take seconds to ask."""
    with mock.patch("trainscope.engine.loader.load_rules", return_value=([], [])):
        return compared_runs([short_run, short_run])


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch, twice: RunComparison) -> None:
    """What becomes of a comparison does not ask for another one."""
    monkeypatch.setattr("trainscope.cli.compare.compared_runs", lambda _: twice)


def test_two_runs_side_by_side(here: Path, short_run: Path, slower: Path) -> None:
    before = digest(short_run), digest(slower)
    result = trainscope("compare", short_run, slower, "--format", "html,json,console", "--output", "deep/er")
    assert (result.code, result.err) == (0, "")
    assert (digest(short_run), digest(slower)) == before, "nothing is written into the runs"
    folder = here / "deep" / "er"
    assert sorted(folder.iterdir()) == [folder / "comparison.html", folder / "comparison.json"]
    assert result.last_line == "deep/er/comparison.json"
    assert result.out.index("Configuration") < result.out.index("optimizer.lr") < result.out.index("Held-out loss")
    found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert (found["kind"], found["format"]) == ("trainscope comparison", 1)
    labels = [f"{run.parent.name}/{run.name}" for run in (short_run, slower)]
    assert [run["label"] for run in found["runs"]] == labels
    assert {cell["outcome"] for row in found["findings"] for cell in row["cells"]} <= {"fired", "clear"}
    differing = {row["key"]: [setting["value"] for setting in row["settings"]] for row in found["config"]["differing"]}
    assert differing == {"optimizer.lr": [1e-4, 5e-5]}
    assert found["environment"] == {"differing": [], "equal": found["environment"]["equal"]}
    assert found["standing"]["step"] == 12
    rates = next(row for row in found["numbers"] if row["title"].startswith("Effective learning rate"))
    assert [cell["value"] for cell in rates["values"]] == pytest.approx([1e-4, 5e-5])
    assert {overlay["name"] for overlay in found["curves"]} >= {"eval_loss", "train_loss", "loss_by_timestep"}
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert "optimizer.<wbr>lr" in page
    assert len(page.encode()) < 10_000_000


@pytest.mark.usefixtures("at_once")
def test_the_same_run_twice_into_a_file(here: Path, short_run: Path) -> None:
    result = trainscope("compare", short_run, short_run, "--format", "json", "--output", "one.json")
    assert (result.code, result.out) == (0, "one.json\n"), "it says where it is"
    (file,) = here.iterdir()
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [run["label"] for run in found["runs"]] == [short_run.name, f"{short_run.name} (2)"]
    assert "are the same run" in found["notes"][0]


@pytest.mark.usefixtures("at_once")
def test_a_comparison_is_replaced_and_nothing_else_is(here: Path, short_run: Path) -> None:
    for _ in range(2):
        assert trainscope("compare", short_run, short_run, "--format", "html,json").code == 0
    for name, content in (("comparison.html", "<html>mine</html>"), ("comparison.json", '{"kind": "mine"}')):
        (here / name).write_text(content, encoding="utf-8")
        says = (f"{name} exists, and is no comparison",)
        refused("compare", short_run, short_run, "--format", name.rpartition(".")[2], says=says, folder=here)
    (here / "folder.html").mkdir()
    refused("compare", short_run, short_run, "--output", "folder.html", says=("folder.html: ",), folder=here)


def test_what_is_no_run_is_told_at_once(here: Path, short_run: Path, own_run: Path) -> None:
    (here / "baseline.json").write_text("{}", encoding="utf-8")
    (here / "empty").mkdir()
    part = min((own_run / "log" / "steps").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:200])
    says = ("baseline.json is a file, and runs are directories", "empty is not a run directory", "no such run: gone",
            part.name, "gate --against")  # fmt: skip
    refused("compare", short_run, "baseline.json", "empty", "gone", own_run, says=says, folder=here)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["RUN"], "compare takes 2 to 12 runs, and these are 1"),
        (["RUN"] * 13, "these are 13"),
        (["RUN", "RUN", "--format", "xml"], "allowed are console, html, json"),
        (["RUN", "RUN", "--format", "html,json", "--output", "-"], "takes exactly one format"),
        (["RUN", "RUN", "--format", "console", "--output", "x"], "the console is no file"),
        (["RUN", "RUN", "--format", "html,json", "--output", "x.json"], "x.json is one file"),
        (["RUN", "RUN", "--format", "html", "--output", "x.json"], "x.json is one file"),
    ],
)
def test_options_that_cannot_be(here: Path, short_run: Path, arguments: list[str], says: str) -> None:
    given = [short_run if part == "RUN" else part for part in arguments]
    refused("compare", *given, says=(says,), folder=here)


@pytest.mark.usefixtures("at_once")
def test_to_standard_output_goes_the_file_alone(here: Path, short_run: Path) -> None:
    result = trainscope("compare", short_run, short_run, "--output", "-")
    assert (result.code, result.out[:15]) == (0, "<!doctype html>"), "of html,console only the page is a file"
    assert not list(here.iterdir())


def test_a_rule_that_crashed_is_told_and_ends_with_3(
    here: Path, short_run: Path, twice: RunComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    crashed = replace(twice, crashed=("run: OWN001: its SQL is none",))
    monkeypatch.setattr("trainscope.cli.compare.compared_runs", lambda _: crashed)
    result = trainscope("compare", short_run, short_run)
    assert result.code == 3
    assert "a rule crashed: run: OWN001: its SQL is none" in result.out
    assert "1 rule crashed and judged nothing" in (here / "comparison.html").read_text(encoding="utf-8")


def test_a_run_that_ended_before_it_began_has_its_place(
    here: Path, short_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_run(here, "dead", out=here / "dead")
    monkeypatch.setattr("trainscope.engine.loader.load_rules", lambda: ([], []))
    result = trainscope("compare", short_run, "dead", "--format", "console")
    assert (result.code, result.err) == (0, "")
    assert "note: dead crashed at step 0" in result.out
    assert "dead has no configuration" in result.out
