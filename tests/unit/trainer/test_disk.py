"""Whether there is room: the estimate is near what a checkpoint takes, and what does not fit is told at once."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.choices import is_possible
from trainscope.config.footprint import STATE_BYTES
from trainscope.config.optimizer import OPTIMIZERS
from trainscope.errors import TrainingError
from trainscope.proof.runs import RunSpec
from trainscope.runlog.rundir import create_run
from trainscope.trainer.build import build_session
from trainscope.trainer.checkpoints import disk
from trainscope.trainer.checkpoints.disk import check_room, checkpoint_bytes, optimizer_bytes
from trainscope.trainer.checkpoints.save import save_checkpoint
from trainscope.trainer.optimizers import build_optimizer
from trainscope.trainer.session import Session
from trainscope.trainer.witness import session_pieces

METHODS: dict[str, dict[str, Any]] = {
    "finetune": {"train.method": "finetune"},
    # Large enough that headers do not matter: 9 MB of adapters.
    "lora": {"train.method": "lora", "lora.rank": 2048},
}
FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision.weights": "bf16"},
    "bf16-stochastic": {"precision.weights": "bf16", "precision.stochastic_rounding": True},
}


SAVING: dict[str, Any] = {"train.steps": 8, "checkpoint.save_state": True}


def stepped(*changes: dict[str, Any]) -> Session:
    """A session whose optimizer has its state."""
    return step(build_session(RunSpec({**SAVING, **{k: v for part in changes for k, v in part.items()}}).resolved()))


def with_optimizer(session: Session, changes: dict[str, Any]) -> Session:
    """The same session with another optimizer, which has its state."""
    resolved = RunSpec({**SAVING, **METHODS["lora"], **changes}).resolved()
    optimizer = build_optimizer(resolved.config.optimizer, {"unet": session.tensors}, warmup_steps=0)
    return step(dataclasses.replace(session, resolved=resolved, optimizer=optimizer))


def step(session: Session) -> Session:
    for param in session.tensors:
        param.grad = torch.full_like(param, 0.01)
    if session.rounding is None:
        session.optimizer.step()
    else:
        with session.rounding.float32_weights():
            session.optimizer.step()
    session.optimizer.zero_grad()
    return session


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def optimizer_changes(kind: str) -> dict[str, Any]:
    small = {"optimizer.min_8bit_size": 256} if kind.endswith("8bit") else {}
    return {"optimizer.type": kind, **small}


def test_every_optimizer_has_its_bytes() -> None:
    assert STATE_BYTES.keys() == OPTIMIZERS.keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "adafactor"])
def test_the_estimate_is_near_the_truth(kind: str, method: str, tmp_path: Path) -> None:
    session = stepped(METHODS[method], optimizer_changes(kind), {"ema.enabled": True})
    folder = save_checkpoint(session, create_run(tmp_path, "run"), list(session_pieces(session)))
    assert checkpoint_bytes(session) == pytest.approx(size(folder), rel=0.25)


@pytest.fixture(scope="module")
def in_every_format() -> dict[str, Session]:
    return {name: stepped(METHODS["lora"], changes) for name, changes in FORMATS.items()}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_state_of_every_optimizer(kind: str, in_every_format: dict[str, Session]) -> None:
    """The part of the estimate that is the optimizer's, against the tensors that it has."""
    tried = [name for name in FORMATS if is_possible({"optimizer.type": kind}, FORMATS[name])]
    assert len(tried) > 1
    for format_ in tried:
        session = with_optimizer(in_every_format[format_], {**optimizer_changes(kind), **FORMATS[format_]})
        state = [value for values in session.optimizer.state.values() for value in values.values()]
        real = sum(value.numel() * value.element_size() for value in state if isinstance(value, torch.Tensor))
        assert optimizer_bytes(session) == pytest.approx(real, rel=0.25)


def test_adafactors_state_is_smaller_where_a_tensor_has_two_dimensions() -> None:
    """A convolution's kernel has sums over its rows and its columns only."""
    for changes in ({}, {"optimizer.beta1": 0.9}):
        session = stepped(METHODS["finetune"], {"optimizer.type": "adafactor", **changes})
        state = [value for values in session.optimizer.state.values() for value in values.values()]
        real = sum(value.numel() * value.element_size() for value in state if isinstance(value, torch.Tensor))
        # A scalar beside them for each tensor.
        assert optimizer_bytes(session) == real - 4 * len(session.tensors)


@pytest.mark.parametrize(
    "changes",
    [
        {"checkpoint.save_state": False},
        {"precision.save": "fp16"},
        {"ema.enabled": True, "ema.dtype": "bf16"},
        {"ema.enabled": True, "checkpoint.save_state": False, "precision.save": "bf16"},
        {"train.parts": ["text_encoder"], "train.method": "finetune", "ema.enabled": True},
        {"train.parts": ["unet", "text_encoder"], "train.method": "finetune", "precision.save": "fp16"},
    ],
    ids=str,
)
def test_what_else_the_estimate_depends_on(changes: dict[str, Any], tmp_path: Path) -> None:
    session = stepped(METHODS["lora"], changes)
    folder = save_checkpoint(session, create_run(tmp_path, "run"), list(session_pieces(session)))
    assert checkpoint_bytes(session) == pytest.approx(size(folder), rel=0.25)


# ---- room


@pytest.fixture(scope="module")
def session() -> Session:
    return stepped({"train.method": "lora", "lora.rank": 4})


def configured(session: Session, **changes: Any) -> Session:
    values = {f"checkpoint.{key}": value for key, value in changes.items()}
    spec = RunSpec({"train.method": "lora", "lora.rank": 4, "train.steps": 8, "checkpoint.save_state": True, **values})
    return dataclasses.replace(session, resolved=spec.resolved())


def with_free(monkeypatch: pytest.MonkeyPatch, free: int) -> list[Path]:
    asked: list[Path] = []

    def usage(path: Path) -> Any:
        asked.append(path)
        return real(path)._replace(free=free)

    real = shutil.disk_usage
    monkeypatch.setattr(disk.shutil, "disk_usage", usage)
    return asked


def test_no_room_at_all(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, checkpoint_bytes(session) - 1)
    with pytest.raises(
        TrainingError, match=r"a checkpoint needs about 1\.\d MiB, and the disk of .* has 1\.\d MiB free"
    ):
        check_room(session, tmp_path)


def test_room_for_one(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, checkpoint_bytes(session))
    assert check_room(session, tmp_path) is None


@pytest.mark.parametrize(
    ("section", "step", "checkpoints"),
    [
        ({"every_steps": 0}, 0, 1),
        ({"every_steps": 2}, 0, 4),
        ({"every_steps": 3}, 0, 3),
        ({"every_steps": 8}, 0, 1),
        ({"every_steps": 2, "keep": 1}, 0, 2),
        ({"every_steps": 2, "keep": 2}, 0, 3),
        ({"every_steps": 2, "keep": 9}, 0, 4),
        ({"every_steps": 2}, 4, 2),
    ],
    ids=str,
)
def test_room_for_all_that_are_planned(
    section: dict[str, int],
    step: int,
    checkpoints: int,
    session: Session,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Saved at every multiple and at the last step, 8; the old one goes only after the new one is there."""
    saving = configured(session, **section)
    saving.step = step
    needed = checkpoint_bytes(saving)
    with_free(monkeypatch, checkpoints * needed)
    assert check_room(saving, tmp_path) is None
    with_free(monkeypatch, checkpoints * needed - 1)
    if checkpoints == 1:
        with pytest.raises(TrainingError):
            check_room(saving, tmp_path)
    else:
        warning = check_room(saving, tmp_path)
        assert warning is not None
        assert warning.startswith(f"{checkpoints} checkpoints of about ")
        assert "set checkpoint.keep" in warning


@pytest.mark.parametrize(
    ("section", "checkpoints"), [({}, 3), ({"every_steps": 6}, 3), ({"every_steps": 4}, 4)], ids=str
)
def test_room_for_those_of_epochs(
    section: dict[str, int], checkpoints: int, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of three batches end with steps 3 and 6, beside the last step, 8."""
    saving = configured(session, every_epochs=1, **section)
    saving.plan = dataclasses.replace(saving.plan, batches_per_epoch=3)
    saving.step = saving.micro_step = 0
    needed = checkpoint_bytes(saving)
    with_free(monkeypatch, checkpoints * needed)
    assert check_room(saving, tmp_path) is None
    with_free(monkeypatch, checkpoints * needed - 1)
    warning = check_room(saving, tmp_path)
    assert warning is not None
    assert warning.startswith(f"{checkpoints} checkpoints of about ")


def test_a_folder_that_is_not_there_yet(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is that of the nearest folder above."""
    asked = with_free(monkeypatch, 10**12)
    monkeypatch.chdir(tmp_path)
    assert check_room(session, Path("not/yet/there")) is None
    assert asked == [tmp_path]


@pytest.mark.parametrize(
    ("count", "text"),
    [(5, "5 B"), (2048, "2.0 KiB"), (3 * 2**20, "3.0 MiB"), (2**40, "1.0 TiB"), (5 * 2**50, "5120.0 TiB")],
)
def test_sizes_in_words(count: int, text: str) -> None:
    assert disk._shown(count) == text
