"""UNets of some size with random weights, otherwise like the tiny one, in diffusers' layout."""

from __future__ import annotations

from pathlib import Path

from diffusers import UNet2DConditionModel

from trainscope.trainer.models.load import load_components
from trainscope.trainer.models.save import save_pipeline

WIDTHS = {"4 M": (88, 176), "9 M": (128, 256)}


def save_model(size: str, folder: Path) -> Path:
    """A pipeline whose UNet has about so many weights."""
    components = load_components("tiny:sd15", base_dir=Path())
    config = {
        **components.unet.config,
        "block_out_channels": WIDTHS[size],
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "layers_per_block": 1,
    }
    components.unet = UNet2DConditionModel.from_config(config)
    save_pipeline(folder, components)
    return folder
