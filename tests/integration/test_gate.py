"""`trainscope gate` on real runs of the tiny models."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.integration.commands import trainscope
from trainscope.cli.gate import read_profile
from trainscope.engine.gate.compare import gate
from trainscope.engine.gate.profile import Profile
from trainscope.proof.runs import RunSpec, make_run
from trainscope.runlog.reader import read_run
from trainscope.schema import GateResult

SHORT: Mapping[str, Any] = {"train.steps": 12, "eval.every_steps": 6}


@pytest.fixture
def quick(here: Path) -> Path:
    """A folder whose policy asks no rules, which take seconds."""
    (here / "gate.toml").write_text('findings = "never"')
    return here


@pytest.fixture(scope="module")
def other_seed() -> Path:
    return make_run(RunSpec({**SHORT, "run.seed": 2}))


@pytest.fixture(scope="module")
def slower(other_seed: Path) -> Path:
    """Half the learning rate, otherwise equal."""
    return make_run(RunSpec({**SHORT, "run.seed": 3, "optimizer.lr": 5e-5}))


def test_another_seed_passes_and_another_learning_rate_fails(
    here: Path, short_run: Path, other_seed: Path, slower: Path
) -> None:
    passed = trainscope("gate", other_seed, "--against", short_run)
    assert (passed.code, passed.err) == (0, ""), passed.out
    assert passed.out.startswith("✓ passed: none of ")
    assert not list(here.iterdir())
    (here / "gate.toml").write_text('findings = "never"')
    failed = trainscope("gate", slower, "--against", short_run, "--against", other_seed)
    assert failed.code == 1, failed.out
    assert "effective-lr, unet  Effective learning rate\n  0.0001 → 5e-5, from step 1 on" in failed.out
    assert "optimizer.lr: 0.0001 → 5e-5" in failed.out
    assert "prediction interval of their spread" in failed.out


def test_recorded_baselines_say_what_the_runs_say(quick: Path, short_run: Path, other_seed: Path, slower: Path) -> None:
    assert trainscope("gate", short_run, other_seed, "--record", "two.json").code == 0
    assert (quick / "two.json").stat().st_size < 60_000

    def told(*baselines: str | Path) -> dict[str, Any]:
        against = [argument for baseline in baselines for argument in ("--against", baseline)]
        result = trainscope("gate", slower, *against, "--format", "json", "--output", "out")
        assert (result.code, result.out) == (1, "")
        return dict(json.loads((quick / "out" / "gate.json").read_text()))

    by_run, by_file = told(short_run, other_seed), told("two.json")
    assert by_file["method"] == "prediction interval of 2 runs"
    assert by_file["summary"] == by_run["summary"]
    for one, other in zip(by_run["comparisons"], by_file["comparisons"], strict=True):
        assert (one["name"], one["where"], one["outcome"]) == (other["name"], other["where"], other["outcome"])
        if one["candidate"] is not None:
            assert other["candidate"] == pytest.approx(one["candidate"], rel=1e-4)
            assert other["baseline"] == pytest.approx(one["baseline"], rel=1e-4)


def test_what_ci_reads(quick: Path, short_run: Path, slower: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(quick / "summary.md"))
    result = trainscope("gate", slower, "--against", short_run, "--format", "github,junit,json", "--output", "out")
    assert result.code == 1
    assert result.out.startswith("::error title=gate%3A ")
    assert "effective-lr, unet" in (quick / "summary.md").read_text()
    junit = ElementTree.fromstring((quick / "out" / "gate.junit.xml").read_bytes())
    failed = {case.attrib["name"] for case in junit.iter("testcase") if case.find("failure") is not None}
    told = json.loads((quick / "out" / "gate.json").read_text())["comparisons"]
    assert len(failed) == sum(one["outcome"] == "fail" for one in told) > 0
    assert "effective-lr, unet" in failed


def test_the_policy_counts(quick: Path, short_run: Path, slower: Path) -> None:
    (quick / "own.toml").write_text(
        'findings = "never"\nignore = ["effective-lr", "update", "distance", "heldout-loss", "heldout-slope", "loss"]'
    )
    assert trainscope("gate", slower, "--against", short_run).code == 1
    assert trainscope("gate", slower, "--against", short_run, "--policy", "own.toml").code == 0
    (quick / "gate.toml").write_text("strictt = true")
    message = trainscope("gate", slower, "--against", short_run).message
    assert "strictt: unknown key (did you mean strict?)" in message


@pytest.mark.slow
def test_signals_that_are_missing_fail_when_strict(quick: Path, short_run: Path) -> None:
    blind = make_run(RunSpec({**SHORT, "run.seed": 5, "probes.tables": [], "eval.every_steps": 0}))
    passed = trainscope("gate", blind, "--against", short_run)
    assert passed.code == 0
    assert "heldout-loss, weights: the candidate did not record it" in passed.out
    told = " ".join(passed.out.split())
    assert "distance, unet: the candidate did not record it (not among probes.tables)" in told
    strict = trainscope("gate", blind, "--against", short_run, "--strict")
    assert (strict.code, "but signals are missing: heldout-loss" in strict.out) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN"], "nothing to compare with"),
        (["RUN", "--against", "nowhere"], "no such run: nowhere"),
        (["nowhere", "--against", "RUN"], "no such run: nowhere"),
        (["RUN", "--against", "broken.json"], "neither a run directory nor a recorded baseline"),
        (["broken.json", "--against", "RUN"], "a candidate is a run directory"),
        (["RUN", "RUN", "--against", "RUN"], "two candidates"),
        (["RUN", "--against", "RUN", "--format", "pdf"], "allowed are console, github, json, junit"),
        (["RUN", "--against", "RUN", "--format", "console,json"], "where the files go is missing"),
        (["RUN", "--against", "RUN", "--output", "-"], "--output - takes exactly one format"),
        (["RUN", "--against", "RUN", "--output", "x.json"], "the console is no file"),
        (["RUN", "--against", "RUN", "--policy", "nowhere.toml"], "no such policy"),
    ],
)
def test_bad_input_is_one_error(quick: Path, short_run: Path, arguments: list[str], said: str) -> None:
    (quick / "broken.json").write_text("{")
    result = trainscope("gate", *({"RUN": short_run}.get(argument, argument) for argument in arguments))
    assert result.code == 2
    assert said in result.message


def test_a_run_that_was_killed_fails_and_is_no_baseline(quick: Path, own_run: Path, short_run: Path) -> None:
    info = json.loads((own_run / "run.json").read_text())
    (own_run / "run.json").write_text(json.dumps({**info, "status": "running"}))  # and nobody holds its lock
    result = trainscope("gate", own_run, "--against", short_run)
    assert (result.code, "the candidate crashed at step 12" in result.out) == (1, True)


@pytest.mark.slow
def test_what_cannot_be_recorded(here: Path, own_run: Path) -> None:
    assert "cannot write nowhere" in trainscope("gate", own_run, "--record", "nowhere/baseline.json").message
    info = json.loads((own_run / "run.json").read_text())
    (own_run / "run.json").write_text(json.dumps({**info, "status": "crashed"}))
    assert "is crashed at step 12, and no baseline" in trainscope("gate", own_run, "--record", "b.json").message


@pytest.mark.slow
@pytest.mark.parametrize(
    "looks", [{"probes.every": 1, "eval.every_steps": 2}, {"probes.every": 12, "eval.every_steps": 12}]
)
def test_how_a_run_is_looked_at_changes_nothing(short_run: Path, looks: dict[str, Any]) -> None:
    result = gate(profile(make_run(RunSpec({**SHORT, "run.seed": 4, **looks}))), [profile(short_run)], strict=True)
    assert (result.verdict, failures(result)) == ("pass", [])


# Longer runs, of several kinds: seeds alone and seeds with a fault.

KINDS: dict[str, Mapping[str, Any]] = {
    "lora": {"train.method": "lora", "lora.rank": 8, "lora.alpha": 8.0, "optimizer.lr": 1e-3},
    "finetune": {"optimizer.lr": 3e-4, "ema.enabled": True, "ema.decay": 0.95},
    "prodigy": {"optimizer.type": "prodigy", "optimizer.lr": 1.0, "train.steps": 100},
}
REGRESSIONS: list[tuple[str, dict[str, Any], str]] = [
    ("lora", {"optimizer.lr": 1.02e-3}, "effective-lr"),
    ("lora", {"scheduler.type": "linear"}, "effective-lr"),
    ("lora", {"noise.offset": 0.3}, "noise"),
    ("finetune", {"precision.weights": "bf16", "optimizer.lr": 1e-4}, "delivered"),
    ("finetune", {"ema.decay": 0.5}, "ema-lag"),
    ("finetune", {"optimizer.weight_decay": 0.5}, "setup"),
    ("finetune", {"scheduler.type": "cosine"}, "heldout-loss"),
    ("prodigy", {"optimizer.d_coef": 0.1}, "d"),
]


@functools.cache
def profile(run: Path) -> Profile:
    return read_profile(read_run(run), level="error")[0]


def run_of(kind: str, seed: int, **more: Any) -> Profile:
    base = {"train.steps": 60, "probes.every": "auto", "eval.every_steps": "auto"}
    return profile(make_run(RunSpec({**base, **KINDS[kind], "run.seed": seed, **more})))


def failures(result: GateResult) -> list[str]:
    return [one.name for one in result.comparisons if one.outcome == "fail"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_seed_fails_another(kind: str) -> None:
    profiles = [run_of(kind, seed) for seed in (1, 2, 3, 4)]
    for candidate, baseline in itertools.permutations(profiles, 2):
        result = gate(candidate, [baseline])
        assert (result.verdict, failures(result)) == ("pass", [])
    for candidate in profiles:
        result = gate(candidate, [each for each in profiles if each is not candidate])
        assert (result.verdict, failures(result)) == ("pass", [])


@pytest.mark.slow
@pytest.mark.parametrize("baselines", [1, 3])
@pytest.mark.parametrize(("kind", "fault", "named"), REGRESSIONS)
def test_a_regression_fails_by_its_measure(kind: str, fault: dict[str, Any], named: str, baselines: int) -> None:
    known = [run_of(kind, seed) for seed in range(1, baselines + 1)]
    result = gate(run_of(kind, 9, **fault), known)
    assert named in failures(result), result.summary
