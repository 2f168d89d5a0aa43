"""The `[optimizer]` section: one model for each type, so that a key of another optimizer is an error.

Knows nothing of the classes that do the optimizing.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from trainscope.config.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]  # TOML has lists, not tuples


class AdamW(Section):
    """torch.optim.AdamW."""

    type: Literal["adamw"] = "adamw"
    """Which optimizer."""
    lr: NonNegativeFloat = 1e-4
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


class Prodigy(Section):
    """prodigyopt.Prodigy: estimates its own step size `d`; `lr` only multiplies it and is normally 1."""

    type: Literal["prodigy"] = "prodigy"
    """Which optimizer."""
    lr: PositiveFloat = 1.0
    """Multiplies the estimated step size; leave it at 1."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    beta3: Beta | None = None
    """Decay of the step size estimate; the square root of the second beta if not given."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator, times d."""
    decouple: bool = True
    """Decoupled (AdamW) weight decay."""
    use_bias_correction: bool = False
    """Adam's bias correction."""
    safeguard_warmup: bool = False
    """Keep lr out of the estimate's denominator while it warms up."""
    d0: PositiveFloat = 1e-6
    """The step size that the estimate starts from."""
    d_coef: PositiveFloat = 1.0
    """Multiplies the estimate."""
    growth_rate: Annotated[float, Field(gt=1, allow_inf_nan=True)] = math.inf
    """The largest factor that d may grow by in a step."""
    slice_p: PositiveInt = 1
    """Use every n-th element for the estimate."""


Optimizer = Annotated[AdamW | Prodigy, Field(discriminator="type")]

OPTIMIZERS: dict[str, type[AdamW] | type[Prodigy]] = {"adamw": AdamW, "prodigy": Prodigy}
