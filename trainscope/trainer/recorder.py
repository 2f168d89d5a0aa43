"""Between the training and the run log: calls the probes at the right moments of trainscope's own loop.

Decides nothing about the training.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor

from trainscope.probes.batches import BatchesProbe
from trainscope.probes.losses import LossesProbe
from trainscope.probes.params import ParamsProbe
from trainscope.probes.pending import Part, Pending, join
from trainscope.recording.cadence import Cadence
from trainscope.recording.probelog import ProbeLog
from trainscope.recording.steps import StepRecorder
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.batch import Batch
from trainscope.trainer.callbacks import Callback, Progress
from trainscope.trainer.diffusion import Denoised
from trainscope.trainer.noise import Draw
from trainscope.trainer.session import Session

TAKE_LOOKS = ("tensors", "ema", "adapters", "batches")
"""Tables that `probes.tables` chooses from."""
SHARDED = "the weights are spread over processes"
"""Why a table is absent under FSDP."""


class Recorder:
    """The probes of one training."""

    def __init__(
        self,
        session: Session,
        writer: RunWriter,
        callbacks: Sequence[Callback] = (),
        *,
        settled_cadence: int | None = None,
    ) -> None:
        """Make it while the weights are those that the run began from: what is measured is measured from there."""
        self._session = session
        self._callbacks = callbacks
        self._saw_nonfinite = False
        is_main, probes = session.processes.is_main, session.config.probes
        self.log = ProbeLog(
            writer,
            session.device,
            step=lambda: session.step,
            is_main=is_main,
            on_event=self._tell_event,
            on_steps=self._tell_progress,
        )
        cadence = Cadence(probes.every, probes.budget, last_step=session.plan.steps, settled=settled_cadence)
        self.log.settles = cadence.every is None
        session.probes_every = cadence.every
        unrecorded = {table: "not among probes.tables" for table in TAKE_LOOKS if table not in probes.tables}
        if session.is_sharded:
            unrecorded = {**dict.fromkeys(("tensors", "ema", "adapters"), SHARDED), **unrecorded}
        self._steps = StepRecorder(self.log, cadence, session.optimizer, unrecorded=unrecorded, is_main=is_main)
        self._params = self.log.attempt("params", lambda: ParamsProbe(session.params)) if is_main else None
        self._steps.watch_tensors(session.params, memory_bytes=probes.memory_mb * 2**20)
        if session.ema is not None:
            self._steps.watch_ema(session.params, session.ema.shadow_params[0].device)
        if session.pairs:
            self._steps.watch_adapters(session.pairs)
        self._steps.watch_groups(session.scheduler)
        self._losses = LossesProbe(session.components.noise_scheduler.config.num_train_timesteps)
        self._batches = None if "batches" in unrecorded else BatchesProbe()
        self._seen: defaultdict[str, list[Callable[[], Part]]] = defaultdict(list)
        """Of the step under way, by table; rows are written when it is done."""

    def start(self) -> None:
        """Record what is known before the first step."""
        session, log, probe = self._session, self.log, self._params
        if probe:
            log.add(log.attempt("params", lambda: probe.measure(session.components.models, session.optimizer)))
        self._steps.tell_coverage()
        if session.device.type == "cpu":
            log.absent("steps", "memory_bytes", "the run's device is the CPU")
        if self._batches and not session.components.inpainting:
            for column in ("mask_area", "mask_nonbinary"):
                log.absent("batches", column, "the model takes no mask")
        log.flush()

    def look_closely(self, steps: int) -> None:
        """Look at each of the next steps, whatever the cadence."""
        self._steps.cadence.look_closely(until=self._session.step + steps)

    def continue_step(self, seen: Mapping[str, Part]) -> None:
        """A step begins, with what was seen of the micro-batches that an earlier part of the run did of it."""
        self._seen = defaultdict(list, {table: [partial(join, [part])] for table, part in seen.items()})

    def unfinished_step(self) -> dict[str, Part]:
        """What was seen of a step that stops between two micro-batches."""
        found = {table: self.log.attempt(table, partial(_together, parts)) for table, parts in self._seen.items()}
        return {table: part for table, part in found.items() if part is not None}

    def micro_batch(self, position: int, batch: Batch, draw: Draw, denoised: Denoised) -> None:
        """Between the forward and the backward pass of a micro-batch; `draw` is on the host."""
        losses, weighted = denoised.losses.detach(), denoised.weighted.detach()
        self._seen["losses"].append(partial(self._losses.see, draw.timesteps, losses, weighted))
        batches = self._batches
        if batches is None or not self._steps.due("batches", self._session.step + 1):
            return
        part = self.log.attempt(
            "batches",
            lambda: batches.see(
                position,
                latents=batch.latents,
                text=batch.text,
                mask=None if batch.condition is None else batch.condition[:, :1],
                noise=draw.noise,
                target=denoised.target,
                target_kind=self._session.objective.prediction,
                prediction=denoised.prediction,
                weights=denoised.weights,
            ),
        )
        if part is not None:
            self._seen["batches"].append(partial(join, [part]))

    def before_step(self) -> None:
        """Right before the optimizer's step, gradients unscaled and clipped."""
        self._steps.before_step(self._session.step + 1)

    def after_step(self) -> None:
        """Right after the optimizer's step."""
        self._steps.after_step(self._session.step + 1)

    @contextmanager
    def around_ema(self) -> Iterator[None]:
        """Around an update of the average."""
        ema = self._session.ema
        assert ema is not None  # noqa: S101  there is no update without an average
        with self._steps.around_ema(
            self._session.step + 1, lambda: ema.shadow_params, lambda: float(ema.cur_decay_value)
        ):
            yield

    def step_done(self, values: dict[str, Tensor], known: dict[str, Any]) -> None:
        """Record a step that is over: `values` are scalars on the device, `known` is on the host already."""
        step = self._session.step
        seen, self._seen = self._seen, defaultdict(list)
        probes: dict[str, LossesProbe | BatchesProbe | None] = {"losses": self._losses, "batches": self._batches}
        for table, probe in probes.items():
            if probe is not None and seen[table]:
                self.log.later(table, partial(_rows, probe, step, seen[table]))
        self._steps.step_done(step, values, known)
        self._session.probes_every = self._steps.cadence.every

    def _tell_progress(self, columns: dict[str, list[Any]]) -> None:
        """Show the values of steps; the first non-finite loss is an event."""
        group = self._session.optimizer.param_groups[0]
        effective_lr = float(group["lr"]) * float(group.get("d", 1.0))
        for values in zip(columns["step"], columns["loss"], columns["seconds"], strict=True):
            step, loss, seconds = int(values[0]), float(values[1]), float(values[2])
            if not math.isfinite(loss) and not self._saw_nonfinite:
                self._saw_nonfinite = True
                self.log.event("nonfinite", what="loss", first_step=step)
            for callback in self._callbacks:
                callback.on_progress(Progress(step, self._session.plan.steps, loss, effective_lr, seconds))

    def _tell_event(self, kind: str, detail: dict[str, Any]) -> None:
        for callback in self._callbacks:
            callback.on_event(kind, detail)


def _together(parts: Sequence[Callable[[], Part]]) -> Part:
    return join([part() for part in parts])


def _rows(probe: LossesProbe | BatchesProbe, step: int, parts: Sequence[Callable[[], Part]]) -> Pending:
    return probe.rows(step, [part() for part in parts])
