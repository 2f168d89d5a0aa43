"""At which steps a checkpoint is saved. Knows nothing of what it holds."""

from __future__ import annotations

from dataclasses import dataclass

from trainscope.trainer.session import Session


@dataclass(frozen=True)
class Saves:
    """The steps, before the last, at which a checkpoint is saved; `step` and `micro_step` are where counting begins."""

    every_steps: int
    """0: steps do not count."""
    every_batches: int
    """Micro-batches of so many epochs; the first step that ends with or after them saves. 0: epochs do not count."""
    accumulation: int
    step: int
    micro_step: int
    last: int

    def __contains__(self, step: int) -> bool:
        if not self.step <= step < self.last or step == 0:
            return False
        if self.every_steps and step % self.every_steps == 0:
            return True
        used = self.micro_step + (step - self.step) * self.accumulation
        before = used - self.accumulation
        return self.every_batches > 0 and used // self.every_batches > before // self.every_batches

    @property
    def ahead(self) -> int:
        """How many there are after `step`."""
        return sum(step in self for step in range(self.step + 1, self.last))


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
