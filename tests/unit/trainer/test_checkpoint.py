"""A checkpoint that has its name is whole, holds what the next step depends on, and old ones go when they should."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from trainscope.errors import TrainingError
from trainscope.proof.runs import RunSpec
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.trainer import checkpoint as module
from trainscope.trainer.build import build_session
from trainscope.trainer.checkpoint import save_checkpoint, weights_path
from trainscope.trainer.session import Session

LORA: dict[str, Any] = {
    "train.method": "lora",
    "lora.rank": 4,
    "train.steps": 100,
    "checkpoint.save_state": True,
    "ema.enabled": True,
}


@pytest.fixture(scope="module")
def shared() -> Session:
    """A session whose average differs from its weights. Tests change its step only."""
    session = build_session(RunSpec(LORA).resolved())
    with torch.no_grad():
        for param in session.tensors:
            param.add_(0.1)
    for param in session.tensors:
        param.grad = torch.ones_like(param)
    session.optimizer.step()
    session.optimizer.zero_grad()
    return session


@pytest.fixture
def session(shared: Session) -> Session:
    shared.step = 7
    return shared


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create_run(tmp_path, "run")


def keeping(session: Session, number: int) -> Session:
    """The session with `checkpoint.keep`."""
    spec = RunSpec({**LORA, "checkpoint.keep": number})
    return Session(**{**session.__dict__, "resolved": spec.resolved()})


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def test_everything_is_saved(session: Session, run: RunDir) -> None:
    folder = save_checkpoint(session, run)
    assert folder == run.checkpoints / "step-00000007"
    assert names(run) == ["step-00000007"]
    trained = load_file(folder / "state" / "trained.safetensors")
    assert trained.keys() == session.params.keys()
    assert all(torch.equal(trained[name], param) for name, param in session.params.items())
    average = load_file(folder / "state" / "ema.safetensors")
    assert session.ema is not None
    for shadow, (name, param) in zip(session.ema.shadow_params, session.params.items(), strict=True):
        assert torch.equal(average[name], shadow)
        assert not torch.equal(average[name], param)
    state = torch.load(folder / "state" / "optimizer.pt", weights_only=True)
    assert state["param_names"] == list(session.params)
    moments = session.optimizer.state_dict()["state"]
    assert all(torch.equal(state["optimizer"]["state"][k]["exp_avg"], moments[k]["exp_avg"]) for k in moments)
    assert torch.equal(state["rng"], torch.get_rng_state())
    training = json.loads((folder / "state" / "training.json").read_text(encoding="utf-8"))
    assert training == {
        "step": 7,
        "micro_step": session.micro_step,
        "optimizer_steps": session.optimizer_steps,
        "seed": session.seed,
        "ema": {"optimization_step": session.ema.optimization_step},
    }


def test_both_weight_sets_are_saved_for_use(session: Session, run: RunDir) -> None:
    folder = save_checkpoint(session, run)
    raw, average = (load_file(weights_path(folder, "lora", which)) for which in ("raw", "ema"))
    assert raw.keys() == average.keys()
    assert all(not torch.equal(raw[name], average[name]) for name in raw)
    by_name = {name.replace(".default.", "."): param for name, param in session.params.items()}
    assert all(torch.equal(raw[f"unet.{name}"], param) for name, param in by_name.items())


def test_saving_changes_nothing(session: Session, run: RunDir) -> None:
    weights = [param.detach().clone() for param in session.tensors]
    rng = torch.get_rng_state()
    save_checkpoint(session, run)
    assert all(torch.equal(a, b) for a, b in zip(weights, session.tensors, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)


def test_one_that_is_there_is_left(session: Session, run: RunDir) -> None:
    folder = save_checkpoint(session, run)
    (folder / "mine").touch()
    assert save_checkpoint(session, run) == folder
    assert (folder / "mine").exists()


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_keep(keep: int, left: list[int], session: Session, run: RunDir) -> None:
    kept = keeping(session, keep)
    for step in range(1, 5):
        kept.step = step
        save_checkpoint(kept, run)
    assert names(run) == [f"step-{step:08d}" for step in left]


def test_the_newest_is_the_last_to_go(session: Session, run: RunDir) -> None:
    """By number: step 1000 is newer than step 999, whatever was saved first."""
    kept = keeping(session, 1)
    for step in (999, 1000):
        kept.step = step
        save_checkpoint(kept, run)
    assert names(run) == ["step-00001000"]


def test_it_has_its_name_when_it_is_whole(session: Session, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = module._sync_tree, []

    def sync(folder: Path) -> None:
        seen.append([name for name in names(run) if not name.startswith(".")])
        real(folder)

    monkeypatch.setattr(module, "_sync_tree", sync)
    save_checkpoint(session, run)
    assert seen == [[]]


@pytest.mark.parametrize("part", ["_save_weights", "_save_state", "_sync_tree"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("a bug")])
def test_one_that_fails_leaves_nothing(
    part: str, error: BaseException, session: Session, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [param.detach().clone() for param in session.tensors]
    real: Callable[..., None] = getattr(module, part)

    def broken(*args: Any) -> None:
        real(*args)
        raise error

    monkeypatch.setattr(module, part, broken)
    expected = TrainingError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        save_checkpoint(session, run)
    if isinstance(error, OSError):
        assert str(caught.value) == "the checkpoint of step 7 cannot be written: No space left on device"
    assert names(run) == []
    assert all(torch.equal(a, b) for a, b in zip(weights, session.tensors, strict=True))


def test_an_old_one_that_is_half_deleted_has_lost_its_name(
    session: Session, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of deleting: no folder that looks like a checkpoint lacks a part of one."""
    kept = keeping(session, 1)
    kept.step = 1
    first = save_checkpoint(kept, run)
    whole = sorted(path.relative_to(first) for path in first.rglob("*"))
    real = shutil.rmtree

    def killed(folder: Path, **options: Any) -> None:
        if "step-00000001" not in folder.name:
            real(folder, **options)
            return
        weights_path(folder, "lora").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    kept.step = 2
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(kept, run)
    (left,) = run.checkpoints.glob("step-*")
    assert left.name == "step-00000002"
    assert sorted(path.relative_to(left) for path in left.rglob("*")) == whole


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_weights_for_use_have_their_format(dtype: str, session: Session, run: RunDir) -> None:
    changed = Session(
        **{**session.__dict__, "resolved": RunSpec({**LORA, "precision.save": dtype, "ema.enabled": False}).resolved()}
    )
    changed.ema = None
    folder = save_checkpoint(changed, run)
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert {tensor.dtype for tensor in load_file(weights_path(folder, "lora")).values()} == {wanted}
    assert {tensor.dtype for tensor in load_file(folder / "state" / "trained.safetensors").values()} == {torch.float32}
    assert not (folder / "weights-ema").exists()
    assert not (folder / "state" / "ema.safetensors").exists()


def test_without_state_there_are_weights_only(session: Session, run: RunDir) -> None:
    spec = RunSpec({**LORA, "checkpoint.save_state": False})
    folder = save_checkpoint(Session(**{**session.__dict__, "resolved": spec.resolved()}), run)
    assert {path.name for path in folder.iterdir()} == {"weights", "weights-ema"}
