"""Watch a loop that uses Accelerate: `watch` stands after `accelerator.prepare`.

The loss is that of `accelerator.backward`, a save that of `accelerator.save_state`, the end `accelerator.end_training`
or that of the script. Reads the accelerator's attributes; imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainscope.integrations.attach import attach
from trainscope.integrations.directory import rank
from trainscope.integrations.hooks import wrapped_call
from trainscope.integrations.watch import Watch


def watch(
    accelerator: Any,
    model: Any,
    optimizer: Any,
    scheduler: Any = None,
    ema: Any = None,
    *,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> Watch | None:
    """`trainscope.attach` for objects that `accelerator.prepare` gave, with the same options.

    None in all processes but the first, if no `out` is given.
    """
    if rank() > 0 and options.get("out") is None:
        return None
    accumulation = accelerator.gradient_accumulation_steps
    known = {"train.gradient_accumulation": accumulation, "precision.compute": _precision(accelerator)}
    watching = attach(
        model,
        optimizer,
        ema,
        getattr(scheduler, "scheduler", scheduler),
        scaler=accelerator.scaler,
        config={**known, **(config or {})},
        origin=options.pop("origin", "accelerate"),
        **options,
    )

    def backward(original: Any, loss: Any, **kwargs: Any) -> Any:
        watching.differentiated(loss / accumulation)
        return original(loss, **kwargs)

    def save_state(original: Any, *args: Any, **kwargs: Any) -> Any:
        path = original(*args, **kwargs)
        watching.event("save", path=str(path))
        return path

    def end_training(original: Any, *args: Any, **kwargs: Any) -> Any:
        watching.close("completed")
        return original(*args, **kwargs)

    for name, around in (("backward", backward), ("save_state", save_state), ("end_training", end_training)):
        watching.on_close(wrapped_call(accelerator, name, around))
    return watching


def _precision(accelerator: Any) -> str:
    kind = str(accelerator.mixed_precision)
    return "fp32" if kind == "no" else kind
