"""Calls that a training loop leaves out, makes too often, or whose results it never lets go. Knows nothing of rules."""

from __future__ import annotations

from torch import Tensor, nn

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session


class _ClearedEvery(Callback):
    """`zero_grad()` only where an epoch of so many steps begins; None: nowhere."""

    def __init__(self, steps: int | None) -> None:
        self._steps = steps

    def on_start(self, session: Session) -> None:
        clear = session.optimizer.zero_grad

        def zero_grad(set_to_none: bool = True) -> None:
            if self._steps is not None and (session.step + 1) % self._steps == 0:
                clear(set_to_none=set_to_none)

        vars(session.optimizer)["zero_grad"] = zero_grad


def _cleared_to_zeros(session: Session) -> None:
    """`zero_grad(set_to_none=False)`: the gradients stay where they are, and hold zeros. No fault."""
    clear = session.optimizer.zero_grad
    vars(session.optimizer)["zero_grad"] = lambda set_to_none=True: clear(set_to_none=False)


class _ScheduleStepsMore(Callback):
    """accelerate's schedule steps once for each of two processes, or beside the loop's own call for every batch."""

    def after_micro_batch(self, session: Session) -> None:
        session.scheduler.step()


def _schedule_stands(session: Session) -> None:
    """`scheduler.step()` was forgotten, or is called on a schedule of another optimizer."""
    vars(session.scheduler)["step"] = lambda epoch=None: None


class _OutputsKept(Callback):
    """A hook that records what every layer gives, for a look at it that nobody takes."""

    def __init__(self) -> None:
        self._kept: list[Tensor] = []

    def on_start(self, session: Session) -> None:
        for module in session.unet.modules():
            module.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.requires_grad:
            self._kept.append(output.clone())


INJECTORS: Injectors = {
    "gradients-never-cleared": lambda: _ClearedEvery(None),
    "gradients-cleared-once-an-epoch": lambda: _ClearedEvery(7),
    "gradients-cleared-to-zeros": lambda: AtStart(_cleared_to_zeros),
    "schedule-steps-for-two": _ScheduleStepsMore,
    "schedule-never-steps": lambda: AtStart(_schedule_stands),
    "outputs-kept": _OutputsKept,
}
