"""What other trainers do to counters, loss scale and the order of the data when they resume. Knows nothing of rules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import torch
from torch import Tensor

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.data.dataset import TrainingData
from trainscope.trainer.data.order import MicroBatch
from trainscope.trainer.session import Session


class _WithoutSkipping(TrainingData):
    """The epoch under way begins again, while all counters go on: kohya without `--skip_until_initial_step`."""

    def micro_batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[MicroBatch]:
        done = start % self.batches_per_epoch(batch_size)
        for batch in super().micro_batches(batch_size, seed=seed, start=start - done):
            yield replace(batch, position=batch.position + done)


class _Reshuffled(TrainingData):
    """As many batches are skipped as were used, but of another permutation: a sampler whose generator was not saved."""

    def micro_batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[MicroBatch]:
        return super().micro_batches(batch_size, seed=seed + 1, start=start)


class _EpochAbandoned(TrainingData):
    """The epoch counter goes on, and the rest of the epoch under way is never seen."""

    def micro_batches(self, batch_size: int, *, seed: int, start: int = 0) -> Iterator[MicroBatch]:
        left = -start % self.batches_per_epoch(batch_size)
        for batch in super().micro_batches(batch_size, seed=seed, start=start + left):
            yield replace(batch, position=batch.position - left)


def _loads_with(kind: type[TrainingData]) -> AtStart:
    def change(session: Session) -> None:
        session.data = kind(**{field.name: getattr(session.data, field.name) for field in fields(session.data)})

    return AtStart(change)


def _step_begins_anew(session: Session) -> None:
    """After a resume `global_step = 0`, as in kohya: as many steps follow as a whole run has."""
    session.step = 0


def _step_in_micro_batches(session: Session) -> None:
    """A step counter that is restored from a count of batches, under gradient accumulation."""
    session.step = session.micro_step


def _batches_in_steps(session: Session) -> None:
    """A loader that skips as many batches as there were optimizer steps, under gradient accumulation."""
    session.micro_step = session.step


def _fresh_scaler(session: Session) -> None:
    """A GradScaler that nobody saved."""
    session.scaler = torch.amp.GradScaler(session.device.type, enabled=session.scaler.is_enabled())


def _summed_loss(session: Session) -> None:
    """A loss that is summed over a latent and not averaged: clipping hides it, and fp16 overflows sooner."""

    def grow(_module: object, _inputs: object, output: tuple[Tensor, ...]) -> None:
        elements = output[0][0].numel()
        if output[0].requires_grad:
            output[0].register_hook(lambda gradient: gradient * elements)

    session.unet.register_forward_hook(grow)


INJECTORS: Injectors = {
    "epoch-begins-anew": lambda: _loads_with(_WithoutSkipping),
    "epoch-reshuffled": lambda: _loads_with(_Reshuffled),
    "epoch-abandoned": lambda: _loads_with(_EpochAbandoned),
    "step-begins-anew": lambda: AtStart(_step_begins_anew),
    "step-counted-in-micro-batches": lambda: AtStart(_step_in_micro_batches),
    "batches-counted-in-steps": lambda: AtStart(_batches_in_steps),
    "scaler-begins-anew": lambda: AtStart(_fresh_scaler),
    "loss-summed": lambda: AtStart(_summed_loss),
}
