"""The `adapters` table: how much each LoRA pair adds to the weight that it adapts.

Knows nothing of the library that made the pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from trainscope.probes.pending import Pending

MEASURES = ("a_norm", "b_norm", "delta_norm", "base_norm")


class Pair(Protocol):
    """A LoRA pair: W + scale · B·A, with A [rank, in …] and B [out, rank …]."""

    @property
    def module(self) -> str: ...
    @property
    def a(self) -> Tensor: ...
    @property
    def b(self) -> Tensor: ...
    @property
    def base_weight(self) -> Tensor: ...
    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def scale(self) -> float: ...


class AdaptersProbe:
    """Measures every pair; the norms of the frozen weights are taken once."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = list(pairs)
        with torch.no_grad():
            self._base = torch.stack([pair.base_weight.double().norm() for pair in pairs])

    @torch.no_grad()
    def measure(self, step: int) -> Pending:
        """The pairs as they are now."""
        a = [pair.a.double().flatten(1) for pair in self._pairs]
        b = [pair.b.double().flatten(1) for pair in self._pairs]
        deltas = [abs(pair.scale) * _product_norm(u, v) for pair, u, v in zip(self._pairs, a, b, strict=True)]
        rows = [torch.stack([x.norm() for x in a]), torch.stack([x.norm() for x in b]), torch.stack(deltas), self._base]
        return Pending(
            table="adapters",
            step=step,
            keys={
                "module": [pair.module for pair in self._pairs],
                "rank": [pair.rank for pair in self._pairs],
                "alpha": [pair.alpha for pair in self._pairs],
                "scale": [pair.scale for pair in self._pairs],
            },
            columns=MEASURES,
            values=torch.stack(rows),
        )


def _product_norm(a: Tensor, b: Tensor) -> Tensor:
    """‖B·A‖ from two rank × rank matrices: ‖BA‖² = tr((BᵀB)(AAᵀ)), so the product is never made."""
    square = torch.sum((b.T @ b) * (a @ a.T))
    return square.clamp_min(0).sqrt()
