"""The noise schedule that a model comes with, as `model.prediction_type` and `model.zero_terminal_snr` change it.

Knows nothing of models or training.
"""

from __future__ import annotations

from typing import Any

from trainscope.trainer.models.quiet import quiet_libraries


def adjusted_schedule(scheduler: Any, prediction_type: str, zero_terminal_snr: bool) -> Any:
    """A `DDPMScheduler` like `scheduler`; "auto" leaves the prediction type, False leaves the betas.

    With zero terminal SNR the betas are rescaled so that the last timestep is pure noise, and samplers begin there
    (Lin et al. 2024, arXiv 2305.08891: algorithm 1, and "trailing" timesteps of section 3.3).
    """
    changes: dict[str, Any] = {}
    if prediction_type != "auto":
        changes["prediction_type"] = prediction_type
    if zero_terminal_snr:
        changes |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    if not changes:
        return scheduler
    with quiet_libraries():
        return type(scheduler).from_config(scheduler.config, **changes)
