"""Writing so that a crash, also one of the power, leaves the old file or the new one, and no name without its data.

Knows nothing of what is written. Each step is one call of `os`, so that a test can stop after every one of them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write beside, fsync, rename: after a crash the old file or the new one is there, never a part."""
    # Not by the process alone: those of two machines that share a disk may have the same number.
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        _write(beside, data)
        beside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is told
            beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def make_folder(folder: Path) -> None:
    """A folder that a crash does not take away again with all that is in it. Its parent must be there."""
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def make_folders(folder: Path) -> None:
    """Like `make_folder`, with all parents that are missing."""
    if not folder.is_dir():
        make_folders(folder.parent)
        make_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make a rename durable: the directory entry is data of the folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one may write to it, and not read it
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes | memoryview) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
