"""Random draws of the training: each from a stream of its own, named by what it is for, the step and the sample.

Nothing here reads or moves a global generator, so a sample gets the same noise whatever else was drawn before, in
whichever place of the batch it stands, and on however many ranks the batch is spread. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trainscope.config.noise import NoiseSection

Key = int | str


class Scheduler(Protocol):
    """What this module asks of a diffusers noise scheduler."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor: ...


def derive_seed(seed: int, *key: Key) -> int:
    """Hash (seed, *key) to a seed in [0, 2**63). 1 and "1" are different keys, and ("a", "bc") is not ("ab", "c")."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int, *key: Key) -> torch.Generator:
    """A CPU generator for the stream named by `key`.

    PyTorch's CPU generator keeps 32 bits of its seed: among 100,000 streams about one pair coincides, which is harmless
    for noise. On the CPU because CUDA's generators give other numbers for the same seed.
    """
    return torch.Generator().manual_seed(derive_seed(seed, *key))


@dataclass(frozen=True)
class Draw:
    """What a micro-batch of n samples is trained at: `noise` [n, c, h, w], which the target is made of, float32; and
    `timesteps` [n], int64. `added` is the noise that the latents get: the same, unless the input is perturbed.
    """

    noise: Tensor
    added: Tensor
    timesteps: Tensor

    def to(self, device: torch.device) -> Draw:
        """The same on a device, without waiting for it."""
        if device.type == "cpu":
            return self
        noise = moved(self.noise, device)
        added = noise if self.added is self.noise else moved(self.added, device)
        return Draw(noise, added, moved(self.timesteps, device))


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, without waiting for it."""
    # A copy from pageable memory would wait for all that the device still has to do.
    source = tensor.pin_memory() if device.type == "cuda" and tensor.device.type == "cpu" else tensor
    return source.to(device, non_blocking=True)


@dataclass(frozen=True)
class Draws:
    """The draws of a training, as `[noise]` asks for them. Drawn on the CPU: the same on every device."""

    section: NoiseSection
    seed: int

    def at(self, position: int, samples: Sequence[int], shape: Sequence[int]) -> Draw:
        """What the micro-batch at a position of the run draws for its samples; `shape` is that of one latent."""
        noise = self._noise(position, samples, shape)
        return Draw(noise, self._added(noise, position, samples), self._timesteps(position, samples))

    def _noise(self, position: int, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
        section, seed = self.section, self.seed
        noise = noise_like(shape, seed=seed, step=position, samples=samples)
        if section.offset > 0:
            channels = (shape[0], 1, 1)
            constants = noise_like(channels, seed=seed, step=position, samples=samples, purpose="offset")
            noise = noise + section.offset * constants
        if section.multires_iterations > 0:
            streams = [generator(seed, "multires", position, sample) for sample in samples]
            depth, discount = section.multires_iterations, section.multires_discount
            drawn = zip(noise, streams, strict=True)
            noise = torch.stack([multires(one, depth, discount, generator=stream) for one, stream in drawn])
        return noise

    def _added(self, noise: Tensor, position: int, samples: Sequence[int]) -> Tensor:
        """Input perturbation (arXiv 2301.11706): the input has noise that the target does not know of."""
        if self.section.input_perturbation == 0:
            return noise
        more = noise_like(noise.shape[1:], seed=self.seed, step=position, samples=samples, purpose="perturbation")
        return noise + self.section.input_perturbation * more

    def _timesteps(self, position: int, samples: Sequence[int]) -> Tensor:
        section = self.section
        logit = (section.logit_mean, section.logit_std) if section.timestep_sampling == "logit-normal" else None
        low, high = section.min_timestep, section.max_timestep
        return timesteps(seed=self.seed, step=position, samples=samples, low=low, high=high, logit_normal=logit)


def multires(noise: Tensor, iterations: int, discount: float, *, generator: torch.Generator) -> Tensor:
    """Add coarser and coarser noise to that of one sample, [c, h, w], and scale the sum to a standard deviation of 1.

    The i-th addition, from 0, has the picture's sides divided by rⁱ with r uniform in [2, 4), is enlarged bilinearly
    and counts discountⁱ; one pixel is the last. After J. Whitaker, "Multi-Resolution Noise for Diffusion Model
    Training" (wandb.ai, 2023) and kohya's `pyramid_noise_like`, which scale a whole batch by one number; scaled one by
    one, a sample's noise does not depend on its neighbours.
    """
    channels, height, width = noise.shape
    total = noise
    for number in range(iterations):
        ratio = (2 + 2 * float(torch.rand((), generator=generator))) ** number
        size = max(1, int(height / ratio)), max(1, int(width / ratio))
        coarse = torch.randn(1, channels, *size, generator=generator)
        total = total + discount**number * torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]
        if 1 in size:
            break
    return total / total.std()


def noise_like(
    shape: Sequence[int],
    *,
    seed: int,
    step: int,
    samples: Sequence[int],
    purpose: str = "noise",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal noise [len(samples), *shape], one stream for each sample.

    `shape` is that of one sample. A sample that occurs twice at the same `step` gets the same noise twice; pass as
    `step` what tells the visits apart. Drawn in float32 on the CPU, then moved: the same on every device.
    """
    drawn = torch.empty(len(samples), *shape)
    for one, sample in zip(drawn, samples, strict=True):
        one.normal_(generator=generator(seed, purpose, step, sample))
    return drawn.to(device=device, dtype=dtype)


def timesteps(
    *,
    seed: int,
    step: int,
    samples: Sequence[int],
    low: int = 0,
    high: int = 1000,
    logit_normal: tuple[float, float] | None = None,
    purpose: str = "timestep",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Integers in [low, high): int64 [len(samples)], one stream for each sample.

    Uniform; or low + ⌊(high − low)·sigmoid(x)⌋ with x normal of mean and standard deviation `logit_normal` (arXiv
    2403.03206, section 3.1).
    """
    if not 0 <= low < high:
        raise ValueError(f"timesteps need 0 <= low < high, found low = {low}, high = {high}")
    streams = [generator(seed, purpose, step, sample) for sample in samples]
    if logit_normal is None:
        drawn = torch.empty(len(samples), dtype=torch.int64)
        for one, stream in zip(drawn, streams, strict=True):
            one.random_(low, high, generator=stream)
        return drawn.to(device)
    mean, std = logit_normal
    normal = torch.cat([torch.randn(1, generator=stream, dtype=torch.float64) for stream in streams])
    share = torch.sigmoid(mean + std * normal)
    # A sigmoid may round to 1.
    return (low + (share * (high - low)).long()).clamp(max=high - 1).to(device)


def spread_timesteps(count: int, *, low: int = 0, high: int = 1000) -> Tensor:
    """`count` timesteps in the middles of equal parts of [low, high): int64. For evaluations: no draw, no variance."""
    return (low + (torch.arange(count, dtype=torch.float64) + 0.5) / count * (high - low)).long()


def add_noise(scheduler: Scheduler, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """The forward process q(x_t | x_0) of `scheduler` (Ho et al. 2020, eq. 4), computed in float32: [n, c, h, w].

    In float32 since bfloat16 cannot tell neighbouring timesteps apart at the low end.
    """
    return scheduler.add_noise(latents.float(), noise.float(), steps)
