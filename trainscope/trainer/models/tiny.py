"""Builds the tiny Stable Diffusion models that tests, examples and proofs train: real classes, a few hundred kilobytes.

A tiny model is made on the user's machine within seconds, deterministically, and kept in the cache as an ordinary
diffusers folder, so that everything downstream loads it as it would load a real one. The UNet is random: it has
everything to learn, and 150 steps show whether it does. Knows nothing of training or of data.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainscope.errors import ModelError
from trainscope.trainer.models import tiny_text, tiny_vae
from trainscope.trainer.models.quiet import quiet_libraries

INPUT_CHANNELS = {"sd15": 4, "sd15-inpainting": 9}
"""The tiny models by name, with the input channels of the UNet (inpainting: latents, mask, masked latents)."""

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


def build_tiny(name: str, folder: Path) -> None:
    """Build the tiny model `name` and save it as a diffusers folder; the global random state is left as it was.

    Building twice on one machine gives byte-identical weights. Raises `ModelError` for an unknown name.
    """
    check_name(name)
    inpainting = INPUT_CHANNELS[name] == 9
    with quiet_libraries():
        from diffusers import DDPMScheduler, StableDiffusionInpaintPipeline, StableDiffusionPipeline

        tokenizer = tiny_text.build_tokenizer()
        with _seeded("text_encoder"):
            text_encoder = tiny_text.build_text_encoder(len(tokenizer))
        with _seeded("vae"):
            vae = tiny_vae.build_vae(torch.Generator().manual_seed(SEED))
        with _seeded("unet"):
            unet = build_unet(INPUT_CHANNELS[name])
        pipeline_class = StableDiffusionInpaintPipeline if inpainting else StableDiffusionPipeline
        pipeline = pipeline_class(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDPMScheduler(**SD15_NOISE),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    tiny_text.write_vocabulary(folder / "tokenizer")


def build_unet(in_channels: int) -> Any:
    """Build the `UNet2DConditionModel`, drawing from the global generator; the caller forks it.

    Two levels, cross attention on the outer one, 118 tensors: a CPU spends its time on the number of operations and
    not on their size, and this is the fewest that keep resnets, both attentions, a middle, and a level below.
    """
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=in_channels,
        out_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        mid_block_type="UNetMidBlock2D",
        up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=tiny_text.WIDTH,
        norm_num_groups=8,
        attention_head_dim=2,  # a misnomer in SD 1.x: the number of heads
    ).eval()
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

    if name in INPUT_CHANNELS:
        return
    near = get_close_matches(name, INPUT_CHANNELS, n=1, cutoff=0.4)
    question = f"; did you mean tiny:{near[0]}?" if near else ""
    allowed = ", ".join(f"tiny:{known}" for known in INPUT_CHANNELS)
    raise ModelError(f"there is no tiny model {name!r}{question}", hint=f"the tiny models are {allowed}")


@cache
def tiny_folder(name: str) -> Path:
    """The folder of the tiny model `name`, built on first use.

    In `$XDG_CACHE_HOME` (or `~/.cache`) / trainscope / tiny / <version>-<name>; where that cannot be written, in a
    temporary folder that goes when the process ends. Two processes may build at once: each builds beside and renames.
    """
    check_name(name)
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainscope" / "tiny"
    folder = root / f"{_build_version()}-{name}"
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


def _build_version() -> str:
    """A digest of everything that the weights depend on: this code, and the libraries that initialise and save."""
    digest = hashlib.sha256()
    for module in ("tiny.py", "tiny_text.py", "tiny_vae.py"):
        digest.update((Path(__file__).parent / module).read_bytes())
    for library in ("torch", "diffusers", "transformers"):
        digest.update(f"{library} {version(library)}\n".encode())
    return digest.hexdigest()[:12]


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
