"""The probes of an optimizer step, on any training loop: which of them look at which step.

Knows nothing of models, data or losses, nor of who calls it.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainscope.probes.adapters import AdaptersProbe, Pair
from trainscope.probes.ema import EmaProbe
from trainscope.probes.groups import GroupsProbe
from trainscope.probes.pending import Pending
from trainscope.probes.state import StateProbe
from trainscope.probes.tensors import TensorsProbe
from trainscope.recording.cadence import Cadence
from trainscope.recording.probelog import ProbeLog
from trainscope.recording.resident import resident_memory

T = TypeVar("T")
DRAIN_STEPS = 10
"""Steps whose values stay on the device before they are brought over at once."""
STATE_LOOKS = tuple(accumulate(repeat(0, 55), lambda step, _: step + max(1, step // 2), initial=1))
"""From these steps on the optimizer's state is due; there are 24 of them in ten thousand steps."""


class StepRecorder:
    """What an optimizer step does to the trained tensors, their average and their adapters.

    Call `before_step` and `after_step` around the optimizer's step, `around_ema` around an update of the average, and
    `step_done` when all of it is over. Steps are counted from 1.
    """

    def __init__(
        self,
        log: ProbeLog,
        cadence: Cadence,
        optimizer: torch.optim.Optimizer,
        *,
        unrecorded: Mapping[str, str],
        is_main: bool = True,
    ) -> None:
        """`unrecorded` says why a table is not to be recorded; without `tensors` there is no `state` either."""
        if "tensors" in unrecorded:
            unrecorded = {"state": unrecorded["tensors"], **unrecorded}
        self.log = log
        self.cadence = cadence
        self._optimizer = optimizer
        self._unrecorded = unrecorded
        self._is_main = is_main
        self._resident = resident_memory()
        self._groups: GroupsProbe | None = None
        self._tensors: TensorsProbe | None = None
        self._state: StateProbe | None = None
        self._ema: EmaProbe | None = None
        self._adapters: AdaptersProbe | None = None
        for table, reason in unrecorded.items():
            log.absent(table, None, reason)

    def watch_tensors(self, params: Mapping[str, Tensor], *, memory_bytes: int) -> None:
        """Call while the weights are those that the run began from: what is measured is measured from there."""
        probe = self._make("tensors", lambda: TensorsProbe(params, self._optimizer, memory_bytes=memory_bytes))
        self._tensors = probe
        self._state = self._make("state", lambda: StateProbe(params, self._optimizer))

    def watch_groups(self, scheduler: object | None) -> None:
        if self._is_main:
            self._groups = self.log.attempt("groups", lambda: GroupsProbe(self._optimizer, scheduler))

    def watch_ema(self, params: Mapping[str, Tensor], device: torch.device | None) -> None:
        """`device` is where the average lies."""
        self._ema = self._make("ema", lambda: EmaProbe(params, device))

    def watch_adapters(self, pairs: Sequence[Pair]) -> None:
        self._adapters = self._make("adapters", lambda: AdaptersProbe(pairs))

    def tell_coverage(self) -> None:
        """Say which columns this optimizer gives nothing for."""
        if self._tensors:
            for column, reason in self._tensors.reasons.items():
                self.log.absent("tensors", column, reason)

    def due(self, table: str, step: int) -> bool:
        return table not in self.log.failed and self.cadence.due(step)

    def before_step(self, step: int) -> None:
        """Right before the optimizer's step, gradients unscaled and clipped."""
        if self._groups:
            self.log.attempt("groups", self._groups.before_step)
        if self._tensors and self.due("tensors", step):
            self._letting_go("tensors", self._tensors.before_step)

    def after_step(self, step: int) -> None:
        """Right after the optimizer's step."""
        probe = self._tensors
        if probe and self.due("tensors", step):
            self.log.add(self._letting_go("tensors", lambda: probe.after_step(step)))
        state = self._state
        if state and self._state_is_due(step):
            self.log.add(self._letting_go("state", lambda: state.measure(step)))
            if reason := state.news():
                self.log.absent("state", "norm", reason)

    def _state_is_due(self, step: int) -> bool:
        """State changes slowly, and there may be twice as much of it as of weights: it is looked at seldom.

        That is at the first look, at each that is later by about a half, and at the last step, whatever part of the run
        it is. Where there is a budget, not before ten looks have gone by, which are what it was reckoned from.
        """
        every = self.cadence.every
        if every is None or not self.due("state", step):
            return False
        mark = STATE_LOOKS[bisect_right(STATE_LOOKS, step) - 1]
        is_early = self.cadence.is_auto and step < 10 * every
        return self.cadence.is_last(step) or (step % every == 0 and mark > step - every and not is_early)

    @contextmanager
    def around_ema(
        self, step: int, shadows: Callable[[], Sequence[Tensor]], decay: Callable[[], float]
    ) -> Iterator[None]:
        """Around an update of the average; both are asked on the spot, since a library may replace its tensors."""
        probe = self._ema
        if probe is None or not self.due("ema", step):
            yield
            return
        self._letting_go("ema", lambda: probe.before_update(shadows()))
        yield
        if "ema" not in self.log.failed:
            self.log.add(self._letting_go("ema", lambda: probe.after_update(step, shadows(), decay())))

    def step_done(self, step: int, values: dict[str, Tensor], known: dict[str, Any]) -> None:
        """Record a step that is over: `values` are scalars on the device, if any; `known` is on the host already.

        `known["seconds"]` are those of the step so far; recording is part of the step, and is added.
        """
        log, started = self.log, time.perf_counter()
        adapters, groups = self._adapters, self._groups
        if adapters and self.due("adapters", step):
            log.add(self._letting_go("adapters", lambda: adapters.measure(step)))
        if groups:
            found = log.attempt("groups", groups.after_step)
            if found is not None:
                log.later("groups", partial(groups.rows, step, found))
        spent, log.spent = log.spent, defaultdict(float)
        probe_seconds = sum(spent.values())
        seconds = known["seconds"] + log.late_seconds + time.perf_counter() - started
        log.late_seconds = 0.0
        known = {
            **known,
            "time": time.time(),
            "seconds": seconds,
            "probe_seconds": probe_seconds,
            "rss_bytes": self._resident(),
        }
        log.later("steps", partial(_row, step, values, known))
        always = spent["groups"] + spent["losses"]
        if self.cadence.learn(
            step_seconds=seconds - probe_seconds, look_seconds=probe_seconds - always, always_seconds=always
        ):
            log.settles = False
            log.event("probe_cadence", every=self.cadence.every)
        # While the cadence is being found, a look's cost must be known with that of bringing its values over.
        if step % DRAIN_STEPS == 0 or self.cadence.every is None:
            log.drain()

    def _make(self, table: str, make: Callable[[], T]) -> T | None:
        if not self._is_main or table in self._unrecorded:
            return None
        probe = self.log.attempt(table, make)
        self.log.spent.clear()  # making it is no step's work
        return probe

    def _letting_go(self, table: str, do: Callable[[], T]) -> T | None:
        """The copies that a failing probe keeps may be the memory that was missing: it is let go."""
        result = self.log.attempt(table, do)
        if table in self.log.failed:
            setattr(self, f"_{table}", None)
        return result


def _row(step: int, values: dict[str, Tensor], known: dict[str, Any]) -> Pending | list[dict[str, Any]]:
    """Of `steps`."""
    if not values:
        return [{"step": step, **known}]
    there = torch.stack([value.detach().double() for value in values.values()]).unsqueeze(1)
    return Pending("steps", step, {name: [value] for name, value in known.items()}, tuple(values), there)
