"""The whole comparison: labels, notes, and what each run is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.engine.compare.runs import observed, run
from trainscope.engine.compare.build import compare, label_runs
from trainscope.schema import RuleOutcome, SampleImage, to_json


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["/r/a", "/r/b"], ["a", "b"]),
        (["/r/x/run", "/r/y/run", "/r/z"], ["x/run", "y/run", "z"]),
        (["/r/x/1/run", "/r/y/1/run", "/q/2/run"], ["x/1/run", "y/1/run", "2/run"]),
        (["/r/a", "/r/a", "/r/b", "/r/a"], ["a", "a (2)", "b", "a (3)"]),
        (["/r/a", "/r/a", "/r/a (2)", "/r/a"], ["a", "a (3)", "a (2)", "a (4)"]),
        (["/a", "/r/a"], ["//a", "r/a"]),
        (["/", "/r"], ["/", "r"]),
    ],
)
def test_labels_are_the_shortest_that_tell_runs_apart(paths: list[str], labels: list[str]) -> None:
    assert label_runs([Path(path) for path in paths]) == labels


def test_relative_paths_are_what_they_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert label_runs([Path(), Path("../other")]) == ["run", "other"]


def notes(*runs: object) -> tuple[str, ...]:
    return compare(runs).notes  # type: ignore[arg-type]


def test_what_a_reader_must_know() -> None:
    same = run("a", {0: 1.0, 5: 0.5}, info={"planned_steps": 5})
    runs = [
        same,
        same,
        run("going", info={"status": "running", "last_step": 3, "planned_steps": 9}),
        run("dead", info={"status": "crashed", "last_step": 4}),
        run("stopped", info={"status": "interrupted", "last_step": 2, "planned_steps": 9, "parent": "a"}),
        run("bare", config={}, environment={"device": "cuda"}),
        run("cpu", environment={"device": "cpu"}),
    ]
    assert notes(*runs) == (
        "a and a (2) are the same run",
        "going is running, up to step 3 of 9",
        "dead crashed at step 4",
        "stopped was interrupted at step 2 of 9",
        "stopped goes on from a",
        "bare has no configuration: what differs there is not known",
        "The runs were made on different hardware: their times and memory do not compare",
    )


def test_runs_that_need_no_note_have_none() -> None:
    assert notes(run("a", {5: 0.5}), run("b", {5: 0.4})) == ()


def test_samples_name_their_run() -> None:
    image = SampleImage(5, "samples/5.png", "a circle", "raw", 42, None)
    found = compare([run("a"), run("b", report={"samples": [image]})]).samples
    assert [(each.run, each.step, each.path) for each in found] == [(1, 5, "samples/5.png")]


def test_rules_that_crashed_and_rules_that_could_not_look_are_counted() -> None:
    outcomes = [
        RuleOutcome("X001", "x", "crashed", "its SQL is none"),
        RuleOutcome("X002", "y", "not_observable"),
        RuleOutcome("X003", "z", "clear"),
    ]
    found = compare([run("a", report={"rules": outcomes}), run("b")])
    assert found.crashed == ("a: X001: its SQL is none",)
    assert [each.unseen for each in found.runs] == [1, 0]


def test_everything_is_json_and_a_run_without_any_log_has_its_place() -> None:
    empty = observed("b", config=[], info={"status": "crashed", "segments": 0})
    resumed = observed("a", starts=[0, 5], steps=[{"step": step, "loss": float("nan")} for step in range(1, 9)])
    plain = to_json(compare([resumed, empty]))
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain)[:2] == ["kind", "format"], "the first bytes of the file tell what it is"
    first, second = plain["runs"]
    assert (first["resumed_at"], first["last_step"], second["status"]) == ([5], 8, "crashed")
    assert plain["summary"] == "No held-out loss tells these runs apart"
    assert all(len(row["values"]) == 2 for row in plain["numbers"])
