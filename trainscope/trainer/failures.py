"""Errors that a training can meet through no fault of its code, put into words.

Knows nothing of what was being done: the caller says it, and what would need less.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from trainscope.errors import TrainingError

LESS_TO_BUILD = 'train.method = "lora" with precision.base = "bf16" takes least; or end other programs'
LESS_TO_STEP = "lower train.batch_size or data.resolution, or set train.gradient_checkpointing = true"
LESS_TO_SAMPLE = "lower sample.width and sample.height, or set sample.every_steps = 0"
LESS_TO_SAVE = "end other programs, and go on from the last checkpoint with --resume"

SAID = (
    "can't allocate memory",  # torch's CPU allocator
    "not enough memory",  # the same on Windows
    "Cannot allocate memory",  # the system, where a file is mapped
    "out of memory",  # CUDA and MPS, outside of torch's allocators
    "ALLOC_FAILED",  # cuBLAS and its like, which have no room for their workspaces
)


@contextmanager
def explained(when: Callable[[], str], *, less_memory: str = LESS_TO_STEP) -> Iterator[None]:
    """Turn a full disk and exhausted memory into a `TrainingError` that says when it was and what to do.

    Within another one, the inner says it.
    """
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise TrainingError(f"out of memory {when()}", hint=less_memory) from error
        if not isinstance(error, OSError):
            raise
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free disk space, or name another place with --out" if full else None
        raise TrainingError(f"{when()}: {error}", hint=hint) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the device or of the computer; many say so in a RuntimeError's text only."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(said in str(error) for said in SAID)
