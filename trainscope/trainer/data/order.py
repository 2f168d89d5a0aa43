"""The order in which training visits the samples: drawn anew for each epoch, from (seed, epoch).

A position, counted in micro-batches since the beginning, says everything: a run resumed at a position goes on with
exactly the batches that it would have had. Knows nothing of images, ranks or optimizer steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from trainscope.config.buckets import batches_per_epoch
from trainscope.errors import DataError
from trainscope.trainer.noise import generator

REPEAT = 1 << 32
"""The distance between the visits of a sample within an epoch. A batch may have several of them, and what is drawn
for each is named by the visit: the sample plus so many times this."""


@dataclass(frozen=True)
class MicroBatch:
    """The visits of one forward pass; `position` counts micro-batches since the beginning of the run, from 0.

    A visit is the number of a sample, and from its second visit in an epoch on also says which one: `sample_of`.
    """

    position: int
    epoch: int
    samples: list[int]


def sample_of(visit: int) -> int:
    """The sample that is visited."""
    return visit % REPEAT


def epoch_batches(
    groups: Sequence[Sequence[int]], batch_size: int, *, seed: int, epoch: int, repeats: int = 1
) -> list[list[int]]:
    """The batches of an epoch, drawn from (seed, epoch); `groups` are the samples of each bucket.

    All visits are shuffled and dealt out to their buckets, each bucket is cut into batches, of which its last may be
    short, and with several buckets the batches are shuffled. Raises `DataError` when there is no sample.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, found {batch_size}")
    visits = [
        (group, sample + repeat * REPEAT)
        for repeat in range(repeats)
        for group, samples in enumerate(groups)
        for sample in samples
    ]
    if not visits:
        raise DataError("there is no sample to train on", hint="check data.dir, and that not everything is held out")
    dealt: list[list[int]] = [[] for _ in groups]
    for place in torch.randperm(len(visits), generator=generator(seed, "order", epoch)).tolist():
        group, visit = visits[place]
        dealt[group].append(visit)
    batches = [group[start : start + batch_size] for group in dealt for start in range(0, len(group), batch_size)]
    if len(groups) == 1:
        return batches
    places = torch.randperm(len(batches), generator=generator(seed, "order of batches", epoch)).tolist()
    return [batches[place] for place in places]


def micro_batches(
    groups: Sequence[Sequence[int]], batch_size: int, *, seed: int, start: int = 0, repeats: int = 1
) -> Iterator[MicroBatch]:
    """Yield micro-batches without end, from position `start` on; an epoch is shuffled when it is reached."""
    each = batches_per_epoch(map(len, groups), batch_size, repeats=repeats)
    first, skip = divmod(start, each) if each else (0, 0)
    position = start
    for epoch in itertools.count(first):
        for batch in epoch_batches(groups, batch_size, seed=seed, epoch=epoch, repeats=repeats)[skip:]:
            yield MicroBatch(position, epoch, batch)
            position += 1
        skip = 0
