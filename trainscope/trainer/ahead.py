"""What the next passes are given, made for several of them at once where that is cheap.

Between two passes of a small model the same few microseconds of Python take five times as long, its caches being full
of the model. Knows nothing of the passes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trainscope.trainer.batch import Batch, load_batch
from trainscope.trainer.data.order import MicroBatch
from trainscope.trainer.noise import Draw

if TYPE_CHECKING:
    from trainscope.trainer.session import Session

AHEAD = 8
"""Micro-batches that are made at once."""


class Ahead:
    """The micro-batches of a training: iterate, and `take` what each of them sees and draws.

    What is made does not depend on when: everything is drawn by position. Where encoders have to work for a visit,
    it is made when its turn comes.
    """

    def __init__(self, session: Session, micro_batches: Iterator[MicroBatch]) -> None:
        self._session = session
        self._source = micro_batches
        self._next: deque[MicroBatch] = deque()
        self._to_make: list[MicroBatch] = []
        self._made: dict[int, tuple[Batch, Draw]] = {}

    def __iter__(self) -> Iterator[MicroBatch]:
        return self

    def __next__(self) -> MicroBatch:
        if not self._next:
            is_cheap = self._session.data.is_kept and not self._session.components.inpainting
            self._next.extend(next(self._source) for _ in range(AHEAD if is_cheap else 1))
            self._to_make.extend(self._next)
        return self._next.popleft()

    def take(self, micro_batch: MicroBatch) -> tuple[Batch, Draw]:
        """What this process's share of a micro-batch sees and draws; the draw is on the host."""
        if micro_batch.position not in self._made:
            self._made.update({one.position: load_and_draw(self._session, one) for one in self._to_make})
            self._to_make.clear()
        return self._made.pop(micro_batch.position)


def load_and_draw(session: Session, micro_batch: MicroBatch) -> tuple[Batch, Draw]:
    """A process with nothing to do in a short batch gets its first sample: it still takes part in averaging."""
    own = session.processes.share(micro_batch.samples) or micro_batch.samples[:1]
    batch = load_batch(session, own, micro_batch.position)
    return batch, session.draws.at(micro_batch.position, batch.samples, batch.latents.shape[1:])
