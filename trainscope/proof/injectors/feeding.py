"""How other loaders feed a training: slowly, or not with everything. Knows nothing of rules."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.data.dataset import TrainingData
from trainscope.trainer.data.order import MicroBatch
from trainscope.trainer.data.visits import EVALUATION, Visit
from trainscope.trainer.session import Session


class _ShortBatchesDropped(TrainingData):
    """`drop_last=True` in every bucket, as OneTrainer's loader has it: fewer pictures than a batch has are no batch."""

    def micro_batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[MicroBatch]:
        every = super().micro_batches(batch_size, seed=seed)
        whole = (batch for batch in every if len(batch.samples) == batch_size)
        for position, batch in enumerate(itertools.islice(whole, start, None), start):
            yield replace(batch, position=position)


def _short_batches_dropped(session: Session) -> None:
    data = session.data
    session.data = _ShortBatchesDropped(**{field.name: getattr(data, field.name) for field in fields(data)})


class _SlowDisk(Callback):
    """A disk, a network or a decoder that takes as long for a batch as the model does."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._ready = 0.0

    def on_start(self, session: Session) -> None:
        see = session.data.visits

        def visits(numbers: Sequence[int], *, seed: int, position: int) -> list[Visit]:
            if position != EVALUATION:
                time.sleep(self._seconds)
            self._ready = time.perf_counter()
            return see(numbers, seed=seed, position=position)

        vars(session.data)["visits"] = visits

    def after_micro_batch(self, session: Session) -> None:
        self._seconds = time.perf_counter() - self._ready


def _four_pictures(session: Session) -> None:
    """A pattern of file names, or a slice left from a test, that leaves four pictures of all."""
    session.data.train = session.data.train[:4]


INJECTORS: Injectors = {
    "four-pictures-alone": lambda: AtStart(_four_pictures),
    "short-batches-dropped": lambda: AtStart(_short_batches_dropped),
    "slow-disk": _SlowDisk,
}
