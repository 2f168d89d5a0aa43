"""At which steps of a session a checkpoint is saved. Knows nothing of what it holds."""

from __future__ import annotations

from trainscope.config.saves import Saves
from trainscope.trainer.session import Session


def planned_saves(session: Session) -> Saves:
    """When `[checkpoint]` saves, from where the session stands: a resumed training saves where it would have."""
    section, carried = session.config.checkpoint, session.accumulated.count if session.accumulated else 0
    return Saves(
        every_steps=section.every_steps,
        every_batches=section.every_epochs * session.plan.batches_per_epoch,
        accumulation=session.config.train.gradient_accumulation,
        step=session.step,
        micro_step=session.micro_step - carried,
        last=session.plan.steps,
    )
