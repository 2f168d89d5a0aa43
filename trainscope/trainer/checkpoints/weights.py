"""The trained tensors of a checkpoint or a LoRA file, by the names that the session has for them.

Knows nothing of optimizers or runs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainscope.errors import ConfigError, RunError
from trainscope.lora.file import LoraFilePair, read_lora
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.checkpoints.folder import LORA_FILE, whole_checkpoints
from trainscope.trainer.models.lora import LoraPair


def weights_for_use(checkpoint: Path, pairs: list[LoraPair]) -> dict[str, Tensor]:
    """The weights that a checkpoint without state still has, in the format that they were saved in for use."""
    if pairs:
        tensors = _load(checkpoint / "weights" / LORA_FILE)
        return {_parameter_name(name): tensor for name, tensor in tensors.items()}
    folder = checkpoint / "weights" / "unet"
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    if not index.exists():
        return _of_unet(_load(folder / "diffusion_pytorch_model.safetensors"))
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{index} is damaged: {error}") from error
    return _of_unet({name: tensor for shard in shards for name, tensor in _load(folder / shard).items()})


def _of_unet(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"unet.{name}": tensor for name, tensor in tensors.items()}


def start_from_lora(pairs: list[LoraPair], source: Path) -> None:
    """Copy a LoRA file's weights into `pairs`. Raises `ConfigError` unless every pair finds one that fits."""
    path = _lora_file(source)
    found = [pair for pair in read_lora(path).pairs if pair.component == "unet"]
    chosen: list[tuple[LoraPair, LoraFilePair]] = []
    problems: list[str] = []
    for pair in pairs:
        module = pair.module.removeprefix("unet.")
        match = next((other for other in found if other.matches(module)), None)
        if match is None:
            problems.append(f"{pair.module}: is not in the file")
        elif match.rank != pair.rank:
            problems.append(f"{pair.module}: rank {match.rank}, and lora.rank asks for {pair.rank}")
        elif abs(match.scale - pair.scale) > 1e-6 * abs(pair.scale):
            problems.append(f"{pair.module}: alpha {match.alpha:g}, and lora.alpha asks for {pair.alpha:g}")
        else:
            chosen.append((pair, match))
    taken = {match.key for _, match in chosen}
    unused = [other.key for other in found if other.key not in taken]
    if not problems and unused:
        problems = [f"{key}: the file adapts it, and lora.targets does not" for key in unused]
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


def _lora_file(source: Path) -> Path:
    """A file as it is; of a run its newest checkpoint, of a checkpoint its raw weights."""
    if source.is_dir() and (source / "run.json").exists():
        checkpoints = whole_checkpoints(RunDir(source))
        if not checkpoints:
            raise ConfigError(f"lora.init_from: the run {source} has no checkpoint")
        source = checkpoints[-1]
    return source / "weights" / LORA_FILE if (source / "weights").is_dir() else source


def _parameter_name(name: str) -> str:
    """`unet.<module>.lora_A.weight` → `unet.<module>.lora_A.default.weight`."""
    return name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")


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
