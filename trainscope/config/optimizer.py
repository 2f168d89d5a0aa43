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
PositiveBeta = Annotated[float, Field(gt=0, lt=1)]
InnerBetas = Annotated[tuple[PositiveBeta, Beta], Field(strict=False)]
"""Schedule-Free divides by the first."""


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


class AdamW8bit(Section):
    """bitsandbytes.optim.AdamW8bit: AdamW whose moments are kept in 8 bits, block by block."""

    type: Literal["adamw8bit"] = "adamw8bit"
    """Which optimizer."""
    lr: NonNegativeFloat = 1e-4
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    min_8bit_size: PositiveInt = 4096
    """Tensors with fewer elements keep their moments in 32 bits."""


class Lion(Section):
    """lion_pytorch.Lion: steps by the sign of a moment; wants a learning rate some 3 to 10 times below AdamW's."""

    type: Literal["lion"] = "lion"
    """Which optimizer."""
    lr: PositiveFloat = 3e-5
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.99)
    """Weight of the moment in the step, and its decay."""


class AdamWScheduleFree(Section):
    """schedulefree.AdamWScheduleFree: averages in place of a schedule; `scheduler.warmup` is its warmup."""

    type: Literal["adamw-schedulefree"] = "adamw-schedulefree"
    """Which optimizer."""
    lr: PositiveFloat = 2.5e-3
    """Learning rate; 1 to 10 times AdamW's."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, taken at y."""
    betas: InnerBetas = (0.9, 0.999)
    """Place of y between z and x, and decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    r: NonNegativeFloat = 0.0
    """Weigh the k-th iterate in the average by k to this power."""
    weight_lr_power: NonNegativeFloat = 2.0
    """Weigh an iterate by its learning rate to this power, which leaves the warmup out."""


class RAdamScheduleFree(Section):
    """schedulefree.RAdamScheduleFree: Schedule-Free with a rectified warmup of its own."""

    type: Literal["radam-schedulefree"] = "radam-schedulefree"
    """Which optimizer."""
    lr: PositiveFloat = 2.5e-3
    """Learning rate; 1 to 10 times AdamW's."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay, taken at y."""
    betas: InnerBetas = (0.9, 0.999)
    """Place of y between z and x, and decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    r: NonNegativeFloat = 0.0
    """Weigh the k-th iterate in the average by k to this power."""
    weight_lr_power: NonNegativeFloat = 2.0
    """Weigh an iterate by its learning rate to this power, which leaves the warmup out."""
    silent_sgd_phase: bool = True
    """Stand still in the first steps, where the second moment says nothing yet, instead of stepping by the gradient."""


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


Optimizer = Annotated[
    AdamW | AdamW8bit | Lion | Prodigy | AdamWScheduleFree | RAdamScheduleFree, Field(discriminator="type")
]

OPTIMIZERS: dict[str, type[Section]] = {
    "adamw": AdamW,
    "adamw8bit": AdamW8bit,
    "lion": Lion,
    "prodigy": Prodigy,
    "adamw-schedulefree": AdamWScheduleFree,
    "radam-schedulefree": RAdamScheduleFree,
}
SCHEDULE_FREE = (AdamWScheduleFree, RAdamScheduleFree)
"""Optimizers that step at y, and whose weights for use are at x."""
