"""Errors that a training can meet through no fault of its code, put into words."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from trainscope.errors import TrainingError


@contextmanager
def explained(when: Callable[[], str]) -> Iterator[None]:
    """Turn a full disk and exhausted memory into a `TrainingError` that says when it was and what to do."""
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
