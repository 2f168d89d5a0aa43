"""What follows from a configuration and the number of samples by arithmetic alone: the `plan.*` keys.

Preflight judges by them before the run, the trainer carries them out. Knows nothing of torch or of files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from trainscope.config.buckets import batches_per_epoch
from trainscope.config.model import RunConfig
from trainscope.config.saves import Saves, kept_at_once


@dataclass(frozen=True)
class Plan:
    """Numbers that a run is going to have."""

    samples: int
    """Training samples."""
    batches_per_epoch: int
    """Forward passes in an epoch, which visits each sample `data.repeats` times."""
    steps: int
    """Optimizer steps."""
    epochs: float
    """Epochs."""
    seen_per_sample: float
    """How often each sample is seen."""
    warmup_steps: int
    """Optimizer steps of the scheduler's warmup."""
    ema_updates: int
    """Updates of the average."""
    ema_initial_weight: float | None
    """Share of the base model that is left in the average at the end; None without EMA."""
    lora_scale: float | None
    """alpha / rank; None for a full fine-tune."""
    checkpoints: int
    """Checkpoints that lie on the disk at once, at the most."""

    def keys(self) -> dict[str, float | int | None]:
        """The plan as `plan.*` keys of the `config` table."""
        return {f"plan.{name}": value for name, value in asdict(self).items()}


def plan_run(config: RunConfig, samples: int, *, buckets: Sequence[int] | None = None, processes: int = 1) -> Plan:
    """Work out the plan for a number of training samples (at least 1).

    `buckets` says how many of them each aspect-ratio bucket has; None puts all into one.
    """
    train, repeats = config.train, config.data.repeats
    counts = (samples,) if buckets is None else buckets
    batches = batches_per_epoch(counts, train.batch_size * processes, repeats=repeats)
    if train.steps is not None:
        steps = train.steps
    else:
        steps = max(1, math.ceil(batches * (train.epochs or 1) / train.gradient_accumulation))
    epochs = steps * train.gradient_accumulation / batches
    warmup = config.scheduler.warmup
    updates = steps // config.ema.every if config.ema.enabled else 0
    saves = Saves(
        every_steps=config.checkpoint.every_steps,
        every_batches=config.checkpoint.every_epochs * batches,
        accumulation=train.gradient_accumulation,
        step=0,
        micro_step=0,
        last=steps,
    )
    return Plan(
        samples=samples,
        batches_per_epoch=batches,
        steps=steps,
        epochs=epochs,
        seen_per_sample=epochs * repeats,
        warmup_steps=round(warmup * steps) if warmup < 1 else round(warmup),
        ema_updates=updates,
        ema_initial_weight=ema_initial_weight(updates, config) if config.ema.enabled else None,
        lora_scale=config.lora.alpha / config.lora.rank if train.method == "lora" else None,
        checkpoints=kept_at_once(1 + saves.ahead, config.checkpoint.keep),
    )


def ema_decay(update: int, *, decay: float, warmup: bool) -> float:
    """The decay of the n-th update (from 1), as diffusers' `EMAModel` computes it.

    Its first update copies the weights (decay 0), which are one step away from the base model.
    """
    if update <= 1:
        return 0.0
    if not warmup:
        return decay
    return min(decay, update / (9 + update))


def ema_initial_weight(updates: int, config: RunConfig) -> float:
    """Share of the first copy, which is the base model but for one step, that is left after `updates` updates.

    The product of `ema_decay` over the updates from the second on. Those of the warmup telescope: the product of
    n / (9 + n) for n from 2 to N is 10! / ((N + 1) … (N + 9)).
    """
    ema = config.ema
    if updates <= 1:
        return 1.0
    rising = min(updates, math.floor(9 * ema.decay / (1 - ema.decay))) if ema.warmup else 1
    rising = max(1, rising)
    warm = math.lgamma(11) - math.fsum(math.log(rising + k) for k in range(1, 10))
    return math.exp(warm + (updates - rising) * math.log(ema.decay))
