"""Examines a LoRA file: how strong it is in which part of the model, and what is wrong with it.

Plain data for the command line to show. Knows nothing of consoles and of models.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from trainscope.lora.contradictions import contradictions
from trainscope.lora.file import LoraFile, LoraFilePair, Survey, entangled
from trainscope.lora.lowrank import as_down_matrix, as_up_matrix, norm
from trainscope.lora.names import block_of
from trainscope.lora.tensors import printable

Value = TypeVar("Value", int, float, str)

ASSUMPTIONS = {
    "kohya": "no .alpha tensor: loaders take alpha = rank",
    "diffusers": "no lora_adapter_metadata: diffusers takes alpha = rank",
    "peft": "no adapter_config.json beside the file: alpha = rank is assumed",
}
"""Which alpha a loader uses where none is stored."""


@dataclass(frozen=True)
class Block:
    """The pairs of one part of the model.

    `norm` is √Σ‖scale · B·A‖²_F over its modules, None where values are not finite; `strongest` is the module with the
    largest share of it. `untrained` counts pairs whose up half is all zero: they have no effect.
    """

    name: str
    pairs: int
    ranks: list[int]
    scales: list[float]
    norm: float | None
    strongest: str
    untrained: int
    not_finite: int


@dataclass(frozen=True)
class Examination:
    """What is in a LoRA file. `counts` are by value: of ranks, alphas, scales and dtypes, the number of modules.

    `damage` keeps the file from being applied; `problems` make it act otherwise than expected; `notes` do neither.
    """

    path: Path
    layout: str
    pairs: int
    parameters: int
    ranks: dict[int, int]
    alphas: dict[float, int]
    alpha_origins: dict[str, int]
    scales: dict[float, int]
    dtypes: dict[str, int]
    norm: float | None
    blocks: list[Block]
    rest: list[str]
    damage: list[str]
    problems: list[str]
    notes: list[str]
    metadata: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """The same as plain data; what is not finite is null."""
        plain = {**vars(self), "path": str(self.path), "blocks": [vars(block) for block in self.blocks]}
        return {key: _plain(value) for key, value in plain.items()}


def examine(found: Survey) -> Examination:
    """Examine what `survey` read."""
    file = found.file
    norms = [pair_norm(pair) for pair in file.pairs]
    blocks: dict[str, list[int]] = {}
    for number, pair in enumerate(file.pairs):
        blocks.setdefault(block_of(pair.component, pair.module), []).append(number)
    return Examination(
        path=file.path,
        layout=file.layout,
        pairs=len(file.pairs),
        parameters=sum(pair.down.size + pair.up.size for pair in file.pairs),
        ranks=_counted(file.pairs, lambda pair: pair.rank),
        alphas=_counted(file.pairs, lambda pair: pair.alpha),
        alpha_origins=_counted(file.pairs, lambda pair: pair.alpha_origin),
        scales=_counted(file.pairs, lambda pair: pair.scale),
        dtypes=_counted(file.pairs, lambda pair: pair.dtype),
        norm=together(norms),
        blocks=[
            _block(name, [file.pairs[number] for number in numbers], [norms[number] for number in numbers])
            for name, numbers in blocks.items()
        ],
        rest=[printable(name) for name in file.rest],
        damage=found.damage,
        problems=[*contradictions(file), *_untrained(file)],
        notes=_notes(file),
        metadata=file.metadata,
    )


def pair_norm(pair: LoraFilePair) -> float:
    """‖scale · B·A‖_F: how much the pair changes its module's weight. NaN where values are not finite."""
    return abs(pair.scale) * norm(as_up_matrix(pair.up), as_down_matrix(pair.down))


def together(norms: Sequence[float]) -> float | None:
    """The norm of several weights' changes taken as one; None where it is not finite."""
    total = math.sqrt(math.fsum(value * value for value in norms)) if all(map(math.isfinite, norms)) else math.nan
    return total if math.isfinite(total) else None


def _block(name: str, pairs: Sequence[LoraFilePair], norms: Sequence[float]) -> Block:
    strongest = max(range(len(pairs)), key=lambda number: -1.0 if math.isnan(norms[number]) else norms[number])
    return Block(
        name=printable(name),
        pairs=len(pairs),
        ranks=sorted({pair.rank for pair in pairs}),
        scales=sorted({pair.scale for pair in pairs}),
        norm=together(norms),
        strongest=printable(pairs[strongest].module),
        untrained=sum(_is_zero(pair) for pair in pairs),
        not_finite=sum(int(np.count_nonzero(~np.isfinite(half))) for pair in pairs for half in (pair.down, pair.up)),
    )


def _untrained(file: LoraFile) -> list[str]:
    zero = [pair for pair in file.pairs if _is_zero(pair)]
    if not zero:
        return []
    if len(zero) == len(file.pairs):
        return ["untrained: every up half is zero, so the file has no effect"]
    return [f"{len(zero)} of {len(file.pairs)} pairs are untrained: up is zero, such as {printable(zero[0].key)}"]


def _notes(file: LoraFile) -> list[str]:
    notes = []
    assumed = sum(pair.alpha_origin == "assumed" for pair in file.pairs)
    if assumed:
        where = "" if assumed == len(file.pairs) else f" ({assumed} of {len(file.pairs)} modules)"
        notes.append(ASSUMPTIONS[file.layout] + where)
    if any(config.rslora for config in file.adapters.configs.values()):
        notes.append("use_rslora: the scale is alpha / √rank")
    more = entangled(file)
    if more:
        notes.append(f"{len(more)} tensors change what pairs do and are not taken into account, such as {more[0]}")
    elif file.rest:
        notes.append(f"{len(file.rest)} tensors belong to no pair, such as {file.rest[0]}")
    return [printable(note) for note in notes]


def _is_zero(pair: LoraFilePair) -> bool:
    return not pair.up.any()


def _counted(pairs: Sequence[LoraFilePair], what: Callable[[LoraFilePair], Value]) -> dict[Value, int]:
    return dict(Counter(map(what, pairs)).most_common())


def _plain(value: Any) -> Any:
    """Fit for JSON: keys are text, and what is not finite is null."""
    if isinstance(value, dict):
        return {f"{key:g}" if isinstance(key, float) else str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
