"""A damaged checkpoint is refused in words and nothing is touched, or the training goes on and says what it lacks."""

from __future__ import annotations

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.commands import digest
from tests.integration.resuming import (
    BLIND,
    LORA,
    SMALL,
    Signal,
    Trained,
    Values,
    differences,
    odd,
    resolved,
    rows,
    statuses,
    trained,
    warnings,
)
from trainscope.errors import ConfigError, RunError, TrainscopeError
from trainscope.proof.damages import DAMAGES
from trainscope.runlog.rundir import RunDir
from trainscope.trainer.build import build_session
from trainscope.trainer.checkpoints.folder import LORA_FILE, whole_checkpoints
from trainscope.trainer.checkpoints.restore import check_shapes, restore
from trainscope.trainer.checkpoints.weights import weights_for_use
from trainscope.trainer.resume import read_resume
from trainscope.trainer.session import Session

STOP, STEPS = 2, 4
FULL: Values = {
    **LORA,
    **BLIND,
    "lora.dropout": 0.1,
    "train.steps": STEPS,
    "train.gradient_accumulation": 3,
    "precision.compute": "fp16",
    "optimizer.eps": 1e-4,
    "ema.enabled": True,
    "scheduler.type": "cosine",
}
"""With every file that a checkpoint can have: an average, a GradScaler, and stopped within a step."""
FOR_USE = (f"weights/{LORA_FILE}", f"weights-ema/{LORA_FILE}")
"""What only others read, while state/trained.safetensors is there."""
STATE = (
    "state/training.json",
    "state/trained.safetensors",
    "state/optimizer.safetensors",
    "state/optimizer.json",
    "state/scheduler.json",
    "state/scaler.json",
    "state/ema.safetensors",
    "state/random.safetensors",
    "state/gradients.safetensors",
    "state/seen.json",
)
FINGERPRINT = "fingerprint.parquet"
FILES = (*STATE, FINGERPRINT)

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def stopped(few: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs that were stopped, by name, and how they go on. Read only."""
    made: dict[str, tuple[Values, list[Any]]] = {
        "full": (FULL, [Signal(signal.SIGTERM, STOP, 2)]),
        "plain": ({**LORA, **BLIND, "train.steps": STEPS, "ema.enabled": True}, [Signal(signal.SIGTERM, STOP)]),
        "prodigy": (
            {**LORA, **BLIND, "train.steps": STEPS, "optimizer.type": "prodigy", "optimizer.lr": 1.0},
            [Signal(signal.SIGTERM, STOP)],
        ),
        "weights only": (
            {**LORA, **BLIND, "train.steps": STEPS, "checkpoint.save_state": False},
            [Signal(signal.SIGTERM, STOP)],
        ),
        "finetune, weights only": (
            {**BLIND, "train.method": "finetune", "train.steps": STEPS, "checkpoint.save_state": False},
            [Signal(signal.SIGTERM, STOP)],
        ),
    }
    found = {}
    for name, (changes, callbacks) in made.items():
        run = tmp_path_factory.mktemp("stopped") / "run"
        trained(resolved(few, changes), run, *callbacks)
        found[name] = (run, resolved(few, changes))
    return found


class Damaged:
    """A copy of a stopped run, its checkpoint to be damaged."""

    def __init__(self, found: tuple[Path, Any], folder: Path) -> None:
        before, self.config = found
        self.run = Path(shutil.copytree(before, folder / "run"))
        (self.checkpoint,) = whole_checkpoints(RunDir(self.run))

    def resume(self) -> Trained:
        return trained(self.config, self.run, resume="latest")

    def resume_or_error(self) -> TrainscopeError | None:
        try:
            self.resume()
        except (RunError, ConfigError) as error:
            return error
        return None

    def refused(self, *says: str) -> str:
        """It must end with one error that says this, and leave the run as it is."""
        before = digest(self.run)
        with pytest.raises((RunError, ConfigError)) as caught:
            self.resume()
        for text in says:
            assert text in str(caught.value), caught.value
        assert caught.value.exit_code == 2
        assert digest(self.run) == before, "something was written"
        return str(caught.value)


@pytest.fixture
def damaged(stopped: dict[str, Any], tmp_path: Path) -> Callable[..., Damaged]:
    return lambda name="full": Damaged(stopped[name], tmp_path)


@pytest.fixture(scope="module")
def session(stopped: dict[str, Any]) -> Session:
    """What the checkpoints of the full run are put back into, again and again."""
    return build_session(stopped["full"][1])


def test_it_has_every_file(damaged: Callable[..., Damaged]) -> None:
    checkpoint = damaged().checkpoint
    there = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    kohya = {"weights/run-step00000002.safetensors", "weights-ema/run-step00000002-ema.safetensors"}
    assert there == {*FILES, *FOR_USE, *kohya}


def test_undamaged_it_resumes(damaged: Callable[..., Damaged]) -> None:
    one = damaged()
    resumed = one.resume()
    assert resumed.finished.status == "completed"
    assert not odd(one.run)
    assert not warnings(one.run, 1)


# ---- files that do not read


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def last_byte_lost(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


def zeros(path: Path) -> None:
    """What some file systems leave after the power went."""
    path.write_bytes(bytes(path.stat().st_size))


class Exploit:
    """Whoever unpickles it makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return Path.touch, (self.made,)


def pickled(path: Path) -> None:
    torch.save({"state": Exploit(path.with_name("unpickled"))}, path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


UNREADABLE = (truncated, last_byte_lost, emptied, garbage, zeros, pickled, a_folder)


@pytest.mark.parametrize("how", UNREADABLE)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_read(name: str, how: Callable[[Path], None], damaged: Callable[..., Damaged]) -> None:
    one = damaged()
    how(one.checkpoint / name)
    message = one.refused(name)
    assert "damaged" in message or "cannot be read" in message


WRONG_JSON = ("{}", "[]", "null", "7", '{"a": 1}', '{"state": {}, "param_groups": []}', "NaN", "[" * 100_000)


@pytest.mark.parametrize("text", WRONG_JSON, ids=lambda text: text[:10])
@pytest.mark.parametrize("name", [name for name in STATE if name.endswith(".json")])
def test_json_of_something_else(name: str, text: str, damaged: Callable[..., Damaged]) -> None:
    one = damaged()
    (one.checkpoint / name).write_text(text, encoding="utf-8")
    one.refused(name)


@pytest.mark.parametrize("name", [name for name in STATE if name.endswith(".json")])
def test_json_whose_values_are_of_other_types(name: str, session: Session, damaged: Callable[..., Damaged]) -> None:
    """Each value in turn is replaced; a key that is not needed may have any. Never anything but words."""
    one = damaged()
    path = one.checkpoint / name
    right = json.loads(path.read_text(encoding="utf-8"))
    for key in right:
        for wrong in (None, "text", -1, 1e300, [], {}, [{}], {"a": "b"}, True):
            path.write_text(json.dumps({**right, key: wrong}), encoding="utf-8")
            _restore_or_refuse(one, session)
        path.write_text(json.dumps({other: value for other, value in right.items() if other != key}), encoding="utf-8")
        _restore_or_refuse(one, session)


def _restore_or_refuse(one: Damaged, session: Session) -> None:
    """Reading, checking and putting back alone: a whole training for each damage would take too long."""
    error = None
    try:
        resume = read_resume(one.config, one.checkpoint, RunDir(one.run))
        weights = resume.state.weights or weights_for_use(one.checkpoint, session.params, session.pairs)
        check_shapes(session, resume.state, weights, resume.saved)
        assert resume.saved_schedule.steps > 0
    except (RunError, ConfigError) as caught:
        error = caught
    # What was found whole can be put back: from here on the run is written to.
    if error is None:
        session.optimizer.state.clear()
        restore(session, resume.state, weights, resume.saved)
    else:
        assert str(one.checkpoint) in str(error)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_read_or_refused(name: str, session: Session, damaged: Callable[..., Damaged]) -> None:
    """The headers of all formats, bit by bit at places drawn anew for each file."""
    one = damaged()
    path = one.checkpoint / name
    whole, rng = path.read_bytes(), random.Random(name)
    for _ in range(120):
        place = rng.randrange(min(len(whole), 4096))
        broken = bytearray(whole)
        broken[place] ^= 1 << rng.randrange(8)
        path.write_bytes(broken)
        _restore_or_refuse(one, session)


WRONG_TENSORS: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "none": lambda tensors: {},
    "other names": lambda tensors: {f"other.{name}": tensor for name, tensor in tensors.items()},
    "other shapes": lambda tensors: {name: torch.zeros(7, 3, dtype=tensor.dtype) for name, tensor in tensors.items()},
    "one is missing": lambda tensors: dict(list(tensors.items())[1:]),
    "integers": lambda tensors: {name: tensor.to(torch.int64) for name, tensor in tensors.items()},
    "all in bf16": lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()},
}


@pytest.mark.parametrize("how", WRONG_TENSORS)
@pytest.mark.parametrize("name", [name for name in STATE if name.endswith(".safetensors")])
def test_tensors_of_something_else(name: str, how: str, damaged: Callable[..., Damaged]) -> None:
    """Refused in words, or told: as missing in a warning, or as another value or format in `continuity`."""
    one = damaged()
    path = one.checkpoint / name
    before = digest(one.run)
    right = load_file(path)
    save_file(WRONG_TENSORS[how](right), path)
    changed = digest(one.run)
    assert changed != before
    error = one.resume_or_error()
    if error is None:
        assert odd(one.run) or warnings(one.run, 1)
    else:
        assert str(one.checkpoint) in str(error)
        assert digest(one.run) == changed


def test_a_name_more_is_no_harm(damaged: Callable[..., Damaged]) -> None:
    one = damaged()
    for name in ("trained", "ema", "optimizer"):
        path = one.checkpoint / "state" / f"{name}.safetensors"
        tensors = load_file(path)
        extra = "other::exp_avg" if name == "optimizer" else "other"
        metadata = {"updates": "5"} if name == "ema" else None
        save_file({**tensors, extra: torch.ones(2)}, path, metadata=metadata)
    one.resume()


# ---- bytes that are other numbers


def flipped(path: Path) -> None:
    """A bit of the last tensor's data: nothing about the file's form tells."""
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    place = 8 + header + (len(data) - 8 - header) // 2
    data[place] ^= 0x10
    path.write_bytes(data)


ITEMS = {
    "state/trained.safetensors": "weights",
    "state/optimizer.safetensors": "optimizer",
    "state/ema.safetensors": "ema",
    "state/random.safetensors": "random",
    "state/gradients.safetensors": "gradients",
}


@pytest.mark.parametrize("name", ITEMS)
def test_a_flipped_bit_of_a_tensor_is_told(name: str, damaged: Callable[..., Damaged]) -> None:
    """Nobody can say which of the two is right, but the audit of the resume sees that they differ."""
    one = damaged()
    flipped(one.checkpoint / name)
    one.resume()
    found = odd(one.run)
    assert len(found) == 1, found
    ((item, _, _), status) = next(iter(found.items()))
    assert (item, status) == (ITEMS[name], "changed")


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("scheduler.json", "position", 1),
        ("scaler.json", "scale", 1024.0),
        ("scaler.json", "_growth_tracker", 77),
        ("training.json", "step", 3),
        ("training.json", "micro_step", 7),
        ("training.json", "optimizer_steps", 1),
    ],
)
def test_another_number_is_told(name: str, key: str, value: Any, damaged: Callable[..., Damaged]) -> None:
    one = damaged()
    path = one.checkpoint / "state" / name
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), key: value}), encoding="utf-8")
    error = one.resume_or_error()
    assert odd(one.run) if error is None else name in str(error)


@pytest.mark.parametrize("name", FOR_USE)
@pytest.mark.parametrize("how", [flipped, emptied, lambda path: path.unlink()], ids=["flipped", "emptied", "deleted"])
def test_what_is_for_others_is_not_needed(
    name: str, how: Callable[[Path], None], stopped: dict[str, Any], tmp_path: Path
) -> None:
    whole, one = (Damaged(stopped["plain"], tmp_path / kind) for kind in ("whole", "damaged"))
    how(one.checkpoint / name)
    assert not differences(whole.resume().bits(), one.resume().bits())
    assert not odd(one.run)


# ---- files that are not there

MISSING: dict[str, tuple[str, set[tuple[str, str]]]] = {
    "optimizer.safetensors": ("the optimizer's state", {("optimizer", "missing")}),
    "optimizer.json": ("the optimizer's groups", set()),
    "scheduler.json": ("the schedule's position", set()),
    "scaler.json": ("the GradScaler's scale", {("scaler", "reset")}),
    "ema.safetensors": ("the average", {("ema", "changed"), ("ema", "reset")}),
    "random.safetensors": ("the random states", {("random", "changed")}),
    "gradients.safetensors": ("gradients", {("counter", "changed")}),
    "seen.json": ("what the probes saw", set()),
    "trained.safetensors": ("weights", set()),
}
"""What a warning says, and some of the statuses that `continuity` then has."""


@pytest.mark.parametrize("name", MISSING)
def test_a_file_that_is_not_there(name: str, damaged: Callable[..., Damaged]) -> None:
    says, wanted = MISSING[name]
    one = damaged()
    (one.checkpoint / "state" / name).unlink()
    resumed = one.resume()
    assert (resumed.finished.status, resumed.finished.step) == ("completed", STEPS)
    told = warnings(one.run, 1)
    assert any(says in message for message in told), told
    found = {(name[0], status) for name, status in odd(one.run).items()}
    assert found >= wanted


def test_without_training_json_nothing_says_where_it_stood(damaged: Callable[..., Damaged]) -> None:
    one = damaged()
    (one.checkpoint / "state" / "training.json").unlink()
    one.refused("has no state/training.json", "nothing says where the training stood")


def test_without_its_fingerprint_there_is_no_audit(damaged: Callable[..., Damaged]) -> None:
    one = damaged()
    (one.checkpoint / FINGERPRINT).unlink()
    one.resume()
    assert not rows(one.run, "continuity")
    absent = [row["reason"] for row in rows(one.run, "coverage") if row["table"] == "continuity"]
    assert set(absent) == {"the checkpoint has no fingerprint.parquet"}


def test_without_weights_there_is_nothing_to_go_on_with(damaged: Callable[..., Damaged]) -> None:
    one = damaged()
    (one.checkpoint / "state" / "trained.safetensors").unlink()
    (one.checkpoint / FOR_USE[0]).unlink()
    one.refused("is missing, and so is state/trained.safetensors")


def test_without_gradients_the_step_begins_again(stopped: dict[str, Any], few: Path, tmp_path: Path) -> None:
    """Its micro-batches are used once more, each in its place."""
    one = Damaged(stopped["full"], tmp_path)
    (one.checkpoint / "state" / "gradients.safetensors").unlink()
    resumed = one.resume()
    assert resumed.session.micro_step == STEPS * 3
    assert sorted(row["position"] for row in rows(one.run, "order") if row["step"] == STOP + 1) == sorted(
        [6, 6, 7, 7, 8, 8]
    )


@pytest.mark.parametrize("how", [*UNREADABLE, flipped, lambda path: path.unlink()])
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("weights only", f"weights/{LORA_FILE}"),
        ("finetune, weights only", "weights/unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_weights_only(name: str, file: str, how: Callable[[Path], None], damaged: Callable[..., Damaged]) -> None:
    one = damaged(name)
    how(one.checkpoint / file)
    if how is flipped:
        one.resume()
        assert "changed" in {status for found, status in odd(one.run).items() if found[0] == "weights"}
    else:
        one.refused(file)


# ---- what other programs do

Wanted = dict[tuple[str, str | None], set[str]]
DONE: dict[str, tuple[str, Wanted]] = {
    "optimizer-deleted": ("plain", {("optimizer", None): {"missing"}}),
    "optimizer-groups-deleted": (
        "prodigy",
        {("group", "k"): {"reset"}, ("group", "d_numerator"): {"reset"}, ("optimizer", "step"): {"missing"}},
    ),
    "scaler-deleted": ("full", {("scaler", "growth_tracker"): {"reset"}}),
    "scheduler-deleted": ("plain", {}),
    "average-deleted": ("plain", {("ema", "shadow"): {"changed"}, ("ema", "updates"): {"reset"}}),
    "random-states-deleted": ("full", {("random", "torch"): {"changed"}}),
    "fingerprint-deleted": ("plain", {}),
    "optimizer-in-bf16": ("plain", {("optimizer", "exp_avg"): {"dtype"}, ("optimizer", "exp_avg_sq"): {"dtype"}}),
    "weights-in-bf16": ("plain", {("weights", "weight"): {"dtype"}}),
    "optimizer-rotated": (
        "plain",
        {("optimizer", "exp_avg"): {"permuted"}, ("optimizer", "exp_avg_sq"): {"permuted"}},
    ),
    "weights-rotated": ("plain", {("weights", "weight"): {"permuted"}}),
    "average-in-bf16": ("plain", {("ema", "shadow"): {"dtype"}}),
    "average-rotated": ("plain", {("ema", "shadow"): {"permuted"}}),
    "average-as-weights": ("plain", {("weights", "weight"): {"changed"}}),
    "moments-zeroed": ("plain", {("optimizer", "exp_avg"): {"reset"}, ("optimizer", "exp_avg_sq"): {"reset"}}),
}
"""By damage: the run that it is done to, and the statuses of the pieces that it touches; all others match."""


def test_every_damage_is_tried() -> None:
    # One needs an older checkpoint beside, and has its cases in RES013.
    assert DONE.keys() == DAMAGES.keys() - {"optimizer-of-an-older-checkpoint"}


@pytest.mark.parametrize("name", DONE)
def test_what_other_programs_do(name: str, damaged: Callable[..., Damaged]) -> None:
    kind, wanted = DONE[name]
    one = damaged(kind)
    DAMAGES[name](one.checkpoint)
    resumed = one.resume()
    assert resumed.finished.status == "completed"
    found: Wanted = {}
    for (item, _, key), status in odd(one.run).items():
        for group in ((item, None), (item, key)):
            found.setdefault(group, set()).add(status)
    for group, kinds in wanted.items():
        assert found.get(group) == kinds, (group, found)
    touched = {item for item, _ in wanted}
    assert {item for item, _ in found} == touched
    if name.endswith("-deleted") and name != "fingerprint-deleted":
        assert warnings(one.run, 1)


def test_rotated_state_is_told_of_each_tensor(damaged: Callable[..., Damaged]) -> None:
    one = damaged("plain")
    DAMAGES["optimizer-rotated"](one.checkpoint)
    one.resume()
    moments = [status for name, status in statuses(one.run).items() if name[2] == "exp_avg"]
    assert len(moments) > 10
    assert moments.count("permuted") == len(moments)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_go_on_as_they_were_saved(value: float, damaged: Callable[..., Damaged]) -> None:
    """A checkpoint of a training that had diverged already is whole."""
    one = damaged("plain")
    path = one.checkpoint / "state" / "optimizer.safetensors"
    tensors = load_file(path)
    first = next(name for name in tensors if name.endswith("::exp_avg"))
    tensors[first] = torch.full_like(tensors[first], value)
    save_file(tensors, path)
    one.resume()
    assert set(odd(one.run).values()) == {"changed"}


def test_the_settings_of_small_runs_are_used(stopped: dict[str, Any]) -> None:
    assert stopped["full"][1].config.data.resolution == SMALL["data.resolution"]
