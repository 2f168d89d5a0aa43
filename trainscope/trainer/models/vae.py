"""Pictures to latents and back, in the VAE's own format, or in float32 where that one overflows.

SDXL's VAE overflows in float16, for some pictures and not for others. What comes out non-finite is computed again in
float32, for that picture only, so that what a picture gives does not depend on those before it. Knows nothing of
training or of files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trainscope.errors import ModelError
from trainscope.trainer.models.quiet import quiet_libraries

Warn = Callable[[str], None]


@dataclass
class _Overflow:
    message: str | None = None
    listener: Warn | None = None


_overflows: WeakKeyDictionary[Any, _Overflow] = WeakKeyDictionary()


def on_overflow(vae: Any, warn: Warn) -> None:
    """Let `warn` be told when `vae` falls back to float32: once, at the first time, or now if that was before."""
    state = _overflows.setdefault(vae, _Overflow())
    state.listener = warn
    if state.message is not None:
        warn(state.message)


@torch.no_grad()
def vae_encode(vae: Any, pixels: Tensor) -> Tensor:
    """Encode pictures [n, 3, h, w] in [-1, 1] to latents: float32 [n, c, h/8, w/8], on the VAE's device.

    The mean of the posterior times the VAE's scaling factor (Rombach et al. 2022, appendix G): no draw, so that caching
    them changes nothing. Raises `ModelError` when a latent is not finite, not even in float32.
    """

    def encode(part: Tensor) -> Tensor:
        mean: Tensor = vae.encode(part).latent_dist.mean
        return mean

    latents: Tensor = _finite(vae, encode, pixels.to(next(vae.parameters()).device)) * vae.config.scaling_factor
    if not torch.isfinite(latents).all():
        raise ModelError(
            "the VAE gave non-finite latents, in float32 too",
            hint="the pictures or the VAE's weights are damaged; try another with model.vae",
        )
    return latents


@torch.no_grad()
def vae_decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents [n, c, h/8, w/8] to pixels: float32 [n, 3, h, w], black to white -1 to 1, not clipped.

    Non-finite latents give non-finite pixels.
    """

    def decode(part: Tensor) -> Tensor:
        pixels: Tensor = vae.decode(part).sample
        return pixels

    return _finite(vae, decode, latents.float() / vae.config.scaling_factor)


def _finite(vae: Any, compute: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """`compute(inputs)` in the VAE's format; rows that are not finite though their input is, again in float32."""
    dtype = next(vae.parameters()).dtype
    with torch.autocast(inputs.device.type, enabled=False):
        outputs = compute(inputs.to(dtype)).float()
        if dtype == torch.float32:
            return outputs
        again = _finite_rows(inputs) & ~_finite_rows(outputs)
        if again.any():
            _tell(vae, f"the VAE overflows in {str(dtype).removeprefix('torch.')}: such pictures take it in float32")
            with _in_float32(vae, dtype):
                outputs[again] = compute(inputs[again].float())
    return outputs


def _finite_rows(batch: Tensor) -> Tensor:
    return torch.isfinite(batch).flatten(1).all(dim=1)


@contextmanager
def _in_float32(vae: Any, dtype: torch.dtype) -> Iterator[None]:
    vae.float()
    try:
        yield
    finally:
        with quiet_libraries():  # diffusers warns of every cast to a dtype
            vae.to(dtype)  # exact: float32 holds every half-precision number


def _tell(vae: Any, message: str) -> None:
    state = _overflows.setdefault(vae, _Overflow())
    if state.message is None:
        state.message = message
        if state.listener is not None:
            state.listener(message)
