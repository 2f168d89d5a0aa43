"""`[ema]` → diffusers' `EMAModel`, and the trained weights swapped for their average while something looks at them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor

from trainscope.config.model import EmaSection

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class HostAverage(EMAModel):  # type: ignore[misc]  # diffusers is untyped
    """An average in the computer's memory, of weights that may be on a GPU; the arithmetic is `EMAModel`'s.

    The GPU holds nothing of it: each update brings the weights over, and a swap brings one tensor at a time.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], **settings: Any) -> None:
        super().__init__(_on_host(parameters), **settings)

    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        super().step(_on_host(parameters))

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        for shadow, param in zip(self.shadow_params, parameters, strict=True):
            param.copy_(shadow)


def _on_host(parameters: Iterable[torch.nn.Parameter]) -> list[torch.Tensor]:
    # The average tells by `requires_grad` what is averaged and what is copied.
    return [param.detach().cpu().requires_grad_(param.requires_grad) for param in parameters]


def build_ema(section: EmaSection, params: Sequence[torch.nn.Parameter]) -> EMAModel | None:
    """The average of `params`, or None if it is off. It starts as a copy of them."""
    if not section.enabled:
        return None
    kind = HostAverage if section.device == "cpu" else EMAModel
    # EMAModel always warms up, up to `min_decay`: that of the decay itself leaves no warmup.
    least = 0.0 if section.warmup else section.decay
    sharded = any(isinstance(param, DTensor) for param in params)  # for which torch has no foreach copy
    ema = kind(params, decay=section.decay, min_decay=least, foreach=not sharded)
    if section.dtype != "weights":
        ema.to(dtype=DTYPES[section.dtype])
    return ema


@contextmanager
def averaged_weights(ema: EMAModel, params: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Within it the parameters hold their average; afterwards they are bit for bit what they were."""
    ema.store(params)
    try:
        ema.copy_to(params)
        yield
    finally:
        ema.restore(params)
