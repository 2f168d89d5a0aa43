"""The `losses` table: the loss by how noisy a sample was, where a mean over all timesteps hides one that fails.

The samples' losses travel as they are and are put into bins on the host, so that a step costs next to nothing. Knows
nothing of how a loss is computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainscope.probes.pending import Part, Pending, join
from trainscope.schema import Record

BINS = 10


class LossesProbe:
    """Call `see` for every micro-batch, and `rows` with all of a step's parts."""

    def __init__(self, timesteps: int) -> None:
        """`timesteps` is how many the model has, whatever part of them is trained."""
        self._timesteps = timesteps

    @torch.no_grad()
    def see(self, timesteps: Tensor, losses: Tensor, weighted: Tensor) -> Part:
        """Each sample's timestep, on the host, its loss and its loss times weight: [n] each."""
        bins = [timestep * BINS // self._timesteps for timestep in timesteps.tolist()]
        return Part({"bin": bins}, torch.stack([losses, weighted]).detach().double())

    def rows(self, step: int, parts: Sequence[Part]) -> Pending:
        """The bins of a step."""
        part = join(parts)
        return Pending("losses", step, part.keys, ("loss", "weighted_loss"), part.values, fold=_by_bin)


def _by_bin(samples: Record) -> Record:
    """Means over the samples of each step's bins, where there are some."""
    found: dict[tuple[int, int], list[tuple[float, float]]] = {}
    columns = samples.columns
    steps, losses = columns["step"].tolist(), (columns["loss"].tolist(), columns["weighted_loss"].tolist())
    for step, number, *values in zip(steps, columns["bin"], *losses, strict=True):
        found.setdefault((step, number), []).append((values[0], values[1]))
    bins = sorted(found)
    means: list[list[Any]] = [
        [sum(values[column] for values in found[place]) / len(found[place]) for place in bins] for column in (0, 1)
    ]
    return Record(
        samples.table,
        {
            "step": [step for step, _ in bins],
            "bin": [number for _, number in bins],
            "count": [len(found[place]) for place in bins],
            "loss": means[0],
            "weighted_loss": means[1],
        },
    )
