"""At which steps a checkpoint is saved, and how many of them lie on the disk at once: plain arithmetic.

The plan and the trainer share it. Knows nothing of what a checkpoint holds.
"""

from __future__ import annotations

from dataclasses import dataclass


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
        return self._ends_steps(step) or self._ends_epochs(step)

    @property
    def ahead(self) -> int:
        """How many there are after `step`: counted without going through the steps, of which there may be millions."""
        first, last = self.step, self.last - 1
        if last <= first:
            return 0
        by_steps = last // self.every_steps - first // self.every_steps if self.every_steps else 0
        by_epochs = self._epochs_between(first, last)
        if not by_steps or not by_epochs:
            return by_steps + by_epochs
        if self.every_steps == 1 or by_epochs == last - first:  # every step
            return last - first
        multiples = range((first // self.every_steps + 1) * self.every_steps, last + 1, self.every_steps)
        return by_steps + by_epochs - sum(self._ends_epochs(step) for step in multiples)

    def _ends_steps(self, step: int) -> bool:
        return self.every_steps > 0 and step % self.every_steps == 0

    def _ends_epochs(self, step: int) -> bool:
        return self._epochs_between(step - 1, step) > 0

    def _epochs_between(self, before: int, step: int) -> int:
        """How many of the steps after `before`, up to `step`, end one or more epochs' batches."""
        if not self.every_batches:
            return 0
        if self.accumulation >= self.every_batches:  # each step does
            return step - before
        return self._used(step) // self.every_batches - self._used(before) // self.every_batches

    def _used(self, step: int) -> int:
        return self.micro_step + (step - self.step) * self.accumulation


def kept_at_once(saves: int, keep: int) -> int:
    """How many checkpoints lie on the disk at the most; an old one goes only when the new one is there."""
    return min(saves, keep + 1) if keep else saves
