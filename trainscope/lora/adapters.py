"""Reads the adapter configurations that accompany LoRA tensors, and says which rank and alpha they give a module.

diffusers keeps one for each component in the header (`lora_adapter_metadata`, keys such as `unet.lora_alpha`), peft in
`adapter_config.json` beside the file. Where one is there, loaders believe it and not the tensors. Knows nothing of
tensors.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

METADATA_KEY = "lora_adapter_metadata"
PEFT_CONFIG = "adapter_config.json"

Number = TypeVar("Number", int, float)

PEFT_DEFAULT = 8
"""peft's `LoraConfig` takes this for the rank and for alpha where the configuration leaves them out."""

_SIZE_LIMIT = 16 * 2**20
"""Bytes; a configuration with a pattern for each module of a large model has some hundred thousand."""


@dataclass(frozen=True)
class AdapterConfig:
    """What a configuration says of the modules of one component."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False

    def rank_of(self, module: str) -> int:
        """The rank that a loader gives the module."""
        return _matching(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float:
        """The alpha that a loader gives the module."""
        return _matching(self.alpha_pattern, module, self.alpha)


@dataclass(frozen=True)
class Adapters:
    """The configurations by the prefix of their keys ("unet.", or "" for a file of one model), as read and in full.

    `problems` says what is wrong with them, one sentence each.
    """

    configs: dict[str, AdapterConfig] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def header_adapters(metadata: Mapping[str, str], prefixes: set[str]) -> Adapters:
    """The configurations in a file's header, for the components of the tensors. Empty where there are none."""
    text = metadata.get(METADATA_KEY)
    return Adapters() if not text else _parsed(text, prefixes, METADATA_KEY, "diffusers cannot load the file")


def folder_adapters(folder: Path) -> Adapters:
    """The configuration that peft wrote beside the tensors. Empty where there is none."""
    path = folder / PEFT_CONFIG
    try:
        if not path.is_file():
            return Adapters()
        if path.stat().st_size > _SIZE_LIMIT:
            return Adapters(problems=[f"{PEFT_CONFIG} is too large to be a configuration"])
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return Adapters(problems=[f"{PEFT_CONFIG} cannot be read: {error}"])
    return _parsed(text, {""}, PEFT_CONFIG, "peft cannot load the folder")


def _parsed(text: str, prefixes: set[str], source: str, consequence: str) -> Adapters:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raw = None
    if not isinstance(raw, dict):
        return Adapters(problems=[f"{source} is not a JSON object: {consequence}"])
    configs: dict[str, AdapterConfig] = {}
    problems: list[str] = []
    for prefix in sorted(prefixes):
        own = {key.removeprefix(prefix): value for key, value in raw.items() if key.startswith(prefix)}
        if "" in prefixes or any(key in own for key in ("r", "lora_alpha", "target_modules")):
            configs[prefix] = _config(own, f"{source}: {prefix}", problems)
        else:
            component = prefix.rstrip(".")
            problems.append(
                f"{source} says nothing of {component}: diffusers takes rank and alpha {PEFT_DEFAULT} there"
            )
    return Adapters(configs, raw, problems)


def _config(own: Mapping[str, Any], source: str, problems: list[str]) -> AdapterConfig:
    """One component's configuration; what cannot be used is noted in `problems` and left out."""

    def number(key: str, value: object) -> float | None:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        problems.append(f"{source}{key} is {value!r:.80}, not a number")
        return None

    def pattern(key: str) -> dict[str, float]:
        entries = own.get(key) or {}
        if not isinstance(entries, dict):
            problems.append(f"{source}{key} is {entries!r:.80}, not a table")
            return {}
        kept = {}
        for name, value in entries.items():
            found = number(f"{key}[{name!r:.80}]", value)
            if not _harmless(name):
                problems.append(f"{source}{key} has a pattern that is not followed: {name!r:.80}")
            elif found is not None:
                kept[name] = found
        return kept

    rank = number("r", own.get("r", PEFT_DEFAULT))
    alpha = number("lora_alpha", own.get("lora_alpha", PEFT_DEFAULT))
    return AdapterConfig(
        rank=PEFT_DEFAULT if rank is None else int(rank),
        alpha=float(PEFT_DEFAULT) if alpha is None else alpha,
        rank_pattern={key: int(value) for key, value in pattern("rank_pattern").items()},
        alpha_pattern=pattern("alpha_pattern"),
        rslora=own.get("use_rslora") is True,
        dora=own.get("use_dora") is True,
    )


def _matching(patterns: Mapping[str, Number], module: str, otherwise: Number) -> Number:
    """Follow peft's rule: the first pattern decides that matches the end of the module's path, from a dot on."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _harmless(pattern: str) -> bool:
    """Whether a pattern is a regular expression that cannot take long: the file is a stranger's."""
    if len(pattern) > 300 or re.search(r"\)[*+?{]", pattern) or len(re.findall(r"[*+{]", pattern)) > 3:
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError):
        return False
    return True
