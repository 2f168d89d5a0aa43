"""Optimizers whose step size is the learning rate: AdamW, Lion, SGD and Adafactor, with their 8-bit kin."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from trainscope.config.optimizers.shared import Adam, Beta, ByComponent, EightBit, Momentum, SignMomentum

TwoEps = Annotated[tuple[PositiveFloat, PositiveFloat], Field(strict=False)]


class AdamW(Adam):
    """torch.optim.AdamW."""

    type: Literal["adamw"] = "adamw"
    """Which optimizer."""


class AdamW8bit(EightBit, Adam):
    """bitsandbytes.optim.AdamW8bit: AdamW whose moments are kept in 8 bits, block by block."""

    type: Literal["adamw8bit"] = "adamw8bit"
    """Which optimizer."""


class PagedAdamW8bit(EightBit, Adam):
    """bitsandbytes.optim.PagedAdamW8bit: AdamW8bit whose moments give way to the computer's memory, on a GPU only."""

    type: Literal["paged-adamw8bit"] = "paged-adamw8bit"
    """Which optimizer."""


class Lion(SignMomentum):
    """lion_pytorch.Lion: steps by the sign of a moment; wants a learning rate some 3 to 10 times below AdamW's."""

    type: Literal["lion"] = "lion"
    """Which optimizer."""


class Lion8bit(EightBit, SignMomentum):
    """bitsandbytes.optim.Lion8bit: Lion whose moment is kept in 8 bits, block by block."""

    type: Literal["lion8bit"] = "lion8bit"
    """Which optimizer."""


class PagedLion8bit(EightBit, SignMomentum):
    """bitsandbytes.optim.PagedLion8bit: Lion8bit whose moment gives way to the computer's memory, on a GPU only."""

    type: Literal["paged-lion8bit"] = "paged-lion8bit"
    """Which optimizer."""


class SGDNesterov(Momentum):
    """torch.optim.SGD with Nesterov's momentum."""

    type: Literal["sgd-nesterov"] = "sgd-nesterov"
    """Which optimizer."""


class SGDNesterov8bit(EightBit, Momentum):
    """bitsandbytes.optim.SGD8bit: momentum in 8 bits; it takes Nesterov's as an argument and steps the plain one."""

    type: Literal["sgd-nesterov8bit"] = "sgd-nesterov8bit"
    """Which optimizer."""


class Adafactor(ByComponent):
    """transformers.optimization.Adafactor: keeps sums over rows and columns in place of a second moment."""

    type: Literal["adafactor"] = "adafactor"
    """Which optimizer."""
    lr: PositiveFloat = 1e-4
    """Learning rate; not with relative_step."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    eps: TwoEps = (1e-30, 1e-3)
    """Added to the squared gradient, and the smallest size of a weight for scale_parameter."""
    clip_threshold: PositiveFloat = 1.0
    """Shrink a tensor's update whose root mean square is above it."""
    decay_rate: Annotated[float, Field(lt=0)] = -0.8
    """The second moment decays by 1 − t to this power at step t."""
    beta1: Beta | None = Field(None, examples=[0.9])
    """Decay of a moment of the updates; none is kept if not given."""
    scale_parameter: bool = False
    """Multiply a tensor's learning rate by the root mean square of its weights."""
    relative_step: bool = False
    """Take a learning rate of its own, the smaller of 0.01 and 1 / √t, in place of lr and the schedule."""
    warmup_init: bool = False
    """Let that rate rise from t / 1000000 first; with relative_step only."""
