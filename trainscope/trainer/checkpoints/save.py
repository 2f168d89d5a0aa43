"""Saves a session as a checkpoint: the weights for use, and everything else that the next step depends on.

Knows nothing of the loop, or of how a checkpoint is resumed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError

from trainscope.errors import TrainingError
from trainscope.probes.fingerprint import Piece
from trainscope.runlog.fingerprint import write_fingerprint
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.checkpoints.facts import times, training_facts
from trainscope.trainer.checkpoints.folder import checkpoint_name, kohya_file, made_beside, prune
from trainscope.trainer.checkpoints.state import collect_tensors, write_state
from trainscope.trainer.ema import DTYPES
from trainscope.trainer.models.save import save_kohya_lora, save_lora, save_pipeline
from trainscope.trainer.parallel import put_together
from trainscope.trainer.session import Session


def save_checkpoint(
    session: Session, run: RunDir, pieces: Sequence[Piece], *, writing: Callable[[str], None] = lambda which: None
) -> Path:
    """Save the session; returns the checkpoint's folder. One that is already there for this moment is left as it is.

    `pieces` is the session's fingerprint; `writing` is called with raw or ema while those weights are in place.
    """
    folder = run.checkpoints / checkpoint_name(session.step, session.accumulated.count if session.accumulated else 0)
    processes = session.processes
    if processes.from_main(folder.exists()):
        return folder
    if not processes.is_main:
        _give_shares(session)
        processes.wait()
        return folder
    try:
        with made_beside(folder) as beside:
            for which in session.weight_sets:
                with session.weights(which), put_together(session.trained_models):
                    writing(which)
                    _save_weights(session, run, beside / ("weights" if which == "raw" else "weights-ema"), which)
            write_state(session, beside, run_id=run.read()["id"], whole=session.config.checkpoint.save_state)
            if pieces:  # none, where reading them failed
                write_fingerprint(beside, [dataclasses.asdict(piece) for piece in pieces])
    except Exception as error:
        if (reason := _why_not_written(error)) is None:
            raise
        raise TrainingError(
            f"the checkpoint of step {session.step} cannot be written: {reason}",
            hint="free disk space, or name another place with --out",
        ) from error
    # Only now is the new one durable, and an old one may go.
    prune(run, session.config.checkpoint.keep)
    processes.wait()
    return folder


def _give_shares(session: Session) -> None:
    """What the first process collects while it saves, the others give, in the same order."""
    for which in session.weight_sets:
        with session.weights(which), put_together(session.trained_models):
            pass
    if session.config.checkpoint.save_state:
        collect_tensors(session)


def _save_weights(session: Session, run: RunDir, folder: Path, which: str) -> None:
    """Write the weights that are in place now: a LoRA in two layouts, or a whole pipeline."""
    config = session.config
    dtype = DTYPES[config.precision.save]
    if config.train.method != "lora":
        trained = {name.partition(".")[0] for name in session.params}
        save_pipeline(folder, session.components, dtype=dtype, trained=trained)
        return
    facts = {**training_facts(session), "trainscope_step": str(session.step), "trainscope_weights": which}
    save_lora(folder, session.pairs, dtype=dtype, metadata=facts)
    components = session.components
    save_kohya_lora(
        folder / kohya_file(config.run.name, session.step, which),
        session.pairs,
        sdxl=components.sdxl,
        layers=components.unet.config.layers_per_block,
        dtype=dtype,
        metadata={**facts, **times(run)},
    )


def _why_not_written(error: BaseException) -> str | None:
    """The disk's reason behind an error; None if the disk is not to blame."""
    if isinstance(error, SafetensorError):
        return str(error)
    for cause in (error, error.__context__):  # torch hides the system's error behind one of its own
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
    return None
