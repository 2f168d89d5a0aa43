"""A training from beginning to end: build, resume, step, evaluate, sample, save, and leave a run directory.

This is the function that `trainscope run` calls and that proofs call in-process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from trainscope.config.load import ResolvedConfig
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.build import build_session
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.disk import check_room
from trainscope.trainer.checkpoints.folder import set_aside
from trainscope.trainer.checkpoints.restore import check_shapes, restore
from trainscope.trainer.checkpoints.save import save_checkpoint
from trainscope.trainer.checkpoints.weights import weights_for_use
from trainscope.trainer.evaluate import evaluate
from trainscope.trainer.failures import explained
from trainscope.trainer.interrupts import Interrupt, interrupts
from trainscope.trainer.loop import optimizer_step
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.previews import Previews
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.resume import (
    LATEST,
    Resume,
    changed_keys,
    check_against_data,
    continues_in,
    find_checkpoint,
    has_earlier_run,
    read_resume,
)
from trainscope.trainer.segments import begin_segment, finish_segment, next_segment, record_crash
from trainscope.trainer.session import Session
from trainscope.trainer.witness import Witness


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
        found = _find_resume(resolved, resume, out, held)
        return _train_in_run(resolved, out, found, stop_at, callbacks, held)


def _find_resume(resolved: ResolvedConfig, wanted: str | None, out: Path | None, held: ExitStack) -> Resume | None:
    """What to go on from. A configuration that says "latest" begins anew where there is no run yet."""
    if wanted is None:
        wanted = resolved.config.checkpoint.resume
        begun = (out / "run.json").exists() if out is not None else has_earlier_run(resolved)
        if wanted is None or (wanted == LATEST and not begun):
            return None
    checkpoint, source = find_checkpoint(resolved, wanted, out)
    run = continues_in(source, resolved, out)
    if run is not None:
        held.enter_context(run.lock())
    return read_resume(resolved, checkpoint, run)


def _train_in_run(
    resolved: ResolvedConfig,
    out: Path | None,
    resume: Resume | None,
    stop_at: int | None,
    callbacks: Sequence[Callback],
    held: ExitStack,
) -> Finished:
    warnings: list[str] = []
    with explained(lambda: "before the first step"):
        session = build_session(resolved, resume=resume, warn=warnings.append)
        weights = {}
        if resume is not None:
            check_against_data(resume, resolved, session.plan, session.data.identity())
            found = resume.state.weights
            weights = weights_for_use(resume.checkpoint, session.pairs) if found is None else found
            check_shapes(session, resume.state, weights, resume.saved)
    run = resume.run if resume else None
    place = run.path if run else out or resolved.resolve_path(resolved.config.run.dir)
    if (warning := check_room(session, place)) is not None:
        warnings.append(warning)
    if run is None:
        parent = resume.parent if resume else None
        run = create_run(
            resolved.resolve_path(resolved.config.run.dir), resolved.config.run.name, out=out, parent=parent
        )
        held.enter_context(run.lock())
    with explained(lambda: f"at step {min(session.step + 1, session.plan.steps)}"):
        number = next_segment(run)
        writer = RunWriter(run, segment=number)
        recorder: Recorder | None = None
        try:
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
            settled = resume.state.training.get("probes_every") if resume else None
            recorder = Recorder(session, writer, callbacks, settled_cadence=settled)
            witness = Witness(session, recorder)
            for message in warnings:
                recorder.event("warning", message=message)
            with interrupts() as interrupted:
                training = _Training(session, run, recorder, witness, callbacks, interrupted, stop_at)
                training.begin(resume, weights)
                return training.go()
        except BaseException as error:
            record_crash(run, writer, recorder, session, error)
            raise


@dataclass
class _Training:
    """The loop around the steps, and what is done at some of them."""

    session: Session
    run: RunDir
    recorder: Recorder
    witness: Witness
    callbacks: Sequence[Callback]
    interrupted: Interrupt
    stop_at: int | None

    def begin(self, resume: Resume | None, weights: dict[str, torch.Tensor]) -> None:
        """Put back what was saved, and record with what the first step begins."""
        session, recorder = self.session, self.recorder
        restored = restore(session, resume.state, weights, resume.saved) if resume else None
        for callback in self.callbacks:
            callback.on_start(session)
        recorder.start()
        if resume is None or restored is None:
            return
        recorder.event(
            "resume",
            step=session.step,
            path=str(resume.checkpoint),
            missing=restored.missing,
            changed=changed_keys(resume.changes),
        )
        for missing in restored.missing:
            recorder.event("warning", message=f"the checkpoint lacks {missing}")
        if resume.has_fingerprint:
            self.witness.compare(resume.saved, resume.changes, restored)
        else:
            recorder.absent("continuity", None, "the checkpoint has no fingerprint.parquet")
        recorder.flush()

    def go(self) -> Finished:
        session, config, last = self.session, self.session.config, self.session.plan.steps
        self.previews = Previews(session, self.run, self.recorder)
        # A run that goes on has evaluated and sampled at this step; one that begins from another's checkpoint has not.
        done = session.step if self.run.read()["segments"][-1]["number"] > 0 else None
        if done is not None:
            self.previews.remember(done)
        eval_steps = _moments(config.eval.every_steps, last, parts=10)
        sample_steps = _moments(config.sample.every_steps, last, parts=4)
        save_steps = _moments(config.checkpoint.every_steps, last, parts=1)
        carried = session.accumulated.count if session.accumulated else 0
        batches = session.data.micro_batches(
            config.train.batch_size, seed=session.seed, start=session.micro_step - carried
        )
        status = "completed"
        while True:
            if session.step != done:
                if session.step in eval_steps:
                    self._evaluate()
                if session.step in sample_steps:
                    self._sample()
            if session.step == last:
                break
            if self.interrupted or session.step == self.stop_at:
                status = "interrupted"
                break
            if session.step and session.step != done and session.step in save_steps:
                self._save()
            step = [next(batches) for _ in range(config.train.gradient_accumulation)]
            if not optimizer_step(session, step, self.recorder, self.callbacks, self.interrupted):
                status = "interrupted"
                break
        checkpoint = self._save()
        if status == "interrupted":
            self.recorder.event("interrupt", step=session.step)
        self.recorder.flush()
        finish_segment(self.run, status, session)
        components = session.components
        return Finished(self.run, status, session.step, checkpoint, components.location, components.inpainting)

    def _evaluate(self) -> None:
        session, recorder = self.session, self.recorder
        for which in session.weight_sets:
            with session.weights(which):
                mode, loss = session.point(which), evaluate(session)
            recorder.add_row(
                "evals",
                step=session.step,
                split=session.data.split,
                weights=which,
                mode=mode,
                loss=loss,
                draws=session.config.eval.samples,
            )
            recorder.event("eval", weights=which, loss=loss)

    def _sample(self) -> None:
        self.witness.checksum("before_sample")
        self.previews.make()
        self.witness.checksum("after_sample")

    def _save(self) -> Path:
        pieces = self.witness.fingerprint()
        self.witness.checksum("before_save")
        # What the log says about the steps before a checkpoint is on disk before the checkpoint is.
        self.recorder.flush()
        for callback in self.callbacks:
            callback.before_save(self.session)
        folder = save_checkpoint(self.session, self.run, pieces, writing=self.witness.written)
        for callback in self.callbacks:
            callback.after_save(self.session)
        self.witness.checksum("after_save")
        self.recorder.event("save", path=str(folder.relative_to(self.run.path)))
        return folder


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
