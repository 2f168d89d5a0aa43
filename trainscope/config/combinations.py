"""Combinations of keys that cannot work, each with its reason: what no single key can tell.

Knows nothing of files or the machine.
"""

from __future__ import annotations

from collections.abc import Iterator

from trainscope.config.model import RunConfig
from trainscope.config.optimizer import AdamWScheduleFree, RAdamScheduleFree


def impossible_combinations(config: RunConfig) -> Iterator[str]:
    """Yield a sentence for every combination that cannot be carried out."""
    train, precision, scheduler = config.train, config.precision, config.scheduler
    if (train.steps is None) == (train.epochs is None):
        found = "neither" if train.steps is None else "both"
        yield f"train.steps, train.epochs: give exactly one of them, found {found}"

    if isinstance(config.optimizer, RAdamScheduleFree) and scheduler.warmup > 0:
        yield f"scheduler.warmup = {scheduler.warmup:g}: radam-schedulefree has a warmup of its own and takes none"
    elif scheduler.type == "constant" and scheduler.warmup > 0 and not isinstance(config.optimizer, AdamWScheduleFree):
        yield (
            f'scheduler.warmup = {scheduler.warmup:g}: scheduler.type = "constant" has no warmup; '
            'use "constant-with-warmup"'
        )
    if scheduler.type == "constant-with-warmup" and scheduler.warmup == 0:
        yield 'scheduler.warmup: scheduler.type = "constant-with-warmup" needs a warmup above 0'

    if config.lora.init_from is not None and train.method != "lora":
        yield f'lora.init_from = "{config.lora.init_from}" with train.method = "{train.method}": it starts a LoRA only'

    low = {name: value for name, value in _formats(config) if value in ("bf16", "fp16")}
    if len(set(low.values())) > 1:
        found = ", ".join(f'precision.{name} = "{value}"' for name, value in low.items())
        yield f"{found}: one run has one low-precision format"
    elif precision.compute == "fp32" and low:
        found = ", ".join(f'precision.{name} = "{value}"' for name, value in low.items())
        yield f'precision.compute = "fp32" with {found}: low-precision weights are computed in their own format'
    if precision.stochastic_rounding and precision.weights != "bf16":
        yield (
            f'precision.stochastic_rounding = true with precision.weights = "{precision.weights}": '
            "it rounds bf16 weights only"
        )


def _formats(config: RunConfig) -> Iterator[tuple[str, str]]:
    yield "weights", config.precision.weights
    yield "base", config.precision.base
    yield "compute", config.precision.compute
