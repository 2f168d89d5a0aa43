"""Sums up what a resize lost, by part of the model and in total. Knows nothing of files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainscope.lora.names import block_of
from trainscope.lora.resize import ResizedPair
from trainscope.lora.tensors import printable


@dataclass(frozen=True)
class Loss:
    """What some modules lost together.

    `kept` is the share of Σ‖scale · B·A‖²_F that the new ranks keep; `lost` is √Σ‖ΔW − ΔW'‖² / √Σ‖ΔW‖² of what is
    written, rounding included; `worst` the largest such ratio of one module, `worst_module` its name. `old_ranks` and
    `new_ranks` are the ranks that occur.
    """

    name: str
    modules: int
    old_ranks: list[int]
    new_ranks: list[int]
    kept: float
    lost: float
    worst: float
    worst_module: str


def losses(resized: Sequence[ResizedPair]) -> tuple[list[Loss], Loss]:
    """The loss of each block, in the order of the file, and of all together."""
    blocks: dict[str, list[ResizedPair]] = {}
    for new in resized:
        blocks.setdefault(block_of(new.pair.component, new.pair.module), []).append(new)
    return [_loss(name, own) for name, own in blocks.items()], _loss("total", resized)


def _loss(name: str, resized: Sequence[ResizedPair]) -> Loss:
    energy = math.fsum(new.energy for new in resized)
    error = math.fsum(new.energy * new.lost**2 for new in resized)
    worst = max(resized, key=lambda new: new.lost)
    return Loss(
        name=printable(name),
        modules=len(resized),
        old_ranks=sorted({new.pair.rank for new in resized}),
        new_ranks=sorted({new.rank for new in resized}),
        # Where there was nothing, nothing is lost.
        kept=math.fsum(new.kept for new in resized) / energy if energy else 1.0,
        lost=math.sqrt(error / energy) if energy else 0.0,
        worst=worst.lost,
        worst_module=printable(worst.pair.module),
    )
