"""Samplers by name: each solves what it should, on every noise schedule, with noise from the generator alone."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from trainscope.config.model import Sampler as SamplerName
from trainscope.errors import ModelError
from trainscope.trainer.samplers import LAST_ALPHA, SAMPLERS, build_sampler, ends_in_noise

STOCHASTIC = {"ddpm", "euler-a", "dpm2-a", "dpm++ sde", "dpm++ 2m sde", "lcm"}
SCHEDULES = {
    "epsilon": {"prediction_type": "epsilon"},
    "velocity": {"prediction_type": "v_prediction"},
    "zero terminal SNR": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
}


def noise_schedule(**changes: object) -> DDPMScheduler:
    """Stable Diffusion's."""
    return DDPMScheduler(
        **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1} | changes
    )


def test_the_configuration_names_them_all() -> None:
    assert set(get_args(SamplerName)) == set(SAMPLERS)


def solve(name: str, schedule: DDPMScheduler, steps: int, seed: int = 0) -> Tensor:
    """Denoise with a model that knows the picture, a constant 0.7: of float64, but for what the sampler does itself."""
    generator = torch.Generator().manual_seed(seed)
    sampler = build_sampler(name, schedule)
    sampler.set_timesteps(steps)
    picture = 0.7
    levels = schedule.alphas_cumprod.double().numpy()
    x = torch.randn((1, 4, 8, 8), generator=generator) * sampler.init_noise_sigma
    takes = {"generator": generator} if "generator" in inspect.signature(sampler.step).parameters else {}
    for timestep in sampler.timesteps:
        seen = sampler.scale_model_input(x, timestep).double()
        alpha = float(_interpolated(levels, float(timestep)))
        noise = (seen - alpha**0.5 * picture) / (1 - alpha) ** 0.5
        velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * picture
        output = noise if schedule.config.prediction_type == "epsilon" else velocity
        x = sampler.step(output.float(), timestep, x, **takes).prev_sample
    return x


def _interpolated(levels: object, timestep: float) -> float:
    import numpy as np

    # Samplers between two timesteps take σ = √((1 − ᾱ)/ᾱ) in between in its logarithm.
    found = np.asarray(levels)
    sigmas = np.log(np.sqrt((1 - found) / np.maximum(found, LAST_ALPHA)))
    return float(1 / (1 + np.exp(2 * np.interp(timestep, np.arange(len(found)), sigmas))))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_model_that_knows_the_picture_leads_to_it(name: str, schedule: str) -> None:
    found = solve(name, noise_schedule(**SCHEDULES[schedule]), steps=10)
    assert torch.isfinite(found).all()
    # ddim and pndm end at the first timestep, not at none: a thirtieth of its noise is left.
    assert float((found - 0.7).abs().max()) < (0.15 if name in ("ddim", "pndm") else 0.02)


@pytest.mark.parametrize("name", SAMPLERS)
def test_noise_comes_from_the_generator_alone(name: str) -> None:
    def one_step(global_seed: int, seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        schedule = noise_schedule()
        sampler = build_sampler(name, schedule)
        sampler.set_timesteps(4)
        generator = torch.Generator().manual_seed(seed)
        takes = {"generator": generator} if "generator" in inspect.signature(sampler.step).parameters else {}
        x = torch.ones(1, 4, 8, 8) * sampler.init_noise_sigma
        # The last step adds none; second-order samplers add theirs at every second one.
        for timestep in sampler.timesteps[:2]:
            seen = sampler.scale_model_input(x, timestep)
            x = sampler.step(0.1 * seen, timestep, x, **takes).prev_sample
        return x

    assert torch.equal(one_step(1, 7), one_step(2, 7))
    assert torch.equal(one_step(1, 7), one_step(1, 8)) == (name not in STOCHASTIC)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_noise_schedule_is_the_models(name: str) -> None:
    for kind in SCHEDULES.values():
        schedule = noise_schedule(**kind)
        sampler = build_sampler(name, schedule)
        assert sampler.config.prediction_type == schedule.config.prediction_type
        torch.testing.assert_close(
            sampler.alphas_cumprod[:-1].double(), schedule.alphas_cumprod[:-1].double(), rtol=1e-3, atol=1e-7
        )
        assert float(sampler.alphas_cumprod[-1]) == pytest.approx(float(schedule.alphas_cumprod[-1]), abs=1e-7)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_begins_where_the_schedule_ends_in_noise(name: str) -> None:
    schedule = noise_schedule(**SCHEDULES["zero terminal SNR"])
    assert ends_in_noise(schedule)
    assert not ends_in_noise(noise_schedule())
    sampler = build_sampler(name, schedule)
    sampler.set_timesteps(5)
    assert round(float(sampler.timesteps[0])) == 999


def test_a_wrong_name() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'dpm\+\+ 2m'\?") as caught:
        build_sampler("dpm++2m", noise_schedule())
    assert "unipc" in (caught.value.hint or "")
