"""Reads a run directory: every flushed row of every table, while it is written or after.

Knows nothing of rules or reports; never imports torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from trainscope.errors import RunError
from trainscope.runlog.frames import Frames
from trainscope.runlog.opened import open_table
from trainscope.runlog.rundir import RunDir
from trainscope.runlog.tables import TABLES

if TYPE_CHECKING:
    import pyarrow.dataset as ds


@dataclass(frozen=True)
class Run:
    """A run that was found readable. `info` is its run.json, `status` the status in effect."""

    directory: RunDir
    info: dict[str, Any]
    status: str
    _opened: dict[str, ds.Dataset] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def tables(self) -> Frames:
        """Every table as a pandas frame: `run.tables["tensors"]` is the surviving history, `"tensors_all"` all rows."""
        return Frames(self.dataset, self.segment_starts)

    @property
    def datasets(self) -> dict[str, ds.Dataset]:
        """Every table with all its raw rows; one that was never written is empty."""
        return {name: self.dataset(name) for name in TABLES}

    def dataset(self, name: str) -> ds.Dataset:
        """One of them, as it is when it is first asked for. Raises `RunError` if a file of it is damaged."""
        if name not in self._opened:
            self._opened[name] = open_table(self.directory, name)
        return self._opened[name]

    @property
    def segment_starts(self) -> list[int]:
        """The step after which each segment began."""
        return [int(segment["start_step"]) for segment in self.info["segments"]]

    @cached_property
    def config_text(self) -> str:
        """cfg.toml of the last segment as it was given."""
        return self._segment_file("config.toml")

    @cached_property
    def config_path(self) -> Path | None:
        """Where that cfg.toml lay; relative paths in it are relative to its folder."""
        path = self._resolved["path"]
        return Path(path) if path else None

    @property
    def config_copy(self) -> Path:
        """The copy of it in the run directory."""
        return self._segment / "config.toml"

    def config_rows(self) -> list[dict[str, Any]]:
        """Key, value and origin of every key of the last segment, with their JSON types."""
        rows: list[dict[str, Any]] = self._resolved["keys"]
        return rows

    def last_step(self) -> int:
        """The last step of the log; 0 if it has none."""
        column = self.dataset("steps").to_table(columns=["step"])["step"]
        return int(pc.max(column).as_py() or 0) if len(column) else 0

    @cached_property
    def _resolved(self) -> dict[str, Any]:
        name = "config.resolved.json"
        text = self._segment_file(name)
        try:
            found = json.loads(text)
        except ValueError as error:
            raise RunError(f"{self._segment / name} is damaged: {error}") from error
        if not _is_resolved(found):
            raise RunError(f"{self._segment / name} is damaged: it does not list the configuration's keys")
        return {"path": found.get("path"), "keys": found["keys"]}

    @property
    def _segment(self) -> Path:
        """The last segment's folder."""
        segments = self.info["segments"]
        if not segments:
            raise RunError(f"{self.directory.path} has no segment: it ended before the training began")
        return self.directory.segment(segments[-1]["number"])

    def _segment_file(self, name: str) -> str:
        file = self._segment / name
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(f"{file} cannot be read: {error}") from error


def read_run(path: Path | str) -> Run:
    """Open a run directory. Raises `RunError` if it is none, is damaged, or has a newer format.

    `read_run(path).tables["tensors"]` is a pandas frame.
    """
    directory = RunDir(Path(path))
    info = directory.read()
    return Run(directory=directory, info=info, status=directory.status())


def _is_resolved(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("path"), str | None):
        return False
    rows = found.get("keys")
    return isinstance(rows, list) and all(
        isinstance(row, dict) and isinstance(row.get("key"), str) and {"value", "origin"} <= row.keys() for row in rows
    )
