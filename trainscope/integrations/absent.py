"""What nobody outside of a loop can see of it, and why: rows of `coverage`.

Knows nothing of the loop.
"""

from __future__ import annotations

import torch

from trainscope.recording.probelog import ProbeLog

STEPS = {
    "clip_coef": "clipping was the loop's own",
    "grad_norm_before_backward": "the backward passes were the loop's own",
    **dict.fromkeys(("data_seconds", "forward_seconds", "backward_seconds"), "only the loop knows its parts"),
}
RSS = "read once a second"
GRAD_NORM = "the norm right before the optimizer's step, so after clipping, at the steps that the probes look at"
SAMPLES = "the loop did not tell how many"
TABLES = {
    "batches": "the loop's batches are not known",
    "losses": "the loop's timesteps are not known",
    "order": "the loop's samples are not known",
    "data": "the loop's data set is not known",
    "samples": "the loop's images are not known",
    "checksums": "the loop's saves are not known",
    "continuity": "recorded across trainscope's own checkpoints",
}
"""Tables that only trainscope's own trainer can fill."""


def tell_at_start(log: ProbeLog, device: torch.device, spread: str) -> None:
    """`spread` says why no process has all of the weights, if none has."""
    for column, reason in STEPS.items():
        log.absent("steps", column, reason)
    log.absent("steps", "grad_norm", spread or GRAD_NORM)
    log.absent("steps", "rss_bytes", RSS)
    if device.type != "cuda":
        log.absent("steps", "memory_bytes", f"the run's device is {device.type}")
    for table, reason in TABLES.items():
        log.absent(table, None, reason)


def tell_at_end(log: ProbeLog, *, scaler: bool, average: bool, losses: bool, samples: bool) -> None:
    """What did not show until the end."""
    if not scaler:
        for column in ("skipped", "loss_scale"):
            log.absent("steps", column, "no GradScaler was seen: a step that one skips is not seen either")
    if not average:
        log.absent("ema", None, "no average (EMA) was seen")
    if not losses:
        log.absent("steps", "loss", "the loop told none")
        log.absent("steps", "micro_steps", "the loop told no losses")
    if not samples:
        log.absent("steps", "samples", SAMPLES)
