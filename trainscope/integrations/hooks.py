"""Where a step of somebody else's optimizer can be seen: torch's hooks, and methods that are wrapped.

Knows nothing of what is done there.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

Guard = Callable[[Callable[[], Any]], Any]


class StepHooks:
    """Calls `before` and `after` around each step of one optimizer.

    `before` comes when the gradients are there: with a closure, as Lightning and LBFGS have it, after its first call,
    whose result goes to `see_closure`. `guard` calls whatever may fail.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        before: Callable[[], None],
        after: Callable[[], None],
        see_closure: Callable[[Any], None],
        guard: Guard,
    ) -> None:
        self._before, self._after, self._see_closure, self._guard = before, after, see_closure, guard
        self._frame: FrameType | None = None
        """Of the step under way: a class whose step calls that of its base has the hooks called twice."""
        self._waits = False
        self._handles = [
            optimizer.register_step_pre_hook(self._pre),
            optimizer.register_step_post_hook(self._post),
        ]

    @property
    def is_stepping(self) -> bool:
        return self._frame is not None and _is_running(self._frame)

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _pre(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _captured() or (self._frame is not None and _is_running(self._frame)):
            return None
        self._frame = sys._getframe(1)
        closure = kwargs.get("closure") or (args[1] if len(args) > 1 else None)
        self._waits = callable(closure)
        if not self._waits:
            self._guard(self._before)
            return None
        seen = self._seen(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": seen}
        return (args[0], seen, *args[2:]), kwargs

    def _post(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._frame is not sys._getframe(1):
            return
        self._frame = None
        if not self._waits:  # a closure that was never called: nothing was stepped by its gradients
            self._guard(self._after)

    def _seen(self, closure: Any) -> Callable[[], Any]:
        def call() -> Any:
            result = closure()
            if self._waits:
                self._waits = False
                self._guard(lambda: self._see_closure(result))
                self._guard(self._before)
            return result

        return call


def wrapped_method(owner: Any, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Let `around(original, *args, **kwargs)` stand for a class's method; what undoes it.

    Whatever was put there by others since then is left.
    """
    own = vars(owner).get(name)
    original = getattr(owner, name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, call)

    def undo() -> None:
        if vars(owner).get(name) is not call:
            return
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    return undo


def wrapped_call(target: Any, name: str, around: Callable[..., Any]) -> Callable[[], None]:
    """Let `around(call, *args, **kwargs)` stand for a method of one object, where `call` is the method; what undoes it.

    The class is changed, and not the object: a copy of that would call the method of what it is a copy of, and it could
    not be pickled.
    """

    def dispatch(original: Callable[..., Any], called: Any, *args: Any, **kwargs: Any) -> Any:
        if called is not target:
            return original(called, *args, **kwargs)
        return around(functools.partial(original, called), *args, **kwargs)

    return wrapped_method(type(target), name, dispatch)


def _captured() -> bool:
    """Whether a compiler or a CUDA graph is taking down what is called, to do it again without us."""
    if torch.compiler.is_compiling():
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _is_running(frame: FrameType) -> bool:
    """Whether a frame is among those that called us."""
    caller: FrameType | None = sys._getframe(2)
    while caller is not None:
        if caller is frame:
            return True
        caller = caller.f_back
    return False
