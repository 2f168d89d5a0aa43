"""Faults of what the loss is given: noise, timesteps, weights and latents. Knows nothing of rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.noise import Draw, Draws
from trainscope.trainer.session import Session


class _Reseeded(Draws):
    """`torch.manual_seed(seed)` at the head of the loop's body: every step has the noise of the first."""

    def at(self, position: int, samples: Sequence[int], shape: Sequence[int]) -> Draw:
        first = super().at(0, range(len(samples)), shape)
        return replace(first, timesteps=super().at(position, samples, shape).timesteps)


class _KeptWithThePicture(Draws):
    """Noise that is drawn when a picture is encoded and cached beside its latent."""

    def at(self, position: int, samples: Sequence[int], shape: Sequence[int]) -> Draw:
        kept = super().at(0, samples, shape)
        return replace(kept, timesteps=super().at(position, samples, shape).timesteps)


class _OneForTheBatch(Draws):
    """`torch.randn(1, …)` that is broadcast over the batch."""

    def at(self, position: int, samples: Sequence[int], shape: Sequence[int]) -> Draw:
        whole = super().at(position, samples, shape)
        first = whole.noise[:1].expand_as(whole.noise)
        return replace(whole, noise=first, added=first)


class _Uniform(Draws):
    """`torch.rand` where `torch.randn` was meant, moved to a mean of 0."""

    def at(self, position: int, samples: Sequence[int], shape: Sequence[int]) -> Draw:
        normal = super().at(position, samples, shape)
        noise = torch.erf(normal.noise / math.sqrt(2))
        return replace(normal, noise=noise, added=noise)


class _OfFewerTimesteps(Draws):
    """Timesteps of a schedule that was shortened to a fifth: the noisiest are never drawn."""

    def at(self, position: int, samples: Sequence[int], shape: Sequence[int]) -> Draw:
        whole = super().at(position, samples, shape)
        return replace(whole, timesteps=whole.timesteps // 5)


def _weighted_by_snr(session: Session) -> None:
    """min-SNR without the min: each timestep counts its signal-to-noise ratio, 1,175 at the first."""
    signal = session.components.noise_scheduler.alphas_cumprod.double()
    weights = (signal / (1 - signal)).float().to(session.device)
    session.objective = replace(session.objective, weights=weights)


def _draws_with(kind: type[Draws]) -> AtStart:
    def change(session: Session) -> None:
        session.draws = kind(session.draws.section, session.draws.seed)

    return AtStart(change)


def _latents_times(power: int) -> Callable[[Session], None]:
    """The VAE's scaling factor left out (-1) or applied a second time (1) when the latents were cached."""

    def change(session: Session) -> None:
        factor = session.components.vae.config.scaling_factor
        for latent in session.data.latents.kept.values():
            latent.mul_(factor**power)

    return change


INJECTORS: Injectors = {
    "noise-reseeded-at-every-step": lambda: _draws_with(_Reseeded),
    "noise-kept-with-the-picture": lambda: _draws_with(_KeptWithThePicture),
    "one-noise-for-the-batch": lambda: _draws_with(_OneForTheBatch),
    "noise-uniform": lambda: _draws_with(_Uniform),
    "timesteps-of-a-fifth": lambda: _draws_with(_OfFewerTimesteps),
    "loss-weighted-by-snr": lambda: AtStart(_weighted_by_snr),
    "latents-not-scaled": lambda: AtStart(_latents_times(-1)),
    "latents-scaled-twice": lambda: AtStart(_latents_times(1)),
}
