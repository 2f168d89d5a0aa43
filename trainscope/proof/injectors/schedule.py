"""What other trainers do to the learning rate and its schedule when they resume. Knows nothing of rules."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session


class _OnResume(Callback):
    """Does something once: after everything was restored from a checkpoint, whose folder it is given."""

    def __init__(self, change: Callable[[Session, Path], None]) -> None:
        self._change = change

    def on_start(self, session: Session) -> None:
        self._session = session

    def on_event(self, kind: str, detail: dict[str, Any]) -> None:
        if kind == "resume":
            self._change(self._session, Path(detail["path"]))


def _load_state(session: Session, checkpoint: Path) -> None:
    """What accelerate's `load_state` does, and with it kohya's `--resume`.

    `LambdaLR.load_state_dict` brings base learning rates and position back, the optimizer's the groups' lr; what is
    new is the shape.
    """
    saved = _read(checkpoint, "scheduler.json")
    session.scheduler.base_lrs = list(saved["base_lrs"])
    session.scheduler.last_epoch = saved["position"]
    for group, found in zip(session.optimizer.param_groups, _read(checkpoint, "optimizer.json")["groups"], strict=True):
        group.update(lr=found["lr"], initial_lr=found["initial_lr"])


def _load_schedule(shape: str) -> Callable[[Session, Path], None]:
    """The old length comes back with the position, whatever the new one is to be.

    Schedules of torch's own, such as CosineAnnealingLR and PolynomialLR, keep it (T_max, total_iters) in their state.
    """

    def change(session: Session, checkpoint: Path) -> None:
        _load_state(session, checkpoint)
        _reshape(session, shape, steps=_read(checkpoint, "scheduler.json")["schedule"]["steps"])

    return change


def _hard_restarts(session: Session) -> None:
    """`cosine_with_restarts` of diffusers and transformers in the place of `cosine`: past its end it stands at 0."""
    _reshape(session, "cosine_with_restarts", steps=session.schedule.steps)


def _reshape(session: Session, shape: str, *, steps: int) -> None:
    nobody = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    (curve,) = get_scheduler(
        shape, nobody, num_warmup_steps=session.schedule.warmup_steps, num_training_steps=steps
    ).lr_lambdas
    session.scheduler.lr_lambdas = [curve] * len(session.scheduler.lr_lambdas)


def _position_lost(session: Session) -> None:
    """A script that saves the model and the optimizer, and builds the schedule anew: it warms up once more."""
    _move_to(session, 0)


def _position_in_micro_batches(session: Session) -> None:
    """A schedule that is moved on by the number of batches used, where it steps once for each optimizer step."""
    _move_to(session, session.micro_step)


def _move_to(session: Session, position: int) -> None:
    session.scheduler.last_epoch = position
    for group, base, shape in zip(
        session.optimizer.param_groups, session.scheduler.base_lrs, session.scheduler.lr_lambdas, strict=True
    ):
        group["lr"] = base * shape(position)


def _read(checkpoint: Path, name: str) -> Any:
    return json.loads((checkpoint / "state" / name).read_text(encoding="utf-8"))


INJECTORS: Injectors = {
    "load-state-keeps-the-lr": lambda: _OnResume(_load_state),
    "cosine-loaded-with-its-length": lambda: _OnResume(_load_schedule("cosine")),
    "linear-decay-loaded-with-its-length": lambda: _OnResume(_load_schedule("linear")),
    "cosine-with-restarts": lambda: AtStart(_hard_restarts),
    "schedule-position-lost": lambda: AtStart(_position_lost),
    "schedule-position-in-micro-batches": lambda: AtStart(_position_in_micro_batches),
}
