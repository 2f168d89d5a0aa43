"""Real runs of the trainer on tiny models, made once and kept.

A run is kept under a key of everything that it depends on: its configuration, its faults, the code of the trainer and
the versions of the libraries (not the images: they are the project's own). Rules that prove themselves on the same run
share it. Judges nothing.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import trainscope
from trainscope.config.load import ResolvedConfig, parse_config
from trainscope.proof.shapes import draw_shapes
from trainscope.toml import toml_value

PACKAGE = Path(trainscope.__file__).parent
CODE = ("config", "runlog", "probes", "trainer", "proof/injectors.py", "proof/shapes.py", "schema.py")
"""What a run depends on, beside its configuration."""
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "prodigyopt", "numpy")

BASE: dict[str, Any] = {
    "model.base": "tiny:sd15",
    "train.method": "finetune",
    "train.steps": 150,
    "train.batch_size": 4,
    "data.resolution": 64,
    "run.seed": 1,
    "run.device": "cpu",
    "sample.every_steps": 0,
    "eval.every_steps": 25,
    "probes.every": 5,
    "checkpoint.save_state": False,
}
"""The configuration that every case changes."""


@dataclass(frozen=True)
class RunSpec:
    """A run: what it changes of `BASE`, which faults are injected, and where it stops."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    inject: Sequence[str] = ()
    stop_at: int | None = None

    def with_changes(self, changes: Mapping[str, Any]) -> RunSpec:
        return RunSpec({**self.changes, **changes}, self.inject, self.stop_at)

    def config_text(self) -> str:
        """The cfg.toml of the run."""
        return config_text(changed_base(self.changes))

    def resolved(self) -> ResolvedConfig:
        return parse_config(self.config_text())


def _key(resolved: ResolvedConfig, inject: Sequence[str], stop_at: int | None) -> str:
    """Equal for equal runs."""
    keys = [(key, value) for key, value, _ in resolved.rows()]
    subject = [keys, str(resolved.resolve_path(resolved.config.data.dir)), list(inject), stop_at, code_digest()]
    return hashlib.sha256(json.dumps(subject, default=str).encode()).hexdigest()[:24]


def changed_base(changes: Mapping[str, Any]) -> dict[str, Any]:
    """`BASE` with changes; a length in epochs takes the place of one in steps."""
    values = {**BASE, "data.dir": str(shapes_folder()), **changes}
    if "train.epochs" in changes:
        del values["train.steps"]
    return values


def config_text(values: Mapping[str, Any]) -> str:
    """Dotted keys as a cfg.toml, table by table."""
    tables: dict[str, list[str]] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        tables.setdefault(table, []).append(f"{name} = {toml_value(value)}")
    return "\n".join(line for table, lines in tables.items() for line in (f"[{table}]", *lines, ""))


def make_run(spec: RunSpec) -> Path:
    """The directory of a finished run, made now unless it was made before."""
    return run_config(spec.resolved(), inject=spec.inject, stop_at=spec.stop_at)


def run_config(resolved: ResolvedConfig, *, inject: Sequence[str] = (), stop_at: int | None = None) -> Path:
    """The directory of a finished run of any configuration, likewise."""
    folder = cache_folder() / "runs" / _key(resolved, inject, stop_at)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        run = folder / "run"
        if (folder / "finished").exists():
            return run
        shutil.rmtree(run, ignore_errors=True)
        from trainscope.proof.injectors import make_injector
        from trainscope.trainer.train import train

        train(resolved, out=run, stop_at=stop_at, callbacks=[make_injector(name) for name in inject])
        # Nobody loads the weights of a proof; the log is what is judged.
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (folder / "finished").touch()
        return run


@cache
def shapes_folder() -> Path:
    """The captioned shapes, drawn anew if they are not there."""
    folder = cache_folder() / f"shapes-{_digest(PACKAGE / 'proof/shapes.py')[:12]}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not folder.exists():
            beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
            draw_shapes(beside)
            beside.rename(folder)
    return folder


@cache
def cache_folder() -> Path:
    """$TRAINSCOPE_CACHE, else a folder in the user's cache; where that cannot be made, one for this process."""
    named = os.environ.get("TRAINSCOPE_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(named) if named else base / "trainscope" / "proof"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="trainscope-proof-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def code_digest() -> str:
    """Changes with the trainer's code and with the versions of what it is built on."""
    versions = [importlib.metadata.version(library) for library in LIBRARIES]
    return hashlib.sha256("".join([*versions, *map(_digest, _code_files())]).encode()).hexdigest()


def _code_files() -> Iterator[Path]:
    for name in CODE:
        path = PACKAGE / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time: parallel tests wait for a run instead of making it twice."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
