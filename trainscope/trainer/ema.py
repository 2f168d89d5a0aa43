"""`[ema]` → diffusers' `EMAModel`, and the trained weights swapped for their average while something looks at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.training_utils import EMAModel

from trainscope.config.model import EmaSection

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_ema(section: EmaSection, params: Sequence[torch.nn.Parameter]) -> EMAModel | None:
    """The average of `params`, or None if it is off. It starts as a copy of them."""
    if not section.enabled:
        return None
    # EMAModel always warms up, up to `min_decay`: that of the decay itself leaves no warmup.
    ema = EMAModel(params, decay=section.decay, min_decay=0.0 if section.warmup else section.decay, foreach=True)
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
