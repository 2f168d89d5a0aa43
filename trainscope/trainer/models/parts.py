"""What a pipeline is made of, as it comes out of a file: the common ground of folders and single files.

Knows nothing of how a model is chosen or trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainscope.errors import ModelError
from trainscope.trainer.failures import is_out_of_memory

AGAIN = "download or save the model again"

VARIANTS = (None, "fp16", "bf16")
"""Preferred first: the full file, then those that some repositories publish instead."""


Dtypes = Mapping[str, torch.dtype]
"""The formats of the parts by name: unet, vae, text_encoder, text_encoder_2."""


@dataclass
class Parts:
    """The parts of a pipeline, frozen and in eval mode; SDXL has two tokenizers and text encoders.

    `vae` is None where another one takes its place; `vae_config` is its configuration all the same.
    """

    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    vae: Any
    unet: Any
    noise_scheduler: Any
    vae_config: Mapping[str, Any]


def find_weights(folder: Path, stem: str, source: str) -> tuple[Path, str | None]:
    """The weight file of a part (of a sharded one its index), and the variant that it is.

    Raises `ModelError` when there is none, or only a pickled one.
    """
    for variant in VARIANTS:
        suffix = f".{variant}" if variant else ""
        for path in (folder / f"{stem}{suffix}.safetensors", folder / f"{stem}.safetensors.index{suffix}.json"):
            if path.is_file():
                return path, variant
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise ModelError(
            f"{source} has pickled weights only ({folder.name}/{pickled[0]}); "
            "trainscope does not load them, since unpickling runs code",
            hint='if you trust its author, convert it once: python -c "from diffusers import DiffusionPipeline as P; '
            f"P.from_pretrained({source!r}, use_safetensors=False).save_pretrained('model')\"",
        )
    raise ModelError(f"{source} lacks {folder.name}/{stem}.safetensors", hint=AGAIN)


def check_readable(path: Path, source: str) -> None:
    """Find damaged files by their header before a library meets them with a traceback."""
    from safetensors import SafetensorError, safe_open

    files = [path]
    if path.suffix == ".json":
        try:
            files = [path.parent / name for name in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{source}: {path.name} is damaged: {first_line(error)}", hint=AGAIN) from error
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{source}: {path.parent.name}/{file.name} is damaged or incomplete: {first_line(error)}", hint=AGAIN
            ) from error


def load_part(
    model_class: Any, folder: Path, variant: str | None, subject: str, dtype: torch.dtype = torch.float32
) -> Any:
    """Load one model of a diffusers folder. Raises `ModelError` for whatever does not fit, `subject` in front."""
    try:
        model, report = model_class.from_pretrained(
            folder,
            variant=variant,
            torch_dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # the libraries raise OSError, ValueError, RuntimeError and their own
        if is_out_of_memory(error):
            raise
        raise ModelError(f"{subject} cannot be loaded: {first_line(error)}", hint=AGAIN) from error
    missing = sorted(report["missing_keys"])
    if missing:  # the libraries would go on with random weights
        raise ModelError(
            f"{subject} lacks {len(missing)} tensors, the first is {missing[0]}",
            hint="its weights do not belong to its config.json",
        )
    frozen(model, dtype)
    for parameter in model.parameters():
        # What is mapped lies in memory as in the file, and the last bits of a product depend on where its factors lie.
        parameter.data = parameter.data.clone()
    return model


def frozen(model: Any, dtype: torch.dtype) -> Any:
    """The model in `dtype`, in eval mode, and without gradients."""
    return model.to(dtype).requires_grad_(False).eval()


def dtype_of(part: str, dtypes: Dtypes) -> torch.dtype:
    """The format that a part is loaded in: float32 if none is given."""
    return dtypes.get(part, torch.float32)


def first_line(error: BaseException) -> str:
    """The first line of an error, for a message of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
