"""Stochastic rounding of bf16 weights: a small update arrives on average, instead of never.

Any optimizer can be stepped this way: for the step its parameters are float32, afterwards they are bf16 again.
Follows arXiv 2010.06192 ("Revisiting BFloat16 Training"). Knows nothing of the optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_LOW_BITS = 16
"""A bf16 is the upper half of a float32."""


class StochasticRounding:
    """Steps an optimizer on float32 copies of bf16 parameters and rounds the result at random.

    The parameters stay the same objects, so optimizer state, EMA and probes keep their hold on them. The random bits
    come from a generator of their own and leave the global one alone.
    """

    def __init__(self, params: Sequence[torch.nn.Parameter], *, seed: int) -> None:
        self._params = [param for param in params if param.dtype == torch.bfloat16]
        device = self._params[0].device if self._params else torch.device("cpu")
        self.generator = torch.Generator(device).manual_seed(seed)

    @contextmanager
    def float32_weights(self) -> Iterator[None]:
        """Within it the parameters and their gradients are float32; the optimizer steps here."""
        for param in self._params:
            grad, param.grad = param.grad, None
            param.data = param.data.float()
            param.grad = None if grad is None else grad.float()
        try:
            yield
        finally:
            for param in self._params:
                param.grad = None
                param.data = round_at_random(param.data, self.generator)


def round_at_random(value: Tensor, generator: torch.Generator) -> Tensor:
    """float32 → bf16, up or down with a probability by distance, so that the mean is exact. Keeps NaN and infinity."""
    noise = torch.randint(0, 2**_LOW_BITS, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    bits = value.contiguous().view(torch.int32) + noise
    rounded = torch.bitwise_and(bits, -(2**_LOW_BITS)).view(torch.float32)
    return torch.where(torch.isfinite(value), rounded, value).to(torch.bfloat16)
