"""The `[noise]` section: the noise and the timesteps that are trained on, and how their losses are weighted.

Knows nothing of tensors.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from trainscope.config.section import Section


class NoiseSection(Section):
    """The noise that images are trained to be recovered from, and which of it counts how much."""

    offset: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Add noise that is the same all over a channel, by this factor; lets brightness be learned. About 0.05 to 0.1."""
    multires_iterations: Annotated[int, Field(ge=0, le=200)] = 0
    """Coarser and coarser noise added on top, so many times or until one pixel is left; 0 adds none. About 6 to 10."""
    multires_discount: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Factor from one of those coarser noises to the next."""
    input_perturbation: NonNegativeFloat = 0.0
    """Extra noise in the input that the target does not know of, by this factor. About 0.1."""
    min_snr_gamma: Annotated[PositiveFloat | None, Field(examples=[5.0])] = None
    """Weigh errors of the picture by min(SNR, gamma), so that the easy timesteps do not dominate; 5 is usual."""
    debiased: bool = False
    """Debiased estimation: weigh errors of the noise by 1/√SNR, SNR at most 1000, and the velocity's to match."""
    timestep_sampling: Literal["uniform", "logit-normal"] = "uniform"
    """How timesteps are drawn: all alike, or mostly from the middle."""
    logit_mean: float = 0.0
    """Mean of the logit-normal draw; above 0 noisier timesteps are drawn more often."""
    logit_std: PositiveFloat = 1.0
    """Standard deviation of the logit-normal draw."""
    min_timestep: NonNegativeInt = 0
    """The least noisy timestep that is trained."""
    max_timestep: PositiveInt = 1000
    """Timesteps below this one are trained."""
