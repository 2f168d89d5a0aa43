"""Samplers by the names that users know: which of diffusers' schedulers carries one out, and with what.

Knows schedules only, no models and no images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch

from trainscope.errors import ModelError
from trainscope.trainer.models.quiet import quiet_libraries

LAST_ALPHA = 2.0**-24
"""ᾱ of a terminal timestep that is pure noise, where a sampler divides by its root: what diffusers' Euler takes."""
LEAST_ALPHA = 1e-7
"""Below it a noise schedule ends in pure noise; Stable Diffusion's ends at 0.0047."""


@dataclass(frozen=True)
class Sampler:
    """`scheduler` is diffusers' class, `settings` what to set beside the noise schedule."""

    scheduler: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    rescales: bool = False
    """Whether the class can rescale a schedule to end in pure noise; the others are given the rescaled betas."""


SAMPLERS = {
    "ddim": Sampler("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}, rescales=True),
    "ddpm": Sampler("DDPMScheduler", {"clip_sample": False}, rescales=True),
    "pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True, "set_alpha_to_one": False}),
    "lms": Sampler("LMSDiscreteScheduler"),
    "euler": Sampler("EulerDiscreteScheduler", rescales=True),
    "euler-a": Sampler("EulerAncestralDiscreteScheduler", rescales=True),
    "heun": Sampler("HeunDiscreteScheduler", {"clip_sample": False}),
    "dpm2": Sampler("KDPM2DiscreteScheduler"),
    "dpm2-a": Sampler("KDPM2AncestralDiscreteScheduler"),
    "dpm++ 2m": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}, rescales=True),
    "dpm++ 2m karras": Sampler(
        "DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "use_karras_sigmas": True}, rescales=True
    ),
    "dpm++ sde": Sampler(
        "DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++", "lower_order_final": True}
    ),
    "dpm++ 2m sde": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, rescales=True),
    "unipc": Sampler("UniPCMultistepScheduler", rescales=True),
    "lcm": Sampler("LCMScheduler", {"clip_sample": False}, rescales=True),
}
"""The keys are those of `sample.sampler`.

euler is ddim, and euler-a is ddpm, in other variables and at nearly the same timesteps.

dpm++ sde is the second-order singlestep SDE solver (arXiv 2211.01095, k-diffusion's `sample_dpmpp_sde`) in diffusers'
DPMSolverSinglestepScheduler: DPMSolverSDEScheduler, which is the same with noise from a Brownian tree, needs torchsde
and seeds itself. Its steps are model evaluations, two of them to a step of k-diffusion's.
"""


def build_sampler(name: str, noise_scheduler: Any) -> Any:
    """The scheduler of diffusers for `name`, with the schedule and the prediction type of `noise_scheduler`.

    Where the schedule ends in pure noise, sampling begins there (`timestep_spacing` trailing; arXiv 2305.08891).
    Raises `ModelError` for an unknown name.
    """
    if name not in SAMPLERS:
        near = get_close_matches(name, SAMPLERS, n=1)
        question = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"there is no sampler {name!r}{question}", hint=f"the samplers are {', '.join(SAMPLERS)}")
    sampler, settings = SAMPLERS[name], dict(SAMPLERS[name].settings)
    with quiet_libraries():
        import diffusers

        if ends_in_noise(noise_scheduler):
            settings["timestep_spacing"] = "trailing"
            if sampler.rescales:
                # Rescaling a schedule that ends in pure noise already changes nothing but what the class avoids.
                settings |= {"rescale_betas_zero_snr": True, "trained_betas": noise_scheduler.betas.tolist()}
            else:
                settings["trained_betas"] = _betas_short_of_noise(noise_scheduler)
        return getattr(diffusers, sampler.scheduler).from_config(noise_scheduler.config, **settings)


def ends_in_noise(noise_scheduler: Any) -> bool:
    """Whether nothing of the picture is left at the last timestep (zero terminal SNR)."""
    return bool(noise_scheduler.alphas_cumprod[-1] < LEAST_ALPHA)


def _betas_short_of_noise(noise_scheduler: Any) -> list[float]:
    """The betas of the schedule with ᾱ = LAST_ALPHA at its end, in place of 0."""
    alphas = noise_scheduler.alphas_cumprod.double().clone()
    alphas[-1] = LAST_ALPHA
    before = torch.cat([torch.ones(1, dtype=alphas.dtype), alphas[:-1]])
    betas: list[float] = (1 - alphas / before).tolist()
    return betas
