from __future__ import annotations

import math
from typing import Any

import pytest

from trainscope.engine.gate.profile import POINTS
from trainscope.engine.gate.read import bin_width, curves_of, thinned
from trainscope.engine.gate.signals import SIGNALS
from trainscope.engine.tables import from_rows


def curves(last: int = 4, **tables: Any) -> dict[str, Any]:
    return curves_of(from_rows(tables), last)


def test_an_empty_log_has_no_curve() -> None:
    assert curves() == {}


def test_every_signal_is_explained_by_a_column_that_exists() -> None:
    from trainscope.runlog.tables import TABLES

    for signal in SIGNALS.values():
        table, _, column = signal.column.partition(".")
        assert column in TABLES[table].schema.names


@pytest.mark.parametrize(("last", "width"), [(0, 1), (1, 1), (128, 1), (129, 2), (256, 2), (257, 4), (10_000, 128)])
def test_a_curve_has_at_most_so_many_bins(last: int, width: int) -> None:
    assert bin_width(last) == width
    assert last / width <= POINTS


def test_a_bin_has_the_mean_of_its_steps_and_a_part_of_one_is_left_out() -> None:
    found = curves(300, steps=[{"step": step, "grad_norm": float(step)} for step in range(1, 303)])["gradient"]
    assert (found.width, found.steps[:2], found.values[:2]) == (4, [4, 8], [2.5, 6.5])
    assert found.steps[-1] == 300


def test_seconds_are_the_quickest_of_a_bin_without_probes() -> None:
    rows = [{"step": step, "seconds": 1.0 + step, "probe_seconds": 0.5} for step in range(1, 301)]
    assert curves(300, steps=rows)["seconds"].values[1] == pytest.approx(5.5)


def test_seconds_are_never_less_than_the_passes_took() -> None:
    rows = [
        {"step": 4, "seconds": 0.02, "probe_seconds": 0.05, "forward_seconds": 0.004, "backward_seconds": 0.006},
        {"step": 5, "seconds": 0.02, "probe_seconds": 0.05},
        {"step": 6, "seconds": 0.02},
    ]
    found = curves(6, steps=rows)["seconds"]
    assert (found.steps, found.values) == ([4, 6], [pytest.approx(0.01), 0.02])


def test_losses_are_means_of_samples_by_noise() -> None:
    rows = [
        {"step": 1, "bin": 0, "count": 3, "loss": 1.0, "weighted_loss": 0.5},
        {"step": 1, "bin": 2, "count": 1, "loss": 5.0, "weighted_loss": 2.5},
        {"step": 1, "bin": 9, "count": 1, "loss": 7.0, "weighted_loss": 7.0},
        {"step": 2, "bin": 1, "count": 1, "loss": 3.0, "weighted_loss": 3.0},
    ]
    found = curves(losses=rows)
    assert (found["loss/low noise"].values, found["loss/low noise"].weights) == ([2.0, 3.0], [4.0, 1.0])
    assert (found["loss/high noise"].values, found["loss/high noise"].weights) == ([7.0], [])
    assert found["loss weight"].values == [pytest.approx((1.5 + 2.5 + 7) / 15), 1.0]
    assert found["timesteps"].values == [pytest.approx((3 * 0.5 + 2.5 + 9.5) / 5), 1.5]


def test_tensors_are_summed_by_component() -> None:
    params = [{"param": name, "component": name.partition(".")[0]} for name in ("unet.a", "unet.b", "text_encoder_2.c")]
    rows = [
        {"step": 1, "param": "unet.a", "grad_norm": 3.0, "update_norm": 3.0, "distance_from_start": 6.0,
         "delivered": 0.5, "intended_norm": 2.0},
        {"step": 1, "param": "unet.b", "grad_norm": 4.0, "update_norm": 4.0, "distance_from_start": 8.0,
         "delivered": 1.0, "intended_norm": 1.0},
        {"step": 1, "param": "text_encoder_2.c", "update_norm": 1.0, "intended_norm": 9.0},
    ]  # fmt: skip
    found = curves(params=params, tensors=rows)
    assert found["update/unet"].values == [pytest.approx(5.0)]
    assert found["distance/unet"].values == [pytest.approx(10.0)]
    assert found["delivered/unet"].values == [pytest.approx((0.5 * 4 + 1.0) / 5)]
    assert found["gradient share/unet"].values == [1.0]
    assert found["gradient share/text encoder"].values == [0.0]
    assert "delivered/text encoder" not in found


def test_samples_compare_where_both_images_were_made_at_the_same_steps() -> None:
    rows = [
        {"step": step, "prompt": "a", "seed": 1, "weights": "raw", "path": f"{step}.png",
         "distance": None if step == 0 else step / 10}
        for step in (0, 2, 4)
    ]  # fmt: skip
    found = curves(samples=rows)["sample distance"]
    assert (found.steps, found.values, found.weights) == ([2, 4], [0.2, 0.4], [0.0, 2.0])


def test_superseded_rows_do_not_count() -> None:
    rows = [
        {"step": step, "segment": segment, "grad_norm": 1.0 + segment} for step, segment in ((1, 0), (2, 0), (2, 1))
    ]
    source = from_rows({"steps": rows}, segment_starts=[0, 1])
    assert curves_of(source, 2)["gradient"].values == [1.0, 2.0]


def test_non_finite_values_are_kept() -> None:
    rows = [{"step": 1, "grad_norm": math.inf}, {"step": 2, "grad_norm": math.nan}]
    values = curves(steps=rows)["gradient"].values
    assert values[0] == math.inf
    assert math.isnan(values[1])


def test_many_looks_are_thinned_to_steps_that_other_cadences_have() -> None:
    every = thinned([(step, float(step), 0.0) for step in range(1, 1001)])
    tenth = thinned([(step, float(step), 0.0) for step in [1, 2, 3, 4, 5, *range(10, 1001, 10)]])
    assert len(every) <= POINTS
    assert every == tenth
    assert every[-1][0] == 1000
