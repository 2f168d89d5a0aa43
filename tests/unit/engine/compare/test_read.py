"""A log → what is compared of it."""

from __future__ import annotations

import math

import pytest

from trainscope.engine.compare.read import Totals, held_out_of, settings_of, totals_of
from trainscope.engine.compare.result import Earlier, Setting
from trainscope.engine.tables import from_rows


def key(value: str, segment: int, name: str = "optimizer.lr") -> dict[str, object]:
    return {"segment": segment, "key": name, "value": value, "origin": "file"}


def test_the_last_segments_values_and_what_they_were() -> None:
    rows = [key("1.0", 0), key("1.0", 1), key("0.5", 2), key("x", 0, "run.name"), key("x", 2, "run.name")]
    found = settings_of(from_rows({"config": rows}, segment_starts=[0, 10, 20]))
    assert found["optimizer.lr"] == Setting(0.5, origin="file", earlier=(Earlier(1.0, 20),))
    assert found["run.name"].earlier == (Earlier("x", 10), Earlier(None, 20)), "segment 1 did not have it"


def test_a_segment_of_which_no_step_is_left_had_no_value() -> None:
    # The second segment began at 40 and the third went back to 20.
    rows = [key("1.0", 0), key("2.0", 1), key("3.0", 2)]
    assert settings_of(from_rows({"config": rows}, segment_starts=[0, 40, 20]))["optimizer.lr"].earlier == (
        Earlier(1.0, 20),
    )


def test_a_value_that_came_back() -> None:
    rows = [key("1.0", 0), key("2.0", 1), key("1.0", 2)]
    assert settings_of(from_rows({"config": rows}, segment_starts=[0, 10, 20]))["optimizer.lr"].earlier == (
        Earlier(1.0, 10),
        Earlier(2.0, 20),
    )


def evaluation(step: int, loss: float, **more: object) -> dict[str, object]:
    return {"step": step, "loss": loss, "weights": "raw", "draws": 16, "split": "validation", **more}


PICTURE = {"digest": "aa", "bucket": "64x64", "tokens": 3, "truncated": 0, "split": "validation"}


def test_held_out_losses_and_what_they_were_measured_on() -> None:
    evals = [evaluation(0, 1.0), evaluation(5, math.nan), evaluation(5, 0.9, weights="ema")]
    batches = [{"step": 1, "target_kind": "epsilon"}]
    one = held_out_of(from_rows({"evals": evals, "data": [PICTURE], "batches": batches}))
    assert (one["raw"].losses[0], math.isnan(one["raw"].losses[5]), one["ema"].losses) == (1.0, True, {5: 0.9})
    draws, split, digest, target = one["raw"].basis
    assert (draws, split, target) == ("16", "validation", "epsilon")
    train = {**PICTURE, "split": "train", "digest": "bb"}
    same = held_out_of(from_rows({"evals": evals, "data": [PICTURE, train]}))["raw"].basis
    assert same == ("16", "validation", digest, None)
    for change in ({"digest": "bb"}, {"bucket": "128x64"}, {"tokens": 4}):
        other = held_out_of(from_rows({"evals": evals, "data": [{**PICTURE, **change}]}))["raw"].basis
        assert other[2] not in (None, digest), change


def test_losses_of_another_number_of_draws_are_left_out() -> None:
    rows = [evaluation(0, 1.0, draws=8), evaluation(5, 0.5), evaluation(9, 0.4)]
    found = held_out_of(from_rows({"evals": rows}))["raw"]
    assert (found.losses, found.basis[0]) == ({5: 0.5, 9: 0.4}, "16")


def test_schedule_free_is_evaluated_at_x() -> None:
    rows = [evaluation(5, loss, mode=mode) for mode, loss in (("y", 0.9), ("x", 0.5))]
    assert held_out_of(from_rows({"evals": rows}))["raw"].losses == {5: 0.5}


def test_totals() -> None:
    rows = [
        {"step": step, "rank": rank, "seconds": 10.0 * step + rank, "samples": 2, "loss": float(step),
         "grad_norm": grad, "memory_bytes": 100 * step + rank, "rss_bytes": 7}
        for step, grad in ((1, 1.0), (2, math.inf), (3, 3.0), (4, 2.0), (5, 9.0))
        for rank in (0, 1)
    ]  # fmt: skip
    found = totals_of(from_rows({"steps": rows}))
    assert found == Totals(
        seconds=pytest.approx(155.0),  # the slower rank of each step
        step_seconds=pytest.approx((41 + 51) / 2),  # from step 4 on
        samples=20.0,
        last_loss=pytest.approx(4.5),  # steps 4 and 5
        gradient=pytest.approx(2.5),
        memory=501.0,
        resident=7.0,
    )
    assert totals_of(from_rows({})) == Totals()
