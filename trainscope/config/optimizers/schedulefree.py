"""Schedule-Free optimizers: they step at y, and the weights for use are at x."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from trainscope.config.optimizers.shared import Beta, PositiveBeta, ScheduleFree

InnerBetas = Annotated[tuple[PositiveBeta, Beta], Field(strict=False)]
"""Schedule-Free divides by the first."""


class _WithSecondMoment(ScheduleFree):
    lr: PositiveFloat = 2.5e-3
    """Learning rate; 1 to 10 times AdamW's."""
    betas: InnerBetas = (0.9, 0.999)
    """Place of y between z and x, and decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


class AdamWScheduleFree(_WithSecondMoment):
    """schedulefree.AdamWScheduleFree: averages in place of a schedule; `scheduler.warmup` is its warmup."""

    type: Literal["adamw-schedulefree"] = "adamw-schedulefree"
    """Which optimizer."""


class RAdamScheduleFree(_WithSecondMoment):
    """schedulefree.RAdamScheduleFree: Schedule-Free with a rectified warmup of its own."""

    type: Literal["radam-schedulefree"] = "radam-schedulefree"
    """Which optimizer."""
    silent_sgd_phase: bool = True
    """Stand still in the first steps, where the second moment says nothing yet, instead of stepping by the gradient."""


class SGDScheduleFree(ScheduleFree):
    """schedulefree.SGDScheduleFree: SGD that averages in place of a schedule; `scheduler.warmup` is its warmup."""

    type: Literal["sgd-schedulefree"] = "sgd-schedulefree"
    """Which optimizer."""
    lr: PositiveFloat = 0.02
    """Learning rate; 10 to 50 times SGD's."""
    momentum: PositiveBeta = 0.9
    """Place of y between z and x."""
