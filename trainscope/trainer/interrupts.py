"""Signals, and others who may ask, that end a training in order. Knows nothing of what is training."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupt:
    """True once the training is to stop, after the micro-batch that is under way."""

    def __init__(self, asked: Callable[[], bool]) -> None:
        self.signals: list[int] = []
        self._asked = asked

    def __bool__(self) -> bool:
        return bool(self.signals) or self._asked()


@contextmanager
def interrupts(asked: Callable[[], bool] = lambda: False) -> Iterator[Interrupt]:
    """Within it SIGINT, SIGTERM and SIGHUP only ask for a stop, as `asked` may; a second SIGINT stops at once."""
    seen = Interrupt(asked)

    def handle(number: int, _frame: Any) -> None:
        seen.signals.append(number)
        if number == signal.SIGINT and len(seen.signals) > 1:
            raise KeyboardInterrupt

    before = {}
    for number in STOPPING:
        if signal.getsignal(number) == signal.SIG_IGN and number != signal.SIGINT:
            continue  # nohup: whoever started this wants it to live on
        try:
            before[number] = signal.signal(number, handle)
        except ValueError:  # not the main thread: somebody else handles signals
            break
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
