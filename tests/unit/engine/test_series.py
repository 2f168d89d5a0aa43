from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from trainscope.engine.curves import SERIES
from trainscope.engine.maps import MAPS, draw_maps, group_modules
from trainscope.engine.sandbox import DEFAULT_LIMITS
from trainscope.engine.series import MAX_POINTS, downsample, draw_series
from trainscope.engine.tables import TableSource, from_rows
from trainscope.schema import HeatMap, Series


def drawn(**tables: Any) -> dict[str, Series]:
    return {series.name: series for series in draw_series(from_rows(tables))}


def line(series: Series, name: str = "model") -> list[tuple[int, float]]:
    return list(zip(series.lines[name]["step"], series.lines[name]["value"], strict=True))


def tensors(**columns: list[float | None]) -> list[dict[str, Any]]:
    """One step; the n-th tensor has the n-th value of each column."""
    count = len(next(iter(columns.values())))
    return [
        {"step": 1, "param": f"p{i}", **{name: values[i] for name, values in columns.items()}} for i in range(count)
    ]


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw_series(TableSource()) == []
    assert draw_maps(TableSource()) == []


def test_every_query_is_valid() -> None:
    """A series that cannot be drawn is left out silently; none may be left out for its SQL."""
    from trainscope.engine.sandbox import run_query

    for spec in SERIES.values():
        assert run_query(TableSource(), spec.sql) == (["line", "step", "value"], [])


def test_eval_loss_by_weights() -> None:
    evals = [{"step": step, "weights": weights, "loss": step / 10} for step in (0, 10) for weights in ("raw", "ema")]
    evals.append({"step": 10, "weights": "raw", "mode": "x", "loss": 5.0})
    series = drawn(evals=evals)["eval_loss"]
    assert list(series.lines) == ["ema", "raw", "raw x"]
    assert line(series, "raw") == [(0, 0.0), (10, 1.0)]


def test_steps_are_averaged_over_ranks() -> None:
    series = drawn(steps=[{"step": 1, "rank": rank, "loss": float(rank)} for rank in (0, 1)])["train_loss"]
    assert line(series, "train") == [(1, 0.5)]


def test_loss_by_timestep_is_the_mean_of_the_samples_in_a_fortieth_of_the_run() -> None:
    rows = [
        {"step": 1, "bin": 0, "count": 3, "loss": 1.0},
        {"step": 2, "bin": 1, "count": 1, "loss": 5.0},
        {"step": 1, "bin": 9, "count": 1, "loss": 0.5},
        {"step": 79, "bin": 9, "count": 1, "loss": 0.25},
    ]
    series = drawn(losses=rows)["loss_by_timestep"]
    assert series.lines.keys() == {"0 to 20 %", "80 to 100 %"}
    assert line(series, "0 to 20 %") == [(1, 1.0), (2, 5.0)], "79 steps in 40 parts: 1 is in the first, 2 in the second"
    assert line(series, "80 to 100 %") == [(1, 0.5), (79, 0.25)]
    rows = [{"step": step, "bin": step % 2, "count": 1 + step % 2, "loss": float(step % 2)} for step in range(1, 401)]
    assert line(drawn(losses=rows)["loss_by_timestep"], "0 to 20 %")[0] == (10, pytest.approx(2 / 3, abs=0.02))


def test_groups_by_name_or_number() -> None:
    series = drawn(groups=[{"step": 1, "group": 0, "name": "unet", "d": 1e-6}, {"step": 1, "group": 1, "d": 1e-5}])
    assert set(series["d"].lines) == {"unet", "group 1"}
    assert "effective_lr" not in series


def test_delivered_is_weighted_by_energy() -> None:
    series = drawn(tensors=tensors(delivered=[1.0, 0.0, None], intended_norm=[3.0, 1.0, 100.0]))["delivered"]
    assert line(series) == [(1, pytest.approx(0.9))]


def test_ratios_of_norms() -> None:
    series = drawn(
        tensors=tensors(update_norm=[3.0, 4.0], weight_norm=[30.0, 40.0], distance_from_start=[6.0, 8.0]),
        ema=[{"step": 1, "param": "p0", "lag_norm": 2.0, "distance_from_start": 1.0}],
    )
    assert line(series["update_ratio"]) == [(1, pytest.approx(0.1))]
    assert line(series["relative_distance"]) == [(1, pytest.approx(0.2))]
    assert line(series["ema_lag"]) == [(1, pytest.approx(0.2))]
    assert line(series["ema_distance"], "EMA") == [(1, 1.0)]
    assert line(series["ema_distance"], "weights") == [(1, 10.0)]


def test_a_lora_has_come_as_far_as_what_it_adds() -> None:
    """Its A begins at random: how far that moved says nothing."""
    series = drawn(
        tensors=tensors(weight_norm=[30.0], distance_from_start=[6.0]),
        adapters=[{"step": 1, "module": "m", "delta_norm": 1.0, "base_norm": 4.0}],
    )
    assert line(series["lora_delta"]) == [(1, 0.25)]
    assert "relative_distance" not in series


def test_a_mean_stands_beside_a_long_training_loss() -> None:
    rows = [{"step": step, "loss": float(step % 2)} for step in range(1, 401)]
    series = drawn(steps=rows)["train_loss"]
    assert [value for _, value in line(series, "mean of a fortieth")[1:-1]] == [pytest.approx(0.5)] * 38
    assert set(drawn(steps=rows[:79])["train_loss"].lines) == {"train"}


def test_every_measure_is_explained() -> None:
    assert [name for name, spec in {**SERIES, **MAPS}.items() if len(spec.about.split()) < 5] == []


def test_what_is_left_out_of_a_long_series_is_counted() -> None:
    series = drawn(steps=[{"step": step, "grad_norm": 1.0} for step in range(1, 2502)])["grad_norm"]
    assert (series.recorded, len(series.lines["model"]["step"]) <= MAX_POINTS) == (2501, True)
    assert drawn(steps=[{"step": 1, "grad_norm": 1.0}])["grad_norm"].recorded == 0


def test_idle_series_are_left_out() -> None:
    steps = [{"step": step, "loss_scale": 1.0, "clip_coef": 1.0} for step in (1, 2)]
    calm = drawn(steps=steps, tensors=tensors(nonfinite=[0, 0]))
    assert not {"loss_scale", "clip_coef", "nonfinite"} & set(calm)
    assert "loss_scale" in drawn(steps=[*steps, {"step": 3, "loss_scale": 0.5}])
    assert line(drawn(tensors=tensors(nonfinite=[2, 3]))["nonfinite"], "gradients") == [(1, 5.0)]


def test_zero_weights_divide_nothing() -> None:
    assert "update_ratio" not in drawn(tensors=tensors(update_norm=[1.0], weight_norm=[0.0]))


def test_superseded_steps_are_not_drawn() -> None:
    rows = [{"step": 60, "segment": 0, "loss": 9.0}, {"step": 50, "segment": 1, "loss": 1.0}]
    series = draw_series(from_rows({"steps": rows}, segment_starts=[0, 40]))
    assert line(series[0], "train") == [(50, 1.0)]


class TestDownsample:
    def test_short_lines_stay(self) -> None:
        assert downsample([1, 2], [3.0, 4.0]) == {"step": [1, 2], "value": [3.0, 4.0]}

    def test_spikes_and_ends_stay(self) -> None:
        values = [math.sin(i / 500) for i in range(50_000)]
        values[12_345], values[23_456], values[34_567], values[45_678] = 9.0, -9.0, math.nan, math.inf
        line = downsample(range(50_000), values)
        assert len(line["step"]) <= MAX_POINTS
        assert line["step"] == sorted(set(line["step"]))
        assert {0, 49_999, 12_345, 23_456, 34_567, 45_678} <= set(line["step"])
        assert all(line["value"][i] == values[step] or step == 34_567 for i, step in enumerate(line["step"]))

    def test_a_line_of_nothing_finite(self) -> None:
        assert len(downsample(range(10_000), [math.nan] * 10_000)["step"]) <= MAX_POINTS

    def test_a_long_series_is_drawn_short(self) -> None:
        rows = [{"step": step, "loss": 1.0} for step in range(5000)]
        assert len(drawn(steps=rows)["train_loss"].lines["train"]["step"]) <= MAX_POINTS


def maps(rows: list[dict[str, Any]]) -> dict[str, HeatMap]:
    return {one.name: one for one in draw_maps(from_rows({"tensors": rows}))}


class TestMaps:
    def test_by_module_and_step(self) -> None:
        rows = [
            {"step": step, "param": f"down.{block}.{kind}", "update_norm": 1.0 * (block or 1), "weight_norm": 10.0}
            for step in (5, 10)
            for block in (2, 10)
            for kind in ("weight", "bias")
        ]
        found = maps(rows)["update_ratio"]
        assert found.modules == ["down.2", "down.10"]
        assert found.steps == [5, 10]
        assert found.values == [[pytest.approx(0.2)] * 2, [pytest.approx(1.0)] * 2]

    def test_what_was_not_recorded_is_none(self) -> None:
        rows = [
            {"step": 1, "param": "a.w", "delivered": 1.0, "intended_norm": 1.0},
            {"step": 2, "param": "b.w", "delivered": 0.5, "intended_norm": 2.0},
            {"step": 2, "param": "b.x", "delivered": 1.0, "intended_norm": 0.0},
        ]
        found = maps(rows)
        assert set(found) == {"delivered"}
        assert found["delivered"].values == [[1.0, None], [None, 0.5]]

    def test_a_large_model_has_more_cells_than_a_query_rows(self) -> None:
        rows = [
            {"step": step, "param": f"block{block}.w", "update_norm": 1.0, "weight_norm": 2.0}
            for step in range(1, 21)
            for block in range(10)
        ]
        (found,) = draw_maps(from_rows({"tensors": rows}), dataclasses.replace(DEFAULT_LIMITS, rows=10))
        assert [len(row) for row in found.values] == [20] * 10

    def test_at_most_sixty_by_sixty(self) -> None:
        rows = [
            {"step": step, "param": f"unet.block{block}.layer{layer}.w", "update_norm": 1.0, "weight_norm": 2.0}
            for step in range(1, 126)
            for block in range(20)
            for layer in range(5)
        ]
        found = maps(rows)["update_ratio"]
        assert len(found.modules) == 20
        assert found.modules[2] == "unet.block2"
        assert len(found.steps) == 60
        assert found.steps[-1] == 125
        assert all(value == pytest.approx(0.5) for row in found.values for value in row)


def test_modules_are_grouped_by_the_longest_prefix_that_fits() -> None:
    dotted = [f"unet.{block}.{layer}.{piece}" for block in range(4) for layer in range(10) for piece in "abc"]
    assert set(group_modules(dotted).values()) == {f"unet.{block}.{layer}" for block in range(4) for layer in range(10)}
    adapters = [f"lora_unet_{block}_{layer}" for block in range(50) for layer in range(3)]
    assert len(set(group_modules(adapters).values())) == 50
    assert set(group_modules([f"m{number}" for number in range(61)]).values()) == {"model"}
