"""`--resume` → the checkpoint to go on from, the run to go on in, and what the new configuration changes.

Everything is decided and checked before a model is loaded. Knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainscope.config.changes import Change, find_changes, outgrown, refusals
from trainscope.config.load import ResolvedConfig
from trainscope.config.plan import Plan
from trainscope.errors import ConfigError, RunError
from trainscope.probes.fingerprint import Piece
from trainscope.runlog.fingerprint import read_fingerprint
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.checkpoints.folder import weights_path, whole_checkpoints
from trainscope.trainer.checkpoints.state import SavedState, read_state
from trainscope.trainer.optimizers.schedule import Schedule

LATEST = "latest"


@dataclass(frozen=True)
class Resume:
    """A training to go on with. `run` is None where it goes on in a new run, whose parent is `parent`."""

    checkpoint: Path
    run: RunDir | None
    parent: str
    state: SavedState
    saved: list[Piece]
    """The fingerprint that it was saved with; empty if the checkpoint has none."""
    has_fingerprint: bool
    changes: list[Change] = field(default_factory=list)

    @property
    def step(self) -> int:
        return int(self.state.training["step"])

    @property
    def saved_position(self) -> int:
        scheduler = self.state.scheduler
        return int(scheduler["position"] if scheduler else self.state.training["optimizer_steps"])

    @property
    def saved_schedule(self) -> Schedule:
        found = self.state.scheduler["schedule"] if self.state.scheduler else self.state.training["schedule"]
        return Schedule.from_json(found)


def find_checkpoint(resolved: ResolvedConfig, wanted: str, out: Path | None) -> tuple[Path, RunDir | None]:
    """The checkpoint that `wanted` (latest, a run, a checkpoint) means, and the run that it lies in, if any.

    Raises `RunError` if there is none.
    """
    if wanted == LATEST:
        run = RunDir(out) if out is not None and (out / "run.json").exists() else _newest_run(resolved)
        return _newest_checkpoint(run), run
    path = resolved.resolve_path(wanted)
    if (path / "run.json").exists():
        return _newest_checkpoint(RunDir(path)), RunDir(path)
    if (path / "state").is_dir() or (path / "weights").is_dir():
        above = path.resolve().parents[1]
        return path, RunDir(above) if (above / "run.json").exists() else None
    if not path.exists():
        raise RunError(
            f"no such checkpoint: {path}", hint="`--resume latest`, a run's directory, or a checkpoint in it"
        )
    raise RunError(f"{path} is neither a run nor a checkpoint", hint="checkpoints lie in RUN/checkpoints/step-…")


def has_earlier_run(resolved: ResolvedConfig) -> bool:
    """Whether there is a run of this name at all."""
    return any(_runs_of_this_name(resolved))


def continues_in(run: RunDir | None, resolved: ResolvedConfig, out: Path | None) -> RunDir | None:
    """The run that a training goes on in: the checkpoint's own, unless another name or place is asked for."""
    if run is None or run.read().get("name") != resolved.config.run.name:
        return None
    return run if out is None or out.resolve() == run.path.resolve() else None


def read_resume(resolved: ResolvedConfig, checkpoint: Path, run: RunDir | None) -> Resume:
    """Read a checkpoint and check the configuration against its own. Raises `RunError` and `ConfigError`."""
    state = read_state(checkpoint)
    training = state.training
    changes = find_changes({**training["config"], "run.seed": training["seed"]}, resolved.config)
    if training["accumulated"] and any(change.key == "train.gradient_accumulation" for change in changes):
        raise ConfigError(
            f"train.gradient_accumulation cannot change at {checkpoint}: it was saved in the middle of a step",
            hint="resume from another checkpoint to change it",
        )
    weights = str(weights_path(checkpoint, str(training["config"].get("train.method"))))
    if problems := refusals(changes, resolved.config, weights=weights):
        raise ConfigError(f"changed since {checkpoint} was saved, and cannot be applied:", problems=problems)
    rows = read_fingerprint(checkpoint)
    return Resume(
        checkpoint=checkpoint,
        run=run,
        parent=training["run"],
        state=state,
        saved=[Piece(**row) for row in rows or []],
        has_fingerprint=rows is not None,
        changes=changes,
    )


def check_against_data(resume: Resume, resolved: ResolvedConfig, plan: Plan, identity: str, processes: int = 1) -> None:
    """What only the images, the number of steps and that of the processes tell. Raises `ConfigError`."""
    problems = []
    saved_processes = resume.state.training.get("processes", 1)
    if processes != saved_processes:
        problems.append(
            f"{processes} processes: were {saved_processes}, and the place in the data is counted in batches of all of "
            f"them; start {saved_processes}"
        )
    if identity != resume.state.training["samples"]:
        way = "lora.init_from" if resolved.config.train.method == "lora" else "model.base"
        weights = weights_path(resume.checkpoint, resolved.config.train.method)
        problems.append(
            "data: the images or captions that are trained on, their buckets or their repeats differ from those at the "
            "save, so the place in their order means nothing; start a new run from the weights, with "
            f'{way} = "{weights}"'
        )
    saved = resume.saved_schedule
    ends = resume.step - resume.saved_position + saved.steps
    if problem := outgrown(saved.type, ends, plan.steps, resolved.config):
        problems.append(problem)
    if plan.steps <= resume.step:
        problems.append(
            f"train.steps = {plan.steps}: the checkpoint already has {resume.step} steps, so nothing is left to train; "
            "raise it to go on"
        )
    if problems:
        raise ConfigError(f"{resume.checkpoint} cannot be resumed with this configuration:", problems=problems)


def seed_in_effect(resume: Resume) -> int:
    return int(resume.state.training["seed"])


def changed_keys(changes: list[Change]) -> list[dict[str, Any]]:
    return [{"key": change.key, "saved": change.saved, "asked": change.asked} for change in changes]


def _newest_run(resolved: ResolvedConfig) -> RunDir:
    runs = list(_runs_of_this_name(resolved))
    if not runs:
        parent, name = resolved.resolve_path(resolved.config.run.dir), resolved.config.run.name
        raise RunError(
            f"there is no run named {name} in {parent} to resume",
            hint="start it without --resume, or name its directory",
        )
    return max(runs, key=lambda run: (str(run.read().get("created")), run.path.name))


def _runs_of_this_name(resolved: ResolvedConfig) -> Iterator[RunDir]:
    parent = resolved.resolve_path(resolved.config.run.dir)
    for file in sorted(parent.glob("*/run.json")):
        run = RunDir(file.parent)
        try:
            if run.read().get("name") == resolved.config.run.name:
                yield run
        except RunError:  # not one that could be resumed
            continue


def _newest_checkpoint(run: RunDir) -> Path:
    run.read()
    checkpoints = whole_checkpoints(run)
    if not checkpoints:
        raise RunError(
            f"{run.path} has no checkpoint: it ended before the first one was saved",
            hint="start anew without --resume; checkpoint.every_steps saves during the run",
        )
    return checkpoints[-1]
