"""Which weights `model.base` names, by the headers of its files: a tiny model, a folder, a single file, a hub id.

Finds the same files as the trainer's loader, reads no weight, and asks no network. Raises for what cannot be loaded;
what is only not there yet is `Absent`. Knows nothing of what is trained.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from trainscope.config.load import ResolvedConfig
from trainscope.config.places import tiny_place
from trainscope.engine.preflight.published import parts_of_file
from trainscope.engine.preflight.stored import Weight, in_model
from trainscope.errors import ModelError
from trainscope.lora.tensors import open_tensors

STEMS = {
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "vae": "diffusion_pytorch_model",
}
"""The parts of a pipeline, and the names of their weight files without extension."""
VARIANTS = ("", ".fp16", ".bf16")
"""Preferred first: the full file, then those that some repositories publish instead."""
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
AGAIN = "download or save the model again"
ALLOWED = 'use a diffusers folder, a .safetensors file, a hub id such as "owner/name", or "tiny:sd15"'
LATENT_SCALE = 8
"""Pixels on a side of a latent's element, in all published models."""


@dataclass(frozen=True)
class Absent:
    """Why nothing is known of the weights, though nothing is wrong."""

    reason: str


@dataclass(frozen=True)
class Model:
    """The tensors of all parts, and how many pixels a latent's element has on a side."""

    weights: list[Weight]
    latent_scale: int = LATENT_SCALE


def find_model(resolved: ResolvedConfig) -> Model | Absent:
    """The model of a configuration. Raises `ModelError` for files that are damaged, pickled or not there."""
    section = resolved.config.model
    found = _find(section.base, resolved.resolve_path(section.base))
    if isinstance(found, Absent):
        return found
    model = _of_file(found) if found.is_file() else _of_folder(found, section.base)
    if section.vae is None:
        return model
    own = [weight for weight in model.weights if weight.component != "vae"]
    return Model([*own, *_other_vae(section.vae, resolved.resolve_path(section.vae))], model.latent_scale)


def _find(base: str, path: Path) -> Path | Absent:
    """The folder or the file of a base, as `trainer.models.load` chooses it."""
    if base.startswith("tiny:"):
        return _tiny(base.removeprefix("tiny:"))
    if path.is_dir() or (path.is_file() and path.suffix.lower() == ".safetensors"):
        return path
    if path.suffix.lower() in PICKLED:
        raise ModelError(
            f"model.base = {base!r} is a pickled checkpoint; trainscope does not load it, since unpickling runs code",
            hint="`trainscope run` says how to convert it",
        )
    if path.is_file():
        raise ModelError(f"model.base = {base!r} is a file, and no .safetensors", hint=ALLOWED)
    if path.suffix.lower() == ".safetensors":
        raise ModelError(f"model.base = {base!r}: there is no file {path}", hint=ALLOWED)
    return _of_hub(base, path, "model.base")


def _tiny(name: str) -> Path | Absent:
    try:
        folder = tiny_place(name)
    except PackageNotFoundError as error:
        return Absent(f"tiny:{name} is built by {error.name}, which is not installed: install trainscope[train]")
    return folder if folder.is_dir() else Absent(f"tiny:{name} is not built yet: `trainscope run` does it")


def _of_hub(name: str, path: Path, key: str) -> Path | Absent:
    """The cached snapshot of a hub id; the hub is not asked."""
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is None:
        raise ModelError(f"{key} = {name!r}: there is no folder {path}", hint=ALLOWED)
    try:
        import huggingface_hub
    except ImportError:
        return Absent(f"{name} is on the hub: install trainscope[train]")
    try:
        return Path(huggingface_hub.snapshot_download(name, local_files_only=True))
    except Exception:  # LocalEntryNotFoundError, and whatever a damaged cache raises
        return Absent(f"{name} is not downloaded yet: `trainscope run` does it")


def _of_folder(folder: Path, source: str) -> Model:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ModelError(
            f"{source} is no diffusers pipeline: it lacks model_index.json",
            hint="a folder written by pipeline.save_pretrained() has model_index.json and a folder for each part",
        )
    described = _read_json(index)
    parts = [part for part in STEMS if (described.get(part) or [None])[0] is not None]
    weights = [weight for part in parts for weight in _of_part(folder / part, part, source)]
    return Model(weights, _latent_scale(folder / "vae" / "config.json"))


def _of_part(folder: Path, part: str, source: str) -> list[Weight]:
    return [
        Weight(part, in_model(part, tensor.name), tensor.shape, tensor.dtype, file, tensor.start, tensor.end)
        for file in _weight_files(folder, STEMS[part], source)
        for tensor in open_tensors(file).tensors.values()
    ]


def _weight_files(folder: Path, stem: str, source: str) -> list[Path]:
    """The weight file of a part, or its shards, in the first variant that is there."""
    for variant in VARIANTS:
        file, index = folder / f"{stem}{variant}.safetensors", folder / f"{stem}.safetensors.index{variant}.json"
        if file.is_file():
            return [file]
        if index.is_file():
            names = _read_json(index).get("weight_map")
            if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
                raise ModelError(f"{index} is damaged: it has no weight_map", hint=AGAIN)
            shards = [folder / name for name in sorted(set(names.values()))]
            if gone := [shard.name for shard in shards if not shard.is_file()]:
                raise ModelError(f"{source} lacks {', '.join(f'{folder.name}/{name}' for name in gone)}", hint=AGAIN)
            return shards
    if pickled := sorted(path.name for path in folder.glob("*.bin")):
        raise ModelError(
            f"{source} has pickled weights only ({folder.name}/{pickled[0]}); trainscope does not load them",
            hint="`trainscope run` says how to convert them",
        )
    raise ModelError(f"{source} lacks {folder.name}/{stem}.safetensors", hint=AGAIN)


def _of_file(path: Path) -> Model:
    return Model(parts_of_file(path, open_tensors(path).tensors.values()))


def _other_vae(name: str, path: Path) -> list[Weight]:
    """The weights of `model.vae`; none where they are not at hand."""
    if path.is_file():
        whole = list(open_tensors(path).tensors.values())
        prefix = "first_stage_model."
        own = [tensor for tensor in whole if tensor.name.startswith(prefix)] or whole
        return [
            Weight("vae", tensor.name.removeprefix(prefix), tensor.shape, tensor.dtype, path, tensor.start, tensor.end)
            for tensor in own
        ]
    found = path if path.is_dir() else _of_hub(name, path, "model.vae")
    if isinstance(found, Absent):
        return []
    inner = found / "vae"
    return _of_part(inner if inner.is_dir() else found, "vae", name)


def _latent_scale(config: Path) -> int:
    """Each level of a VAE but the last halves a picture's sides."""
    if not config.is_file():
        return LATENT_SCALE
    levels = _read_json(config).get("block_out_channels")
    return 1 << (len(levels) - 1) if isinstance(levels, list) and levels else LATENT_SCALE


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is damaged: {str(error).splitlines()[0]}", hint=AGAIN) from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} is damaged: it is no JSON object", hint=AGAIN)
    return found
