"""What `[noise]` and `train.loss` do to a step, and what its micro-batches leave in the log."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.unit.trainer.test_loop import Steps
from trainscope.proof.runs import RunSpec
from trainscope.trainer.batch import load_batch
from trainscope.trainer.build import build_session
from trainscope.trainer.diffusion import denoise
from trainscope.trainer.evaluate import evaluate
from trainscope.trainer.loss import build_objective
from trainscope.trainer.noise import Draws

CHANGES: dict[str, dict[str, Any]] = {
    "huber": {"train.loss": "huber"},
    "huber-delta": {"train.loss": "huber", "train.huber_delta": 1.0},
    "offset": {"noise.offset": 0.1},
    "multires": {"noise.multires_iterations": 6},
    "multires-few": {"noise.multires_iterations": 2},
    "multires-discount": {"noise.multires_iterations": 6, "noise.multires_discount": 0.8},
    "perturbation": {"noise.input_perturbation": 0.1},
    "min-snr": {"noise.min_snr_gamma": 5.0},
    "min-snr-1": {"noise.min_snr_gamma": 1.0},
    "debiased": {"noise.debiased": True},
    "logit-normal": {"noise.timestep_sampling": "logit-normal"},
    "logit-mean": {"noise.timestep_sampling": "logit-normal", "noise.logit_mean": 1.0},
    "logit-std": {"noise.timestep_sampling": "logit-normal", "noise.logit_std": 0.3},
    "min-timestep": {"noise.min_timestep": 800},
    "max-timestep": {"noise.max_timestep": 200},
}


@pytest.fixture
def steps(tmp_path: Path) -> Callable[..., Steps]:
    count = iter(range(100))
    base = {"probes.tables": ["batches"], "probes.every": 1}
    return lambda changes={}: Steps(tmp_path / str(next(count)), **{**base, **changes})


def test_every_key_changes_the_gradient(steps: Callable[..., Steps]) -> None:
    """No two of them to the same."""
    session = steps().session
    batch = load_batch(session, [0, 1], 0)
    gradients: dict[str, Tensor] = {}
    for name, changes in {"none": {}, **CHANGES}.items():
        config = RunSpec(changes).resolved().config
        objective = build_objective(config, session.components.noise_scheduler, session.device)
        draw = Draws(config.noise, session.seed).at(0, batch.samples, batch.latents.shape[1:])
        loss = denoise(session, batch, draw, objective).weighted.mean()
        gradients[name] = torch.cat([g.flatten() for g in torch.autograd.grad(loss, session.tensors)])
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all()
        alike = [other for other, found in gradients.items() if torch.allclose(found, gradient, rtol=1e-3)]
        assert alike == [name]


def test_an_evaluation_knows_of_none_of_them() -> None:
    """So that runs which train differently compare."""
    plain = {"train.method": "lora", "train.steps": 1, "eval.samples": 3}
    every = {
        "train.loss": "huber",
        "noise.offset": 0.5,
        "noise.multires_iterations": 6,
        "noise.input_perturbation": 0.5,
    }
    range_ = {"noise.debiased": True, "noise.timestep_sampling": "logit-normal", "noise.max_timestep": 100}
    one, other = (build_session(RunSpec({**plain, **more}).resolved()) for more in ({}, {**every, **range_}))
    assert evaluate(one) == evaluate(other)


@pytest.mark.parametrize("weighting", [{}, {"noise.min_snr_gamma": 1.0, "train.loss": "huber"}])
def test_the_bins_add_up_to_the_steps_loss(weighting: dict[str, Any], steps: Callable[..., Steps]) -> None:
    stepped = steps(weighting)
    stepped([0, 1, 2, 3], [4, 5], [6])
    stepped([7])
    losses = stepped.rows("losses")
    for row in stepped.rows():
        bins = [bin_ for bin_ in losses if bin_["step"] == row["step"]]
        assert sum(bin_["count"] for bin_ in bins) == row["samples"]
        mean = sum(bin_["count"] * bin_["weighted_loss"] for bin_ in bins) / row["samples"]
        assert mean == pytest.approx(row["loss"], rel=1e-5)
        assert [bin_["bin"] for bin_ in bins] == sorted({bin_["bin"] for bin_ in bins})
    assert any(row["loss"] != row["weighted_loss"] for row in losses) == bool(weighting)


def test_losses_are_complete_and_batches_follow_the_cadence(steps: Callable[..., Steps]) -> None:
    stepped = steps({"probes.every": 3, "train.steps": 7})
    for _ in range(7):
        stepped([0], [1])
    assert {row["step"] for row in stepped.rows("losses")} == set(range(1, 8))
    batches = stepped.rows("batches")
    assert [row["step"] for row in batches] == [3, 3, 6, 6, 7, 7]
    assert [row["samples"] for row in batches] == [1] * 6


def test_a_micro_batch_is_told_as_it_was_given(steps: Callable[..., Steps]) -> None:
    stepped = steps({"noise.min_snr_gamma": 1.0, "noise.max_timestep": 200})
    session = stepped.session
    stepped([3, 8])
    (row,) = stepped.rows("batches")
    latents = load_batch(session, [3, 8], 0).latents.double()
    draw = session.draws.at(0, [3, 8], latents.shape[1:])
    assert row["latent_mean"] == pytest.approx(float(latents.mean()))
    assert row["latent_std"] == pytest.approx(float(latents.std(correction=0)))
    assert row["target_var"] == pytest.approx(float(draw.noise.double().var(correction=0)))
    weights = session.objective.weights_at(draw.timesteps)
    assert weights is not None
    assert row["weight_max"] == float(weights.max()) < 1
    assert (row["position"], row["samples"], row["latent_pixels"]) == (0, 2, 64)
    assert (row["target_kind"], row["nonfinite"], row["mask_area"]) == ("epsilon", 0, None)


def test_an_inpainting_models_masks_are_told(steps: Callable[..., Steps]) -> None:
    stepped = steps({"model.base": "tiny:sd15-inpainting"})
    stepped([3, 8])
    (row,) = stepped.rows("batches")
    condition = load_batch(stepped.session, [3, 8], 0).condition
    assert condition is not None
    assert row["mask_area"] == pytest.approx(float(condition[:, 0].double().mean()))
    assert 0 < row["mask_area"] < 1
    assert row["mask_nonbinary"] == 0


def test_a_probe_that_fails_costs_its_table_alone(steps: Callable[..., Steps], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("broken")

    stepped = steps({"probes.every": 1})
    monkeypatch.setattr("trainscope.probes.batches.BatchesProbe.see", broken)
    stepped([0], [1])
    stepped([2])
    assert not stepped.rows("batches")
    assert {row["step"] for row in stepped.rows("losses")} == {1, 2}
    (event,) = [row for row in stepped.rows("events") if row["kind"] == "probe_failed"]
    assert "ZeroDivisionError" in event["detail"]
