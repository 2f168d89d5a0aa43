"""Random draws of the training: each from a stream of its own, named by what it is for, the step and the sample.

Nothing here reads or moves a global generator, so a sample gets the same noise whatever else was drawn before, in
whichever place of the batch it stands, and on however many ranks the batch is spread. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

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
    drawn = [torch.randn(*shape, generator=generator(seed, purpose, step, sample)) for sample in samples]
    return torch.stack(drawn).to(device=device, dtype=dtype)


def timesteps(
    *,
    seed: int,
    step: int,
    samples: Sequence[int],
    low: int = 0,
    high: int = 1000,
    purpose: str = "timestep",
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform integers in [low, high): int64 [len(samples)], one stream for each sample."""
    if not 0 <= low < high:
        raise ValueError(f"timesteps need 0 <= low < high, found low = {low}, high = {high}")
    drawn = [torch.randint(low, high, (1,), generator=generator(seed, purpose, step, sample)) for sample in samples]
    return torch.cat(drawn).to(device)


def spread_timesteps(count: int, *, low: int = 0, high: int = 1000) -> Tensor:
    """`count` timesteps in the middles of equal parts of [low, high): int64. For evaluations: no draw, no variance."""
    return (low + (torch.arange(count, dtype=torch.float64) + 0.5) / count * (high - low)).long()


def add_noise(scheduler: Scheduler, latents: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
    """The forward process q(x_t | x_0) of `scheduler` (Ho et al. 2020, eq. 4), computed in float32: [n, c, h, w].

    In float32 since bfloat16 cannot tell neighbouring timesteps apart at the low end.
    """
    return scheduler.add_noise(latents.float(), noise.float(), steps)
