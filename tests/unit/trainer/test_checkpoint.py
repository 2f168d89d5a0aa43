"""A checkpoint that has its name is whole, holds what the next step depends on, and old ones go when they should."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from trainscope.config.load import flatten
from trainscope.errors import RunError, TrainingError
from trainscope.lora.file import read_lora
from trainscope.probes.fingerprint import Piece
from trainscope.proof.runs import RunSpec
from trainscope.runlog.fingerprint import read_fingerprint
from trainscope.runlog.rundir import RunDir, create_run
from trainscope.trainer.build import build_session
from trainscope.trainer.checkpoints import folder as folder_module
from trainscope.trainer.checkpoints import save as save_module
from trainscope.trainer.checkpoints import state as state_module
from trainscope.trainer.checkpoints.folder import (
    checkpoint_name,
    kohya_file,
    made_beside,
    prune,
    set_aside,
    weights_path,
    whole_checkpoints,
)
from trainscope.trainer.checkpoints.save import save_checkpoint
from trainscope.trainer.checkpoints.state import read_state
from trainscope.trainer.session import Accumulated, Session
from trainscope.trainer.witness import session_pieces

LORA: dict[str, Any] = {
    "train.method": "lora",
    "lora.rank": 4,
    "train.steps": 100,
    "checkpoint.save_state": True,
    "ema.enabled": True,
}


@pytest.fixture(scope="module")
def shared() -> Session:
    """A session whose average differs from its weights. Tests change its counters only."""
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
    shared.step, shared.micro_step, shared.optimizer_steps, shared.accumulated = 7, 15, 6, None
    return shared


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create_run(tmp_path, "run")


def changed(session: Session, **changes: Any) -> Session:
    """The session with another configuration."""
    spec = RunSpec({**LORA, **{key.replace("__", "."): value for key, value in changes.items()}})
    return dataclasses.replace(session, resolved=spec.resolved())


def saved(session: Session, run: RunDir, **options: Any) -> Path:
    return save_checkpoint(session, run, list(session_pieces(session)), **options)


SCHEDULE = {"type": "constant", "steps": 100, "warmup_steps": 0, "cycles": 1, "power": 1.0, "min_lr_ratio": 0.0}


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def files(checkpoint: Path) -> set[str]:
    return {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}


# ---- what is saved


def test_everything_is_saved(session: Session, run: RunDir) -> None:
    folder = saved(session, run)
    assert folder == run.checkpoints / "step-00000007"
    assert names(run) == ["step-00000007"]
    assert files(folder) == {
        "fingerprint.parquet",
        "weights/pytorch_lora_weights.safetensors",
        f"weights/{kohya_file('run', 7)}",
        "weights-ema/pytorch_lora_weights.safetensors",
        f"weights-ema/{kohya_file('run', 7, 'ema')}",
        "state/training.json",
        "state/trained.safetensors",
        "state/optimizer.safetensors",
        "state/optimizer.json",
        "state/scheduler.json",
        "state/ema.safetensors",
        "state/random.safetensors",
    }
    state = read_state(folder)
    assert state.weights is not None
    assert state.weights.keys() == session.params.keys()
    assert all(torch.equal(state.weights[name], param) for name, param in session.params.items())
    assert session.ema is not None
    assert state.ema is not None
    for shadow, (name, param) in zip(session.ema.shadow_params, session.params.items(), strict=True):
        assert torch.equal(state.ema[name], shadow)
        assert not torch.equal(state.ema[name], param)
    assert state.ema_updates == session.ema.optimization_step
    assert state.optimizer is not None
    for name, param in session.params.items():
        own = session.optimizer.state[param]
        assert state.optimizer[name].keys() == own.keys() == {"step", "exp_avg", "exp_avg_sq"}
        assert all(torch.equal(state.optimizer[name][key], own[key]) for key in own)
    assert state.groups is not None
    assert [group["name"] for group in state.groups] == ["unet"]
    assert "params" not in state.groups[0]
    assert state.random is not None
    assert torch.equal(state.random["torch"], torch.get_rng_state())
    assert state.scheduler == {
        "schedule": SCHEDULE,
        "position": session.scheduler.last_epoch,
        "base_lrs": [1e-4],
    }
    assert (state.scaler, state.gradients) == (None, None)
    assert [Piece(**row) for row in read_fingerprint(folder) or []] == list(session_pieces(session))


def test_training_json(session: Session, run: RunDir) -> None:
    training = read_state(saved(session, run)).training
    config = training.pop("config")
    assert training == {
        "run": run.read()["id"],
        "step": 7,
        "micro_step": 15,
        "optimizer_steps": 6,
        "accumulated": 0,
        "seed": 1,
        "samples": session.data.identity(),
        "schedule": SCHEDULE,
        "processes": 1,
        "probes_every": session.probes_every,
    }
    assert config == flatten(session.config.model_dump(mode="json"))


def test_a_step_that_was_stopped_in_its_middle(session: Session, run: RunDir) -> None:
    for number, param in enumerate(session.tensors):
        param.grad = torch.full_like(param, float(number))
    session.accumulated = Accumulated(2, torch.tensor(0.5), torch.tensor(0.25))
    try:
        folder = saved(session, run)
        assert folder.name == "step-00000007-micro-00002"
        state = read_state(folder)
        assert state.training["accumulated"] == 2
        assert state.gradients is not None
        assert state.gradients.keys() == {"loss", "leftover", *session.params}
        for name, param in session.params.items():
            assert param.grad is not None
            assert torch.equal(state.gradients[name], param.grad)
        assert (state.gradients["loss"], state.gradients["leftover"]) == (0.5, 0.25)
    finally:
        session.optimizer.zero_grad()


def test_numbers_of_the_optimizer_go_to_json(session: Session, run: RunDir) -> None:
    """Prodigy keeps a plain step in its state, and d in its group; an infinite growth_rate is in the configuration."""
    prodigy = build_session(RunSpec({**LORA, "optimizer.type": "prodigy", "optimizer.lr": 1.0}).resolved())
    for param in prodigy.tensors:
        param.grad = torch.ones_like(param)
    prodigy.optimizer.step()
    folder = saved(prodigy, run)
    text = (folder / "state" / "optimizer.json").read_text(encoding="utf-8")
    numbers = json.loads(text)["numbers"]
    assert numbers.keys() == prodigy.params.keys()
    assert all(values == {"step": 1} for values in numbers.values())
    state = read_state(folder)
    assert state.groups is not None
    group = prodigy.optimizer.param_groups[0]
    assert {key: state.groups[0][key] for key in ("d", "d0", "k", "d_numerator")} == {
        key: group[key] for key in ("d", "d0", "k", "d_numerator")
    }
    assert state.training["config"]["optimizer.growth_rate"] == "inf"
    assert state.optimizer is not None
    for name, param in prodigy.params.items():
        assert state.optimizer[name].keys() == prodigy.optimizer.state[param].keys()


def test_tensors_that_share_a_storage(tmp_path: Path) -> None:
    """safetensors refuses them; tied weights are two names of one tensor."""
    tied = torch.arange(4.0)
    state_module._write_tensors(tmp_path / "tied.safetensors", {"a": tied, "b": tied, "c": tied.t()})
    found = load_file(tmp_path / "tied.safetensors")
    assert all(torch.equal(found[name], tied) for name in "abc")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.uint8, torch.int64])
def test_tensors_keep_their_format(dtype: torch.dtype, tmp_path: Path) -> None:
    there = {"matrix": torch.arange(6).reshape(2, 3).to(dtype).t(), "scalar": torch.tensor(3).to(dtype)}
    state_module._write_tensors(tmp_path / "file.safetensors", there, updates="5")
    found, updates = state_module._read_ema(tmp_path / "file.safetensors")
    assert found is not None
    assert updates == 5
    for name, tensor in there.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], tensor)


def test_both_weight_sets_are_saved_for_use(session: Session, run: RunDir) -> None:
    written: list[str] = []
    folder = saved(session, run, writing=written.append)
    assert written == ["raw", "ema"]
    raw, average = (load_file(weights_path(folder, "lora", which)) for which in ("raw", "ema"))
    assert raw.keys() == average.keys()
    assert all(not torch.equal(raw[name], average[name]) for name in raw)
    by_name = {name.replace(".default.", "."): param for name, param in session.params.items()}
    assert all(torch.equal(raw[name], param) for name, param in by_name.items())
    for which, stored in (("raw", raw), ("ema", average)):
        kohya = read_lora(weights_path(folder, "lora", which).with_name(kohya_file("run", 7, which)))
        assert kohya.layout == "kohya"
        assert kohya.metadata["trainscope_weights"] == which
        halves = sorted(float(half.sum()) for pair in kohya.pairs for half in (pair.down, pair.up))
        assert halves == pytest.approx(sorted(float(half.sum()) for half in stored.values()), abs=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_weights_for_use_have_their_format(dtype: str, session: Session, run: RunDir) -> None:
    other = dataclasses.replace(changed(session, precision__save=dtype, ema__enabled=False), ema=None)
    folder = saved(other, run)
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert {tensor.dtype for tensor in load_file(weights_path(folder, "lora")).values()} == {wanted}
    assert {tensor.dtype for tensor in load_file(folder / "state" / "trained.safetensors").values()} == {torch.float32}
    assert not (folder / "weights-ema").exists()
    assert not (folder / "state" / "ema.safetensors").exists()


def test_without_state_what_identifies_the_moment_is_left(session: Session, run: RunDir) -> None:
    folder = saved(changed(session, checkpoint__save_state=False), run)
    assert files(folder) == {
        "fingerprint.parquet",
        "weights/pytorch_lora_weights.safetensors",
        f"weights/{kohya_file('run', 7)}",
        "weights-ema/pytorch_lora_weights.safetensors",
        f"weights-ema/{kohya_file('run', 7, 'ema')}",
        "state/training.json",
    }
    state = read_state(folder)
    assert state.training["step"] == 7
    assert [state.weights, state.optimizer, state.groups, state.scheduler, state.ema, state.random] == [None] * 6


def test_without_pieces_there_is_no_fingerprint(session: Session, run: RunDir) -> None:
    folder = save_checkpoint(session, run, [])
    assert read_fingerprint(folder) is None


def test_saving_changes_nothing(session: Session, run: RunDir) -> None:
    weights = [param.detach().clone() for param in session.tensors]
    state = {name: session.optimizer.state[param]["exp_avg"].clone() for name, param in session.params.items()}
    rng = torch.get_rng_state()
    saved(session, run)
    assert all(torch.equal(a, b) for a, b in zip(weights, session.tensors, strict=True))
    assert all(torch.equal(state[name], session.optimizer.state[p]["exp_avg"]) for name, p in session.params.items())
    assert torch.equal(torch.get_rng_state(), rng)


# ---- names and moments


def test_names_sort_by_time() -> None:
    moments = [(0, 0), (0, 1), (4, 0), (4, 2), (4, 10), (5, 0), (999, 0), (1000, 0)]
    found = [checkpoint_name(*moment) for moment in moments]
    assert found == sorted(found)
    assert found[2:4] == ["step-00000004", "step-00000004-micro-00002"]


def test_whole_checkpoints(run: RunDir) -> None:
    """The oldest first, by number and not by text; nothing else that lies there counts."""
    there = [
        "step-00000004",
        "step-00000004-micro-00002",
        "step-00000005",
        "step-99999999",
        "step-100000000",
    ]
    for name in [*there, ".step-00000009.1.tmp", "superseded-by-segment-1", "step-7", "step-00000009-copy"]:
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "step-00000006").touch()
    (run.checkpoints / "superseded-by-segment-1" / "step-00000008").mkdir()
    assert [path.name for path in whole_checkpoints(run)] == there


def test_one_that_is_there_is_left(session: Session, run: RunDir) -> None:
    folder = saved(session, run)
    (folder / "mine").touch()
    assert saved(session, run) == folder
    assert (folder / "mine").exists()


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4]), (9, [1, 2, 3, 4])])
def test_keep(keep: int, left: list[int], session: Session, run: RunDir) -> None:
    kept = changed(session, checkpoint__keep=keep)
    for step in range(1, 5):
        kept.step = step
        saved(kept, run)
    assert names(run) == [f"step-{step:08d}" for step in left]


def test_the_newest_is_the_last_to_go(session: Session, run: RunDir) -> None:
    """By number: step 1000 is newer than step 999, and a step's middle newer than its beginning."""
    kept = changed(session, checkpoint__keep=1)
    for step in (999, 1000):
        kept.step = step
        saved(kept, run)
    assert names(run) == ["step-00001000"]
    kept.accumulated = Accumulated(1, torch.zeros(()), torch.zeros(()))
    saved(kept, run)
    assert names(run) == ["step-00001000-micro-00001"]


def test_what_was_set_aside_is_not_pruned(run: RunDir) -> None:
    for name in ("step-00000001", "step-00000002", "step-00000003"):
        (run.checkpoints / name).mkdir()
    set_aside(run, run.checkpoints / "step-00000002", 4)
    prune(run, 1)
    assert names(run) == ["step-00000002", "superseded-by-segment-4"]
    assert (run.checkpoints / "superseded-by-segment-4" / "step-00000003").is_dir()


def test_set_aside(run: RunDir) -> None:
    later = ["step-00000004-micro-00002", "step-00000005"]
    for name in ("step-00000003", "step-00000004", *later, ".step-00000006.7.tmp"):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / ".step-00000006.7.tmp" / "half").touch()
    for name in (
        "step-00000003-0-raw.png",
        "step-00000004-0-raw.png",
        "step-00000005-0-ema.png",
        "mine.png",
        "step-x.png",
    ):
        (run.samples / name).touch()
    set_aside(run, run.checkpoints / "step-00000004", 2)
    aside = "superseded-by-segment-2"
    assert names(run) == ["step-00000003", "step-00000004", aside]
    assert {path.name for path in (run.checkpoints / aside).iterdir()} == {"step-00000004-micro-00002", "step-00000005"}
    assert {path.name for path in run.samples.iterdir()} == {
        "step-00000003-0-raw.png",
        "step-00000004-0-raw.png",
        "mine.png",
        "step-x.png",
        aside,
    }
    assert [path.name for path in (run.samples / aside).iterdir()] == ["step-00000005-0-ema.png"]


def test_nothing_to_set_aside_makes_no_folder(run: RunDir) -> None:
    (run.checkpoints / "step-00000004").mkdir()
    set_aside(run, run.checkpoints / "step-00000004", 1)
    assert names(run) == ["step-00000004"]
    assert not list(run.samples.iterdir())


# ---- whole or not at all


def test_it_has_its_name_when_it_is_whole(session: Session, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = folder_module._sync_tree, []

    def sync(folder: Path) -> None:
        seen.append([name for name in names(run) if not name.startswith(".")])
        real(folder)

    monkeypatch.setattr(folder_module, "_sync_tree", sync)
    saved(session, run)
    assert seen == [[]]


@pytest.mark.parametrize(
    ("module", "part"),
    [
        (save_module, "_save_weights"),
        (save_module, "write_state"),
        (save_module, "write_fingerprint"),
        (folder_module, "_sync_tree"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("No space left on device"),
        KeyboardInterrupt(),
        ValueError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_one_that_fails_leaves_nothing(
    module: Any, part: str, error: BaseException, session: Session, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = [param.detach().clone() for param in session.tensors]
    real: Callable[..., None] = getattr(module, part)

    def broken(*args: Any, **options: Any) -> None:
        real(*args, **options)
        raise error

    monkeypatch.setattr(module, part, broken)
    is_the_disk = isinstance(error, OSError | SafetensorError)
    with pytest.raises(TrainingError if is_the_disk else type(error)) as caught:
        saved(session, run)
    if is_the_disk:
        assert str(caught.value) == "the checkpoint of step 7 cannot be written: No space left on device"
    assert names(run) == []
    assert all(torch.equal(a, b) for a, b in zip(weights, session.tensors, strict=True))


def test_torch_hides_the_reason_of_a_disk(session: Session, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        try:
            raise OSError(errno.EFBIG, "File too large")
        finally:
            raise RuntimeError("enforce fail at inline_container.cc")

    monkeypatch.setattr(save_module, "_save_weights", broken)
    with pytest.raises(TrainingError, match="cannot be written: File too large"):
        saved(session, run)


def test_a_folder_that_is_made_beside(tmp_path: Path) -> None:
    with made_beside(tmp_path / "mine") as beside:
        assert beside.parent == tmp_path
        assert beside.name.startswith(".mine.")
        (beside / "file").write_text("content", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "file").read_text(encoding="utf-8") == "content"


def test_an_old_one_that_is_half_deleted_has_lost_its_name(
    session: Session, run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of deleting: no folder that looks like a checkpoint lacks a part of one."""
    kept = changed(session, checkpoint__keep=1)
    kept.step = 1
    whole = {name.replace("step00000001", "step00000002") for name in files(saved(kept, run))}
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
        saved(kept, run)
    (left,) = run.checkpoints.glob("step-*")
    assert left.name == "step-00000002"
    assert files(left) == whole
    assert [path.name for path in whole_checkpoints(run)] == ["step-00000002"]


# ---- reading


def test_no_training_json(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no state/training\.json") as caught:
        read_state(tmp_path)
    assert "lora.init_from" in (caught.value.hint or "")


@pytest.mark.parametrize("key", ["step", "micro_step", "optimizer_steps", "accumulated", "seed", "schedule", "config"])
@pytest.mark.parametrize("value", [None, "3", -1, 1.5, True])
def test_training_json_of_wrong_types(key: str, value: Any, session: Session, run: RunDir) -> None:
    folder = saved(session, run)
    path = folder / "state" / "training.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), key: value}), encoding="utf-8")
    with pytest.raises(RunError, match=rf"training\.json is damaged: {key} is missing or of the wrong type"):
        read_state(folder)


def test_a_tensor_without_a_parameter(session: Session, run: RunDir) -> None:
    folder = saved(session, run)
    state_module._write_tensors(folder / "state" / "optimizer.safetensors", {"exp_avg": torch.zeros(2)})
    with pytest.raises(RunError, match=r"optimizer\.safetensors is damaged: 'exp_avg' is not parameter::key"):
        read_state(folder)


def test_module_names_have_no_separator(session: Session) -> None:
    assert not [name for name in session.params if state_module.SEPARATOR in name]
