from __future__ import annotations

import torch

from tests.unit.trainer.conftest import weights_digest
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.schedule import adjusted_schedule


def test_auto_leaves_the_schedule_alone(sd15: Components, sd2: Components) -> None:
    assert adjusted_schedule(sd15.noise_scheduler, "auto", False) is sd15.noise_scheduler
    assert sd15.noise_scheduler.config.prediction_type == "epsilon"
    assert sd2.noise_scheduler.config.prediction_type == "v_prediction"


def test_the_prediction_type_can_be_set(sd15: Components) -> None:
    changed = adjusted_schedule(sd15.noise_scheduler, "v_prediction", False)
    assert changed.config.prediction_type == "v_prediction"
    assert sd15.noise_scheduler.config.prediction_type == "epsilon"
    assert torch.equal(changed.alphas_cumprod, sd15.noise_scheduler.alphas_cumprod)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_beginning(sd2: Components) -> None:
    """Against algorithm 1 of arXiv 2305.08891 in float64: sqrt(ᾱ) is shifted to 0 at the end, then stretched."""
    changed = adjusted_schedule(sd2.noise_scheduler, "auto", True)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = torch.cumprod(1 - betas, 0).sqrt()
    wanted = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    assert float(changed.alphas_cumprod[-1]) == 0
    assert torch.allclose(changed.alphas_cumprod.double(), wanted, atol=1e-6)
    assert changed.config.timestep_spacing == "trailing"
    assert changed.config.prediction_type == "v_prediction"


def test_both_are_keys_of_loading(sd15: Components, tmp_path: object) -> None:
    from pathlib import Path

    loaded = load_components("tiny:sd15", base_dir=Path(), prediction_type="v_prediction", zero_terminal_snr=True)
    assert loaded.noise_scheduler.config.prediction_type == "v_prediction"
    assert float(loaded.noise_scheduler.alphas_cumprod[-1]) == 0
    assert weights_digest(loaded.unet) == weights_digest(sd15.unet)
