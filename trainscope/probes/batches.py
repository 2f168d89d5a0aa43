"""The `batches` table: what the loss of a micro-batch was really given.

Reads the tensors that the forward pass used, not the configuration. One small vector for each micro-batch stays on the
device; digests are of the noise as it was drawn, on the host. Knows nothing of where the tensors come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from trainscope.probes.pending import ABSENT, NullWhere, Part, Pending, absent, join

MEASURES = (
    "latent_mean",
    "latent_std",
    "nonfinite",
    "noise_channel_mean_var",
    "mask_area",
    "mask_nonbinary",
    "target_var",
    "weight_max",
)
INTEGERS = frozenset({"nonfinite", "mask_nonbinary"})
NULL_WHERE: NullWhere = {
    "mask_area": (("mask_nonbinary", ABSENT),),
    **absent("mask_nonbinary"),
}


class BatchesProbe:
    """Call `see` for a micro-batch between its forward and its backward pass, and `rows` with all of a step's parts."""

    @torch.no_grad()
    def see(
        self,
        position: int,
        *,
        latents: Tensor,
        text: Tensor,
        mask: Tensor | None,
        noise: Tensor,
        target: Tensor,
        target_kind: str,
        prediction: Tensor,
        weights: Tensor | None,
    ) -> Part:
        """`latents`, `target` and `prediction` [n, c, h, w] and `mask` [n, 1, h, w] lie on the device.

        So do `text` [n, tokens, dim] and the loss's `weights` [n]. `noise` [n, c, h, w] is that of the target, on the
        host. None: there is no mask; all weights are 1.
        """
        there = latents.double()
        variance, mean = torch.var_mean(there, correction=0)
        one = torch.ones((), dtype=torch.float64, device=latents.device)
        # The noise lies on the host: what is known of it there goes over as a number.
        channel_means = noise.numpy().mean(axis=(2, 3), dtype=np.float64)
        values = [
            mean,
            variance.sqrt(),
            sum_of_nonfinite(latents, text, prediction),
            one * float(np.square(channel_means).mean()),
            *((one * ABSENT, one * ABSENT) if mask is None else _of_mask(mask.double())),
            torch.var(target.double(), correction=0),
            one if weights is None else weights.double().max(),
        ]
        keys: dict[str, list[Any]] = {
            "position": [position],
            "samples": [len(latents)],
            "latent_pixels": [latents[0, 0].numel()],
            "target_kind": [target_kind],
            "noise_digest": [" ".join(map(digest, noise))],
        }
        return Part(keys, torch.stack(values).unsqueeze(1))

    def rows(self, step: int, parts: Sequence[Part]) -> Pending:
        """The micro-batches of a step."""
        part = join(parts)
        return Pending("batches", step, part.keys, MEASURES, part.values, INTEGERS, NULL_WHERE)


def digest(noise: Tensor) -> str:
    """64-bit xxHash3 of a tensor's bytes, in hexadecimal."""
    return xxhash.xxh3_64_hexdigest(noise.contiguous().numpy().data)


def sum_of_nonfinite(*tensors: Tensor) -> Tensor:
    """How many elements of all of them are infinite or NaN: a float64 scalar."""
    counts = [(~torch.isfinite(tensor.detach())).sum() for tensor in tensors]
    return torch.stack(counts).sum().double()


def _of_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    return mask.mean(), ((mask != 0) & (mask != 1)).sum().double()
