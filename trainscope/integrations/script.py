"""`trainscope exec`, within the script's processes: sees its optimizers step, and watches the first of them.

`prepare` is called before the script begins and must not import torch; what needs it is imported by `Script`, once the
script has imported it. Knows nothing of how the script was started.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from trainscope.integrations.imports import when_imported

if TYPE_CHECKING:
    from torch import Tensor

    from trainscope.integrations.averages import Average
    from trainscope.integrations.watch import Watch

VARIABLE = "TRAINSCOPE_EXEC"
"""The variable of the environment that has the settings, as JSON."""
RUNS = 100
"""Runs that one command may leave, each of another process."""


@dataclass(frozen=True)
class Settings:
    """What `trainscope exec` was asked for. `out` is the run directory to make."""

    out: str
    name: str
    every: str | int = "auto"
    budget: float = 0.02
    memory_mb: int = 1024

    def as_variable(self) -> str:
        return json.dumps(asdict(self))

    def directory(self, number: int) -> str:
        """Of the n-th process that trains by itself, from 1."""
        return self.out if number == 1 else f"{self.out}-{number}"


def prepare(environment: Mapping[str, str]) -> None:
    """Wait for torch to be imported."""
    if VARIABLE in environment:
        script = Script(Settings(**json.loads(environment[VARIABLE])))
        when_imported("torch", lambda: script.guard(script.with_torch))


class Script:
    """A process of the script. The optimizer that steps first is watched; of others it is told that they are there."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._watch: Watch | None = None
        self._ended = False
        self._losses: list[Tensor] = []
        self._averages: dict[int, Average | None] = {}
        self._models: dict[str, Any] = {}
        self._others: set[int] = set()

    def guard(self, do: Callable[[], Any]) -> Any:
        """What `do` returns; what fails is told, and there is no recording from here on."""
        try:
            return do()
        except Exception as error:
            self._ended = True
            hint = getattr(error, "hint", None)
            message = f"nothing is recorded: {type(error).__name__}: {error}" + (f"; {hint}" if hint else "")
            print(f"trainscope: {message}", file=sys.stderr, flush=True)
            return None

    def with_torch(self) -> None:
        """Right after torch was imported: see what can be seen of any training."""
        import torch
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        from trainscope.integrations.hooks import wrapped_method
        from trainscope.integrations.losses import see_backward

        register_optimizer_step_pre_hook(self._before_step)
        register_optimizer_step_post_hook(self._after_step)
        see_backward(self._see_loss)
        wrapped_method(torch.amp.GradScaler, "step", self._scaler_step)

    # ---- what is seen

    def _before_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self._watch is None and not self._ended and not _compiling():
            self.guard(lambda: self._begin(optimizer))

    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        watch = self._watch
        if watch is None or optimizer is watch.optimizer or watch.is_stepping or _compiling():
            return
        watch.forget_losses()
        if id(optimizer) not in self._others:
            self._others.add(id(optimizer))
            kind = type(optimizer).__name__
            watch.event("warning", message=f"another optimizer steps as well ({kind}); the first to step is recorded")

    def _see_loss(self, loss: Tensor) -> None:
        if self._watch is not None:
            self._watch.differentiated(loss)
        elif not self._ended and len(self._losses) < 10_000:
            self._losses.append(loss.detach().clone())

    def _scaler_step(self, original: Any, scaler: Any, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        # Before the scaler decides to skip the very first step.
        if self._watch is None and not self._ended and scaler.is_enabled():
            self.guard(lambda: self._begin(optimizer))
        watch = self._watch
        if watch is None or not scaler.is_enabled():
            return original(scaler, optimizer, *args, **kwargs)
        watch.see_scaler(scaler)
        return watch.around_scaler(lambda: original(scaler, optimizer, *args, **kwargs), optimizer)

    # ---- the beginning

    def _begin(self, optimizer: Any) -> None:
        from trainscope.integrations.found import average_classes, look_around
        from trainscope.integrations.hooks import wrapped_method

        found = look_around(optimizer)
        watch = self._attach(optimizer, found.models, found.scheduler)
        self._watch = watch
        losses, self._losses = self._losses, []
        for loss in losses:
            watch.differentiated(loss)
        for keeper in found.averages:
            self._add_average(keeper, late=False)

        def see_updates() -> None:
            for kind in average_classes():
                name = "update_parameters" if hasattr(kind, "update_parameters") else "step"
                if kind not in wrapped:
                    wrapped.add(kind)
                    wrapped_method(kind, name, self._average_update)

        wrapped: set[type] = set()
        see_updates()
        when_imported("diffusers.training_utils", lambda: self.guard(see_updates))

    def _attach(self, optimizer: Any, models: list[Any], scheduler: object | None) -> Watch:
        """A command may start several trainings: each process makes its own run. Ranks of one share theirs."""
        from trainscope.integrations.attach import attach
        from trainscope.integrations.directory import rank
        from trainscope.integrations.parameters import by_component

        self._models = by_component(models)
        settings = self._settings
        number = 1
        if rank() == 0:
            taken = [os.path.exists(settings.directory(n)) for n in range(1, RUNS)]  # noqa: PTH110
            number = 1 + taken.index(False)
        return attach(
            self._models,
            optimizer,
            scheduler=scheduler,
            out=settings.directory(number),
            name=settings.name,
            every=settings.every,  # type: ignore[arg-type]
            budget=settings.budget,
            memory_mb=settings.memory_mb,
            origin="exec",
        )

    # ---- averages

    def _add_average(self, keeper: Any, *, late: bool) -> Average | None:
        """Record an average, if it is one of what is trained."""
        from trainscope.integrations.attach import averaged_tensors
        from trainscope.integrations.averages import Average

        watch = self._watch
        assert watch is not None  # noqa: S101
        try:
            average = Average.of(keeper)
            tensors = averaged_tensors(average, self._models, watch.trained)
            known = watch.add_average(average, tensors, late=late, told=False) if tensors else False
        except Exception as error:  # the rest is recorded all the same
            watch.event("warning", message=f"an average (EMA) is not recorded: {error}")
            known = False
        self._averages[id(keeper)] = average if known else None
        return self._averages[id(keeper)]

    def _average_update(self, original: Any, keeper: Any, *args: Any, **kwargs: Any) -> Any:
        watch = self._watch
        assert watch is not None  # noqa: S101  wrapped when it was made
        if id(keeper) not in self._averages:
            self._add_average(keeper, late=True)
        average = self._averages[id(keeper)]
        if average is None:
            return original(keeper, *args, **kwargs)
        return watch.around_average(average, partial(original, keeper), args, kwargs)


def _compiling() -> bool:
    import torch

    return bool(torch.compiler.is_compiling())
