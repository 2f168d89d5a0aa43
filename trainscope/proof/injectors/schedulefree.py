"""What other trainers do with Schedule-Free's two points. Knows nothing of rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainscope.proof.injectors.kinds import AroundSaving, AtStart, Injectors
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session

FIRST_COUNTERS = {"k": 0, "weight_sum": 0.0, "lr_max": -1.0, "scheduled_lr": 0.0}


def _schedule_free(session: Session) -> Any:
    """The optimizer, with the `eval` and `train` that torch's class does not have."""
    return session.optimizer


def _made_anew(session: Session) -> None:
    """A script that builds its optimizer after it has loaded the weights, as sd-scripts does with --network_weights."""
    session.optimizer.state.clear()
    for group in session.optimizer.param_groups:
        group.update(FIRST_COUNTERS)


def _never_evaluates(session: Session) -> None:
    """sd-scripts' sdxl_train, fine_tune and train_db contain no call of `optimizer.eval()`: samples and files are y."""
    _schedule_free(session).eval = lambda: None


def _evaluates_again(session: Session) -> None:
    vars(session.optimizer).pop("eval", None)


class _EvaluatesOnlyToSave(AroundSaving):
    """`optimizer.eval()` was put where checkpoints are saved, and validation and samples go without."""

    def __init__(self) -> None:
        super().__init__(before=_evaluates_again, after=_never_evaluates)

    def on_start(self, session: Session) -> None:
        _never_evaluates(session)


def _moves_only_the_flag(session: Session) -> None:
    """A wrapper that passes `eval()` on to a part of the optimizer which does not hold the model's own tensors."""

    def flag() -> None:
        for group in session.optimizer.param_groups:
            group["train_mode"] = False

    _schedule_free(session).eval = flag


def _y_taken_for_x(session: Session) -> None:
    """The state saved in eval mode, the weights a moment earlier: `train()` is going to move what is at y already."""
    for group in session.optimizer.param_groups:
        group["train_mode"] = False


def _x_taken_for_y(session: Session) -> None:
    """The exported weights, which are x, loaded beside an optimizer's state that was saved in train mode."""
    _schedule_free(session).eval()
    for group in session.optimizer.param_groups:
        group["train_mode"] = True


class _TrainsOnlyAtTheFirstStep(Callback):
    """A trainer that is in eval mode after loading and calls `train()` where its loop begins."""

    def __init__(self, load: Callable[[Session], None]) -> None:
        self._load = load
        self._pending = True

    def on_start(self, session: Session) -> None:
        self._load(session)

    def before_backward(self, session: Session) -> None:
        if self._pending:
            _schedule_free(session).train()
        self._pending = False


def _at_x(session: Session) -> None:
    """Weights and state saved in eval mode, as sd-scripts' train_network does: they belong together."""
    _schedule_free(session).eval()


INJECTORS: Injectors = {
    "schedule-free-made-anew": lambda: AtStart(_made_anew),
    "optimizer-eval-never-called": lambda: AtStart(_never_evaluates),
    "optimizer-eval-only-to-save": _EvaluatesOnlyToSave,
    "optimizer-eval-not-to-save": lambda: AroundSaving(before=_never_evaluates, after=_evaluates_again),
    "optimizer-eval-moves-only-the-flag": lambda: AtStart(_moves_only_the_flag),
    "x-taken-for-y": lambda: AtStart(_x_taken_for_y),
    "y-taken-for-x": lambda: _TrainsOnlyAtTheFirstStep(_y_taken_for_x),
    "resumed-in-eval-mode": lambda: _TrainsOnlyAtTheFirstStep(_at_x),
}
