"""Words the metadata of a resized LoRA, so that every loader gives every module the strength that it had.

kohya: an .alpha tensor for each pair, ss_network_dim and ss_network_alpha ("Dynamic" where modules differ). diffusers:
`lora_adapter_metadata` with patterns for the modules that differ. peft: the same in adapter_config.json. What the old
metadata says of rank, alpha and checksums is replaced; everything else stays. Knows nothing of files.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from statistics import mode
from typing import Any

from trainscope.lora.adapters import METADATA_KEY
from trainscope.lora.file import LoraFile
from trainscope.lora.resize import ResizedPair

RESIZED_KEY = "trainscope_resized"
"""What was done, in words."""

STALE = ("sshs_legacy_hash", "modelspec.hash_sha256")
"""Checksums of the tensors as they were."""


def file_metadata(file: LoraFile, resized: Sequence[ResizedPair], story: str) -> dict[str, str]:
    """The header of the resized file; `story` says how it was made."""
    metadata = {key: value for key, value in file.metadata.items() if key not in (*STALE, METADATA_KEY)}
    metadata[RESIZED_KEY] = "; ".join(part for part in (metadata.get(RESIZED_KEY), story) if part)
    if file.layout == "kohya":
        _of_kohya(metadata, resized)
    elif file.layout == "diffusers":
        adapters = dict(file.adapters.raw)
        for prefix in dict.fromkeys(new.pair.prefix for new in resized):
            adapters.update(adapter(file, [new for new in resized if new.pair.prefix == prefix], prefix))
        metadata[METADATA_KEY] = json.dumps(adapters, sort_keys=True)
        metadata.setdefault("format", "pt")  # without it, transformers refuses some files
    return metadata


def checksum(metadata: dict[str, str], data: Sequence[bytes]) -> None:
    """Renew kohya's sshs_model_hash, SHA-256 over the tensors' bytes as they are written, where there was one."""
    if "sshs_model_hash" in metadata:
        digest = hashlib.sha256()
        for content in data:
            digest.update(content)
        metadata["sshs_model_hash"] = digest.hexdigest()


def adapter(file: LoraFile, resized: Sequence[ResizedPair], prefix: str) -> dict[str, Any]:
    """The adapter configuration of one component's pairs, with `prefix` before its keys.

    Rank and alpha are the most frequent ones; `rank_pattern` and `alpha_pattern` have the modules that differ.
    """
    rank, alpha = mode(new.rank for new in resized), mode(new.alpha for new in resized)
    changed = {
        "r": rank,
        "lora_alpha": _shortest(alpha),
        "rank_pattern": {_pattern(new): new.rank for new in resized if new.rank != rank},
        "alpha_pattern": {_pattern(new): _shortest(new.alpha) for new in resized if new.alpha != alpha},
        "use_rslora": False,  # its √rank is in alpha now
    }
    defaults = {"target_modules": sorted(_path(new) for new in resized), "bias": "none", "use_dora": False}
    missing = {key: value for key, value in defaults.items() if f"{prefix}{key}" not in file.adapters.raw}
    return {f"{prefix}{key}": value for key, value in {**missing, **changed}.items()}


def peft_config(file: LoraFile, resized: Sequence[ResizedPair]) -> str:
    """The text of adapter_config.json for the resized file."""
    settings: Mapping[str, Any] = {"peft_type": "LORA", **file.adapters.raw, **adapter(file, resized, "")}
    return json.dumps(settings, indent=2, sort_keys=True) + "\n"


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


def _path(new: ResizedPair) -> str:
    """The module's path where both old and recent transformers have it: recent ones dropped `text_model.`."""
    return new.pair.module.removeprefix("text_model.")


def _pattern(new: ResizedPair) -> str:
    """A pattern that matches this module alone: `^` keeps `proj_out` from matching every path that ends so."""
    return _path(new) if new.pair.component.startswith("text_encoder") else f"^{new.pair.module}"
