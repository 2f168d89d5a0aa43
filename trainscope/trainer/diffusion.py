"""One forward pass of denoising diffusion training: from latents and a draw to a loss for each sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trainscope.trainer.batch import Batch
from trainscope.trainer.loss import Objective
from trainscope.trainer.noise import Draw, add_noise
from trainscope.trainer.session import Session


@dataclass(frozen=True)
class Denoised:
    """`prediction` and `target` [n, c, h, w]; `losses` [n], float32, as the penalty has them; `weights` [n], None: all
    1; `weighted` [n], their product, is what is minimised.
    """

    prediction: Tensor
    target: Tensor
    losses: Tensor
    weights: Tensor | None
    weighted: Tensor


def denoise(session: Session, batch: Batch, draw: Draw, objective: Objective) -> Denoised:
    """Predict what was added to the latents (arXiv 2006.11239) or the velocity (2202.00512), and compare."""
    noisy = add_noise(session.components.noise_scheduler, batch.latents, draw.added, draw.timesteps)
    inputs = noisy if batch.condition is None else torch.cat([noisy, batch.condition], dim=1)
    with session.autocast():
        prediction: Tensor = session.wrapped.unet(
            inputs, draw.timesteps, batch.text, added_cond_kwargs=batch.added, return_dict=False
        )[0]
    target = _target(session, batch, draw, objective)
    losses, weights = objective.losses(prediction, target), objective.weights_at(draw.timesteps)
    return Denoised(prediction, target, losses, weights, losses if weights is None else losses * weights)


def _target(session: Session, batch: Batch, draw: Draw, objective: Objective) -> Tensor:
    if objective.prediction == "v_prediction":
        scheduler = session.components.noise_scheduler
        velocity: Tensor = scheduler.get_velocity(batch.latents.float(), draw.noise, draw.timesteps)
        return velocity
    return draw.noise
