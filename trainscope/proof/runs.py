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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trainscope
from trainscope.config.load import ResolvedConfig, parse_config
from trainscope.proof.few import write_few
from trainscope.proof.shapes import draw_shapes, write_long_captions, write_tags
from trainscope.proof.twins import write_twins
from trainscope.toml import toml_value

if TYPE_CHECKING:
    from trainscope.trainer.training import Finished

PACKAGE = Path(trainscope.__file__).parent
CODE = (
    "config",
    "runlog",
    "probes",
    "trainer",
    "proof/shapes.py",
    "schema.py",
)
"""What a run depends on, beside its configuration."""
LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "prodigyopt",
    "schedulefree",
    "bitsandbytes",
    "lion-pytorch",
    "numpy",
)

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
    """A run: what it changes of `BASE`, which faults are injected, and where it stops.

    `after` is a run that this one resumes, in place, from its newest checkpoint, to which the `damage` is done before.
    What that run changed of `BASE` holds here too.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    inject: Sequence[str] = ()
    stop_at: int | None = None
    after: RunSpec | None = None
    damage: Sequence[str] = ()

    def with_changes(self, changes: Mapping[str, Any]) -> RunSpec:
        """The run and those before it, with changes."""
        after = self.after.with_changes(changes) if self.after else None
        return replace(self, changes={**self.changes, **changes}, after=after)

    def all_changes(self) -> dict[str, Any]:
        before = self.after.all_changes() if self.after else {}
        return {**before, **self.changes}

    def config_text(self) -> str:
        """The cfg.toml of the run."""
        return config_text(changed_base(self.all_changes()))

    def resolved(self) -> ResolvedConfig:
        return parse_config(self.config_text())


def _key(resolved: ResolvedConfig, inject: Sequence[str], stop_at: int | None, *more: Any) -> str:
    """Equal for equal runs."""
    keys = [(key, value) for key, value, _ in resolved.rows()]
    data = str(resolved.resolve_path(resolved.config.data.dir))
    faults = _faults_digest("proof/injectors") if inject else ""
    subject = [keys, data, list(inject), stop_at, *more, faults, code_digest()]
    return hashlib.sha256(json.dumps(subject, default=str).encode()).hexdigest()[:24]


def changed_base(changes: Mapping[str, Any]) -> dict[str, Any]:
    """`BASE` with changes; a length in epochs takes the place of one in steps.

    As `data.dir`, "twins" means the folder of `twins_folder`, "few" that of `few_folder`.
    """
    values = {**BASE, "data.dir": str(shapes_folder()), **changes}
    named = {"twins": twins_folder, "few": few_folder}
    if values["data.dir"] in named:
        values["data.dir"] = str(named[values["data.dir"]]())
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
    return _make(spec, keep_checkpoints=False)


def _make(spec: RunSpec, *, keep_checkpoints: bool) -> Path:
    if spec.after is None:
        return run_config(spec.resolved(), inject=spec.inject, stop_at=spec.stop_at, keep_checkpoints=keep_checkpoints)
    before = _make(spec.after, keep_checkpoints=True)
    return _kept(
        _key(spec.resolved(), spec.inject, spec.stop_at, before.parent.name, *_damage_key(spec.damage)),
        lambda run: _resume(spec, before, run),
        keep_checkpoints=keep_checkpoints,
    )


def _resume(spec: RunSpec, before: Path, run: Path) -> None:
    from trainscope.proof.damages import DAMAGES
    from trainscope.proof.injectors import make_injector
    from trainscope.trainer.train import train

    shutil.copytree(before, run)
    (checkpoint,) = sorted((run / "checkpoints").glob("step-*"))[-1:]
    for name in spec.damage:
        DAMAGES[name](checkpoint)
    finished = train(
        spec.resolved(),
        out=run,
        resume=str(checkpoint),
        stop_at=spec.stop_at,
        callbacks=[make_injector(name) for name in spec.inject],
    )
    _check_whole(finished, spec.stop_at)


def run_config(
    resolved: ResolvedConfig,
    *,
    inject: Sequence[str] = (),
    stop_at: int | None = None,
    keep_checkpoints: bool = False,
) -> Path:
    """The directory of a finished run of any configuration, likewise."""

    def begin(run: Path) -> None:
        from trainscope.proof.injectors import make_injector
        from trainscope.trainer.train import train

        finished = train(resolved, out=run, stop_at=stop_at, callbacks=[make_injector(name) for name in inject])
        _check_whole(finished, stop_at)

    return _kept(_key(resolved, inject, stop_at), begin, keep_checkpoints=keep_checkpoints)


def _check_whole(finished: Finished, stop_at: int | None) -> None:
    """A signal ends a training in order; here it is the proof that is to end, and the run is none to keep."""
    if finished.status == "interrupted" and finished.step != stop_at:
        raise KeyboardInterrupt


def _kept(key: str, begin: Callable[[Path], None], *, keep_checkpoints: bool) -> Path:
    """The run kept under a key, made by `begin` if there is none."""
    # What is resumed needs its checkpoint. Of all others the log is what is judged, and nobody loads the weights.
    folder = cache_folder() / "runs" / (f"{key}-with-checkpoints" if keep_checkpoints else key)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / "lock"):
        run = folder / "run"
        if (folder / "finished").exists():
            return run
        shutil.rmtree(run, ignore_errors=True)
        begin(run)
        if not keep_checkpoints:
            shutil.rmtree(run / "checkpoints", ignore_errors=True)
        (folder / "finished").touch()
        return run


@cache
def shapes_folder() -> Path:
    """The captioned shapes, drawn anew if they are not there."""

    def draw(folder: Path) -> None:
        draw_shapes(folder)
        write_tags(folder)
        write_long_captions(folder)

    return _drawn("shapes", draw, of=("shapes.py",))


@cache
def twins_folder() -> Path:
    """The shapes, each of them twice, likewise."""
    return _drawn("twins", write_twins, of=("shapes.py", "twins.py"))


@cache
def few_folder() -> Path:
    """Eight of the shapes, likewise."""
    return _drawn("few", write_few, of=("shapes.py", "few.py"))


def _drawn(name: str, draw: Callable[[Path], object], *, of: Sequence[str]) -> Path:
    """The folder that `draw` fills, filled now unless the code `of` it did it before."""
    folder = cache_folder() / "-".join([name, *(_digest(PACKAGE / "proof" / file)[:12] for file in of)])
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_suffix(".lock")):
        if not folder.exists():
            beside = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
            draw(beside)
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


def _code_files(names: Sequence[str] = CODE) -> Iterator[Path]:
    for name in names:
        path = PACKAGE / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


@cache
def _faults_digest(name: str) -> str:
    """Of the code that does the faults; only runs with faults depend on it."""
    return hashlib.sha256("".join(map(_digest, _code_files([name]))).encode()).hexdigest()


def _damage_key(damage: Sequence[str]) -> list[str]:
    return [*damage, _faults_digest("proof/damages.py")] if damage else []


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time: parallel tests wait for a run instead of making it twice."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
