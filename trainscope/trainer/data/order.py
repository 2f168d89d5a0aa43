"""The order in which training visits the samples: a permutation for each epoch, drawn from (seed, epoch).

A position, counted in micro-batches since the beginning, says everything: a run resumed at a position goes on with
exactly the batches that it would have had. Knows nothing of images, ranks or optimizer steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from trainscope.errors import DataError
from trainscope.trainer.noise import generator


@dataclass(frozen=True)
class MicroBatch:
    """The samples of one forward pass; `position` counts micro-batches since the beginning of the run, from 0."""

    position: int
    epoch: int
    samples: list[int]


def epoch_batches(samples: Sequence[int], batch_size: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Shuffle `samples` by (seed, epoch) and cut them into batches; the last one may be short.

    A sample listed n times in `samples` (repeats) is visited n times. Raises `DataError` when there is none.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    if not samples:
        raise DataError("there is no sample to train on", hint="check data.dir, and that not everything is held out")
    shuffled = torch.randperm(len(samples), generator=generator(seed, "order", epoch)).tolist()
    ordered = [samples[place] for place in shuffled]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


def batches_per_epoch(samples: int, batch_size: int) -> int:
    return -(-samples // batch_size)


def micro_batches(samples: Sequence[int], batch_size: int, *, seed: int, start: int = 0) -> Iterator[MicroBatch]:
    """Yield micro-batches without end, from position `start` on; an epoch is shuffled when it is reached."""
    first, skip = divmod(start, batches_per_epoch(len(samples), batch_size)) if samples else (0, 0)
    position = start
    for epoch in itertools.count(first):
        for batch in epoch_batches(samples, batch_size, seed=seed, epoch=epoch)[skip:]:
            yield MicroBatch(position, epoch, batch)
            position += 1
        skip = 0
