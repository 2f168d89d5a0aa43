"""The loop around the steps, and what is done at some of them: evaluate, sample, save, stop.

Knows nothing of how a session is built or a run directory made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainscope.runlog.rundir import RunDir
from trainscope.trainer.ahead import Ahead
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.checkpoints.restore import restore
from trainscope.trainer.checkpoints.save import save_checkpoint
from trainscope.trainer.evaluate import evaluate
from trainscope.trainer.failures import LESS_TO_SAMPLE, LESS_TO_SAVE, explained
from trainscope.trainer.interrupts import Interrupt
from trainscope.trainer.loop import optimizer_step
from trainscope.trainer.previews import Previews
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.resume import Resume, changed_keys
from trainscope.trainer.saves import planned_saves
from trainscope.trainer.segments import finish_segment
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
    """Folder or file of the model that it began from."""
    inpainting: bool
    sdxl: bool


@dataclass
class Training:
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
        recorder.log.event(
            "resume",
            step=session.step,
            path=str(resume.checkpoint),
            missing=restored.missing,
            changed=changed_keys(resume.changes),
        )
        for missing in restored.missing:
            recorder.log.event("warning", message=f"the checkpoint lacks {missing}")
        if resume.has_fingerprint:
            self.witness.compare(resume.saved, resume.changes, restored)
        else:
            recorder.log.absent("continuity", None, "the checkpoint has no fingerprint.parquet")
        recorder.log.flush()

    def go(self) -> Finished:
        session, config, last = self.session, self.session.config, self.session.plan.steps
        self.previews = Previews(session, self.run, self.recorder)
        # A run that goes on has evaluated and sampled at this step; one that begins from another's checkpoint has not.
        done = session.step if self.run.read()["segments"][-1]["number"] > 0 else None
        if done is not None:
            self.previews.remember(done)
        eval_steps = _moments(config.eval.every_steps, last, parts=10)
        sample_steps = _moments(config.sample.every_steps, last, parts=4)
        save_steps = planned_saves(session)
        carried = session.accumulated.count if session.accumulated else 0
        processes = session.processes
        size, start = config.train.batch_size * processes.count, session.micro_step - carried
        batches = Ahead(session, session.data.micro_batches(size, seed=session.seed, start=start))
        status = "completed"
        while True:
            if session.step != done:
                if session.step in eval_steps:
                    with explained(lambda: f"in the evaluation at step {session.step}"):
                        self._evaluate()
                if session.step in sample_steps:
                    with explained(lambda: f"in sampling at step {session.step}", less_memory=LESS_TO_SAMPLE):
                        self._sample()
            if session.step == last:
                break
            # Also where the others wait for the first, which evaluates and samples.
            if processes.any(bool(self.interrupted)) or session.step == self.stop_at:
                status = "interrupted"
                break
            if session.step != done and session.step in save_steps:
                self._save()
            step = [next(batches) for _ in range(config.train.gradient_accumulation)]
            if not optimizer_step(session, step, batches.take, self.recorder, self.callbacks, self.interrupted):
                status = "interrupted"
                break
        checkpoint = self._save()
        if status == "interrupted":
            self.recorder.log.event("interrupt", step=session.step)
        self.recorder.log.flush()
        if processes.is_main:
            finish_segment(self.run, status, session)
        processes.wait()
        model = session.components
        return Finished(self.run, status, session.step, checkpoint, model.location, model.inpainting, model.sdxl)

    @property
    def _looks(self) -> bool:
        """Whether this process evaluates and samples: the first does, and all must where weights are spread."""
        return self.session.processes.is_main or self.session.is_sharded

    def _evaluate(self) -> None:
        session, recorder = self.session, self.recorder
        if not self._looks:
            return
        for which in session.weight_sets:
            with session.weights(which):
                mode, loss = session.point(which), evaluate(session)
            recorder.log.add_row(
                "evals",
                step=session.step,
                split=session.data.split,
                weights=which,
                mode=mode,
                loss=loss,
                draws=session.config.eval.samples,
            )
            recorder.log.event("eval", weights=which, loss=loss)

    def _sample(self) -> None:
        self.witness.checksum("before_sample")
        if self._looks:
            self.previews.make()
        self.witness.checksum("after_sample")

    def _save(self) -> Path:
        pieces = self.witness.fingerprint()
        self.witness.checksum("before_save")
        # What the log says about the steps before a checkpoint is on disk before the checkpoint is.
        self.recorder.log.flush()
        for callback in self.callbacks:
            callback.before_save(self.session)
        with explained(lambda: f"in saving at step {self.session.step}", less_memory=LESS_TO_SAVE):
            folder = save_checkpoint(self.session, self.run, pieces, writing=self.witness.written)
        for callback in self.callbacks:
            callback.after_save(self.session)
        self.witness.checksum("after_save")
        self.recorder.log.event("save", path=str(folder.relative_to(self.run.path)))
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
