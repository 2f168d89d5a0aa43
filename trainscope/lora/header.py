"""Words the metadata of a LoRA file, so that every loader gives every module the strength that it has.

kohya: an .alpha tensor for each pair, ss_network_dim and ss_network_alpha ("Dynamic" where modules differ). diffusers:
`lora_adapter_metadata` with patterns for the modules that differ. peft: the same in adapter_config.json. Of a file that
is changed, what the old metadata says of rank, alpha and checksums is replaced; everything else stays. Knows nothing of
files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mode
from typing import Any

from trainscope.lora.adapters import METADATA_KEY
from trainscope.lora.file import LoraFile
from trainscope.lora.resize import ResizedPair

RESIZED_KEY = "trainscope_resized"
"""What was done, in words."""

CHECKSUM_KEY = "sshs_model_hash"
"""Kohya's SHA-256 over the tensors' bytes as they are written."""
STALE = ("sshs_legacy_hash", "modelspec.hash_sha256")
"""Checksums of the tensors as they were."""


@dataclass(frozen=True)
class Strength:
    """Rank and alpha of the pair of a module. `kernel`: it is a convolution with a kernel above 1×1."""

    component: str
    module: str
    rank: int
    alpha: float
    kernel: bool = False


def file_metadata(file: LoraFile, resized: Sequence[ResizedPair], story: str) -> dict[str, str]:
    """The header of the resized file; `story` says how it was made."""
    metadata = {key: value for key, value in file.metadata.items() if key not in (*STALE, METADATA_KEY)}
    metadata[RESIZED_KEY] = "; ".join(part for part in (metadata.get(RESIZED_KEY), story) if part)
    if file.layout == "kohya":
        _of_kohya(metadata, resized)
    elif file.layout == "diffusers":
        adapters = dict(file.adapters.raw)
        for prefix in dict.fromkeys(new.pair.prefix for new in resized):
            own = [new for new in resized if new.pair.prefix == prefix]
            adapters.update(adapter(_strengths(own), prefix, file.adapters.raw))
        metadata[METADATA_KEY] = json.dumps(adapters, sort_keys=True)
        metadata.setdefault("format", "pt")  # without it, transformers refuses some files
    return metadata


def checksum(metadata: dict[str, str], data: Sequence[bytes]) -> None:
    """Renew kohya's checksum where there is one."""
    if CHECKSUM_KEY in metadata:
        digest = hashlib.sha256()
        for content in data:
            digest.update(content)
        metadata[CHECKSUM_KEY] = digest.hexdigest()


def adapter(strengths: Sequence[Strength], prefix: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The adapter configuration of one component's pairs, with `prefix` before its keys.

    Rank and alpha are the most frequent ones; `rank_pattern` and `alpha_pattern` have the modules that differ. Settings
    that `said`, an older configuration, has are not repeated.
    """
    rank, alpha = mode(pair.rank for pair in strengths), mode(pair.alpha for pair in strengths)
    changed = {
        "r": rank,
        "lora_alpha": _shortest(alpha),
        "rank_pattern": {_pattern(pair): pair.rank for pair in strengths if pair.rank != rank},
        "alpha_pattern": {_pattern(pair): _shortest(pair.alpha) for pair in strengths if pair.alpha != alpha},
        "use_rslora": False,  # its √rank is in alpha now
    }
    defaults = {"target_modules": sorted(_path(pair) for pair in strengths), "bias": "none", "use_dora": False}
    missing = {key: value for key, value in defaults.items() if f"{prefix}{key}" not in said}
    return {f"{prefix}{key}": value for key, value in {**missing, **changed}.items()}


def peft_config(file: LoraFile, resized: Sequence[ResizedPair]) -> str:
    """The text of adapter_config.json for the resized file."""
    own = adapter(_strengths(resized), "", file.adapters.raw)
    settings: Mapping[str, Any] = {"peft_type": "LORA", **file.adapters.raw, **own}
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


def network(strengths: Sequence[Strength]) -> dict[str, str]:
    """What kohya's metadata says of ranks and alphas: `conv_dim` and `conv_alpha` are those of kernels above 1×1."""
    kernels = [pair for pair in strengths if pair.kernel]
    others = [pair for pair in strengths if not pair.kernel] or kernels
    metadata = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _said([pair.rank for pair in others]),
        "ss_network_alpha": _said([pair.alpha for pair in others]),
    }
    if kernels:
        arguments = {
            "conv_dim": _said([pair.rank for pair in kernels]),
            "conv_alpha": _said([pair.alpha for pair in kernels]),
        }
        metadata["ss_network_args"] = json.dumps(arguments)
    return metadata


def _strengths(resized: Sequence[ResizedPair]) -> list[Strength]:
    return [Strength(new.pair.component, new.pair.module, new.rank, new.alpha) for new in resized]


def _of_kohya(metadata: dict[str, str], resized: Sequence[ResizedPair]) -> None:
    old_dim = metadata.get("ss_network_dim", _said([new.pair.rank for new in resized]))
    new_dim = _said([new.rank for new in resized])
    comment = metadata.get("ss_training_comment")
    said = f"dimension is resized from {old_dim} to {new_dim}"
    metadata["ss_training_comment"] = said if comment in (None, "", "None") else f"{said}; {comment}"
    metadata["ss_network_dim"] = new_dim
    metadata["ss_network_alpha"] = _said([new.alpha for new in resized])
    try:
        arguments = json.loads(metadata.get("ss_network_args", ""))
    except (ValueError, RecursionError):
        return
    if isinstance(arguments, dict) and any(re.search(r"dim|alpha", key) for key in arguments):
        # Ranks and alphas of convolutions and of blocks, which are all the same now or in the tensors.
        kept = {key: value for key, value in arguments.items() if not re.search(r"dims?$|alphas?$", key)}
        convolutions = {"conv_dim": metadata["ss_network_dim"], "conv_alpha": metadata["ss_network_alpha"]}
        kept |= {key: value for key, value in convolutions.items() if key in arguments}
        metadata["ss_network_args"] = json.dumps(kept)


def _said(values: Sequence[float]) -> str:
    """A number that holds for all modules, or kohya's word for several."""
    return str(_shortest(values[0])) if len(set(values)) == 1 else "Dynamic"


def _shortest(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _path(pair: Strength) -> str:
    """The module's path where both old and recent transformers have it: recent ones dropped `text_model.`."""
    return pair.module.removeprefix("text_model.")


def _pattern(pair: Strength) -> str:
    """A pattern that matches this module alone: `^` keeps `proj_out` from matching every path that ends so."""
    return _path(pair) if pair.component.startswith("text_encoder") else f"^{pair.module}"
