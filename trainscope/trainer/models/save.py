"""Writes trained weights in the layouts that diffusers loads: a LoRA file, or a whole pipeline folder.

Everything is written beside its place, synced to the disk and renamed, so that a crash leaves the old weights or the
new ones and never half of them. Knows nothing of training state: optimizers and random states are saved elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from trainscope.errors import ModelError
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.lora import ADAPTER, lora_pairs
from trainscope.trainer.models.quiet import quiet_libraries

LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that `pipe.load_lora_weights(folder)` looks for."""


def save_lora(
    folder: Path, unet: Any, *, dtype: torch.dtype = torch.float32, metadata: Mapping[str, str] | None = None
) -> Path:
    """Write the LoRA of `unet` to `folder`/pytorch_lora_weights.safetensors, its tensors in `dtype`; return the file.

    Rank, alpha and targets go into the header as diffusers' `lora_adapter_metadata`: without it a loader takes alpha
    for the rank, and the LoRA acts with another strength than it was trained with. `metadata` is added to the header.
    Raises `ModelError` when there is no LoRA.
    """
    from safetensors.torch import save_file

    pairs = lora_pairs(unet)
    if not pairs:
        raise ModelError("the UNet has no LoRA to save")
    tensors: dict[str, Tensor] = {}
    for pair in pairs:
        for letter, weight in (("A", pair.a), ("B", pair.b)):
            tensors[f"{pair.module}.lora_{letter}.weight"] = weight.detach().to("cpu", dtype).contiguous()
    config = unet.peft_config[ADAPTER]
    adapter = {
        "unet.r": config.r,
        "unet.lora_alpha": config.lora_alpha,
        "unet.lora_dropout": config.lora_dropout,
        "unet.target_modules": sorted(config.target_modules),
        "unet.rank_pattern": dict(config.rank_pattern),
        "unet.alpha_pattern": dict(config.alpha_pattern),
        "unet.bias": config.bias,
        "unet.use_dora": config.use_dora,
    }
    header = {**(metadata or {}), "format": "pt", "lora_adapter_metadata": json.dumps(adapter, sort_keys=True)}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LORA_FILE
    with _beside(path) as temporary:
        save_file(tensors, temporary / LORA_FILE, metadata=header)
        _settle(temporary)
        (temporary / LORA_FILE).replace(path)
        _sync(folder)
    return path


def save_pipeline(folder: Path, components: Components, *, dtype: torch.dtype = torch.float32) -> Path:
    """Write `components` as a diffusers folder, the UNet in `dtype`; a folder that is there is replaced; return it.

    The live UNet is left as it is: a copy without storage takes the cast tensors. Raises `ModelError` for a UNet with a
    LoRA, whose tensors have other names.
    """
    if getattr(components.unet, "peft_config", None):
        raise ModelError("the UNet has a LoRA; save it with save_lora")
    with quiet_libraries():
        from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

        pipeline_class = StableDiffusionInpaintPipeline if components.inpainting else StableDiffusionPipeline
        pipeline = pipeline_class(
            vae=components.vae,
            text_encoder=components.text_encoder,
            tokenizer=components.tokenizer,
            unet=cast_copy(components.unet, dtype),
            scheduler=components.noise_scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _beside(folder) as temporary:
            pipeline.save_pretrained(temporary / "new", safe_serialization=True)
            _settle(temporary)
            if folder.exists():  # a folder cannot be renamed onto another
                folder.rename(temporary / "old")
            (temporary / "new").rename(folder)
            _sync(folder.parent)
    return folder


def cast_copy(model: Any, dtype: torch.dtype) -> Any:
    """A copy of a diffusers model on the CPU with all floating-point tensors in `dtype`; `model` is not touched."""
    with torch.device("meta"):
        copy = type(model).from_config(model.config)
    state = {
        name: tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in model.state_dict().items()
    }
    copy.load_state_dict(state, assign=True)
    return copy.eval()


def usage_hint(kind: Literal["lora", "finetune"], path: Path, inpainting: bool, base: str = "BASE MODEL") -> str:
    """Python that loads the trained weights in diffusers: `path` is what `save_lora` or `save_pipeline` returned."""
    name = "StableDiffusionInpaintPipeline" if inpainting else "StableDiffusionPipeline"
    call = 'pipe("a prompt", image=image, mask_image=mask)' if inpainting else 'pipe("a prompt")'
    lines = [f"from diffusers import {name}"]
    if kind == "lora":
        lines.append(f'pipe = {name}.from_pretrained("{base}")')
        lines.append(f'pipe.load_lora_weights("{path.parent.as_posix()}")')
    else:
        lines.append(f'pipe = {name}.from_pretrained("{path.as_posix()}")')
    lines.append(f"image = {call}.images[0]")
    return "\n".join(lines)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A temporary folder next to `target`, on the same file system, gone afterwards."""
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Give all files below `folder` the usual permissions (safetensors writes them for their owner only), and sync."""
    mask = os.umask(0)
    os.umask(mask)
    for path in sorted(folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        _sync(path)


def _sync(path: Path) -> None:
    """Write a file or a folder through to the disk; where the system cannot open folders (Windows), do without."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
