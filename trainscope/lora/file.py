"""Reads a LoRA file into pairs of factors, each with the alpha that is in effect.

`read_lora` is for those who want to apply the pairs and refuses whatever they could not be sure of; `survey` also
returns what is damaged, for those who want to see it. Knows nothing of models: whether a pair fits a module is for the
caller to say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from trainscope.errors import ModelError
from trainscope.lora.adapters import AdapterConfig, Adapters, folder_adapters, header_adapters
from trainscope.lora.kohya import LAYERS, layers_of
from trainscope.lora.names import Layout, TensorName, comparable, parse_name
from trainscope.lora.tensors import FLOAT_NAMES, Floats, TensorFile, open_tensors, printable

FILE_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""What a folder is searched for: the names that diffusers and peft look for."""

AlphaOrigin = Literal["stored", "metadata", "assumed"]


@dataclass(frozen=True, eq=False)
class LoraFilePair:
    """The pair of one module: W + scale · up · down.

    `down` is [rank, in] and `up` [out, rank]; of a convolution [rank, in, height, width] and [out, rank, 1, 1]. `key`
    is what the names of both begin with; `module` the module's path, with underscores for dots in the kohya layout.
    `scale` is alpha / rank (alpha / √rank with peft's `use_rslora`); `layers` the UNet's `layers_per_block`.
    """

    key: str
    component: str
    module: str
    down: Floats = field(repr=False)
    up: Floats = field(repr=False)
    alpha: float
    alpha_origin: AlphaOrigin
    rank: int
    scale: float
    dtype: str
    layout: Layout
    prefix: str
    down_name: str
    up_name: str
    alpha_name: str
    layers: int = LAYERS

    def matches(self, module_name: str) -> bool:
        """Whether this is the pair of a model's module, by its dotted name."""
        return self.place == comparable("diffusers", self.component, module_name)

    @property
    def place(self) -> str:
        """The module's name as `names.comparable` gives it, whatever the layout."""
        return comparable(self.layout, self.component, self.module, layers=self.layers)


@dataclass(frozen=True, eq=False)
class LoraFile:
    """A LoRA file. `rest` names the tensors that belong to no pair; `adapters` are its adapter configurations."""

    path: Path
    layout: Layout
    metadata: dict[str, str]
    pairs: list[LoraFilePair]
    rest: list[str]
    adapters: Adapters
    tensors: TensorFile = field(repr=False)


@dataclass(frozen=True)
class Survey:
    """A LoRA file, and what is damaged in it, one sentence each; `file.pairs` are those that have both halves."""

    file: LoraFile
    damage: list[str]


def read_lora(path: Path) -> LoraFile:
    """Read the LoRA file `path`, or the one in the folder `path`.

    Raises `ModelError` for a file that is no LoRA and, with all problems at once, for one whose effect is not certain:
    halves that are missing or do not fit each other, values that are not finite, an alpha of zero, a DoRA.
    """
    found = survey(path)
    more = entangled(found.file)
    if more:
        found.damage.append(f"{len(more)} tensors change what pairs do and are not read, such as {printable(more[0])}")
    if found.damage:
        raise damaged(found)
    return found.file


def entangled(file: LoraFile) -> list[str]:
    """The tensors that are part of a pair's module and neither half nor alpha: DoRA's magnitudes, biases, a middle."""
    keys = {pair.key for pair in file.pairs}
    return [name for name in file.rest if any(name[: dot.start()] in keys for dot in re.finditer(r"\.", name))]


def damaged(found: Survey) -> ModelError:
    """The error that lists what is damaged."""
    shown = [*found.damage[:20], *([f"and {len(found.damage) - 20} more"] if len(found.damage) > 20 else [])]
    return ModelError(
        "\n".join([f"{found.file.path} cannot be applied:", *(f"  {line}" for line in shown)]),
        hint=f"`trainscope lora inspect {found.file.path}` shows the whole file",
    )


def survey(path: Path) -> Survey:
    """Read a LoRA file as far as it can be read. Raises `ModelError` if it is no safetensors file or holds no LoRA."""
    tensors = open_tensors(_file(path))
    names = {name: parsed for name in tensors.tensors if (parsed := parse_name(name))}
    if not names:
        raise _no_lora(tensors)
    layouts = sorted({name.layout for name in names.values()})
    if len(layouts) > 1:
        raise ModelError(f"{tensors.path} mixes the layouts {' and '.join(layouts)}", hint="split it, one file each")
    layout = layouts[0]
    prefixes = {name.prefix for name in names.values()}
    if layout == "peft":
        adapters = folder_adapters(tensors.path.parent)
    else:
        adapters = header_adapters(tensors.metadata, prefixes) if layout == "diffusers" else Adapters()
    damage: list[str] = []
    pairs = []
    taken = set()
    for text, name in names.items():
        taken.add(text)
        if name.partner not in tensors.tensors:
            damage.append(f"{printable(name.stem)} lacks its {'up' if name.half == 'down' else 'down'} half")
        elif name.half == "down":
            taken.add(f"{name.stem}.alpha")
            pair = _pair(tensors, text, name, adapters.configs.get(name.prefix), damage)
            if pair:
                pairs.append(pair)
    rest = [name for name in tensors.tensors if name not in taken]
    return Survey(LoraFile(tensors.path, layout, tensors.metadata, pairs, rest, adapters, tensors), damage)


def _pair(
    tensors: TensorFile, down_name: str, name: TensorName, config: AdapterConfig | None, damage: list[str]
) -> LoraFilePair | None:
    """The pair whose lower half is `down_name`; None, with the reason in `damage`, where the halves do not fit."""
    down, up = tensors.tensors[down_name], tensors.tensors[name.partner]
    problem = _misfit(down.shape, up.shape)
    unread = sorted({half.dtype for half in (down, up)} - FLOAT_NAMES.keys())
    if unread:
        problem = f"stored as {' and '.join(unread)}, which is not read"
    if problem:
        damage.append(f"{printable(name.stem)}: {problem}")
        return None
    arrays = tensors.array(down_name), tensors.array(name.partner)
    for half, array in zip(("down", "up"), arrays, strict=True):
        broken = array.size - int(np.count_nonzero(np.isfinite(array)))
        if broken:
            damage.append(f"{printable(name.stem)}: {broken} of {array.size} values of its {half} half are not finite")
    rank = down.shape[0]
    alpha, origin, divisor = _alpha(tensors, name, rank, config, damage)
    # The wider of two dtypes, so that nothing is lost when the pair is written again.
    dtype = max((down.dtype, up.dtype), key=list(reversed(FLOAT_NAMES)).index)
    return LoraFilePair(
        key=name.stem, component=name.component, module=name.module, down=arrays[0], up=arrays[1], alpha=alpha,
        alpha_origin=origin, rank=rank, scale=alpha / divisor, dtype=FLOAT_NAMES[dtype], layout=name.layout,
        prefix=name.prefix, down_name=down_name, up_name=name.partner, alpha_name=f"{name.stem}.alpha",
        layers=layers_of(tensors.metadata),
    )  # fmt: skip


def _alpha(
    tensors: TensorFile, name: TensorName, rank: int, config: AdapterConfig | None, damage: list[str]
) -> tuple[float, AlphaOrigin, float]:
    """The alpha that a loader uses, where it is from, and what it is divided by."""
    stored = tensors.tensors.get(f"{name.stem}.alpha")
    if stored is None:
        if config is None:
            return float(rank), "assumed", float(rank)
        value = config.alpha_of(name.module)
        origin: AlphaOrigin = "metadata"
    else:
        if stored.size != 1:
            damage.append(f"{printable(stored.name)} has {stored.size} values instead of one")
            return math.nan, "stored", float(rank)
        value, origin = float(tensors.array(stored.name).reshape(())), "stored"
    if not math.isfinite(value) or value == 0:
        damage.append(
            f"{printable(name.stem)} has alpha {value:g}: some loaders take 0 for no effect, some for the rank"
        )
    return value, origin, math.sqrt(rank) if config and config.rslora and origin == "metadata" else float(rank)


def _misfit(down: Sequence[int], up: Sequence[int]) -> str:
    """Why two shapes are not the halves of one pair; nothing if they are."""
    shapes = f"down {list(down)}, up {list(up)}"
    if len(down) not in (2, 3, 4, 5) or len(up) not in (2, len(down)) or 0 in (*down, *up):
        return f"no linear layer or convolution has {shapes}"
    if down[0] != up[1]:
        return f"the ranks of its halves differ: {shapes}"
    if any(side != 1 for side in up[2:]):
        return f"an up half with a kernel is not read: {shapes}"
    return ""


def _file(path: Path) -> Path:
    """The file itself, or the one that a folder holds."""
    if not path.is_dir():
        return path
    for name in FILE_NAMES:
        if (path / name).exists():
            return path / name
    others = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".safetensors", ".bin", ".pt"))[:3]
    hint = f"it holds {', '.join(others)}: name the file itself" if others else None
    raise ModelError(f"{path} holds no {' or '.join(FILE_NAMES)}", hint=hint)


def _no_lora(tensors: TensorFile) -> ModelError:
    """What the tensors are that are no LoRA."""
    names: list[Any] = list(tensors.tensors)
    kinds = {"hada_": "LoHa", "lokr_": "LoKr", "oft_": "OFT", "ia3": "IA³", "boft_": "BOFT"}
    for mark, kind in kinds.items():
        if any(mark in name for name in names):
            return ModelError(f"{tensors.path} is a {kind}, not a LoRA", hint="only pairs of down and up are read")
    example = f", such as {printable(names[0])}" if names else ""
    return ModelError(
        f"{tensors.path} holds no LoRA: {len(names)} tensors{example}",
        hint="a LoRA's tensors are named …lora_A/lora_B, …lora_down/lora_up or …lora.down/lora.up",
    )
