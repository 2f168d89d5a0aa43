"""A training from beginning to end: build, resume, step, evaluate, sample, save, and leave a run directory.

This is the function that `trainscope run` calls and that proofs call in-process.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from trainscope.config.load import ResolvedConfig
from trainscope.runlog.rundir import create_run
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.build import build_session
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.disk import check_room
from trainscope.trainer.checkpoints.folder import set_aside
from trainscope.trainer.checkpoints.restore import check_shapes
from trainscope.trainer.checkpoints.weights import weights_for_use
from trainscope.trainer.failures import LESS_TO_BUILD, explained
from trainscope.trainer.interrupts import interrupts
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.vae import on_overflow
from trainscope.trainer.optimizers.build import fallback
from trainscope.trainer.processes import Processes, join, leave
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.resume import (
    LATEST,
    Resume,
    check_against_data,
    continues_in,
    find_checkpoint,
    has_earlier_run,
    read_resume,
)
from trainscope.trainer.segments import begin_segment, next_segment, record_crash
from trainscope.trainer.training import Finished, Training
from trainscope.trainer.witness import Witness


def train(
    resolved: ResolvedConfig,
    *,
    out: Path | None = None,
    resume: str | None = None,
    stop_at: int | None = None,
    callbacks: Sequence[Callback] = (),
) -> Finished:
    """Train as `resolved` says, into `out` or a new directory under `run.dir`.

    `resume` is "latest" or the path of a run or a checkpoint, and stands before `checkpoint.resume`. `stop_at`
    interrupts after that many steps, as a signal would. Raises `ConfigError`, `DataError`, `ModelError` and `RunError`
    before anything is written, `TrainingError` when the training cannot go on.
    """
    with quiet_libraries(), ExitStack() as held:
        processes = join(resolved.config.run.device)
        held.callback(leave, processes)
        found = _find_resume(resolved, resume, out, processes, held)
        return _train_in_run(resolved, out, found, stop_at, callbacks, processes, held)


def _find_resume(
    resolved: ResolvedConfig, wanted: str | None, out: Path | None, processes: Processes, held: ExitStack
) -> Resume | None:
    """What to go on from. A configuration that says "latest" begins anew where there is no run yet."""
    if wanted is None:
        wanted = resolved.config.checkpoint.resume
        begun = (out / "run.json").exists() if out is not None else has_earlier_run(resolved)
        if wanted is None or (wanted == LATEST and not begun):
            return None
    checkpoint, source = find_checkpoint(resolved, wanted, out)
    run = continues_in(source, resolved, out)
    if run is not None and processes.is_main:
        held.enter_context(run.lock())
    return read_resume(resolved, checkpoint, run)


def _train_in_run(
    resolved: ResolvedConfig,
    out: Path | None,
    resume: Resume | None,
    stop_at: int | None,
    callbacks: Sequence[Callback],
    processes: Processes,
    held: ExitStack,
) -> Finished:
    warnings: list[str] = []
    with explained(lambda: "before the first step", less_memory=LESS_TO_BUILD):
        session = build_session(resolved, resume=resume, warn=warnings.append, processes=processes)
        weights = {}
        if resume is not None:
            check_against_data(resume, resolved, session.plan, session.data.identity(), processes.count)
            found = resume.state.weights
            weights = weights_for_use(resume.checkpoint, session.params, session.pairs) if found is None else found
            check_shapes(session, resume.state, weights, resume.saved)
    run = resume.run if resume else None
    place = run.path if run else out or resolved.resolve_path(resolved.config.run.dir)
    if (warning := check_room(session, place)) is not None:
        warnings.append(warning)
    if run is None and processes.is_main:
        parent = resume.parent if resume else None
        run = create_run(
            resolved.resolve_path(resolved.config.run.dir), resolved.config.run.name, out=out, parent=parent
        )
        held.enter_context(run.lock())
    run = processes.from_main(run)
    assert run is not None  # noqa: S101  made by the first process, told to the others
    for callback in callbacks:
        callback.on_run(run.path)
    with explained(lambda: f"at step {min(session.step + 1, session.plan.steps)}"):
        number = processes.from_main(next_segment(run))
        writer = RunWriter(run, segment=number, rank=processes.rank)
        held.callback(writer.close)
        recorder: Recorder | None = None
        try:
            if processes.is_main:
                if resume is not None and resume.run is not None:
                    set_aside(run, resume.checkpoint, number)
                begin_segment(
                    session,
                    run,
                    writer,
                    number,
                    start_step=resume.step if resume else 0,
                    checkpoint=resume.checkpoint if resume else None,
                )
            processes.wait()
            settled = resume.state.training.get("probes_every") if resume else None
            recorder = Recorder(session, writer, callbacks, settled_cadence=settled)
            witness = Witness(session, recorder)
            for message in warnings:
                recorder.log.event("warning", message=message)
            if (otherwise := fallback(session.config.optimizer, session.device)) is not None:
                recorder.log.fallback(otherwise)
            on_overflow(session.components.vae, recorder.log.fallback)
            with interrupts(lambda: any(callback.wants_to_stop for callback in callbacks)) as interrupted:
                training = Training(session, run, recorder, witness, callbacks, interrupted, stop_at)
                training.begin(resume, weights)
                return training.go()
        except BaseException as error:
            record_crash(run, writer, recorder, session, error)
            raise
