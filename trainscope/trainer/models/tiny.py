"""Builds the tiny Stable Diffusion models that tests, examples and proofs train: real classes, a few hundred kilobytes.

A tiny model is made on the user's machine within seconds, deterministically, and kept in the cache as an ordinary
diffusers folder, so that everything downstream loads it as it would load a real one. The UNet is random: it has
everything to learn, and 150 steps show whether it does. Knows nothing of training or of data.
"""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainscope.config.places import tiny_place
from trainscope.errors import ModelError
from trainscope.trainer.models import tiny_text, tiny_vae
from trainscope.trainer.models.pipelines import pipeline_class
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.tiny_text import Encoder

SEED = 0

SD15_NOISE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "steps_offset": 1,
}
"""Stable Diffusion 1.5's noise schedule (its scheduler/scheduler_config.json, as a `DDPMScheduler`)."""


@dataclass(frozen=True)
class Tiny:
    """What a tiny model is made of: settings beside those that all share, which are Stable Diffusion 1.5's."""

    encoders: Mapping[str, Encoder]
    """The text encoders by the names of their parts."""
    unet: Mapping[str, Any] = field(default_factory=dict)
    noise: Mapping[str, Any] = field(default_factory=dict)
    scaling_factor: float = tiny_vae.SCALING_FACTOR


CLIP = Encoder()
TINY = {
    "sd15": Tiny({"text_encoder": CLIP}),
    "sd15-inpainting": Tiny({"text_encoder": CLIP}, unet={"in_channels": 9}),  # latents, mask, masked latents
    "sd2-v": Tiny(
        {"text_encoder": Encoder(activation="gelu", pad_token="!")},  # noqa: S106 - no password
        unet={"use_linear_projection": True, "attention_head_dim": [2, 4]},
        noise={"prediction_type": "v_prediction"},
    ),
    "sdxl": Tiny(
        {
            "text_encoder": CLIP,
            "text_encoder_2": Encoder(width=48, heads=3, activation="gelu", pad_token="!", projected=True),  # noqa: S106
        },
        unet={
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "transformer_layers_per_block": [1, 2],
            "mid_block_type": "UNetMidBlock2DCrossAttn",
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "attention_head_dim": [2, 4],
            "use_linear_projection": True,
            "cross_attention_dim": tiny_text.WIDTH + 48,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + 48,
        },
        scaling_factor=0.13025,
    ),
}
"""The tiny models by name."""


def build_tiny(name: str, folder: Path) -> None:
    """Build the tiny model `name` and save it as a diffusers folder; the global random state is left as it was.

    Building twice on one machine gives byte-identical weights. Raises `ModelError` for an unknown name.
    """
    check_name(name)
    recipe = TINY[name]
    with quiet_libraries():
        import diffusers

        parts: dict[str, Any] = {}
        for part, encoder in recipe.encoders.items():
            tokenizer = tiny_text.build_tokenizer(encoder.pad_token)
            parts[part.replace("text_encoder", "tokenizer")] = tokenizer
            with _seeded(part):
                parts[part] = tiny_text.build_text_encoder(tokenizer, encoder)
        with _seeded("vae"):
            parts["vae"] = tiny_vae.build_vae(torch.Generator().manual_seed(SEED), recipe.scaling_factor)
        with _seeded("unet"):
            parts["unet"] = build_unet(recipe.unet)
        parts["scheduler"] = diffusers.DDPMScheduler(**{**SD15_NOISE, **recipe.noise})
        sdxl = len(recipe.encoders) > 1
        if not sdxl:
            parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = pipeline_class(parts["unet"].config.in_channels == 9, sdxl=sdxl)
        getattr(diffusers, pipeline)(**parts).save_pretrained(folder, safe_serialization=True)
    for part in recipe.encoders:
        tiny_text.write_vocabulary(folder / part.replace("text_encoder", "tokenizer"))


def build_unet(settings: Mapping[str, Any]) -> Any:
    """Build the `UNet2DConditionModel`, drawing from the global generator; the caller forks it.

    Two levels, cross attention on the outer one, 118 tensors: a CPU spends its time on the number of operations and
    not on their size, and this is the fewest that keep resnets, both attentions, a middle, and a level below.
    """
    from diffusers import UNet2DConditionModel

    common = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "cross_attention_dim": tiny_text.WIDTH,
        "norm_num_groups": 8,
        "attention_head_dim": 2,  # a misnomer: the number of heads
    }
    unet = UNet2DConditionModel(**{**common, **settings}).eval()
    with torch.no_grad():
        for name, module in unet.named_modules():
            if name.endswith(".attn1"):
                _localise(module)
            elif isinstance(module, nn.GroupNorm | nn.LayerNorm):
                # Not zero, as in a trained model: a zero takes steps of any size in any precision, and a few of them
                # let Prodigy's d creep up on bfloat16 weights where everything else stands still.
                nn.init.uniform_(module.bias, -0.1, 0.1)
    return unet


def _localise(attention: Any) -> None:
    """Make each position attend to positions like itself, as a trained model's self attention does.

    With random queries and keys it averages over the whole picture, and an adapter on it has nothing to steer: a LoRA
    then stops at a held-out loss of 0.84 instead of 0.71.
    """
    attention.to_q.weight.mul_(4.0)
    attention.to_k.weight.copy_(attention.to_q.weight)
    attention.to_v.weight.mul_(1.7)  # to about unit gain
    attention.to_out[0].weight.mul_(1.7)


def check_name(name: str) -> None:
    """Raise `ModelError`, with the nearest name, unless there is a tiny model `name`."""
    from difflib import get_close_matches

    if name in TINY:
        return
    near = get_close_matches(name, TINY, n=1, cutoff=0.4)
    question = f"; did you mean tiny:{near[0]}?" if near else ""
    allowed = ", ".join(f"tiny:{known}" for known in TINY)
    raise ModelError(f"there is no tiny model {name!r}{question}", hint=f"the tiny models are {allowed}")


@cache
def tiny_folder(name: str) -> Path:
    """The folder of the tiny model `name`, built on first use.

    It is `tiny_place`; where that cannot be written, it is in a temporary folder that goes when the process ends. Two
    processes may build at once: each builds beside and renames.
    """
    check_name(name)
    folder = tiny_place(name)
    root = folder.parent
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    except OSError:  # read-only home, full disk, a file in the way: the model is small, so build it for this process
        root = Path(tempfile.mkdtemp(prefix="trainscope-tiny-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        folder = root / name
        build_tiny(name, folder)
        return folder
    try:
        build_tiny(name, beside)
        beside.rename(folder)
    except OSError:
        if not folder.is_dir():  # else the other process was faster, with the same result
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


@contextmanager
def _seeded(part: str) -> Iterator[None]:
    """Seed the CPU's global generator from the part's name, and restore it afterwards; no other device is touched."""
    seed = int.from_bytes(hashlib.sha256(f"{SEED} {part}".encode()).digest()[:4], "big")
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
