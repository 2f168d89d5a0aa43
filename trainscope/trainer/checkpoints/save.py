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
from trainscope.trainer.checkpoints.folder import checkpoint_name, made_beside, prune
from trainscope.trainer.checkpoints.state import write_state
from trainscope.trainer.ema import DTYPES
from trainscope.trainer.models.save import save_lora, save_pipeline
from trainscope.trainer.session import Session


def save_checkpoint(
    session: Session, run: RunDir, pieces: Sequence[Piece], *, writing: Callable[[str], None] = lambda which: None
) -> Path:
    """Save the session; returns the checkpoint's folder. One that is already there for this moment is left as it is.

    `pieces` is the session's fingerprint; `writing` is called with raw or ema while those weights are in place.
    """
    folder = run.checkpoints / checkpoint_name(session.step, session.accumulated.count if session.accumulated else 0)
    if folder.exists():
        return folder
    try:
        with made_beside(folder) as beside:
            for which in session.weight_sets:
                with session.weights(which):
                    writing(which)
                    _save_weights(session, beside / ("weights" if which == "raw" else "weights-ema"))
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
    return folder


def _save_weights(session: Session, folder: Path) -> None:
    dtype = DTYPES[session.config.precision.save]
    if session.config.train.method == "lora":
        save_lora(folder, session.unet, dtype=dtype, metadata={"trainscope_step": str(session.step)})
    else:
        save_pipeline(folder, session.components, dtype=dtype)


def _why_not_written(error: BaseException) -> str | None:
    """The disk's reason behind an error; None if the disk is not to blame."""
    if isinstance(error, SafetensorError):
        return str(error)
    for cause in (error, error.__context__):  # torch hides the system's error behind one of its own
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
    return None
