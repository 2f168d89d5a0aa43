"""The command line as a user meets it: in this process where it is quick, in one of its own where that matters."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch

ROOT = Path(__file__).parents[2]
SHAPES = ROOT / "examples" / "shapes"
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@dataclass(frozen=True)
class Result:
    """What a command left behind: its exit code and what it wrote."""

    code: int | None
    out: str
    err: str

    @property
    def message(self) -> str:
        """The one error of a command that failed as it should: nothing else on stderr, and no traceback anywhere."""
        assert "Traceback" not in self.out + self.err, self.err
        assert "trainscope failed" not in self.err, self.err
        assert self.err.count("error: ") == 1, self.err
        assert self.err.startswith("error: "), self.err
        return self.err.removeprefix("error: ")

    @property
    def last_line(self) -> str:
        return self.out.rstrip("\n").rpartition("\n")[2]


def trainscope(*args: object) -> Result:
    """Run the command in this process."""
    from trainscope.cli.app import main

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", ["trainscope", *map(str, args)]),
    ):
        try:
            main()
        except SystemExit as stop:
            return Result(stop.code if isinstance(stop.code, int) else 0, out.getvalue(), err.getvalue())
    raise AssertionError("main() came back instead of exiting")


def in_a_process(*args: object, cwd: Path, timeout: float = 120, **environment: str) -> Result:
    """Run the command as a user's shell does, its output in pipes."""
    done = subprocess.run(
        [sys.executable, "-m", "trainscope", *map(str, args)],
        cwd=cwd,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        timeout=timeout,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def config_text(*sections: str, steps: int = 4, data: Path | str = SHAPES) -> str:
    """A small training that ends in a second; `sections` are added at its end."""
    return "\n".join(
        [
            "[model]",
            'base = "tiny:sd15"',
            "[train]",
            f"steps = {steps}",
            "[data]",
            f'dir = "{data}"',
            "resolution = 64",
            *sections,
            "",
        ]
    )


QUIET = ("sample.every_steps=0", "eval.every_steps=0", "checkpoint.save_state=false", "run.device=cpu", "run.seed=1")
"""What a test sets that is not about samples, evaluations or resuming."""


def settings(*pairs: str) -> list[str]:
    """`a=1` → `--set a=1`."""
    return [part for pair in pairs for part in ("--set", pair)]


def digest(folder: Path, ignore: Sequence[str] = ()) -> str:
    """Everything that is in a folder: names, sizes, bytes, links. Names in `ignore` are left out."""
    found = hashlib.sha256()
    for path in _below(folder):
        if path.name in ignore:
            continue
        kind = "link" if path.is_symlink() else "folder" if path.is_dir() else "file"
        found.update(f"{path.relative_to(folder)} {kind}\n".encode())
        if kind == "file":
            found.update(hashlib.sha256(path.read_bytes()).digest())
    return found.hexdigest()


def refused(verb: str, *args: object, says: tuple[str, ...], folder: Path) -> str:
    """Run a command that must exit with 2, say `says`, and leave `folder` as it was."""
    before = digest(folder)
    result = trainscope(verb, *args)
    assert result.code == 2, (result.code, result.out, result.err)
    for text in says:
        assert text in result.message, result.message
    assert digest(folder) == before, "something was written"
    return result.message


def _below(folder: Path) -> Iterable[Path]:
    return sorted(folder.rglob("*"))


def bits(tensor: torch.Tensor) -> bytes:
    """A tensor's dtype, shape and every bit of it."""
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} ".encode() + raw
