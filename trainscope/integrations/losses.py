"""The losses of a loop that tells nobody: whatever scalar has its `backward` called.

Knows nothing of optimizers or steps.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trainscope.integrations.hooks import wrapped_method


def see_backward(sink: Callable[[Tensor], None]) -> Callable[[], None]:
    """Give every loss to `sink` right before its `backward`, before a GradScaler scaled it; what undoes it."""
    scaled: tuple[weakref.ref[Tensor], Tensor] | None = None

    def scale(original: Callable[..., Any], scaler: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal scaled
        result = original(scaler, outputs, *args, **kwargs)
        if isinstance(result, Tensor) and isinstance(outputs, Tensor):
            scaled = weakref.ref(result), outputs.detach()
        return result

    def backward(original: Callable[..., Any], loss: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal scaled
        if not torch.compiler.is_compiling() and loss.numel() == 1:
            sink(scaled[1] if scaled is not None and scaled[0]() is loss else loss)
        scaled = None
        return original(loss, *args, **kwargs)

    undo = [
        wrapped_method(torch.Tensor, "backward", backward),
        wrapped_method(torch.amp.GradScaler, "scale", scale),
    ]

    def undo_all() -> None:
        for one in undo:
            one()

    return undo_all
