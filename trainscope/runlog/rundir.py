"""A run's directory: making one, its run.json, its lock, and the paths inside it.

    run.json                 format, id, status, segments
    segments/<n>/            the configuration and environment of each segment
    log/<table>/             Parquet files
    checkpoints/ samples/    what the trainer leaves; report.html, report.json: what an audit leaves

Knows nothing of what the tables mean.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainscope.errors import RunError
from trainscope.runlog.durable import make_folders, sync_folder, write_atomically

RUN_FORMAT = 1
STATUSES = ("running", "completed", "crashed", "interrupted")


@dataclass(frozen=True)
class RunDir:
    """Paths of a run, and its run.json."""

    path: Path

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    def segment(self, number: int) -> Path:
        return self.path / "segments" / str(number)

    def read(self) -> dict[str, Any]:
        """run.json. Raises `RunError` if this is not a run, or one of a newer format."""
        if not self.path.exists():
            raise RunError(f"no such run: {self.path}", hint="`trainscope run` prints the run's directory last")
        file = self.path / "run.json"
        try:
            info = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(f"{self.path} is not a run directory: it has no run.json") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}") from error
        if not isinstance(info, dict) or type(info.get("format")) is not int or info["format"] < 1:
            raise RunError(f"{file} is not a run's description: it has no format number")
        if info["format"] > RUN_FORMAT:
            raise RunError(
                f"{file} has format {info['format']}, and this trainscope reads up to {RUN_FORMAT}",
                hint="pip install --upgrade trainscope",
            )
        if info.get("status") not in STATUSES:
            raise RunError(f"{file} is damaged: status {info.get('status')!r} is none of {', '.join(STATUSES)}")
        if not _are_segments(info.get("segments")):
            raise RunError(f"{file} is damaged: each segment needs a number and a start_step")
        return info

    def update(self, **changes: Any) -> None:
        """Change keys of run.json."""
        write_json(self.path / "run.json", {**self.read(), **changes})

    def status(self) -> str:
        """The status in effect: a run that says "running" while nobody holds its lock was killed."""
        status: str = self.read()["status"]
        if status == "running" and not self._is_locked():
            return "crashed"
        return status

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: the operating system lets go when the process ends, however it ends."""
        with (self.path / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{self.path} is in use by another process") from None
            yield

    def _is_locked(self) -> bool:
        try:
            file = (self.path / ".lock").open()
        except OSError:
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False


def _are_segments(found: Any) -> bool:
    if not isinstance(found, list) or not all(isinstance(segment, dict) for segment in found):
        return False
    numbers = [segment.get(key) for segment in found for key in ("number", "start_step")]
    return all(type(number) is int and number >= 0 for number in numbers)


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False).encode())


def create_run(folder_of_runs: Path, name: str, *, out: Path | None = None, parent: str | None = None) -> RunDir:
    """Make a new run directory: `out` exactly, else `folder_of_runs/<name>-<time>`. Never touches an existing one.

    `parent` is the id of the run that it goes on from.
    """
    try:
        if out is not None:
            folder = _claim(out)
        else:
            make_folders(folder_of_runs)
            folder = _first_free(folder_of_runs, f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}")
        for sub in ("segments", "log", "checkpoints", "samples"):
            (folder / sub).mkdir()
        sync_folder(folder.parent)
        (folder / ".lock").touch()
        write_json(
            folder / "run.json",
            {
                "format": RUN_FORMAT,
                "id": uuid.uuid4().hex,
                "name": name,
                "parent": parent,
                "origin": "trainscope",
                "status": "running",
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "segments": [],
            },
        )
    except OSError as error:
        raise RunError(f"cannot make a run directory: {error}", hint="name another with --out or run.dir") from error
    return RunDir(folder)


def _claim(folder: Path) -> Path:
    """Take `folder` for a run: it must be new, or empty. Of two runs that find it empty, one makes the first entry."""
    make_folders(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir() or any(folder.iterdir()):
            raise RunError(
                f"{folder} exists and is not empty", hint="runs are never overwritten; name another"
            ) from None
    return folder


def _first_free(parent: Path, name: str) -> Path:
    for number in range(1, 10_000):
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise RunError(f"{parent} already has ten thousand runs of this name and second")
