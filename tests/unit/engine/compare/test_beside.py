"""Numbers, curves and findings of several runs beside each other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.unit.engine.compare.runs import observed, run
from trainscope.engine.compare.curves import MOST_MEANS, overlays
from trainscope.engine.compare.findings import finding_rows
from trainscope.engine.compare.numbers import numbers
from trainscope.engine.compare.read import HeldOut, ObservedRun, Totals
from trainscope.engine.compare.result import NumberRow, Overlay, Standing, Value
from trainscope.engine.compare.standing import standing
from trainscope.engine.gate.profile import Curve
from trainscope.engine.series import MAX_POINTS
from trainscope.schema import Series

PRODIGY = {"optimizer.type": "prodigy"}


def rows(*runs: ObservedRun) -> dict[str, NumberRow]:
    ranking, _ = standing(runs, [each.path.name for each in runs])
    return {row.title: row for row in numbers(runs, ranking)}


def test_the_held_out_loss_at_the_start_the_shared_step_the_end_and_its_lowest() -> None:
    short, long = {0: 1.0, 50: 0.5}, {0: 1.0, 50: 0.2, 90: 0.1, 100: 0.3}
    found = rows(run("a", short), run("b", long), run("c"))
    assert found["Before the first step"].values == (Value(1.0), Value(1.0), Value(None))
    assert found["At step 50"].values == (Value(0.5), Value(0.2), Value(None))
    assert found["At the end"].values == (Value(0.5, 50), Value(0.3, 100), Value(None))
    assert found["Lowest"].values == (Value(0.5, 50), Value(0.1, 90), Value(None))
    assert (found["At step 50"].best, found["At the end"].best) == (1, None)


def test_rows_that_say_nothing_new_are_left_out() -> None:
    losses = {0: 1.0, 50: 0.5}
    found = rows(run("a", losses), run("b", {**losses, 50: 0.2}))
    assert [title for title in found if title != "Steps"] == ["Before the first step", "At the end"]
    assert found["At the end"].best == 1
    alike = rows(run("a", losses), run("b", {**losses, 50: 0.49}))
    assert alike["At the end"].best is None


def test_a_loss_that_is_not_finite_is_nobodys_lowest() -> None:
    found = rows(run("a", {0: 1.0, 5: math.nan}), run("b", {5: math.nan}))
    assert found["Lowest"].values == (Value(1.0, 0), Value(None))


def test_the_average_has_rows_of_its_own() -> None:
    averaged = replace(run("a", {0: 1.0, 5: 0.5}), held_out={"ema": HeldOut({0: 1.0, 5: 0.9}, ())})
    assert rows(averaged, run("b", {5: 0.5}))["At the end, EMA"].values == (Value(0.9, 5), Value(None))


def looks(*values: float) -> Curve:
    return Curve(width=0, steps=list(range(1, len(values) + 1)), values=list(values))


def test_what_the_optimizer_did_by_component() -> None:
    curves = {"distance/unet": looks(1, 2), "distance/text encoder": looks(3, 4), "delivered/unet": looks(1, 0)}
    lrs = {"effective lr/unet": looks(1, 5, 2), "d": looks(1, 3)}
    found = rows(run("a", curves=curves), run("b", curves={"distance/unet": looks(7, math.nan), **lrs}))
    assert found["Distance from the start, at the end, text encoder"].values == (Value(4), Value(None))
    assert math.isnan(found["Distance from the start, at the end, unet"].values[1].value or 0)
    assert found["Share of the updates that arrived in the weights (1 = all), mean, unet"].values[0] == Value(0.5)
    assert found["Effective learning rate, highest, unet"].values == (Value(None), Value(5))
    assert found["Estimated step size d, at the end"].values[1] == Value(3)


def test_the_only_part_that_is_trained_is_one_row_whatever_it_is_called() -> None:
    found = rows(run("a", curves={"distance/unet": looks(1)}), run("b", curves={"distance/model": looks(2)}))
    assert found["Distance from the start, at the end"].values == (Value(1), Value(2))


def test_time_and_memory() -> None:
    found = rows(run("a", totals=Totals(seconds=1.0, memory=2.0)), run("b"))
    assert {title: row.unit for title, row in found.items()} == {
        "Steps": "steps",
        "Time in steps": "s",
        "Peak memory of the accelerator": "bytes",
    }


def series(name: str, **lines: list[float]) -> Series:
    columns = {line: {"step": list(range(1, len(values) + 1)), "value": values} for line, values in lines.items()}
    return Series(name, name, "", False, columns)


def overlaid(*drawn: list[Series]) -> dict[str, Overlay]:
    runs = [run(str(number), report={"series": each}) for number, each in enumerate(drawn)]
    return {overlay.title: overlay for overlay in overlays(runs, [each.path.name for each in runs])}


def test_one_figure_a_measure_with_a_line_a_run() -> None:
    found = overlaid([series("grad_norm", model=[1.0, 2.0])], [], [series("grad_norm", model=[3.0])])
    (overlay,) = found.values()
    assert overlay.lines == {
        "0": {"step": [1, 2], "value": [1.0, 2.0], "run": 0},
        "2": {"step": [1], "value": [3.0], "run": 2},
    }


def test_lines_of_other_names_share_a_figure_where_each_run_has_one() -> None:
    one, two = series("effective_lr", unet=[1.0]), series("effective_lr", **{"group 0": [1.0]})
    assert list(overlaid([one], [two])) == ["Effective learning rate"]
    both = series("effective_lr", unet=[1.0], text=[2.0])
    found = overlaid([both], [one])
    assert {title: list(each.lines) for title, each in found.items()} == {
        "Effective learning rate, unet": ["0", "1"],
        "Effective learning rate, text": ["0"],
    }


def test_the_average_is_another_figure_and_schedule_free_is_drawn_at_x() -> None:
    found = overlaid(
        [series("eval_loss", raw=[1.0], ema=[1.0])], [series("eval_loss", **{"raw x": [1.0], "raw y": [2.0]})]
    )
    lines = {title: list(each.lines) for title, each in found.items()}
    assert lines == {"Held-out loss": ["0", "1"], "Held-out loss, EMA": ["0"], "Held-out loss, raw y": ["1"]}


def test_timesteps_are_small_multiples_of_one_panel() -> None:
    found = overlaid([series("loss_by_timestep", **{"0 to 20 %": [1.0], "20 to 40 %": [1.0]})], [])
    assert {(title, each.panel) for title, each in found.items()} == {
        ("0 to 20 %", "loss_by_timestep"),
        ("20 to 40 %", "loss_by_timestep"),
    }


@pytest.mark.parametrize(("second", "log"), [([9.0], False), ([11.0], True), ([0.05], True), ([math.nan], False)])
def test_runs_far_apart_are_drawn_on_a_logarithmic_scale(second: list[float], log: bool) -> None:
    found = overlaid([series("effective_lr", unet=[1.0])], [series("effective_lr", unet=second)])
    assert found["Effective learning rate"].log_scale is log


def test_a_spike_survives_and_the_figure_says_that_steps_were_left_out() -> None:
    count = 10_000
    values = [1.0] * count
    values[6_543] = 77.0
    spiky = observed(steps=[{"step": n + 1, "grad_norm": value, "loss": 1.0} for n, value in enumerate(values)])
    found = {overlay.name: overlay for overlay in overlays([spiky, run("b")], ["a", "b"])}
    line = found["grad_norm"].lines["a"]
    assert len(line["step"]) <= MAX_POINTS
    assert line["step"][line["value"].index(77.0)] == 6_544
    assert found["grad_norm"].recorded == count
    assert 20 <= len(found["train_loss"].lines["a"]["step"]) <= MOST_MEANS


def test_twelve_long_runs_have_fewer_points_each() -> None:
    waves = [math.sin(step) for step in range(MAX_POINTS)]
    found = overlaid(*([series("grad_norm", model=waves)] for _ in range(12)))["Gradient norm"]
    assert {len(columns["step"]) for columns in found.lines.values()} == {400}
    assert found.recorded == MAX_POINTS
    pair = overlaid(*([series("grad_norm", model=waves)] for _ in range(2)))["Gradient norm"]
    assert (len(pair.lines["0"]["step"]), pair.recorded) == (MAX_POINTS, 0)


def test_training_loss_is_the_mean_of_spans() -> None:
    losses = [float(step % 2) for step in range(1, 201)]
    curve = Curve(width=2, steps=list(range(2, 201, 2)), values=losses[::2])
    (overlay,) = overlays([run("a", {200: 1.0}, curves={"training loss": curve})], ["a"])
    line = overlay.lines["a"]
    assert (line["step"], set(line["value"])) == (list(range(8, 201, 8)), {1.0})


def test_findings_of_all_runs_with_what_the_others_said(make_rule) -> None:
    rules = [
        make_rule("TST001", severity="warning"),
        make_rule(
            "TST002",
            applies={"optimizer.type": ["prodigy"]},
            thresholds={"min_growth": {"value": 1e9, "unit": "x", "why": "always"}},
        ),
    ]
    one = observed("a", rules=rules, groups=[{"step": 1, "d": 1e-6}, {"step": 2, "d": 1e-6}])
    two = observed("b", rules=rules, groups=[{"step": 1, "d": 1e-6}, {"step": 2, "d": 1.0}], config=PRODIGY)
    second, first = finding_rows([one, two])[::-1]
    assert (first.code, [cell.outcome for cell in first.cells]) == ("TST002", ["not_applicable", "fired"]), "an error"
    assert (second.code, [cell.outcome for cell in second.cells]) == ("TST001", ["fired", "clear"])
    assert (second.cells[0].first_step, second.cells[0].message) == (1, "d grew 1.00x (d0 = 1.0e-06)")
    unasked = replace(two, report=replace(two.report, rules=[], findings=[]))
    assert [cell.outcome for cell in finding_rows([one, unasked])[0].cells] == ["fired", "not_asked"]


def test_standing_of_nobody_marks_nothing() -> None:
    assert all(row.best is None for row in numbers([run("a", {0: 1.0, 5: 0.1}), run("b")], Standing()))
