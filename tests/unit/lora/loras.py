"""Small LoRA files for tests, written by safetensors itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

Array = NDArray[np.floating]
Tensors = dict[str, NDArray[np.generic]]

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"


def factors(rank: int, up: Sequence[int], down: Sequence[int], seed: int = 0) -> tuple[Array, Array]:
    """down [rank, *down] and up [up[0], rank, *up[1:]], float32."""
    random = np.random.default_rng(seed)
    return (
        random.normal(size=(rank, *down)).astype(np.float32),
        random.normal(size=(up[0], rank, *up[1:])).astype(np.float32),
    )


def diffusers_tensors(rank: int = 4, prefix: str = "unet.") -> Tensors:
    """A linear layer [12, 10] and a convolution [8, 6, 3, 3]."""
    tensors: Tensors = {}
    for seed, (module, up, down) in enumerate(((LINEAR, (12,), (10,)), (CONV, (8, 1, 1), (6, 3, 3)))):
        a, b = factors(rank, up, down, seed)
        tensors |= {f"{prefix}{module}.lora_A.weight": a, f"{prefix}{module}.lora_B.weight": b}
    return tensors


def kohya_tensors(rank: int = 4, alpha: float | None = 2.0) -> Tensors:
    """The same as `diffusers_tensors`, as kohya names it."""
    tensors: Tensors = {}
    for name, array in diffusers_tensors(rank, "").items():
        module, _, half = name.removesuffix(".weight").rpartition(".")
        stem = "lora_unet_" + module.replace(".", "_")
        tensors[f"{stem}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = array
        if alpha is not None:
            tensors[f"{stem}.alpha"] = np.array(alpha, dtype=np.float32)
    return tensors


def adapter(**settings: object) -> dict[str, str]:
    """A header with diffusers' adapter configuration of a UNet."""
    return {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in settings.items()})}


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """A file, in a folder that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.array(array, order="C") for name, array in tensors.items()}
    save_file(arrays, path, metadata=dict(metadata) if metadata else None)
    return path
