"""One training that is watched: from the optimizer's hooks to the run directory.

Changes no bit of the training and never stops it: what fails here is told once, and done without. Knows nothing of who
owns the loop, nor of where its objects come from.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainscope.integrations.absent import tell_at_end, tell_at_start
from trainscope.integrations.averages import Average
from trainscope.integrations.averaging import Averaging
from trainscope.integrations.directory import WatchedRun
from trainscope.integrations.hooks import StepHooks, wrapped_call
from trainscope.integrations.lora import LayerPair
from trainscope.integrations.tally import Tally
from trainscope.probes.params import ParamsProbe
from trainscope.recording.cadence import Cadence
from trainscope.recording.probelog import ProbeLog
from trainscope.recording.steps import StepRecorder


class Watch:
    """A run that is being recorded. `close` it, or use it as a context manager; else it ends with the interpreter."""

    def __init__(
        self,
        run: WatchedRun,
        optimizer: torch.optim.Optimizer,
        cadence: Cadence,
        *,
        unrecorded: Mapping[str, str],
        spread: str = "",
        start_step: int = 0,
    ) -> None:
        """`spread` says why no process has all of the weights, if none has."""
        self.optimizer = optimizer
        self.steps = start_step
        """Steps done, from the beginning of the run; those that a GradScaler skipped are among them."""
        self.trained: dict[str, Tensor] = {}
        """The tensors that are looked at, by name."""
        self._run = run
        self._pid = os.getpid()
        self._closed = False
        self._done = 0
        self._spread = spread
        self._scaler: Any = None
        self._norm: Tensor | None = None
        self._device: torch.device = optimizer.param_groups[0]["params"][0].device
        self._tally = Tally(self._device)
        self._log = ProbeLog(
            run.writer, self._device, step=lambda: self.steps, is_main=run.is_main, on_event=self._tell_event
        )
        self._log.settles = cadence.every is None
        self._recorder = StepRecorder(self._log, cadence, optimizer, unrecorded=unrecorded, is_main=run.is_main)
        self._averaging = Averaging(self._recorder, run, self._guard)
        self._hooks = StepHooks(optimizer, self._before_step, self._after_step, self._see_closure, self._guard)
        self._undo: list[Callable[[], None]] = [self._hooks.remove]
        self._mark = self._stepping = time.perf_counter()

    # ---- what is watched

    def begin(
        self,
        models: Mapping[str, nn.Module],
        requested: Mapping[str, Tensor],
        trained: Mapping[str, Tensor],
        pairs: Sequence[LayerPair],
        scheduler: object | None,
        *,
        memory_bytes: int,
    ) -> None:
        """Call once, while the weights are those that the run began from."""
        log, recorder = self._log, self._recorder
        self.trained = dict(trained)
        if self._run.is_main:
            probe = log.attempt("params", lambda: ParamsProbe(requested))
            if probe is not None:
                log.add(log.attempt("params", lambda: probe.measure(models, self.optimizer)))
        recorder.watch_tensors(trained, memory_bytes=memory_bytes)
        if pairs:
            recorder.watch_adapters(pairs)
        recorder.watch_groups(scheduler)
        recorder.tell_coverage()
        tell_at_start(log, self._device, self._spread)
        log.flush()  # a run that is killed is known by then

    def add_average(
        self, average: Average, params: Mapping[str, Tensor], *, late: bool = False, told: bool = True
    ) -> bool:
        """As `Averaging.add`."""
        return self._averaging.add(average, params, late=late, told=told)

    def around_average(
        self, average: Average, update: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Do an update of an average, as it was called, and look at it."""
        given = [*args, *kwargs.values()]  # the first is the model or its parameters, by whatever name
        found = self._guard(lambda: average.given(given[0])) if self._listens() and given else None
        if found is None:
            return update(*args, **kwargs)
        readable, listed = found
        if args:
            args = (readable, *args[1:])
        else:
            kwargs = {**kwargs, next(iter(kwargs)): readable}
        return self._averaging.around(self.steps, average, listed, lambda: update(*args, **kwargs))

    def watch_scaler(self, scaler: Any) -> None:
        """Steps that this GradScaler skips are steps as well."""
        self.see_scaler(scaler)

        def step(original: Callable[..., Any], optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            return self.around_scaler(lambda: original(optimizer, *args, **kwargs), optimizer)

        self.on_close(wrapped_call(scaler, "step", step))

    def see_scaler(self, scaler: Any) -> None:
        """From here on, `skipped` and `loss_scale` are known."""
        self._scaler = scaler

    def around_scaler(self, step: Callable[[], Any], optimizer: Any) -> Any:
        """Do a GradScaler's step, and see whether it skipped the optimizer's."""
        before = self._done
        result = step()
        if self._listens() and optimizer is self.optimizer and self._done == before:
            self._guard(self._skipped)
        return result

    @property
    def is_stepping(self) -> bool:
        """Within a step of the optimizer, which may step others."""
        return self._hooks.is_stepping

    # ---- what the loop tells

    def loss(self, loss: Tensor | float, *, samples: int | None = None) -> None:
        """The loss of a micro-batch; that of the step is their mean. Call it before the optimizer's step."""
        if self._listens():
            self._guard(lambda: self._tally.tell(loss, samples))

    def differentiated(self, loss: Tensor | float) -> None:
        """A loss whose `backward` is called; that of the step is their sum, unless `loss` tells better."""
        if self._listens():
            self._guard(lambda: self._tally.differentiate(loss))

    def forget_losses(self) -> None:
        """They were another optimizer's."""
        self._tally.forget()

    def eval(self, loss: float, *, split: str = "validation", weights: str = "raw", draws: int | None = None) -> None:
        """The loss on held-out samples. It says something where samples, noise and timesteps are always the same."""
        if self._listens():
            row = {"split": split, "weights": weights, "loss": float(loss), "draws": draws}
            self._guard(lambda: self._log.add_row("evals", step=self.steps, **row))

    def event(self, kind: str, **detail: Any) -> None:
        """Something happened: save, warning …"""
        if self._listens():
            self._guard(lambda: self._log.event(kind, **detail))

    # ---- the end

    @property
    def path(self) -> str:
        """The run directory."""
        return str(self._run.directory.path)

    def close(self, status: str | None = None) -> None:
        """Everything is written, the hooks are gone. `status` is completed, crashed or interrupted."""
        if not self._listens():
            return
        self._closed = True
        for undo in reversed(self._undo):
            self._guard(undo)
        self._guard(self._tell_end)
        self._guard(self._log.flush)
        self._guard(lambda: self._run.finish(status or _how_it_ends(), self.steps))

    def on_close(self, undo: Callable[[], None]) -> None:
        """Call this at the end."""
        self._undo.append(undo)

    def crashed(self, error: BaseException) -> None:
        """The loop ended with an exception."""
        if isinstance(error, KeyboardInterrupt):
            self.close("interrupted")
        elif isinstance(error, Exception) or getattr(
            error, "code", None
        ):  # `sys.exit()` and `sys.exit(0)` are no crash
            self.event("crash", error=type(error).__name__, message=str(error)[:500])
            self.close("crashed")
        else:
            self.close("completed")

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.crashed(error)
        else:
            self.close("completed")

    # ---- a step

    def _before_step(self) -> None:
        if not self._listens():
            return
        step = self.steps + 1
        fused = isinstance(getattr(self.optimizer, "grad_scale", None), Tensor)
        if fused and "tensors" not in self._log.failed:
            self._log.failed.add("tensors")
            self._log.absent("tensors", None, "a fused step unscales its gradients where nobody sees them")
        looks = not fused and not self._spread and self._recorder.due("tensors", step)
        self._norm = self._log.attempt("steps", self._grad_norm) if looks else None
        self._recorder.before_step(step)
        self._stepping = time.perf_counter()

    def _after_step(self) -> None:
        if not self._listens():
            return
        seconds = time.perf_counter() - self._stepping
        self._recorder.after_step(self.steps + 1)
        self.steps += 1
        self._done += 1
        measured = {} if self._norm is None else {"grad_norm": self._norm}
        self._step_done(measured, {"optimizer_seconds": seconds}, skipped=False)

    def _skipped(self) -> None:
        self.steps += 1
        self._step_done({}, {}, skipped=True)

    def _step_done(self, measured: dict[str, Tensor], known: dict[str, Any], *, skipped: bool) -> None:
        losses, told = self._tally.take()
        measured |= losses
        known |= {"optimizer_steps": self._done, **told}
        if self._device.type == "cuda":
            known["memory_bytes"] = torch.cuda.max_memory_allocated(self._device)
        if self._scaler is not None:
            known["skipped"] = skipped
            scale = getattr(self._scaler, "_scale", None)
            if isinstance(scale, Tensor):  # asked for as a number, it would have to be waited for
                measured["loss_scale"] = scale.detach().to(self._device, copy=True)
        known["seconds"] = time.perf_counter() - self._mark
        self._recorder.step_done(self.steps, measured, known)
        self._mark = time.perf_counter()

    @torch.no_grad()
    def _grad_norm(self) -> Tensor | None:
        grads = [tensor.grad for tensor in self.trained.values() if tensor.grad is not None]
        if not grads:
            return None
        norms = torch._foreach_norm(grads, 2, dtype=torch.float32)
        whole: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(self._device) for norm in norms]).double())
        return whole

    def _see_closure(self, result: Any) -> None:
        """The loss that a closure returns, where nobody told another."""
        if isinstance(result, Tensor | float) and not self._tally:
            self._tally.differentiate(result)

    # ---- telling

    def _tell_end(self) -> None:
        had = self._tally
        tell_at_end(
            self._log,
            scaler=self._scaler is not None,
            average=bool(self._averaging),
            losses=had.had_losses,
            samples=had.had_samples,
        )

    def _tell_event(self, kind: str, detail: dict[str, Any]) -> None:
        if kind in ("probe_failed", "log_failed"):
            say(f"{detail.get('table', 'the log')}: {detail.get('reason') or detail.get('message')}")

    def _listens(self) -> bool:
        """Not after the end, and not in a process that was forked, as DataLoader's workers are."""
        return not self._closed and os.getpid() == self._pid

    def _guard(self, do: Callable[[], Any]) -> Any:
        """What `do` returns. If it fails, recording ends here and the training goes on."""
        try:
            return do()
        except Exception as error:
            say(f"recording ends at step {self.steps}: {type(error).__name__}: {error}")
            self.close("crashed")
            return None


def say(message: str) -> None:
    """A line for whoever reads the training's console; standard output is the script's own."""
    print(f"trainscope: {message}", file=sys.stderr, flush=True)


def _how_it_ends() -> str:
    """How the interpreter ends: it remembers an exception that nobody caught."""
    error = getattr(sys, "last_value", None)
    if error is None:
        return "completed"
    return "interrupted" if isinstance(error, KeyboardInterrupt) else "crashed"
