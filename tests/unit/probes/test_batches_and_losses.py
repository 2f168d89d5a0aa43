"""What the `batches` and `losses` tables say, beside their float64 twins."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from tests.unit.probes import reference
from tests.unit.probes.steps import expect, rows_of
from trainscope.probes.batches import BatchesProbe
from trainscope.probes.losses import LossesProbe
from trainscope.probes.pending import Part

GENERATOR = torch.Generator().manual_seed(0)
CPU = torch.device("cpu")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


def see(probe: BatchesProbe, position: int, tensors: dict[str, Tensor | None]) -> Part:
    return probe.see(position, target_kind="epsilon", **tensors)  # type: ignore[arg-type]


def micro_batch(samples: int, *, mask: bool, weights: bool) -> dict[str, Tensor | None]:
    shape = (samples, 4, 6, 8)
    return {
        "latents": 0.9 * drawn(*shape) + 0.2,
        "text": drawn(samples, 7, 5),
        "mask": (drawn(samples, 1, 6, 8) > 0).float() if mask else None,
        "noise": drawn(*shape) + 0.3 * drawn(samples, 4, 1, 1),
        "target": drawn(*shape),
        "prediction": drawn(*shape).bfloat16(),
        "weights": drawn(samples).abs() if weights else None,
    }


def expected(t: dict[str, Tensor | None]) -> dict[str, object]:
    seen = (t["latents"], t["text"], t["prediction"])
    return reference.batch_row(t["latents"], t["noise"], t["target"], t["weights"], t["mask"], *seen)  # type: ignore[arg-type]


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_batches(mask: bool, weights: bool) -> None:
    probe = BatchesProbe()
    batches = [micro_batch(samples, mask=mask, weights=weights) for samples in (3, 1)]
    found = rows_of(probe.rows(7, [see(probe, 12 + n, batch) for n, batch in enumerate(batches)]))
    assert [(row["step"], row["position"], row["target_kind"]) for row in found] == [
        (7, 12, "epsilon"),
        (7, 13, "epsilon"),
    ]
    for row, batch in zip(found, batches, strict=True):
        for name, value in expected(batch).items():
            expect(row[name], value)


def test_what_is_not_finite_is_counted_and_stays() -> None:
    probe, batch = BatchesProbe(), micro_batch(2, mask=True, weights=True)
    for name, value in (("latents", math.nan), ("text", math.inf), ("prediction", -math.inf)):
        batch[name][0, 0, 0] = value  # type: ignore[index]
    (row,) = rows_of(probe.rows(1, [see(probe, 0, batch)]))
    assert row["nonfinite"] == expected(batch)["nonfinite"] == 8 + 1 + 8
    assert math.isnan(row["latent_mean"])
    assert math.isnan(row["latent_std"])
    assert row["target_var"] == pytest.approx(expected(batch)["target_var"])


def test_a_grey_mask() -> None:
    probe, batch = BatchesProbe(), micro_batch(1, mask=True, weights=False)
    batch["mask"][0, 0, 0, :3] = torch.tensor([0.5, math.nan, 1e-6])  # type: ignore[index]
    (row,) = rows_of(probe.rows(1, [see(probe, 0, batch)]))
    assert row["mask_nonbinary"] == expected(batch)["mask_nonbinary"] == 3


def test_a_digest_for_each_sample() -> None:
    probe, batch = BatchesProbe(), micro_batch(3, mask=False, weights=False)
    batch["noise"][2] = batch["noise"][0]  # type: ignore[index]
    digests = see(probe, 0, batch).keys["noise_digest"][0].split(" ")
    assert [len(digest) for digest in digests] == [16] * 3
    assert digests[0] == digests[2] != digests[1]
    # Of another layout in memory, the same noise has the same digest.
    batch["noise"] = batch["noise"].to(memory_format=torch.channels_last)  # type: ignore[union-attr]
    assert see(probe, 0, batch).keys["noise_digest"][0].split(" ") == digests


def test_white_noise_and_offset_noise() -> None:
    """1 / pixels, and offset² more: what a rule reads off it."""
    probe, batch = BatchesProbe(), micro_batch(500, mask=False, weights=False)
    for offset in (0.0, 0.3):
        batch["noise"] = drawn(500, 4, 6, 8) + offset * drawn(500, 4, 1, 1)
        (row,) = rows_of(probe.rows(1, [see(probe, 0, batch)]))
        assert row["noise_channel_mean_var"] == pytest.approx(1 / row["latent_pixels"] + offset**2, rel=0.1)


@pytest.mark.parametrize("total", [1000, 250])
def test_losses_by_bin(total: int) -> None:
    probe = LossesProbe(total)
    edges = [0, total // 10 - 1, total // 10, total // 2, total - 1, total // 2, 3]
    timesteps = [edges[:4], edges[4:5], edges[5:]]
    losses, weighted = drawn(7).abs(), drawn(7).abs()
    parts = [
        probe.see(torch.tensor(steps), losses[start : start + len(steps)], weighted[start : start + len(steps)])
        for steps, start in zip(timesteps, (0, 4, 5), strict=True)
    ]
    found = rows_of(probe.rows(3, parts))
    rows = reference.loss_rows(edges, losses.tolist(), weighted.tolist(), total)
    assert [row["bin"] for row in found] == [row["bin"] for row in rows] == [0, 1, 5, 9]
    for row, wanted in zip(found, rows, strict=True):
        assert row["step"] == 3
        for name, value in wanted.items():
            expect(row[name], value)


def test_a_loss_that_is_not_finite_stays_in_its_bin() -> None:
    probe = LossesProbe(1000)
    (low, high) = rows_of(
        probe.rows(1, [probe.see(torch.tensor([5, 905]), torch.tensor([1.0, math.nan]), torch.ones(2))])
    )
    assert (low["bin"], low["loss"]) == (0, 1.0)
    assert high["bin"] == 9
    assert math.isnan(high["loss"])


def test_parts_of_a_step_under_way_survive_json() -> None:
    """Bit by bit, non-finite values too."""
    probe, batch = BatchesProbe(), micro_batch(2, mask=False, weights=True)
    batch["latents"][0, 0, 0, 0] = math.nan  # type: ignore[index]
    batch["weights"][0] = math.inf  # type: ignore[index]
    part = see(probe, 4, batch)
    again = Part.from_json(json.loads(json.dumps(part.as_json())), CPU)
    assert again.keys == part.keys
    assert again.values.dtype == torch.float64
    assert again.values.numpy().tobytes() == part.values.numpy().tobytes()
