"""What is minimised, beside float64 formulas: penalties, weights by timestep, and both predictions' targets."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from trainscope.errors import ConfigError, ModelError
from trainscope.proof.runs import RunSpec
from trainscope.trainer.batch import load_batch
from trainscope.trainer.build import build_session
from trainscope.trainer.diffusion import denoise
from trainscope.trainer.loss import (
    Objective,
    build_objective,
    debiased_weights,
    min_snr_weights,
    pseudo_huber,
    squared,
)
from trainscope.trainer.noise import Draw

CPU = torch.device("cpu")


def scheduler(**changes: Any) -> Any:
    """That of Stable Diffusion, but for the changes."""
    stable_diffusion = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return DDPMScheduler(**{**stable_diffusion, **changes})


def objective(changes: dict[str, Any], of: Any = None) -> Objective:
    return build_objective(RunSpec(changes).resolved().config, of or scheduler(), CPU)


# ---- penalties


def huber(error: Tensor, delta: float) -> Tensor:
    return pseudo_huber(error, torch.zeros_like(error), delta)


@pytest.mark.parametrize("delta", [0.001, 0.1, 1.0, 30.0])
def test_huber(delta: float) -> None:
    errors = torch.cat([torch.logspace(-6, 2, 50), -torch.logspace(-6, 2, 50), torch.zeros(1)])
    found = huber(errors, delta)
    # The difference in the formula cancels in float64 too where errors are tiny: there e² (1 − e²/4δ²) is exact.
    e = errors.double()
    exact = torch.where(
        e.abs() < 1e-4 * delta,
        e**2 * (1 - e**2 / (4 * delta**2)),
        2 * delta * ((e**2 + delta**2).sqrt() - delta),
    )
    assert torch.allclose(found.double(), exact, rtol=2e-6, atol=0)


def test_huber_between_its_limits() -> None:
    small, large = torch.tensor(1e-4), torch.tensor(1e4)
    assert float(huber(small, 1.0)) == pytest.approx(1e-8)
    assert float(huber(large, 0.1)) == pytest.approx(2 * 0.1 * 1e4, rel=1e-4)
    assert float(huber(torch.tensor(0.5), 0.1)) < 0.25


def test_hubers_gradient_is_bounded() -> None:
    error = torch.tensor([0.0, 1e-5, 1.0, 1e6], requires_grad=True)
    (gradient,) = torch.autograd.grad(huber(error, 0.1).sum(), error)
    exact = 2 * 0.1 * error.detach().double() / (error.detach().double() ** 2 + 0.01).sqrt()
    assert torch.allclose(gradient.double(), exact, rtol=1e-5, atol=0)
    assert gradient.abs().max() <= 2 * 0.1 * (1 + 1e-6)


def test_losses_are_means_over_a_sample() -> None:
    one, other = torch.randn(3, 4, 5, 6, dtype=torch.bfloat16), torch.randn(3, 4, 5, 6)
    for penalty in (squared, partial(pseudo_huber, delta=0.1)):
        found = Objective("epsilon", penalty).losses(one, other)
        assert (found.shape, found.dtype) == ((3,), torch.float32)
        for n in range(3):
            assert float(found[n]) == pytest.approx(float(penalty(one[n].double(), other[n].double()).mean()))


# ---- weights


def snr_of(alphas_cumprod: Tensor) -> list[float]:
    return [math.inf if a == 1 else a / (1 - a) for a in alphas_cumprod.double().tolist()]


@pytest.mark.parametrize("gamma", [0.5, 5.0, 20.0])
def test_min_snr(gamma: float) -> None:
    """The published formulas, one timestep at a time."""
    curve = scheduler().alphas_cumprod
    noise = min_snr_weights(curve, gamma, "epsilon")
    velocity = min_snr_weights(curve, gamma, "v_prediction")
    for t, snr in enumerate(snr_of(curve)):
        assert float(noise[t]) == pytest.approx(min(snr, gamma) / snr, rel=1e-12)
        assert float(velocity[t]) == pytest.approx(min(snr, gamma) / (snr + 1), rel=1e-12)


def test_debiased() -> None:
    curve = torch.cat([torch.tensor([1.0, 0.99995]), scheduler().alphas_cumprod])
    noise, velocity = debiased_weights(curve, "epsilon"), debiased_weights(curve, "v_prediction")
    for t, snr in enumerate(snr_of(curve)):
        weight = 1 / math.sqrt(min(snr, 1000))
        share = 1.0 if math.isinf(snr) else snr / (snr + 1)
        assert float(noise[t]) == pytest.approx(weight, rel=1e-12)
        assert float(velocity[t]) == pytest.approx(weight * share, rel=1e-12)


@pytest.mark.parametrize(
    "weights", [lambda curve, kind: min_snr_weights(curve, 5.0, kind), debiased_weights], ids=["min-snr", "debiased"]
)
def test_both_predictions_weigh_errors_of_the_picture_alike(weights: Any) -> None:
    """The same wrong picture, said as a noise and as a velocity, costs the same."""
    of = scheduler()
    generator = torch.Generator().manual_seed(0)
    clean, noise, wrong = (torch.randn(4, 3, 2, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    steps = torch.tensor([0, 30, 400, 999])
    signal = of.alphas_cumprod.double()[steps].view(-1, 1, 1, 1)
    noisy = signal.sqrt() * clean + (1 - signal).sqrt() * noise
    costs = {}
    for kind in ("epsilon", "v_prediction"):
        # Prediction and target from the picture and the noisy picture alone (arXiv 2202.00512, appendix D).
        said, true = (
            (noisy - signal.sqrt() * picture) / (1 - signal).sqrt()
            if kind == "epsilon"
            else (signal.sqrt() * noisy - picture) / (1 - signal).sqrt()
            for picture in (wrong, clean)
        )
        table = weights(of.alphas_cumprod, kind)
        costs[kind] = (said - true).square().mean(dim=(1, 2, 3)) * table[steps]
    assert torch.allclose(costs["epsilon"], costs["v_prediction"], rtol=1e-9)
    assert float(costs["epsilon"].min()) > 0


def test_weights_at_the_ends_of_a_schedule_are_finite() -> None:
    """SNR = 0 at zero terminal SNR, infinite where a first step adds nothing."""
    curve = torch.tensor([1.0, 0.5, 0.0])
    assert min_snr_weights(curve, 5.0, "v_prediction").tolist() == [0.0, 0.5, 0.0]
    assert min_snr_weights(curve, 5.0, "epsilon").tolist() == [0.0, 1.0, 1.0]
    assert debiased_weights(curve, "v_prediction").tolist() == [1000**-0.5, 0.5, 0.0]


# ---- from the configuration


def test_what_the_configuration_asks_for() -> None:
    curve = scheduler().alphas_cumprod
    assert objective({}).weights is None
    assert objective({}).penalty is squared
    gamma = objective({"noise.min_snr_gamma": 5.0}).weights
    assert gamma is not None
    assert torch.equal(gamma, min_snr_weights(curve, 5.0, "epsilon").float())
    debiased = objective({"noise.debiased": True}, scheduler(prediction_type="v_prediction"))
    assert debiased.prediction == "v_prediction"
    assert debiased.weights is not None
    assert torch.equal(debiased.weights, debiased_weights(curve, "v_prediction").float())
    assert debiased.weights_at(torch.tensor([3, 3, 999])).tolist() == debiased.weights[[3, 3, 999]].tolist()  # type: ignore[union-attr]
    built = objective({"train.loss": "huber", "train.huber_delta": 0.3})
    assert torch.equal(built.penalty(torch.ones(1), torch.zeros(1)), huber(torch.ones(1), 0.3))


def test_what_the_model_does_not_allow() -> None:
    with pytest.raises(ModelError, match='prediction_type = "sample"; allowed are epsilon, v_prediction'):
        objective({}, scheduler(prediction_type="sample"))
    with pytest.raises(ConfigError) as raised:
        objective({"noise.max_timestep": 300}, scheduler(num_train_timesteps=200, rescale_betas_zero_snr=True))
    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        "noise.max_timestep = 300",
        "the last timestep is pure noise (zero terminal SNR), and the model predicts the noise",
    ]
    fine = scheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert objective({"noise.min_snr_gamma": 5.0}, fine).prediction == "v_prediction"


@pytest.mark.parametrize("weighting", [{}, {"noise.min_snr_gamma": 5.0}, {"noise.debiased": True}])
def test_a_training_with_zero_terminal_snr_is_finite(weighting: dict[str, Any]) -> None:
    """At its last timestep the input is noise alone and the velocity is the picture, turned round."""
    session = build_session(RunSpec({"train.method": "lora", "train.steps": 1, **weighting}).resolved())
    of = scheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert float(of.alphas_cumprod[-1]) == 0
    session.components.noise_scheduler = of
    session.objective = build_objective(session.config, of, CPU)
    batch = load_batch(session, [0, 1], 0)
    drawn = session.draws.at(0, [0, 1], batch.latents.shape[1:])
    last = Draw(drawn.noise, drawn.added, torch.full((2,), 999))
    found = denoise(session, batch, last, session.objective)
    assert torch.equal(found.target, -batch.latents)
    assert torch.isfinite(found.losses).all()
    assert torch.isfinite(found.weighted).all()


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_has_the_noise_that_was_asked_for(kind: str) -> None:
    """Offset and pyramid are part of the target, what perturbs the input is not."""
    asked = {"noise.offset": 0.2, "noise.multires_iterations": 3, "noise.input_perturbation": 0.5}
    session = build_session(RunSpec({"train.method": "lora", "train.steps": 1, **asked}).resolved())
    session.components.noise_scheduler = copy.deepcopy(session.components.noise_scheduler)
    session.objective = Objective(kind)
    seen: list[Tensor] = []
    session.wrapped.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = load_batch(session, [4, 2], 0)
    draw = session.draws.at(0, [4, 2], batch.latents.shape[1:])
    found = denoise(session, batch, draw, session.objective)
    signal = session.components.noise_scheduler.alphas_cumprod.double()[draw.timesteps].view(-1, 1, 1, 1)
    clean, noise, added = batch.latents.double(), draw.noise.double(), draw.added.double()
    velocity = signal.sqrt() * noise - (1 - signal).sqrt() * clean
    assert torch.allclose(found.target.double(), noise if kind == "epsilon" else velocity, atol=1e-5)
    assert torch.allclose(seen[0].double(), signal.sqrt() * clean + (1 - signal).sqrt() * added, atol=1e-5)
    assert not torch.allclose(added, noise, atol=0.1)
