"""Renames the tensors of a LoRA file from one layout to another: not a bit of a weight changes.

What does change is where alpha is told: kohya has an .alpha tensor for each pair, diffusers `lora_adapter_metadata` in
the header. What the metadata says of the training stays.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from trainscope.errors import ModelError
from trainscope.lora.adapters import METADATA_KEY
from trainscope.lora.contradictions import misread_by_diffusers, untrue
from trainscope.lora.file import LoraFile, LoraFilePair
from trainscope.lora.header import CHECKSUM_KEY, STALE, Strength, adapter, network
from trainscope.lora.kohya import SDXL_COMPONENTS, canonical, dotted, is_sgm, kohya_name
from trainscope.lora.tensors import NewTensor, decode, encode, printable

Target = Literal["kohya", "diffusers"]

CONVERTED_KEY = "trainscope_converted"
"""What was done, in words."""


@dataclass(frozen=True)
class Converted:
    """A LoRA as it will be written. `notes` are what the user should know of it, one sentence each."""

    tensors: dict[str, NewTensor]
    metadata: dict[str, str]
    notes: list[str]


def convert(file: LoraFile, to: Target) -> Converted:
    """The same LoRA in another layout.

    Raises `ModelError`, with all problems at once: a file whose metadata contradicts its tensors, modules that the
    layout has no name for or the same name for two, a file that has the layout already.
    """
    sdxl = is_sdxl(file)
    paths, stems = _names(file, to, bool(sdxl))
    assumed = all(pair.alpha_origin == "assumed" for pair in file.pairs)
    tensors = {name: _same(file, name) for name in file.rest}
    for pair, stem in zip(file.pairs, stems, strict=True):
        halves = ("lora_down", "lora_up") if to == "kohya" else ("lora_A", "lora_B")
        for half, name in zip(halves, (pair.down_name, pair.up_name), strict=True):
            tensors[f"{stem}.{half}.weight"] = _same(file, name)
        if to == "kohya" and not assumed:
            tensors[f"{stem}.alpha"] = alpha_tensor(_alpha(pair), file.tensors.tensors[pair.up_name].dtype)
    if tensors.keys() <= file.tensors.tensors.keys() and file.layout == to:
        raise ModelError(f"{file.path} is in the {to} layout already")
    strengths = [
        Strength(pair.component, path, pair.rank, _alpha(pair), _has_kernel(pair))
        for pair, path in zip(file.pairs, paths, strict=True)
    ]
    metadata = {key: value for key, value in file.metadata.items() if key not in (*STALE, METADATA_KEY, CHECKSUM_KEY)}
    story = f"{file.layout} to {to}"
    metadata[CONVERTED_KEY] = "; ".join(part for part in (metadata.get(CONVERTED_KEY), story) if part)
    metadata.setdefault("format", "pt")
    if to == "kohya":
        _kohya_metadata(file, metadata, strengths)
    elif not assumed:
        metadata[METADATA_KEY] = json.dumps(_adapters(file, strengths), sort_keys=True)
    return Converted(tensors, metadata, _notes(file, to, sdxl, strengths))


def is_sdxl(file: LoraFile) -> bool | None:
    """Whether a LoRA is one of SDXL, by what the file says or has the shapes of; None if nothing in it tells."""
    said = file.metadata.get("ss_base_model_version", "") + file.metadata.get("modelspec.architecture", "")
    if re.search(r"sdxl|stable-diffusion-xl", said):
        return True
    if re.search(r"sd_v[12]|stable-diffusion-v[12]", said):
        return False
    for pair in file.pairs:
        deep = re.search(r"transformer_blocks[._][1-9]", pair.module)
        if pair.component == "text_encoder_2" or deep or "add_embedding" in pair.module or is_sgm(pair.module):
            return True
        if re.search(r"attn2[._]to_[kv]$", pair.module) and pair.down.shape[1] in (768, 1024, 2048):
            return bool(pair.down.shape[1] == 2048)
        if re.search(r"(?:down|up)_blocks[._]3", pair.module):  # SDXL has three
            return False
    return None


def _names(file: LoraFile, to: Target, sdxl: bool) -> tuple[list[str], list[str]]:
    """The pairs' modules as diffusers has them, and what their names begin with in the new layout.

    Raises `ModelError`.
    """
    problems = untrue(file)
    paths, stems = [], []
    for pair in file.pairs:
        path = pair.module if file.layout != "kohya" else dotted(pair.module, layers=pair.layers)
        stem = None
        if path is not None and to == "kohya":
            stem = kohya_name(pair.component, path, sdxl=sdxl, layers=pair.layers) if _returns(path) else None
        elif path is not None and pair.component in SDXL_COMPONENTS:
            stem = f"{pair.component}.{canonical(pair.component, path)}"
        if stem is None:
            problems.append(f"{printable(pair.key)} is no module of Stable Diffusion that has a name in {to}'s layout")
        paths.append(path or pair.module)
        stems.append(stem or pair.key)
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    problems += [f"several pairs are of one module, {printable(stem)}" for stem in twice]
    if problems:
        shown = [*problems[:10], *([f"and {len(problems) - 10} more"] if len(problems) > 10 else [])]
        raise ModelError(
            "\n".join([f"{file.path} cannot be converted:", *(f"  {line}" for line in shown)]),
            hint=f"`trainscope lora inspect {file.path}` shows the whole file",
        )
    return paths, stems


def _returns(path: str) -> bool:
    """Whether the dots of a path can be found again when they are underscores."""
    return dotted(path.replace(".", "_")) == path


def _alpha(pair: LoraFilePair) -> float:
    """The alpha that gives the pair's scale without rslora's root."""
    return pair.alpha if pair.scale == pair.alpha / pair.rank else pair.scale * pair.rank


def _same(file: LoraFile, name: str) -> NewTensor:
    stored = file.tensors.tensors[name]
    return NewTensor(stored.dtype, stored.shape, file.tensors.raw(name))


def alpha_tensor(alpha: float, dtype: str) -> NewTensor:
    """Alpha as kohya writes it, in the format of the weights; in float32 where that would be another alpha."""
    if dtype not in ("F16", "BF16") or float(decode(encode(np.array(alpha), dtype), dtype)[0]) != alpha:
        dtype = "F32"
    return NewTensor(dtype, (), encode(np.array(alpha), dtype))


def _has_kernel(pair: LoraFilePair) -> bool:
    return any(side > 1 for side in pair.down.shape[2:])


def _kohya_metadata(file: LoraFile, metadata: dict[str, str], strengths: list[Strength]) -> None:
    metadata |= network(strengths)
    dropouts = {float(file.adapters.raw.get(f"{pair.prefix}lora_dropout") or 0.0) for pair in file.pairs}
    if len(dropouts) == 1 and (dropout := dropouts.pop()):
        metadata["ss_network_dropout"] = f"{dropout:g}"
    metadata[CHECKSUM_KEY] = ""  # written with the file


def _adapters(file: LoraFile, strengths: list[Strength]) -> dict[str, Any]:
    """The adapter configurations of all components, with what an older one or kohya's metadata says of dropout."""
    try:
        dropout = float(file.metadata.get("ss_network_dropout", ""))
    except ValueError:
        dropout = 0.0
    adapters: dict[str, Any] = {}
    for component in dict.fromkeys(pair.component for pair in strengths):
        own = [pair for pair in strengths if pair.component == component]
        prefix = next(pair.prefix for pair in file.pairs if pair.component == component)
        said = file.adapters.raw.get(f"{prefix}lora_dropout", dropout)
        adapters |= {f"{component}.lora_dropout": said, **adapter(own, f"{component}.", {})}
    return adapters


def _notes(file: LoraFile, to: Target, sdxl: bool | None, strengths: list[Strength]) -> list[str]:
    notes = []
    if file.rest:
        notes.append(f"{len(file.rest)} tensors that belong to no pair are copied as they were")
    if to == "kohya":
        notes += misread_by_diffusers(strengths)
        if sdxl is None and any(pair.component == "unet" for pair in strengths):
            notes.append("nothing in the file tells Stable Diffusion 1 from SDXL: its UNet is named as that of 1")
    return notes
