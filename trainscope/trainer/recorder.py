"""Between the training and the run log: calls the probes at the right moments and hands their records to the writer.

A probe that fails is reported once and switched off; training goes on. Decides nothing about the training.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainscope.probes.adapters import AdaptersProbe
from trainscope.probes.batches import BatchesProbe
from trainscope.probes.ema import EmaProbe
from trainscope.probes.groups import GroupsProbe
from trainscope.probes.losses import LossesProbe
from trainscope.probes.params import ParamsProbe
from trainscope.probes.pending import Part, Pending, collect, join
from trainscope.probes.tensors import TensorsProbe
from trainscope.runlog.tables import TABLES
from trainscope.runlog.writer import RecordError, RunWriter
from trainscope.schema import Record
from trainscope.trainer.batch import Batch
from trainscope.trainer.cadence import Cadence
from trainscope.trainer.callbacks import Callback, Progress
from trainscope.trainer.diffusion import Denoised
from trainscope.trainer.noise import Draw
from trainscope.trainer.session import Session

T = TypeVar("T")

PER_PROCESS = ("steps", "order", "batches", "losses", "checksums")
"""Tables that every process writes; in the others all would write the same."""
SHARDED = "the weights are spread over processes"
"""Why a table is absent under FSDP."""
DRAIN_STEPS = 10
"""Steps whose values stay on the device before they are brought over at once."""


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
        self._writer = writer
        self._callbacks = callbacks
        self._pending: list[Pending] = []
        self._spent: defaultdict[str, float] = defaultdict(float)
        """Seconds of the step under way, by table; "drain" is what bringing the values over took."""
        self._late_seconds = 0.0
        self._failed: set[str] = set()
        self._is_main = session.processes.is_main
        self._saw_nonfinite = False
        self._cadence = Cadence(session.config.probes, last_step=session.plan.steps, settled=settled_cadence)
        self._params = self._try("params", lambda: ParamsProbe(session.params)) if self._is_main else None
        self._tensors = self._make("tensors", lambda: TensorsProbe(session.params, session.optimizer))
        ema = session.ema
        self._ema = self._make("ema", lambda: EmaProbe(session.params, ema.shadow_params[0].device)) if ema else None
        session.probes_every = self._cadence.every
        self._adapters = self._make("adapters", lambda: AdaptersProbe(session.pairs)) if session.pairs else None
        groups = self._try("groups", lambda: GroupsProbe(session.optimizer, session.scheduler))
        self._groups = groups if self._is_main else None
        self._losses = LossesProbe(session.components.noise_scheduler.config.num_train_timesteps)
        self._batches = BatchesProbe() if self._is_asked_for("batches") else None
        self._seen: defaultdict[str, list[Part]] = defaultdict(list)
        """Of the step under way, by table; rows are written when it is done."""

    def start(self) -> None:
        """Record what is known before the first step."""
        session = self._session
        probe = self._params
        params = (
            self._try("params", lambda: probe.measure(session.components.models, session.optimizer)) if probe else None
        )
        if params:
            self._add(params)
        if self._tensors:
            for column, reason in self._tensors.reasons.items():
                self.absent("tensors", column, reason)
        if session.device.type == "cpu":
            self.absent("steps", "memory_bytes", "the run's device is the CPU")
        if self._batches and not session.components.inpainting:
            for column in ("mask_area", "mask_nonbinary"):
                self.absent("batches", column, "the model takes no mask")
        self.flush()

    def look_closely(self, steps: int) -> None:
        """Look at each of the next steps, whatever the cadence."""
        self._cadence.look_closely(until=self._session.step + steps)

    def continue_step(self, seen: Mapping[str, Part]) -> None:
        """A step begins, with what was seen of the micro-batches that an earlier part of the run did of it."""
        self._seen = defaultdict(list, {table: [part] for table, part in seen.items()})

    def unfinished_step(self) -> dict[str, Part]:
        """What was seen of a step that stops between two micro-batches."""
        return {table: join(parts) for table, parts in self._seen.items() if table not in self._failed}

    def micro_batch(self, position: int, batch: Batch, draw: Draw, denoised: Denoised) -> None:
        """Between the forward and the backward pass of a micro-batch; `draw` is on the host."""
        if "losses" not in self._failed:
            with self.guarded("losses"):
                seen = self._losses.see(draw.timesteps.tolist(), denoised.losses, denoised.weighted)
                self._seen["losses"].append(seen)
        if self._batches and self._due("batches", self._session.step + 1):
            with self.guarded("batches"):
                seen = self._batches.see(
                    position,
                    latents=batch.latents,
                    text=batch.text,
                    mask=None if batch.condition is None else batch.condition[:, :1],
                    noise=draw.noise,
                    target=denoised.target,
                    target_kind=self._session.objective.prediction,
                    prediction=denoised.prediction,
                    weights=denoised.weights,
                )
                self._seen["batches"].append(seen)

    def before_step(self) -> None:
        """Right before the optimizer's step, gradients unscaled and clipped."""
        if self._groups and "groups" not in self._failed:
            with self.guarded("groups"):
                self._groups.before_step()
        if self._tensors and self._due("tensors", self._session.step + 1):
            with self.guarded("tensors"):
                self._tensors.before_step()

    def after_step(self) -> None:
        """Right after the optimizer's step."""
        if self._tensors and self._due("tensors", self._session.step + 1):
            with self.guarded("tensors"):
                self._pending.append(self._tensors.after_step(self._session.step + 1))

    @contextmanager
    def around_ema(self) -> Iterator[None]:
        """Around an update of the average."""
        session, probe = self._session, self._ema
        step = session.step + 1
        if session.ema is None or probe is None or not self._due("ema", step):
            yield
            return
        with self.guarded("ema"):
            probe.before_update(session.ema.shadow_params)
        yield
        if "ema" not in self._failed:
            with self.guarded("ema"):
                decay = float(session.ema.cur_decay_value)
                self._pending.append(probe.after_update(step, session.ema.shadow_params, decay))

    def step_done(self, values: dict[str, Tensor], known: dict[str, Any]) -> None:
        """Record a step that is over: `values` are scalars on the device, `known` is on the host already."""
        session, started = self._session, time.perf_counter()
        self._settle()
        if self._adapters and self._due("adapters", session.step):
            with self.guarded("adapters"):
                self._pending.append(self._adapters.measure(session.step))
        groups = self._groups
        if groups and "groups" not in self._failed:
            record = self._try("groups", lambda: groups.after_step(session.step))
            if record:
                self._add(record)
        self._finish_step()
        spent, self._spent = self._spent, defaultdict(float)
        probe_seconds = sum(spent.values())
        # Recording is part of the step, also what is done after the loop stopped its watch.
        seconds = known["seconds"] + self._late_seconds + time.perf_counter() - started
        self._late_seconds = 0.0
        known = {**known, "time": time.time(), "seconds": seconds, "probe_seconds": probe_seconds}
        self._pending.append(
            Pending(
                table="steps",
                step=session.step,
                keys={name: [value] for name, value in known.items()},
                columns=tuple(values),
                values=torch.stack([value.detach().double() for value in values.values()]).unsqueeze(1),
            )
        )
        always = spent["groups"] + spent["losses"]
        if self._cadence.learn(
            step_seconds=seconds - probe_seconds, look_seconds=probe_seconds - always, always_seconds=always
        ):
            session.probes_every = self._cadence.every
            self.event("probe_cadence", every=self._cadence.every)
        # While the cadence is being found, a look's cost must be known with that of bringing its values over.
        if session.step % DRAIN_STEPS == 0 or self._cadence.every is None:
            self.drain()

    def _finish_step(self) -> None:
        """The rows of what was seen of the step that is over."""
        seen, self._seen = self._seen, defaultdict(list)
        probes: dict[str, LossesProbe | BatchesProbe | None] = {"losses": self._losses, "batches": self._batches}
        for table, probe in probes.items():
            if probe is not None and seen[table] and table not in self._failed:
                with self.guarded(table):
                    self._pending.append(probe.rows(self._session.step, seen[table]))

    def drain(self) -> None:
        """Bring over what is still on the device, and let the writer write if it is time."""
        started = time.perf_counter()
        pending, self._pending = self._pending, []
        for record in self._collected(pending):
            self._add(record)
            if record.table == "steps":
                self._tell(record.columns)
        self._write(self._writer.flush_if_due)
        seconds = time.perf_counter() - started
        self._spent["drain"] += seconds
        self._late_seconds += seconds

    def flush(self) -> None:
        """Everything measured so far is on disk when this returns."""
        self.drain()
        self._write(self._writer.flush)

    def add_row(self, table: str, /, **values: Any) -> None:
        if not (self._is_main or table in PER_PROCESS):
            return
        self._writer.add_row(table, **values)

    def event(self, kind: str, **detail: Any) -> None:
        """Something happened; the detail's keys are fixed for each kind."""
        self.add_row(
            "events", step=self._session.step, time=time.time(), kind=kind, detail=json.dumps(detail, default=str)
        )
        for callback in self._callbacks:
            callback.on_event(kind, detail)

    def fallback(self, message: str) -> None:
        """Something is done in another way than was asked for."""
        self.event("fallback", message=message)

    def _collected(self, pending: Sequence[Pending]) -> list[Record]:
        try:
            return collect(pending)
        except Exception:  # one of them is to blame: find out which
            records: list[Record] = []
            for item in pending:
                try:
                    records += collect([item])
                except Exception as error:
                    self._give_up(item.table, error)
            return records

    def _add(self, record: Record) -> None:
        try:
            self._writer.add(record)
        except OSError:  # no probe is to blame for a full disk
            raise
        except Exception as error:
            self._give_up(record.table, error)

    def _write(self, flush: Callable[[], None]) -> None:
        try:
            flush()
        except RecordError as error:
            for table, reason in error.reasons.items():
                self._give_up(table, ValueError(reason))
            self._writer.flush()

    def _settle(self) -> None:
        """While the cadence is being found, let the device finish: what a probe costs there is not known otherwise."""
        if self._cadence.every is None and self._session.device.type == "cuda":
            torch.cuda.synchronize(self._session.device)

    def _tell(self, columns: dict[str, list[Any]]) -> None:
        """Show a step's values; the first non-finite loss is an event."""
        step, loss, seconds = columns["step"][0], columns["loss"][0], columns["seconds"][0]
        if not math.isfinite(loss) and not self._saw_nonfinite:
            self._saw_nonfinite = True
            self.event("nonfinite", what="loss", first_step=step)
        group = self._session.optimizer.param_groups[0]
        effective_lr = float(group["lr"]) * float(group.get("d", 1.0))
        for callback in self._callbacks:
            callback.on_progress(Progress(step, self._session.plan.steps, loss, effective_lr, seconds))

    def _make(self, table: str, make: Callable[[], T]) -> T | None:
        if not self._is_asked_for(table):
            return None
        if self._session.is_sharded:
            self.absent(table, None, SHARDED)
            return None
        if not self._is_main:
            return None
        return self._try(table, make)

    def _is_asked_for(self, table: str) -> bool:
        asked = table in self._session.config.probes.tables
        if not asked:
            self.absent(table, None, "not among probes.tables")
        return asked

    def _try(self, table: str, do: Callable[[], T]) -> T | None:
        done: list[T] = []
        with self.guarded(table):
            done.append(do())
        return done[0] if done else None

    def _due(self, table: str, step: int) -> bool:
        return table not in self._failed and self._cadence.due(step)

    @contextmanager
    def guarded(self, table: str) -> Iterator[None]:
        """Around whatever only looks. If it fails, say so in log and console, and do without it from here on."""
        self._settle()
        started = time.perf_counter()
        try:
            yield
        except Exception as error:  # whatever a probe does wrong, the training is worth more
            self._give_up(table, error)
        finally:
            self._settle()
            self._spent[table] += time.perf_counter() - started

    def _give_up(self, table: str, error: Exception) -> None:
        if table in self._failed:
            return
        self._failed.add(table)
        if table in ("tensors", "ema", "adapters"):  # the copies that it keeps may be the memory that was missing
            setattr(self, f"_{table}", None)
        reason = f"the probe failed: {type(error).__name__}: {error}"
        self.absent(table, None, reason)
        self.event("probe_failed", table=table, reason=reason)

    def absent(self, table: str, column: str | None, reason: str) -> None:
        """Say in `coverage` why a column, or a whole table, is not recorded."""
        names = [column] if column else [c.name for c in TABLES[table].columns]
        for name in names:
            self.add_row("coverage", table=table, column=name, reason=reason)
