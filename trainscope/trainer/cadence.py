"""At which steps something is done: probes look (at a fixed distance, or the densest that keeps to the budget), a
checkpoint is saved.

Knows nothing of what the probes measure or a checkpoint holds.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from trainscope.config.model import ProbesSection

if TYPE_CHECKING:
    from trainscope.trainer.session import Session

CALIBRATION_STEPS = 5
"""First steps that are all probed; the very first is slow for other reasons and is not timed."""
LADDER = tuple(digit * 10**power for power, digit in product(range(6), (1, 2, 5)))


class Cadence:
    """`due` says whether to look at a step; `learn` is told what each step cost."""

    def __init__(self, section: ProbesSection, *, last_step: int, settled: int | None = None) -> None:
        """`settled` is what an earlier part of the same run found out."""
        self._budget = section.budget
        self._last_step = last_step
        self._closely_until = 0
        self._costs: list[tuple[float, float, float]] = []
        self.every: int | None = settled if section.every == "auto" else section.every
        """Steps between looks; None while it is being found out."""

    def look_closely(self, *, until: int) -> None:
        """Look at every step up to this one: something happened whose effect is over in a few steps."""
        self._closely_until = until

    def due(self, step: int) -> bool:
        """Whether to look at a step (from 1). The last step always is."""
        if self.every is None or step <= self._closely_until:
            return True
        return step % self.every == 0 or step == self._last_step

    def learn(self, *, step_seconds: float, look_seconds: float, always_seconds: float = 0.0) -> bool:
        """Take a step's cost without probes, that of a look, and that of the probes which look at every step.

        True when that settled the cadence.
        """
        if self.every is not None:
            return False
        self._costs.append((step_seconds, look_seconds, always_seconds))
        if len(self._costs) < CALIBRATION_STEPS:
            return False
        step, look, always = (statistics.median(column) for column in zip(*self._costs[1:], strict=True))
        # What is left of the budget for looks; a tenth of it where the rest alone is too much.
        room = max(self._budget * step - always, self._budget * step / 10)
        self.every = next((n for n in LADDER if look / n <= room), LADDER[-1])
        return True


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
