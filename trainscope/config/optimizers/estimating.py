"""Optimizers that estimate their step size: Prodigy and D-Adaptation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from trainscope.config.optimizers.shared import Beta, Betas, Estimated, LimitedGrowth, ThreeBetas


class Prodigy(LimitedGrowth):
    """prodigyopt.Prodigy: estimates its own step size `d`; `lr` only multiplies it and is normally 1."""

    type: Literal["prodigy"] = "prodigy"
    """Which optimizer."""
    weight_decay: NonNegativeFloat = 0.01
    """Weight decay."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    beta3: Beta | None = Field(None, examples=[0.9995])
    """Decay of the step size estimate; the square root of the second beta if not given."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator, times d."""
    decouple: bool = True
    """Decoupled (AdamW) weight decay."""
    use_bias_correction: bool = False
    """Adam's bias correction."""
    safeguard_warmup: bool = False
    """Keep lr out of the estimate's denominator while it warms up."""
    d_coef: PositiveFloat = 1.0
    """Multiplies the estimate."""
    slice_p: PositiveInt = 1
    """Use every n-th element for the estimate."""


class _DAdaptAdam(LimitedGrowth):
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay."""
    betas: Betas = (0.9, 0.999)
    """Decay of the first and of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    decouple: bool = True
    """Decoupled (AdamW) weight decay."""


class DAdaptAdam(_DAdaptAdam):
    """dadaptation.DAdaptAdam: Adam with an estimated step size (arXiv 2301.07733)."""

    type: Literal["dadapt-adam"] = "dadapt-adam"
    """Which optimizer."""
    use_bias_correction: bool = False
    """Adam's bias correction."""


class DAdaptAdamPreprint(_DAdaptAdam):
    """dadaptation.experimental.DAdaptAdamPreprint: the first version of DAdaptAdam, kohya's "DAdaptation"."""

    type: Literal["dadapt-adam-preprint"] = "dadapt-adam-preprint"
    """Which optimizer."""


class DAdaptAdaGrad(LimitedGrowth):
    """dadaptation.DAdaptAdaGrad: AdaGrad with an estimated step size; adapts slower than the others."""

    type: Literal["dadapt-adagrad"] = "dadapt-adagrad"
    """Which optimizer."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay, added to the gradient."""
    momentum: Beta = 0.0
    """Share of the weights that stays where it is in a step."""
    eps: PositiveFloat = 1e-6
    """Added to the denominator."""


class _DAdaptAdan(LimitedGrowth):
    weight_decay: NonNegativeFloat = 0.02
    """Decoupled weight decay."""
    betas: ThreeBetas = (0.98, 0.92, 0.99)
    """Decay of the moments of the gradient, of its change and of the square of both."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    no_prox: bool = False
    """Decay the weights before the step, as AdamW does, instead of after it."""


class DAdaptAdan(_DAdaptAdan):
    """dadaptation.DAdaptAdan: Adan (arXiv 2208.06677) with an estimated step size."""

    type: Literal["dadapt-adan"] = "dadapt-adan"
    """Which optimizer."""


class DAdaptAdanIP(_DAdaptAdan):
    """dadaptation.experimental.DAdaptAdanIP: DAdaptAdan with a tighter bound, and so with larger steps."""

    type: Literal["dadapt-adan-ip"] = "dadapt-adan-ip"
    """Which optimizer."""


class DAdaptLion(Estimated):
    """dadaptation.DAdaptLion: Lion with an estimated step size."""

    type: Literal["dadapt-lion"] = "dadapt-lion"
    """Which optimizer."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    betas: Betas = (0.9, 0.99)
    """Weight of the moment in the step, and its decay."""


class DAdaptSGD(LimitedGrowth):
    """dadaptation.DAdaptSGD: SGD with an estimated step size; takes no warmup."""

    type: Literal["dadapt-sgd"] = "dadapt-sgd"
    """Which optimizer."""
    weight_decay: NonNegativeFloat = 0.0
    """Weight decay, added to the gradient."""
    momentum: Beta = 0.0
    """Share of the weights that stays where it is in a step."""
