"""The loss of denoising diffusion training, and the draws that it is taken at."""

from __future__ import annotations

import torch
from torch import Tensor

from trainscope.trainer.batch import Batch
from trainscope.trainer.noise import add_noise, noise_like
from trainscope.trainer.noise import timesteps as draw_timesteps
from trainscope.trainer.session import Session


def draw_noise(session: Session, batch: Batch, position: int) -> tuple[Tensor, Tensor]:
    """Noise like the latents, and timesteps [b]; each sample's depend on (seed, position, sample) only."""
    total = session.components.noise_scheduler.config.num_train_timesteps
    shape, samples = batch.latents.shape[1:], batch.samples
    noise = noise_like(shape, seed=session.seed, step=position, samples=samples, device=session.device)
    timesteps = draw_timesteps(seed=session.seed, step=position, samples=samples, high=total, device=session.device)
    return noise, timesteps


def denoising_loss(session: Session, batch: Batch, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Mean squared error of the prediction, float32 [b] by sample (arXiv 2006.11239; v-prediction: 2202.00512)."""
    scheduler = session.components.noise_scheduler
    noisy = add_noise(scheduler, batch.latents, noise, timesteps)
    inputs = noisy if batch.condition is None else torch.cat([noisy, batch.condition], dim=1)
    with session.autocast():
        prediction = session.unet(inputs, timesteps, batch.text, added_cond_kwargs=batch.added, return_dict=False)[0]
    error: Tensor = prediction.float() - _target(session, batch, noise, timesteps)
    return error.square().mean(dim=(1, 2, 3))


def _target(session: Session, batch: Batch, noise: Tensor, timesteps: Tensor) -> Tensor:
    scheduler = session.components.noise_scheduler
    if scheduler.config.prediction_type == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(batch.latents, noise, timesteps)
        return velocity
    return noise
