"""What a resumed training may change of its configuration.

Every key is either applied from the resume on or refused with the reason and the way to do it; none is ignored.
Knows nothing of files, or of what is in a checkpoint beside its configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainscope.config.load import flatten
from trainscope.config.model import RunConfig

APPLIED = frozenset(
    {
        "optimizer.lr",
        "optimizer.unet_lr",
        "optimizer.text_encoder_lr",
        "optimizer.weight_decay",
        "optimizer.eps",
        "optimizer.d_coef",
        "optimizer.growth_rate",
        "train.steps",
        "train.epochs",
        "train.max_grad_norm",
        "train.gradient_accumulation",
        "train.gradient_checkpointing",
        "train.loss",
        "train.huber_delta",
        "train.parallel",
        "model.tokenizer",
        "lora.dropout",
        "precision.base",
        "precision.compute",
        "precision.save",
    }
)
"""Take effect at once, and leave what was saved meaningful."""
APPLIED_SECTIONS = ("run", "data", "ema", "noise", "checkpoint", "sample", "eval", "probes", "audit")
"""Likewise, all of a section. What `data` trains on is compared by content, not by its keys."""

BY_STEPS = "the state that was saved depends on it"
REASONS = {
    "run.seed": "noise and the order of the samples are drawn from it",
    "model.base": "the trained weights are changes of that model",
    "model.vae": "the trained weights know the latents of that VAE",
    "model.prediction_type": "the trained weights predict the other",
    "model.zero_terminal_snr": "the trained weights know the other noise schedule",
    "model.clip_skip": "the trained weights attend to the other layer",
    "train.method": "the trained weights are others",
    "train.parts": "the trained weights are others",
    "train.batch_size": "the place in the data and the noise are counted in batches",
    "lora.rank": "the saved adapters have another shape",
    "lora.alpha": "the adapters would act with another strength at once",
    "lora.conv_rank": "the saved adapters have another shape",
    "lora.conv_alpha": "the adapters would act with another strength at once",
    "lora.targets": "the saved adapters are those of other modules",
    "lora.text_encoder_targets": "the saved adapters are those of other modules",
    "lora.init_from": "a training starts from weights only once",
    "optimizer.type": "another optimizer has another state",
    "optimizer.d0": "the saved statistics are scaled by it",
    "precision.weights": "the saved state is that of weights in the other format",
    "precision.stochastic_rounding": "its random state was not saved, or would be dropped",
}
RESIZE = (
    "resize the LoRA (`trainscope lora resize {weights} OUT --rank {rank} --alpha {alpha}`) and start from it with "
    "lora.init_from"
)
WAYS = {
    "lora.rank": RESIZE,
    "lora.alpha": RESIZE,
}
RESCHEDULED = "the saved schedule goes on as it was"
SHAPE_KEYS = tuple(f"scheduler.{name}" for name in ("type", "warmup", "cycles", "power", "min_lr_ratio"))


@dataclass(frozen=True)
class Change:
    """A key whose value differs from the saved one."""

    key: str
    saved: Any
    asked: Any


def find_changes(saved: Mapping[str, Any], config: RunConfig) -> list[Change]:
    """The keys that differ. A seed that is drawn (-1) and `checkpoint.resume` ask for nothing."""
    asked = flatten(config.model_dump(mode="json"))
    keys = [key for key in dict.fromkeys([*saved, *asked]) if not key.startswith("audit.thresholds.")]
    changes = [Change(key, saved.get(key), _plain(asked.get(key))) for key in keys]
    return [change for change in changes if change.saved != change.asked and not _means_nothing(change)]


def refusals(changes: list[Change], config: RunConfig, *, weights: str) -> list[str]:
    """A sentence for each change that cannot be applied. `weights` is where the checkpoint's weights for use lie."""
    kinds = {change.key for change in changes}
    problems = []
    for change in changes:
        key = change.key
        if key in SHAPE_KEYS:
            if config.scheduler.on_resume == "continue":
                problems.append(f"{_told(change)}: {RESCHEDULED}; {_SCHEDULE_WAY}")
        elif key == "scheduler.on_resume" or key in APPLIED:
            continue
        elif key.startswith("optimizer.") and "optimizer.type" in kinds and key != "optimizer.type":
            continue  # the type is what is refused
        elif key.startswith("lora.") and config.train.method != "lora":
            continue  # a full fine-tune has none
        elif key != "run.seed" and key.partition(".")[0] in APPLIED_SECTIONS:
            continue
        else:
            problems.append(f"{_told(change)}: {REASONS.get(key, BY_STEPS)}; {_way(change, config, weights)}")
    return problems


def outgrown(saved_type: str, saved_steps: int, steps: int, config: RunConfig) -> str | None:
    """The sentence that refuses a training longer than a saved schedule that ends; None where it may go on."""
    if config.scheduler.on_resume != "continue" or saved_type.startswith("constant") or steps <= saved_steps:
        return None
    return (
        f"train.steps: the saved {saved_type} schedule ends at step {saved_steps}, and the training would go on to "
        f"{steps}, where it stands at 0 or rises again; {_SCHEDULE_WAY}"
    )


_SCHEDULE_WAY = 'set scheduler.on_resume = "restart" (a new one over the steps left) or "extend" (over all steps)'


def _way(change: Change, config: RunConfig, weights: str) -> str:
    if change.key == "run.seed":
        return f"leave it at {change.saved}, or -1"
    if change.key in WAYS and config.train.method == "lora":
        return WAYS[change.key].format(weights=weights, rank=config.lora.rank, alpha=config.lora.alpha)
    key = "lora.init_from" if config.train.method == "lora" else "model.base"
    return f'start a new run from the weights, with {key} = "{weights}"'


def _told(change: Change) -> str:
    return f"{change.key} = {_shown(change.asked)}: was {_shown(change.saved)}"


def _shown(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else "not set" if value is None else str(value)


def _plain(value: Any) -> Any:
    return str(value) if value in (float("inf"), float("-inf")) else value


def _means_nothing(change: Change) -> bool:
    if change.key == "run.seed":
        return bool(change.asked == -1)
    return change.key == "checkpoint.resume"
