"""Updates of an average (EMA) that somebody else does, looked at while they are done.

Knows nothing of optimizers, nor of how the update was noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from trainscope.integrations.averages import Average
from trainscope.integrations.directory import WatchedRun
from trainscope.integrations.observed import average_keys
from trainscope.recording.steps import StepRecorder

Guard = Callable[[Callable[[], Any]], Any]


class Averaging:
    """The one average that is recorded, if there is any."""

    def __init__(self, recorder: StepRecorder, run: WatchedRun, guard: Guard) -> None:
        self._recorder, self._log, self._run, self._guard = recorder, recorder.log, run, guard
        self._keeper: object | None = None
        self._names: Mapping[str, Tensor] = {}
        self._first_steps: list[int] = []
        """Of the first two updates."""

    def __bool__(self) -> bool:
        return self._keeper is not None

    def add(self, average: Average, params: Mapping[str, Tensor], *, late: bool, told: bool) -> bool:
        """`params` are the tensors that are averaged, by name. False: another average is recorded already.

        A `late` one is first seen when the weights have moved already. `told`: the configuration knows of it.
        """
        if self._keeper is not None:
            self._log.event("warning", message="of several averages (EMA) the first is recorded")
            return False
        self._keeper, self._names = average.keeper, dict(params)
        self._recorder.watch_ema(self._names, average.shadows()[0].device)
        if late:
            self._log.absent("ema", "distance_from_start", "measured from where the average was first updated")
        if not told:
            self._run.add_keys(average_keys(average))
        return True

    def around(self, step: int, average: Average, listed: Sequence[Tensor], update: Callable[[], Any]) -> Any:
        """Do an update from the tensors that are listed, and measure what it does."""
        if average.keeper is not self._keeper:
            return update()
        places = {id(tensor): index for index, tensor in enumerate(listed)}
        chosen = [places[id(tensor)] for tensor in self._names.values() if id(tensor) in places]
        if len(chosen) < len(self._names):
            self._guard(self._updated_from_others)
            return update()

        def shadows() -> list[Tensor]:
            everything = average.shadows()
            return [everything[index] for index in chosen]

        self._guard(lambda: self._note(step))
        looking = self._recorder.around_ema(step, shadows, average.decay)
        if self._guard(lambda: looking.__enter__() or True) is None:
            return update()
        done = update()
        self._guard(lambda: looking.__exit__(None, None, None))
        return done

    def _note(self, step: int) -> None:
        """How often it is updated shows at the second update."""
        if len(self._first_steps) < 2 and step not in self._first_steps:
            self._first_steps.append(step)
            if len(self._first_steps) == 2:
                self._run.add_keys({"ema.every": self._first_steps[1] - self._first_steps[0]})

    def _updated_from_others(self) -> None:
        if "ema" not in self._log.failed:
            self._log.failed.add("ema")
            self._log.absent("ema", None, "the average is updated from other tensors than the trained ones")
