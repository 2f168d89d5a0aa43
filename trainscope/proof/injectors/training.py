"""Faults of models, formats, learning rates and gradients, done when everything is built. Knows nothing of rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session


def _model_loaded_in(dtype: torch.dtype) -> Callable[[Session], None]:
    """`from_pretrained(torch_dtype=…)` somewhere in the code, whatever the configuration says."""

    def change(session: Session) -> None:
        session.unet.to(dtype)
        session.compute_dtype = dtype
        session.scaler = torch.amp.GradScaler(session.device.type, enabled=False)

    return change


def _shadow_in_bf16(session: Session) -> None:
    """`ema.to(dtype=…)` after the average was made: what a mixed-precision wrapper does to every module it is given."""
    assert session.ema is not None  # noqa: S101
    session.ema.to(dtype=torch.bfloat16)


def _decay_of(value: float) -> Callable[[Session], None]:
    """An average restored from a long run's checkpoint brings that run's decay along, past its warmup."""

    def change(session: Session) -> None:
        assert session.ema is not None  # noqa: S101
        session.ema.decay = session.ema.min_decay = value

    return change


def _lr_divided_by(factor: float) -> Callable[[Session], None]:
    """A scheduler wrapped twice, or an lr scaled by a batch size that was counted wrong."""

    def change(session: Session) -> None:
        session.scheduler.base_lrs = [lr / factor for lr in session.scheduler.base_lrs]
        for group in session.optimizer.param_groups:
            group["lr"] /= factor

    return change


def _d0_of(value: float) -> Callable[[Session], None]:
    """Prodigy's groups loaded from another run: loaded values, d0 included, stand above the constructor's."""

    def change(session: Session) -> None:
        for group in session.optimizer.param_groups:
            group.update(d0=value, d=value, d_max=value)

    return change


def _nan_latents(session: Session) -> None:
    """A VAE that overflowed on one image while its latents were cached."""
    for (sample, _), latent in session.data.latents.kept.items():
        if sample == session.data.train[0]:
            latent.fill_(math.nan)


def _noise_with_offset(session: Session) -> None:
    """A noise offset that a script adds by itself, beside the trainer's own setting."""
    section = session.draws.section.model_copy(update={"offset": 0.5})
    session.draws = replace(session.draws, section=section)


def _scheduler_stuck_in_warmup(session: Session) -> None:
    """A warmup counted in micro-batches, or in another run's steps: the peak is never reached."""
    session.scheduler.lr_lambdas = [lambda step: min(1.0, step / (100.0 * session.plan.steps))] * len(
        session.scheduler.lr_lambdas
    )


def _detached_half(session: Session) -> None:
    """A forward that was rewritten under no_grad: half of the model gets no gradient."""
    for name, param in session.params.items():
        if "up_blocks" in name or "mid_block" in name:
            param.register_hook(torch.zeros_like)


class _GradientsScaled(Callback):
    """A loss divided once more than it should be, or a scaler that unscales twice."""

    def __init__(self, factor: float) -> None:
        self._factor = factor

    def before_optimizer(self, session: Session) -> None:
        for param in session.tensors:
            if param.grad is not None:
                param.grad.mul_(self._factor)


class _NanGradient(Callback):
    """An overflow in one layer's backward pass, once: one element of one gradient is NaN."""

    def __init__(self, step: int) -> None:
        self._step = step

    def before_optimizer(self, session: Session) -> None:
        grad = session.tensors[0].grad
        if session.step + 1 == self._step and grad is not None:
            grad.view(-1)[0] = math.nan


def _lora_scale_divided_by(factor: float) -> Callable[[Session], None]:
    """`set_scale` of an inference script left in the training code."""

    def change(session: Session) -> None:
        for pair in session.pairs:
            pair.layer.scaling = {name: scale / factor for name, scale in pair.layer.scaling.items()}

    return change


INJECTORS: Injectors = {
    "model-loaded-in-bf16": lambda: AtStart(_model_loaded_in(torch.bfloat16)),
    "model-loaded-in-fp16": lambda: AtStart(_model_loaded_in(torch.float16)),
    "shadow-in-bf16": lambda: AtStart(_shadow_in_bf16),
    "ema-decay-of-a-long-run": lambda: AtStart(_decay_of(0.9999)),
    "lr-divided-by-100": lambda: AtStart(_lr_divided_by(100)),
    "lr-times-1000": lambda: AtStart(_lr_divided_by(1e-3)),
    "lr-divided-by-10000": lambda: AtStart(_lr_divided_by(10_000)),
    "d0-of-another-run": lambda: AtStart(_d0_of(1e-12)),
    "nan-in-one-latent": lambda: AtStart(_nan_latents),
    "noise-offset-added": lambda: AtStart(_noise_with_offset),
    "warmup-never-ends": lambda: AtStart(_scheduler_stuck_in_warmup),
    "half-of-the-model-detached": lambda: AtStart(_detached_half),
    "lora-scale-divided-by-1000": lambda: AtStart(_lora_scale_divided_by(1000)),
    "gradients-times-1e-12": lambda: _GradientsScaled(1e-12),
    "nan-in-one-gradient": lambda: _NanGradient(40),
}
