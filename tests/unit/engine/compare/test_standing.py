"""Which run is better, and when nobody can say."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tests.unit.engine.compare.runs import BASIS, CONFIG, run, settings
from trainscope.engine.compare.read import ObservedRun
from trainscope.engine.compare.standing import listed, standing, summary
from trainscope.engine.gate.measures import MEASURES

FULL = {0: 1.0, 50: 0.5, 100: 0.2}


def told(*runs: ObservedRun) -> tuple[str, list[str]]:
    labels = [each.path.name for each in runs]
    found, reasons = standing(runs, labels)
    return summary(found, labels), reasons


def test_the_lowest_wins_where_another_seed_would_not_change_as_much() -> None:
    found, reasons = told(run("a", FULL), run("b", {**FULL, 100: 0.1}), run("c", {**FULL, 100: 0.4}))
    assert found == "b has the lowest held-out loss at step 100: 0.1, 50 % below a"
    assert reasons == []


def test_what_lies_within_the_gates_floor_is_too_close_to_call() -> None:
    floor = MEASURES["heldout-loss"].floor
    half = max(math.log1p(floor.relative), floor.learned * math.log(1.0 / 0.2))
    for factor, alike in ((0.99 * half, True), (1.01 * half, False)):
        above = 0.2 * math.exp(factor)
        ranking, _ = standing([run("a", FULL), run("b", {**FULL, 100: above})], ["a", "b"])
        assert (ranking.alike == (0, 1)) is alike, factor
    found, _ = told(run("a", FULL), run("b", {**FULL, 100: 0.21}), run("c", {**FULL, 100: 0.9}))
    assert found == (
        "Too close to call at step 100: another seed changes the held-out loss as much as a (0.2) and b (0.21) differ; "
        "c (0.9) is behind"
    )


def test_an_optimizer_that_estimates_its_step_size_differs_more_between_seeds() -> None:
    losses = {50: 0.5, 100: 0.5}
    worse = {50: 0.5, 100: 0.53}
    from trainscope.engine.gate.profile import Curve

    plain, _ = standing([run("a", losses), run("b", worse)], ["a", "b"])
    curves = {"d": Curve(width=1, steps=[1], values=[1e-4])}
    estimated, _ = standing([run("a", losses, curves=curves), run("b", worse)], ["a", "b"])
    assert (plain.alike, estimated.alike) == ((0,), (0, 1))


def test_losses_that_are_not_finite_come_last() -> None:
    found, _ = told(run("nan", {**FULL, 100: math.nan}), run("a", FULL))
    assert found == "a has the lowest held-out loss at step 100: 0.2, nan has none"
    found, _ = told(run("a", {**FULL, 100: math.nan}), run("b", {**FULL, 100: math.inf}))
    assert found == "No run has a finite held-out loss at step 100"


def test_the_same_losses_are_the_same() -> None:
    assert told(run("a", FULL), run("b", FULL))[0] == "a and b have the same held-out loss at step 100: 0.2"


def test_a_run_that_ended_early_does_not_decide_for_all() -> None:
    short = run("short", {0: 1.0, 50: 0.1})
    found, reasons = told(run("a", FULL), short, run("b", {**FULL, 100: 0.1}))
    assert found.startswith("b has the lowest held-out loss at step 100")
    assert reasons == ["short was evaluated up to step 50 only, and is not ranked"]


def test_a_run_that_goes_on_for_long_is_ranked_where_the_others_are() -> None:
    long = run("long", {**FULL, 1000: 0.01})
    found, reasons = told(run("a", {**FULL, 100: 0.1}), run("b", FULL), long)
    assert found.startswith("a has the lowest held-out loss at step 100: 0.1")
    assert reasons == ["long went on beyond step 100, where the held-out losses are ranked"]


def test_of_two_the_common_step_counts() -> None:
    found, reasons = told(run("a", FULL), run("b", {0: 1.0, 50: 0.1}))
    assert found == "b has the lowest held-out loss at step 50: 0.1, 80 % below a"
    assert reasons == ["a went on beyond step 50, where the held-out losses are ranked"]


def test_no_common_step() -> None:
    found, reasons = told(run("a", {0: 1.0, 50: 0.5}), run("b", {0: 1.0, 40: 0.5}))
    assert found == "No held-out loss tells these runs apart"
    assert reasons == ["The runs were evaluated at no common step, so none is ranked"]


def test_the_start_alone_ranks_nothing() -> None:
    assert told(run("a", {0: 1.0}), run("b", {0: 1.0})) == ("No held-out loss tells these runs apart", [])
    assert told(run("a"), run("b", FULL)) == ("No held-out loss tells these runs apart", [])


@pytest.mark.parametrize(
    ("basis", "what"),
    [
        (("32", *BASIS[1:]), "another number of draws"),
        ((BASIS[0], "train", *BASIS[2:]), "another split"),
        ((*BASIS[:2], "others", BASIS[3]), "another set of held-out pictures"),
        ((*BASIS[:3], "v_prediction"), "another target"),
    ],
)
def test_losses_of_another_measurement_are_not_ranked(basis: Any, what: str) -> None:
    found, reasons = told(run("a", FULL), run("b", {**FULL, 100: 0.01}, basis=basis), run("c", {**FULL, 100: 0.1}))
    assert found.startswith("c has the lowest held-out loss")
    assert reasons == [f"b is not ranked: its held-out loss was measured otherwise ({what})"]


def test_what_one_log_does_not_say_is_no_obstacle() -> None:
    assert told(run("a", FULL), run("b", {**FULL, 100: 0.1}, basis=("16", "validation", None, None)))[1] == []


def test_another_model_is_not_ranked_but_the_same_one_trained_before_is() -> None:
    started = {0: 0.8, 100: 0.01}
    other = settings(model__base="sdxl", model__vae=None)
    base = settings(**{key.replace(".", "__"): value for key, value in CONFIG.items()})
    found, reasons = told(run("a", FULL), run("b", {**FULL, 100: 0.1}), run("c", started, config=other))
    assert found.startswith("b has the lowest")
    assert reasons == ["c is not ranked: it began from another model"]
    assert told(run("a", FULL, config=base), run("c", started, config=base))[0].startswith("c has the lowest")


def test_a_run_named_twice_is_no_rival_of_its_own() -> None:
    twice = run("a", FULL)
    assert told(twice, twice)[0] == "No held-out loss tells these runs apart"
    assert told(twice, run("b", {**FULL, 100: 0.01}), twice)[0].startswith("b has the lowest")


def test_many_names_are_cut_short() -> None:
    assert listed(["a"]) == "a"
    assert listed(list("abcde")) == "a, b, c, d and e"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"
