"""What several optimizers' sections have alike. Knows nothing of any one of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from trainscope.config.section import Section

Beta = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Beta, Beta], Field(strict=False)]  # TOML has lists, not tuples
ThreeBetas = Annotated[tuple[Beta, Beta, Beta], Field(strict=False)]
PositiveBeta = Annotated[float, Field(gt=0, lt=1)]


class OptimizerSection(Section):
    """An `[optimizer]` section."""

    type: str
    """Which optimizer."""
    lr: NonNegativeFloat
    """Learning rate."""


class ByComponent(OptimizerSection):
    """An optimizer that may step each component at a rate of its own."""

    unet_lr: NonNegativeFloat | None = Field(None, examples=[1e-4])
    """Learning rate of the UNet; `lr` if not given."""
    text_encoder_lr: NonNegativeFloat | None = Field(None, examples=[5e-5])
    """Learning rate of the text encoders; `lr` if not given."""


class Adam(ByComponent):
    """Steps by a first moment, divided by the root of a second one."""

    lr: NonNegativeFloat = 1e-4
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.01
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


class SignMomentum(ByComponent):
    """Steps by the sign of a moment."""

    lr: PositiveFloat = 3e-5
    """Learning rate."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.99)
    """Weight of the moment in the step, and its decay."""


class Momentum(ByComponent):
    """Steps by a sum of gradients in which older ones fade."""

    lr: NonNegativeFloat = 1e-3
    """Learning rate; wants to be far above AdamW's."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay, added to the gradient."""
    momentum: PositiveBeta = 0.9
    """Share of the sum that survives a step."""


class EightBit(Section):
    """State in 8 bits, block by block (arXiv 2110.02861)."""

    min_8bit_size: PositiveInt = 4096
    """Tensors with fewer elements keep their moments in 32 bits."""


class Estimated(OptimizerSection):
    """An optimizer that estimates one step size `d` for all trained weights, and so has one learning rate."""

    lr: PositiveFloat = 1.0
    """Multiplies the estimated step size; leave it at 1."""
    d0: PositiveFloat = 1e-6
    """The step size that the estimate starts from."""


class LimitedGrowth(Estimated):
    """An estimate whose growth can be held back."""

    growth_rate: Annotated[float, Field(gt=1, allow_inf_nan=True)] = float("inf")
    """The largest factor that d may grow by in a step."""


class ScheduleFree(ByComponent):
    """Averages in place of a schedule (arXiv 2405.15682)."""

    weight_decay: NonNegativeFloat = 0.0
    """Weight decay, taken at y."""
    r: NonNegativeFloat = 0.0
    """Weigh the k-th iterate in the average by k to this power."""
    weight_lr_power: NonNegativeFloat = 2.0
    """Weigh an iterate by its learning rate to this power, which leaves the warmup out."""
