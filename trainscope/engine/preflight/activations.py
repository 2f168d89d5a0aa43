"""The least that the UNet's backward pass needs of its forward pass: a lower bound of the activations, by shapes.

A layer with a trained weight keeps its input, and so does every norm that a gradient passes, trained or not (Chen et
al. 2016, arXiv 1604.06174; diffusers' UNet2DConditionModel for where each layer lies). What attention, time embeddings
and text encoders keep is left out, so a run needs more. Knows nothing of files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from trainscope.config.buckets import Size
from trainscope.config.model import RunConfig
from trainscope.engine.preflight.stored import Weight
from trainscope.engine.preflight.trained import adapter_rank

_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.|(mid)_block\.")
_NORM = re.compile(r"(.+\.)?(norm\d?|conv_norm_out)\.weight")
_LAYER = re.compile(
    r"(.+\.)?(conv1|conv2|downsamplers\.0\.conv|upsamplers\.0\.conv|conv_out|proj_in|proj_out|to_q|to_out\.0"
    r"|ff\.net\.0\.proj|ff\.net\.2)\.weight"
)
"""Layers whose inputs are tensors of their own. (Keys and values of a self-attention have that of the queries; a
shortcut has its block's.)"""
_CHECKPOINTED = re.compile(r".+\.(resnets\.\d+\.norm1|transformer_blocks\.\d+\.norm1)\.weight")
"""What gradient checkpointing keeps: the input of each resnet and of each transformer block."""


def activation_bytes(config: RunConfig, weights: Sequence[Weight], batch: int, latent: Size, itemsize: int) -> int:
    """Bytes of a batch of latents of the size `latent`, at `itemsize` bytes an element."""
    unet = [weight for weight in weights if weight.component == "unet"]
    levels = 1 + max((int(found[2]) for weight in unet if (found := _BLOCK.match(weight.name)) and found[2]), default=0)
    passed = _gradient_passes(config, unet, levels)
    if config.train.gradient_checkpointing:
        kept = [weight for weight in unet if _CHECKPOINTED.fullmatch(weight.name)]
    else:
        kept = [weight for weight in unet if _NORM.fullmatch(weight.name) or _keeps_input(config, weight)]
    elements = sum(_width(weight) * _positions(weight, latent, levels) for weight in kept if passed(weight))
    return batch * elements * itemsize


def _keeps_input(config: RunConfig, weight: Weight) -> bool:
    if _LAYER.fullmatch(weight.name) is None:
        return False
    return "unet" in config.train.parts and (
        config.train.method == "finetune" or adapter_rank(config, weight) is not None
    )


def _gradient_passes(config: RunConfig, unet: Sequence[Weight], levels: int) -> Callable[[Weight], bool]:
    """Whether a gradient passes a weight on its way to the first trained one, which is in the first block that has any.

    Of a text encoder's training the first is the first attention. That block itself is left out: a part of it comes
    before the weight.
    """
    if "unet" in config.train.parts and config.train.method == "finetune":
        return lambda weight: True
    if "unet" in config.train.parts and "text_encoder" not in config.train.parts:
        first = [_order(weight, levels) for weight in unet if adapter_rank(config, weight) is not None]
    else:
        first = [_order(weight, levels) for weight in unet if ".attn2." in weight.name]
    start = min(first, default=2 * levels)
    return lambda weight: _order(weight, levels) > start


def _order(weight: Weight, levels: int) -> int:
    """The place of a weight's block on the way through the UNet."""
    found = _BLOCK.match(weight.name)
    if found is None:
        return 2 * levels + 1 if weight.name.startswith(("conv_norm_out", "conv_out")) else -1
    if found[3]:
        return levels
    return int(found[2]) if found[1] == "down" else levels + 1 + int(found[2])


def _width(weight: Weight) -> int:
    """Channels of the layer's input."""
    return weight.shape[0] if len(weight.shape) == 1 else weight.shape[1]


def _positions(weight: Weight, latent: Size, levels: int) -> int:
    """Positions of the layer's input: each level but the last halves the sides, on the way up they come back."""
    found = _BLOCK.match(weight.name)
    if found is None:
        level = 0
    elif found[3]:
        level = levels - 1
    else:
        level = int(found[2]) if found[1] == "down" else levels - 1 - int(found[2])
        level -= ".upsamplers." in weight.name  # enlarged before
    sides = list(latent)
    for _ in range(level):
        sides = [-(-side // 2) for side in sides]
    return sides[0] * sides[1]
