"""At which steps the probes look: at a fixed distance, or at the densest that keeps to the budget.

Knows nothing of what they measure.
"""

from __future__ import annotations

import statistics
from itertools import product
from typing import Literal

CALIBRATION_STEPS = 5
"""First steps that are all probed; the very first is slow for other reasons and is not timed."""
LADDER = tuple(digit * 10**power for power, digit in product(range(6), (1, 2, 5)))


class Cadence:
    """`due` says whether to look at a step; `learn` is told what each step cost."""

    def __init__(
        self, every: Literal["auto"] | int, budget: float, *, last_step: int | None = None, settled: int | None = None
    ) -> None:
        """`budget` is the share of the training time that the probes may take if `every` is auto; `last_step` is None
        where nobody knows; `settled` is what an earlier part of the same run found out.
        """
        self.is_auto = every == "auto"
        self._budget = budget
        self._last_step = last_step
        self._closely_until = 0
        self._costs: list[tuple[float, float, float]] = []
        self.every: int | None = settled if every == "auto" else every
        """Steps between looks; None while it is being found out."""

    def look_closely(self, *, until: int) -> None:
        """Look at every step up to this one: something happened whose effect is over in a few steps."""
        self._closely_until = until

    def due(self, step: int) -> bool:
        """Whether to look at a step (from 1). The last step always is.

        Where nobody knows which that is, auto looks at the powers of two as well: a run that ends before its cadence
        comes round has been seen in its second half all the same.
        """
        if self.every is None or step <= self._closely_until:
            return True
        if self.is_auto and self._last_step is None and step.bit_count() == 1:
            return True
        return step % self.every == 0 or step == self._last_step

    def is_last(self, step: int) -> bool:
        """Whether it is known that no step follows."""
        return step == self._last_step

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
