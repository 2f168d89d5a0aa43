"""What may look at, or interfere with, a training from outside the loop: progress display, fault injection."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainscope.trainer.session import Session


@dataclass(frozen=True)
class Progress:
    """The newest values that have reached the host; they may be some steps old."""

    step: int
    steps: int
    loss: float
    effective_lr: float
    seconds_per_step: float


class Callback:
    """Called by the loop. Every method does nothing unless overridden."""

    wants_to_stop = False
    """Set it to end the training as a signal would: after the micro-batch that is under way, and with a checkpoint."""

    def on_run(self, run: Path) -> None:
        """The run directory is there; this segment has written nothing to it yet."""

    def on_start(self, session: Session) -> None:
        """Everything is built; nothing has been measured or stepped."""

    def before_backward(self, session: Session) -> None:
        """The step's batches are about to be used."""

    def before_optimizer(self, session: Session) -> None:
        """Gradients are complete, neither unscaled nor clipped."""

    def after_step(self, session: Session) -> None:
        """Optimizer, scheduler and EMA have stepped."""

    def after_micro_batch(self, session: Session) -> None:
        """The gradient of a micro-batch has been added."""

    def before_save(self, session: Session) -> None:
        """A checkpoint is about to be written."""

    def after_save(self, session: Session) -> None:
        """A checkpoint was written."""

    def on_progress(self, progress: Progress) -> None:
        """New values have reached the host."""

    def on_event(self, kind: str, detail: dict[str, Any]) -> None:
        """Something went to the `events` table."""
