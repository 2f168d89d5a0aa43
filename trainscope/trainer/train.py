"""A training from beginning to end: build, step, evaluate, sample, save, and leave a run directory.

This is the function that `trainscope run` calls and that proofs call in-process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainscope.config.load import ResolvedConfig
from trainscope.errors import TrainingError
from trainscope.runlog.rundir import RunDir, create_run, write_atomically, write_json
from trainscope.runlog.writer import RecordError, RunWriter
from trainscope.trainer.build import build_session
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoint import save_checkpoint
from trainscope.trainer.environment import environment
from trainscope.trainer.evaluate import evaluate
from trainscope.trainer.loop import optimizer_step
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.previews import Previews
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.session import Session


@dataclass(frozen=True)
class Finished:
    """How a training ended: `status` is completed or interrupted; `checkpoint` is the last one."""

    run: RunDir
    status: str
    step: int
    checkpoint: Path
    model: Path
    """Folder of the model that it began from."""
    inpainting: bool


def train(
    resolved: ResolvedConfig,
    *,
    out: Path | None = None,
    stop_at: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> Finished:
    """Train as `resolved` says, into `out` or a new directory under `run.dir`.

    `stop_at` interrupts after that many steps, as a signal would. Raises `ConfigError`, `DataError` and `ModelError`
    before anything is written, `TrainingError` when the training cannot go on.
    """
    with quiet_libraries():
        return _train_in_run(resolved, out, stop_at, callbacks)


def _train_in_run(
    resolved: ResolvedConfig, out: Path | None, stop_at: int | None, callbacks: Sequence[Callback]
) -> Finished:
    warnings: list[str] = []
    with _explained(lambda: "before the first step"):
        session = build_session(resolved, warn=warnings.append)
    run = create_run(resolved.resolve_path(resolved.config.run.dir), resolved.config.run.name, out=out)
    with run.lock(), _explained(lambda: f"at step {min(session.step + 1, session.plan.steps)}"):
        writer = RunWriter(run)
        recorder: Recorder | None = None
        try:
            _begin_segment(session, run, writer)
            recorder = Recorder(session, writer, callbacks)
            for message in warnings:
                recorder.event("warning", message=message)
            with _interrupts() as interrupted:
                return _train(session, run, recorder, callbacks, interrupted, stop_at)
        except BaseException as error:
            _record_crash(run, writer, recorder, session, error)
            raise


def _train(
    session: Session,
    run: RunDir,
    recorder: Recorder,
    callbacks: Sequence[Callback],
    interrupted: list[bool],
    stop_at: int | None,
) -> Finished:
    config, last = session.config, session.plan.steps
    previews = Previews(session, run, recorder)
    batches = session.data.micro_batches(config.train.batch_size, seed=session.seed)
    eval_steps = _moments(config.eval.every_steps, last, parts=10)
    sample_steps = _moments(config.sample.every_steps, last, parts=4)
    save_steps = _moments(config.checkpoint.every_steps, last, parts=1)

    for callback in callbacks:
        callback.on_start(session)
    recorder.start()
    status = "completed"
    while True:
        if session.step in eval_steps:
            _evaluate(session, recorder)
        if session.step in sample_steps:
            previews.make()
        if session.step == last:
            break
        if interrupted or session.step == stop_at:
            status = "interrupted"
            break
        if session.step and session.step in save_steps:
            _save(session, run, recorder)
        optimizer_step(session, [next(batches) for _ in range(config.train.gradient_accumulation)], recorder, callbacks)
    checkpoint = _save(session, run, recorder)
    if status == "interrupted":
        recorder.event("interrupt", step=session.step)
    recorder.flush()
    _finish(run, status, session)
    components = session.components
    return Finished(run, status, session.step, checkpoint, components.location, components.inpainting)


@dataclass(frozen=True)
class _Moments:
    """The steps, 0 and the last among them, at which something is done; none if `every` is 0."""

    every: int
    last: int

    def __contains__(self, step: int) -> bool:
        return self.every > 0 and (step % self.every == 0 or step == self.last)


def _moments(every: int | str, last: int, *, parts: int) -> _Moments:
    """`every` steps; auto divides the training into `parts`."""
    return _Moments(max(1, math.ceil(last / parts)) if every == "auto" else int(every), last)


def _evaluate(session: Session, recorder: Recorder) -> None:
    for which in session.weight_sets:
        with session.weights(which):
            loss = evaluate(session)
        recorder.add_row(
            "evals",
            step=session.step,
            split=session.data.split,
            weights=which,
            loss=loss,
            draws=session.config.eval.samples,
        )
        recorder.event("eval", weights=which, loss=loss)


def _save(session: Session, run: RunDir, recorder: Recorder) -> Path:
    # What the log says about the steps before a checkpoint is on disk before the checkpoint is.
    recorder.flush()
    folder = save_checkpoint(session, run)
    recorder.event("save", path=str(folder.relative_to(run.path)))
    return folder


def _begin_segment(session: Session, run: RunDir, writer: RunWriter) -> None:
    """Write what the segment runs with, before its first step."""
    resolved, number = session.resolved, 0
    folder = run.segment(number)
    folder.mkdir(parents=True)
    rows = resolved.rows()
    facts = environment(session.device)
    write_atomically(folder / "config.toml", resolved.text.encode())
    write_json(
        folder / "config.resolved.json",
        {
            "path": str(resolved.path.resolve()) if resolved.path else None,
            "keys": [{"key": key, "value": _finite(value), "origin": origin} for key, value, origin in rows],
        },
    )
    write_json(folder / "env.json", facts)
    for key, value, origin in rows:
        writer.add_row("config", key=key, value=_as_text(value), origin=origin)
    for key, value in facts.items():
        writer.add_row("env", key=key, value=value, origin="trainscope")
    for row in session.data.rows():
        writer.add_row("data", **row)
    run.update(
        segments=[{"number": number, "start_step": session.step, "started": _now()}],
        steps=session.plan.steps,
        method=session.config.train.method,
        base=session.config.model.base,
    )


def _finish(run: RunDir, status: str, session: Session) -> None:
    segments = run.read()["segments"]
    for segment in segments[-1:]:  # none, where the very beginning failed
        segment.update(ended=_now(), end_step=session.step)
    run.update(status=status, segments=segments)


def _record_crash(
    run: RunDir, writer: RunWriter, recorder: Recorder | None, session: Session, error: BaseException
) -> None:
    """Save what was measured. The disk or the device may be what failed: then as much as they give."""
    with contextlib.suppress(Exception):  # what went wrong already is told, not what goes wrong now
        if recorder is not None:
            recorder.drain()
    with contextlib.suppress(OSError, RecordError):
        writer.add_row(
            "events",
            step=session.step,
            time=datetime.now(UTC).timestamp(),
            kind="crash",
            detail=json.dumps({"error": type(error).__name__, "message": str(error)[:500]}),
        )
        writer.flush()
    with contextlib.suppress(OSError):
        _finish(run, "crashed", session)


@contextmanager
def _explained(when: Callable[[], str]) -> Iterator[None]:
    """Put the errors that a training can meet through no fault of its code into words."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free disk space, or name another place with --out" if full else None
        raise TrainingError(f"{when()}: {error}", hint=hint) from error
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory {when()}",
            hint="lower train.batch_size or data.resolution, or set train.gradient_checkpointing = true",
        ) from error


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    # A GPU has an error class of its own; on a CPU torch says so in a RuntimeError's text only.
    said = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """SIGINT and SIGTERM end the training after the step that is under way; a second SIGINT ends it at once."""
    seen: list[bool] = []

    def handle(number: int, _frame: Any) -> None:
        seen.append(True)
        if number == signal.SIGINT and len(seen) > 1:
            raise KeyboardInterrupt

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            before[number] = signal.signal(number, handle)
        except ValueError:  # not the main thread: somebody else handles signals
            break
    try:
        yield seen
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _as_text(value: Any) -> str | None:
    """The text form of the `config` table: text as it is, everything else as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
