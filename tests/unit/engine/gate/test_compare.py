from __future__ import annotations

import math
from typing import Any

import pytest

from tests.unit.engine.gate.profiles import HARDWARE, STEPS, by_step, profile, scaled
from trainscope.engine.gate.compare import gate
from trainscope.engine.gate.measures import EXACT, MEASURES
from trainscope.engine.gate.policy import FloorPolicy, Policy
from trainscope.engine.gate.profile import Broken, KnownFinding, Profile
from trainscope.errors import RunError
from trainscope.schema import Comparison, GateResult

THREE = [profile(seed) for seed in (11, 12, 13)]


def changed(key: str, factor: float, *, since: int = 0, seed: int = 1) -> Profile:
    return profile(seed, curves={key: scaled(profile(seed).curves[key], factor, since=since)})


def row(result: GateResult, name: str, where: str = "") -> Comparison:
    (found,) = (one for one in result.comparisons if (one.name, one.where) == (name, where))
    return found


def failures(result: GateResult) -> list[str]:
    return [one.name for one in result.comparisons if one.outcome == "fail"]


def test_there_are_at_most_twenty_measures() -> None:
    assert len(MEASURES) + len(EXACT) <= 20


@pytest.mark.parametrize("count", [1, 2, 3])
def test_seeds_alone_pass(count: int) -> None:
    for seed in range(20, 40):
        result = gate(profile(seed), THREE[:count])
        assert (result.verdict, failures(result)) == ("pass", []), seed


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("name", "where", "key", "worse"),
    [
        ("heldout-loss", "weights", "heldout/weights", 1),
        ("loss", "low noise", "loss/low noise", 1),
        ("gradient", "unet", "gradient", -1),
        ("update", "unet", "update/unet", -1),
        ("distance", "unet", "distance/unet", -1),
        ("effective-lr", "unet", "effective lr/unet", -1),
        ("throughput", "", "seconds", 1),
    ],
)
def test_twice_the_printed_change_fails_and_a_third_of_it_passes(
    count: int, name: str, where: str, key: str, worse: int
) -> None:
    harmless = gate(profile(1), THREE[:count])
    printed = row(harmless, name, where).smallest_change
    assert printed is not None
    for share, outcome in ((0.33, "pass"), (2.0, "fail")):
        result = gate(changed(key, (1 + share * printed) ** worse), THREE[:count])
        found = row(result, name, where)
        assert found.outcome == outcome, (share, found)
        assert found.method == ("floors" if count == 1 else "prediction interval of 3 runs")
        low, high = found.allowed
        assert found.candidate is not None
        inside = (low is None or low <= found.candidate) and (high is None or found.candidate <= high)
        assert inside is (outcome == "pass")
    assert failures(result) in ([name], [name, "heldout-slope"])


@pytest.mark.parametrize("since", [0, 30])
def test_a_failure_says_where_the_curves_part(since: int) -> None:
    found = row(gate(changed("effective lr/unet", 0.5, since=since), THREE), "effective-lr", "unet")
    assert (found.outcome, found.parts_at) == ("fail", since + 1)
    assert "too low" in found.reason
    assert found.candidate == pytest.approx(0.5e-3)


def test_a_better_run_passes() -> None:
    for key in ("heldout/weights", "loss/low noise", "seconds"):
        assert failures(gate(changed(key, 0.3), THREE[:1])) == []


def test_a_loss_that_is_no_number_fails() -> None:
    found = row(gate(changed("loss/low noise", math.nan, since=32), THREE), "loss", "low noise")
    assert (found.outcome, found.parts_at) == ("fail", 33)


def test_a_part_without_gradient_fails() -> None:
    assert "gradient" in failures(gate(changed("gradient share/unet", 0.0), THREE))


def test_a_new_finding_fails_by_its_level() -> None:
    finding = KnownFinding(code="X001", severity="warning", fingerprint="f", message="it is bad", first_step=7)
    candidate = profile(1, findings=[finding])
    assert gate(candidate, THREE).verdict == "pass"
    found = row(gate(candidate, THREE, Policy(findings="warning")), "findings")
    assert (found.outcome, found.parts_at, found.details) == ("fail", 7, ("X001 warning: it is bad",))
    known = profile(11, findings=[finding.model_copy(update={"fingerprint": "other places"})])
    assert gate(candidate, [known], Policy(findings="warning")).verdict == "pass"


def test_what_is_set_otherwise_fails_in_words() -> None:
    facts = {**profile().facts, "weight decay, unet": "0.1"}
    found = row(gate(profile(1, facts=facts), THREE), "setup")
    assert (found.outcome, found.details) == ("fail", ("weight decay, unet: 0.01 → 0.1",))


def test_what_a_resume_lost_fails() -> None:
    broken = Broken(what="optimizer exp_avg", status="reset", step=40, count=3)
    found = row(gate(profile(1, continuity=[broken]), THREE), "continuity")
    assert (found.outcome, found.parts_at) == ("fail", 40)
    assert found.details == ("optimizer exp_avg: reset (3 times)",)
    assert gate(profile(1, continuity=[broken]), [profile(2, continuity=[broken])]).verdict == "pass"


def without(key: str, seed: int = 1, **changes: Any) -> Profile:
    whole = profile(seed, **changes)
    return whole.model_copy(update={"curves": {name: each for name, each in whole.curves.items() if name != key}})


def test_missing_signals_are_listed_and_fail_when_strict() -> None:
    candidate = without("update/unet", absent={"update": "not among probes.tables"})
    result = gate(candidate, THREE)
    found = row(result, "update", "unet")
    assert (result.verdict, found.outcome) == ("pass", "missing")
    assert found.reason == "the candidate did not record it (not among probes.tables)"
    assert gate(candidate, THREE, strict=True).verdict == "fail"
    assert gate(candidate, THREE, Policy(strict=True)).verdict == "fail"
    assert gate(candidate, THREE, Policy(strict=True, ignore=["update"])).verdict == "pass"


def test_what_nobody_recorded_is_missing_too() -> None:
    result = gate(without("heldout/weights"), [without("heldout/weights", 2)])
    assert row(result, "heldout-loss").reason == "neither the candidate nor a baseline recorded it"


def test_what_no_baseline_recorded_is_not_compared() -> None:
    result = gate(profile(1), [without("update/unet", 2)], strict=True)
    assert (result.verdict, row(result, "update", "unet").outcome) == ("pass", "not comparable")


def test_a_signal_that_one_of_three_baselines_has_is_judged_by_floors() -> None:
    result = gate(profile(1), [THREE[0], without("update/unet", 12), without("update/unet", 13)])
    assert row(result, "update", "unet").method == "floors"
    assert row(result, "distance", "unet").method == "prediction interval of 3 runs"


def test_seconds_compare_on_the_same_hardware_only() -> None:
    slow = changed("seconds", 10.0).model_copy(update={"hardware": {**HARDWARE, "cpu.cores": "8"}})
    found = row(gate(slow, THREE), "throughput")
    assert (found.outcome, found.reason) == ("not comparable", "other hardware: cpu.cores 2 → 8")
    assert row(gate(changed("seconds", 10.0), THREE), "throughput").outcome == "fail"


def test_the_quickest_of_a_few_steps_tells_nothing() -> None:
    slow = changed("seconds", 10.0).model_copy(update={"last_step": 29})
    found = row(gate(slow, THREE), "throughput")
    assert (found.outcome, found.reason) == ("not comparable", "29 steps are too few, 30 are needed")


def test_ignored_measures_cannot_fail() -> None:
    bad = changed("loss/low noise", 3.0)
    assert gate(bad, THREE, Policy(ignore=["loss, low noise"])).verdict == "pass"
    assert gate(bad, THREE, Policy(ignore=["loss, high noise"])).verdict == "fail"


def test_a_floor_of_the_users_own_takes_the_place_of_ours() -> None:
    candidate = changed("heldout/weights", 1.5)
    assert "heldout-loss" in failures(gate(candidate, THREE[:1]))
    wide = Policy(floors={"heldout-loss": FloorPolicy(relative=2.0), "heldout-slope": FloorPolicy(absolute=3.0)})
    assert gate(candidate, THREE[:1], wide).verdict == "pass"
    narrow = Policy(floors={"effective-lr": FloorPolicy(relative=0.001)})
    assert failures(gate(changed("effective lr/unet", 1.005), THREE[:1], narrow)) == ["effective-lr"]


def test_d_that_differs_between_seeds_takes_wider_floors() -> None:
    d = {"d": by_step([1e-3] * STEPS)}
    fixed = row(gate(profile(1), [profile(2)]), "effective-lr", "unet")
    estimated = row(gate(profile(1, curves=d), [profile(2, curves=d)]), "effective-lr", "unet")
    assert (fixed.smallest_change, estimated.smallest_change) == (pytest.approx(0.01), pytest.approx(6.0))


def test_a_shorter_run_is_compared_over_the_common_steps_and_it_is_said() -> None:
    result = gate(profile(1, steps=48), THREE)
    assert (result.verdict, result.last_step) == ("pass", 48)
    assert result.notes == ("the candidate has 48 steps and the baseline 64 and 64 and 64: compared up to step 48",)


def test_a_crash_fails_and_a_run_that_goes_on_is_told() -> None:
    crashed = gate(profile(1, steps=48, status="crashed"), THREE)
    assert row(crashed, "setup").details == ("the candidate crashed at step 48",)
    running = gate(profile(1, steps=48, status="running"), THREE)
    assert running.verdict == "pass"
    assert running.notes[0] == "the candidate still runs: compared up to step 48"


def test_a_run_without_a_step_is_an_error() -> None:
    with pytest.raises(RunError, match="no step to compare"):
        gate(profile(1, last_step=0), THREE)


def test_keys_that_differ_are_named_those_first_that_change_weights() -> None:
    config = {"run.seed": 5, "run.name": "b", "probes.every": 5, "optimizer.lr": 2e-3, "optimizer.d_coef": 2}
    base = profile(2, config={"run.seed": 6, "run.name": "a", "probes.every": 1, "optimizer.lr": 1e-3, "lora.rank": 4})
    found = gate(profile(1, config=config), [base]).changed
    assert [(one.key, one.baseline, one.candidate) for one in found] == [
        ("optimizer.d_coef", None, 2),
        ("optimizer.lr", 1e-3, 2e-3),
        ("probes.every", 1, 5),
    ]
