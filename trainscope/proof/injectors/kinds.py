"""What injectors are made of. Knows no fault."""

from __future__ import annotations

from collections.abc import Callable

from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session

Injectors = dict[str, Callable[[], Callback]]


class AtStart(Callback):
    """Does something once: when everything is built, and of a resumed run also restored."""

    def __init__(self, change: Callable[[Session], None]) -> None:
        self._change = change

    def on_start(self, session: Session) -> None:
        self._change(session)


class AroundSaving(Callback):
    """Does something right before every save, and something else right after it."""

    def __init__(self, before: Callable[[Session], None], after: Callable[[Session], None]) -> None:
        self._before, self._after = before, after

    def before_save(self, session: Session) -> None:
        self._before(session)

    def after_save(self, session: Session) -> None:
        self._after(session)
