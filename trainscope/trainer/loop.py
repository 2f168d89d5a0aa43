"""One optimizer step, top to bottom.

Knows nothing of files: what it sees goes to the recorder.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainscope.trainer.batch import Batch
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.data.order import MicroBatch, sample_of
from trainscope.trainer.diffusion import denoise
from trainscope.trainer.interrupts import Interrupt
from trainscope.trainer.noise import Draw
from trainscope.trainer.parallel import whole, without_averaging
from trainscope.trainer.processes import Processes
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.session import Accumulated, Session


class Stopwatch:
    """Seconds by part of the step."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("data", "forward", "backward", "optimizer"), 0.0)
        self._begun = self._started = time.perf_counter()

    def start(self) -> None:
        self._started = time.perf_counter()

    def stop(self, part: str) -> None:
        """What went by since the start belongs to a part."""
        self.seconds[part] += time.perf_counter() - self._started

    def columns(self) -> dict[str, float]:
        """The timing columns of `steps`."""
        parts = {f"{part}_seconds": seconds for part, seconds in self.seconds.items()}
        return {"seconds": time.perf_counter() - self._begun, **parts}


def optimizer_step(
    session: Session,
    micro_batches: Sequence[MicroBatch],
    load: Callable[[MicroBatch], tuple[Batch, Draw]],
    recorder: Recorder,
    callbacks: Sequence[Callback],
    interrupted: Interrupt | None = None,
) -> bool:
    """Accumulate the gradients of the micro-batches, then step optimizer, schedule and average.

    `load` says what this process's share of a micro-batch sees, and what it draws, on the host.

    False if it was interrupted between two micro-batches: what is accumulated then stays in the session, and a call
    with the same micro-batches goes on with it.
    """
    watch = Stopwatch()
    samples = sum(len(batch.samples) for batch in micro_batches)
    for callback in callbacks:
        callback.before_backward(session)
    carried, session.accumulated = session.accumulated, None
    if carried is None:
        carried = Accumulated(0, torch.zeros((), device=session.device), _grad_norm(session.tensors))
    loss, leftover = carried.loss, carried.leftover
    recorder.continue_step(carried.seen)
    processes = session.processes
    for done, micro_batch in enumerate(micro_batches[carried.count :], start=carried.count + 1):
        own = processes.share(micro_batch.samples)
        watch.start()
        batch, draw = load(micro_batch)
        draw_there = draw.to(session.device)
        watch.stop("data")
        with without_averaging(session.wrapped_models if done < len(micro_batches) else ()):
            watch.start()
            # Divided by the step's samples, not by its micro-batches: a short last batch weighs no more than its
            # share. Gradients are averaged over the processes, and so are losses; one with nothing to do in a short
            # batch takes part with a loss of 0.
            share = processes.count / samples if own else 0.0
            denoised = denoise(session, batch, draw_there, session.objective)
            watch.stop("forward")
            if own:
                recorder.micro_batch(micro_batch.position, batch, draw, denoised)
            watch.start()
            # The gradient of weighted.sum() * share, with two operations less to differentiate.
            session.scaler.scale(denoised.weighted).backward(torch.full_like(denoised.weighted, share))
            watch.stop("backward")
        loss = loss + denoised.weighted.detach().sum() * share
        session.micro_step += 1
        for callback in callbacks:
            callback.after_micro_batch(session)
        if interrupted and done < len(micro_batches) and processes.alone:
            session.accumulated = Accumulated(done, loss, leftover, recorder.unfinished_step())
            return False
    for micro_batch in micro_batches:
        _record_order(recorder, session.step + 1, micro_batch, processes)

    for callback in callbacks:
        callback.before_optimizer(session)
    watch.start()
    grad_norm, clip_coef = _unscale_and_clip(session)
    recorder.before_step()
    loss_scale = session.scaler.get_scale() if session.scaler.is_enabled() else 1.0
    skipped = _step(session)
    recorder.after_step()
    session.optimizer.zero_grad(set_to_none=True)
    if not skipped:
        session.optimizer_steps += 1
        session.scheduler.step()
        if session.ema is not None and (session.step + 1) % session.config.ema.every == 0:
            with recorder.around_ema():
                session.ema.step(session.tensors)
    watch.stop("optimizer")
    session.step += 1

    values = {"loss": processes.mean(loss), "grad_norm": grad_norm, "grad_norm_before_backward": leftover}
    if clip_coef is not None:
        values["clip_coef"] = clip_coef
    recorder.step_done(
        values,
        {
            "samples": sum(len(processes.share(batch.samples)) for batch in micro_batches),
            "micro_steps": len(micro_batches),
            "optimizer_steps": session.optimizer_steps,
            "skipped": skipped,
            "loss_scale": loss_scale,
            "memory_bytes": torch.cuda.max_memory_allocated() if session.device.type == "cuda" else None,
            **watch.columns(),
        },
    )
    for callback in callbacks:
        callback.after_step(session)
    return True


def _record_order(recorder: Recorder, step: int, batch: MicroBatch, processes: Processes) -> None:
    for visit in processes.share(batch.samples):
        recorder.log.add_row("order", step=step, sample=sample_of(visit), epoch=batch.epoch, position=batch.position)


def _step(session: Session) -> bool:
    """Step the optimizer; True if the GradScaler skipped it because of non-finite gradients."""
    with session.rounding.float32_weights() if session.rounding else contextlib.nullcontext():
        if not session.scaler.is_enabled():
            session.optimizer.step()
            return False
        before = session.scaler.get_scale()
        session.scaler.step(session.optimizer)
        session.scaler.update()
        return session.scaler.get_scale() < before


def _unscale_and_clip(session: Session) -> tuple[Tensor, Tensor | None]:
    """The gradient norm before clipping, and what clipping multiplies by (None with clipping off)."""
    if session.scaler.is_enabled():
        session.scaler.unscale_(session.optimizer)
    limit = session.config.train.max_grad_norm
    norm = _grad_norm(session.tensors)
    if limit == 0:
        return norm, None
    # As torch.nn.utils.clip_grads_with_norm_ has it, which keeps the coefficient to itself.
    coefficient = (limit / (norm + 1e-6)).clamp(max=1.0)
    if grads := [tensor.grad for tensor in session.tensors if tensor.grad is not None]:
        torch._foreach_mul_(grads, coefficient)
    return norm, coefficient


def _grad_norm(tensors: Sequence[Tensor]) -> Tensor:
    """‖g‖₂ in float32 over all tensors that have a gradient."""
    grads = [tensor.grad for tensor in tensors if tensor.grad is not None]
    if not grads:
        return torch.zeros((), device=tensors[0].device)
    return whole(torch.nn.utils.get_total_norm([grad.float() for grad in grads]))
