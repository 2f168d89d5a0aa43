"""What is minimised: how far a prediction is from its target, and how much each timestep counts.

Tables over the timesteps are computed once for a training. Knows nothing of models, data or random draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from trainscope.config.model import RunConfig
from trainscope.errors import ConfigError, ModelError

PREDICTIONS = ("epsilon", "v_prediction")
SNR_CAP = 1000.0
"""Of debiased estimation, where 1/√SNR would make the least noisy timesteps vanish (kohya-ss/sd-scripts#889)."""


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """e², the squared error of each element."""
    return torch.nn.functional.mse_loss(prediction, target, reduction="none")


def pseudo_huber(prediction: Tensor, target: Tensor, delta: float) -> Tensor:
    """2δ(√(e² + δ²) − δ): e² for errors far below δ, 2δ|e| for those far above, smooth between (arXiv 2403.16728).

    As in diffusers' training examples and in kohya with a constant `huber_c`. Written as a quotient, since the
    difference would lose all digits of small errors in float32.
    """
    square = squared(prediction, target)
    return 2 * delta * square / ((square + delta**2).sqrt() + delta)


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, prediction: str) -> Tensor:
    """The weight of each timestep in min-SNR-γ, float64 [T] (arXiv 2303.09556, section 3.4).

    min(SNR, γ)/SNR for the noise and min(SNR, γ)/(SNR + 1) for the velocity: with either, errors of the picture that
    the prediction means count min(SNR, γ). In terms of ᾱ nothing is divided by an SNR of 0 or by an infinite one.
    """
    signal = alphas_cumprod.double()
    snr = signal / (1 - signal)
    if prediction == "v_prediction":
        return snr.clamp(max=gamma) * (1 - signal)
    return (gamma / snr).clamp(max=1)


def debiased_weights(alphas_cumprod: Tensor, prediction: str) -> Tensor:
    """The weight of each timestep in debiased estimation, float64 [T] (arXiv 2310.08442): 1/√SNR, SNR at most 1000.

    The paper has it for the noise alone. For the velocity it is SNR/(SNR + 1) of that, by which a squared error of the
    velocity is larger: errors of the picture count the same with both, and it is 0 at an SNR of 0. Others do not agree
    with the paper here, nor with each other: kohya takes 1/(SNR + 1), OneTrainer 1/√(SNR + 1).
    """
    signal = alphas_cumprod.double()
    snr = (signal / (1 - signal)).clamp(max=SNR_CAP)
    if prediction == "v_prediction":
        return torch.where(signal > 0, signal / snr.sqrt(), 0.0)
    return snr.rsqrt()


@dataclass(frozen=True)
class Objective:
    """What a prediction should be, and what an error costs.

    `prediction` is epsilon or v_prediction. `weights` [T], float32, on the device: of each timestep; None: all 1.
    """

    prediction: str
    penalty: Callable[[Tensor, Tensor], Tensor] = squared
    weights: Tensor | None = None

    def losses(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The mean penalty of each sample's errors, unweighted: float32 [n], of [n, c, h, w]."""
        return self.penalty(prediction.float(), target.float()).mean(dim=(1, 2, 3))

    def weights_at(self, timesteps: Tensor) -> Tensor | None:
        """The samples' weights [n], on their device; None: all 1."""
        return None if self.weights is None else self.weights[timesteps]


def build_objective(config: RunConfig, scheduler: Any, device: torch.device) -> Objective:
    """The objective of a training with the model's noise schedule.

    Raises `ModelError` for a model that predicts neither noise nor velocity, and `ConfigError` for what its schedule
    does not allow.
    """
    prediction, total = str(scheduler.config.prediction_type), int(scheduler.config.num_train_timesteps)
    if prediction not in PREDICTIONS:
        raise ModelError(
            f'the model\'s scheduler says prediction_type = "{prediction}"; allowed are {", ".join(PREDICTIONS)}',
            hint='model.prediction_type = "epsilon" or "v_prediction", if one of them is what it was trained for',
        )
    noise, problems = config.noise, []
    if noise.max_timestep > total:
        problems.append(f"noise.max_timestep = {noise.max_timestep}: the model has {total} timesteps")
    if prediction == "epsilon" and float(scheduler.alphas_cumprod[-1]) == 0:
        problems.append(
            "the last timestep is pure noise (zero terminal SNR), and the model predicts the noise: it would learn to "
            'copy its input there; set model.zero_terminal_snr = false, or model.prediction_type = "v_prediction"'
        )
    if problems:
        raise ConfigError("the configuration does not fit the model:", problems=problems)
    weights = None
    if noise.min_snr_gamma is not None:
        weights = min_snr_weights(scheduler.alphas_cumprod, noise.min_snr_gamma, prediction)
    elif noise.debiased:
        weights = debiased_weights(scheduler.alphas_cumprod, prediction)
    delta = config.train.huber_delta
    penalty = squared if config.train.loss == "mse" else partial(pseudo_huber, delta=delta)
    return Objective(prediction, penalty, None if weights is None else weights.float().to(device))
