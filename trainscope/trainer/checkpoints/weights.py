"""The trained tensors of a checkpoint or a LoRA file, by the names that the session has for them.

Knows nothing of optimizers or runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainscope.errors import ConfigError, RunError
from trainscope.lora.file import LoraFilePair, read_lora
from trainscope.lora.kohya import canonical
from trainscope.lora.names import comparable
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.checkpoints.folder import LORA_FILE, whole_checkpoints
from trainscope.trainer.models.lora import LoraPair


def weights_for_use(checkpoint: Path, params: Mapping[str, Tensor], pairs: Sequence[LoraPair]) -> dict[str, Tensor]:
    """The weights that a checkpoint without state still has, in the format that they were saved in for use.

    `params` are the trained tensors, whose names are given to those of the files; `pairs` is empty for a fine-tune.
    """
    if pairs:
        found = _load(checkpoint / "weights" / LORA_FILE)
    else:
        components = dict.fromkeys(name.partition(".")[0] for name in params)
        found = {
            f"{component}.{name}": tensor
            for component in components
            for name, tensor in _of_component(checkpoint / "weights" / component, component).items()
        }
    known = {_file_name(name): name for name in params}
    return {known.get(_file_name(name), name): tensor for name, tensor in found.items()}


def _of_component(folder: Path, component: str) -> dict[str, Tensor]:
    """The tensors of one part of a diffusers folder, which may be spread over several files."""
    stem = "diffusion_pytorch_model" if component == "unet" else "model"  # diffusers' and transformers' names
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        return _load(folder / f"{stem}.safetensors")
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{index} is damaged: {error}") from error
    return {name: tensor for shard in shards for name, tensor in _load(folder / shard).items()}


def _file_name(name: str) -> str:
    """A tensor's name as files have it: without peft's name of the adapter, and with text encoders' `text_model.`."""
    component, _, path = name.partition(".")
    path = path.replace(".lora_A.default.", ".lora_A.").replace(".lora_B.default.", ".lora_B.")
    return f"{component}.{canonical(component, path)}"


def start_from_lora(pairs: list[LoraPair], source: Path) -> None:
    """Copy a LoRA file's weights into `pairs`. Raises `ConfigError` unless every pair finds one that fits."""
    path = _lora_file(source)
    found = {(pair.component, pair.place): pair for pair in read_lora(path).pairs}
    chosen: list[tuple[LoraPair, LoraFilePair]] = []
    problems: list[str] = []
    for pair in pairs:
        match = found.get((pair.component, comparable("diffusers", pair.component, pair.path)))
        prefix = "lora.conv_" if pair.kernel else "lora."
        if match is None:
            problems.append(f"{pair.module}: is not in the file")
        elif match.rank != pair.rank:
            problems.append(f"{pair.module}: rank {match.rank}, and {prefix}rank asks for {pair.rank}")
        elif abs(match.scale - pair.scale) > 1e-6 * abs(pair.scale):
            problems.append(f"{pair.module}: alpha {match.alpha:g}, and {prefix}alpha asks for {pair.alpha:g}")
        elif match.down.size != pair.a.numel() or match.up.size != pair.b.numel():
            shapes = f"{list(match.down.shape)} and {list(match.up.shape)}"
            problems.append(f"{pair.module}: {shapes}, and the model has {list(pair.a.shape)} and {list(pair.b.shape)}")
        else:
            chosen.append((pair, match))
    taken = {match.key for _, match in chosen}
    unused = [other for other in found.values() if other.key not in taken]
    if not problems and unused:
        problems = [f"{other.key}: the file adapts it, and {_key_of(other, pairs)} does not" for other in unused]
    if problems:
        raise ConfigError(
            f"lora.init_from: {path} does not fit",
            problems=problems[:8] + ([f"… and {len(problems) - 8} more"] if len(problems) > 8 else []),
            hint=f"set lora.rank, lora.alpha and lora.targets as in `trainscope lora inspect {path}`, "
            "or change the file with `trainscope lora resize`",
        )
    with torch.no_grad():
        for pair, match in chosen:
            pair.a.copy_(torch.from_numpy(match.down).reshape(pair.a.shape))
            pair.b.copy_(torch.from_numpy(match.up).reshape(pair.b.shape))


def _key_of(other: LoraFilePair, pairs: list[LoraPair]) -> str:
    """The key of the configuration that would adapt the module of a file's pair."""
    if other.component not in {pair.component for pair in pairs}:
        return "train.parts"
    if other.component != "unet":
        return "lora.text_encoder_targets"
    return "lora.conv_rank" if any(side > 1 for side in other.down.shape[2:]) else "lora.targets"


def _lora_file(source: Path) -> Path:
    """A file as it is; of a run its newest checkpoint, of a checkpoint its raw weights."""
    if source.is_dir() and (source / "run.json").exists():
        checkpoints = whole_checkpoints(RunDir(source))
        if not checkpoints:
            raise ConfigError(f"lora.init_from: the run {source} has no checkpoint")
        source = checkpoints[-1]
    return source / "weights" / LORA_FILE if (source / "weights").is_dir() else source


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing, and so is state/trained.safetensors",
            hint="resume from another checkpoint",
        ) from None
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path} is damaged: {str(error).splitlines()[0]}") from error
    return tensors
