"""What was saved is what is put back: by name, in its own format, for every optimizer; what is lacking is told."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.choices import is_possible
from trainscope.config.optimizer import OPTIMIZERS, SCHEDULE_FREE
from trainscope.errors import RunError
from trainscope.probes.fingerprint import Piece
from trainscope.proof.runs import RunSpec
from trainscope.trainer.build import build_session
from trainscope.trainer.checkpoints.restore import Restored, check_shapes, restore
from trainscope.trainer.checkpoints.state import SavedState, read_state, write_state
from trainscope.trainer.optimizers import build_optimizer, build_scheduler
from trainscope.trainer.optimizers.schedulefree import point
from trainscope.trainer.session import Accumulated, Session
from trainscope.trainer.witness import session_pieces

LORA: dict[str, Any] = {"train.method": "lora", "lora.rank": 4, "train.steps": 20, "checkpoint.save_state": True}
STEPS = 3


def build(*changes: dict[str, Any]) -> Session:
    return build_session(RunSpec({key: value for part in changes for key, value in part.items()}).resolved())


def built(**changes: Any) -> Session:
    return build(LORA, {key.replace("__", "."): value for key, value in changes.items()})


def stepped(session: Session) -> Session:
    """A session with a state of its own: every tensor of it has other numbers."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        for param in session.tensors:
            param.grad = torch.randn(param.shape, generator=rng).to(param.dtype)
        step(session)
    session.step, session.micro_step = STEPS, 2 * STEPS
    return session


def step(session: Session) -> None:
    if session.rounding is None:
        session.optimizer.step()
    else:
        with session.rounding.float32_weights():
            session.optimizer.step()
    session.optimizer.zero_grad()
    session.scheduler.step()
    session.optimizer_steps += 1
    if session.ema is not None:
        session.ema.step(session.tensors)


@dataclasses.dataclass
class Saved:
    session: Session
    folder: Path
    pieces: list[Piece]

    def state(self) -> SavedState:
        return read_state(self.folder)

    def into(self, session: Session) -> Restored:
        """Put it back."""
        state = self.state()
        assert state.weights is not None
        check_shapes(session, state, state.weights, self.pieces)
        return restore(session, state, state.weights, self.pieces)


Save = Callable[..., Saved]


@pytest.fixture
def save(tmp_path: Path) -> Iterator[Save]:
    def write(session: Session) -> Saved:
        write_state(session, tmp_path, run_id="1", whole=True)
        return Saved(session, tmp_path, list(session_pieces(session)))

    rng = torch.get_rng_state()
    yield write
    torch.set_rng_state(rng)


def assert_same_state(one: Session, other: Session) -> None:
    """Keys, types, formats and bits of everything; tensors of one are not those of the other."""
    for name, param in one.params.items():
        theirs = other.params[name]
        assert param.dtype == theirs.dtype
        assert torch.equal(param, theirs)
        mine, its = one.optimizer.state[param], other.optimizer.state[theirs]
        assert mine.keys() == its.keys()
        for key, value in mine.items():
            assert type(value) is type(its[key]), key
            if isinstance(value, torch.Tensor):
                assert (value.dtype, value.shape) == (its[key].dtype, its[key].shape), key
                assert torch.equal(value, its[key]), key
                assert value.data_ptr() != its[key].data_ptr()
            else:
                assert value == its[key]
    for a, b in zip(one.optimizer.param_groups, other.optimizer.param_groups, strict=True):
        mine, its = ({k: (type(v), v) for k, v in group.items() if k != "params"} for group in (a, b))
        assert mine == its
        formats = [[v.dtype for v in group.values() if isinstance(v, torch.Tensor)] for group in (a, b)]
        assert formats[0] == formats[1]


FORMATS: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"precision.weights": "bf16"},
    "bf16-stochastic": {"precision.weights": "bf16", "precision.stochastic_rounding": True},
}
MADE = [
    (kind, format_)
    for kind in OPTIMIZERS
    for format_, changes in FORMATS.items()
    if is_possible({"optimizer.type": kind}, changes)
]


def test_every_optimizer_is_tried() -> None:
    assert {kind for kind, _ in MADE} == OPTIMIZERS.keys()


Twins = dict[str, tuple[Session, Session]]


@pytest.fixture(scope="module")
def twins() -> Twins:
    """Two sessions in each format, to be given optimizers."""
    return {name: (build(LORA, changes), build(LORA, changes)) for name, changes in FORMATS.items()}


def with_optimizer(session: Session, changes: dict[str, Any]) -> Session:
    """The session at its beginning, with another optimizer."""
    resolved = RunSpec({**LORA, **changes}).resolved()
    optimizer = build_optimizer(resolved.config.optimizer, {"unet": session.tensors}, warmup_steps=0)
    scheduler = build_scheduler(session.schedule, optimizer)
    return dataclasses.replace(session, resolved=resolved, optimizer=optimizer, scheduler=scheduler)


@pytest.mark.parametrize(("kind", "format_"), MADE)
def test_every_optimizer(kind: str, format_: str, save: Save, twins: Twins) -> None:
    small = {"optimizer.min_8bit_size": 64} if kind.endswith("8bit") else {}
    changes = {"optimizer.type": kind, **FORMATS[format_], **small}
    session, fresh = (with_optimizer(twin, changes) for twin in twins[format_])
    saved = save(stepped(session))
    restored = saved.into(fresh)
    assert restored.missing == []
    assert restored.read_as == {}
    assert_same_state(saved.session, fresh)
    assert {piece.name: piece for piece in session_pieces(fresh)} == {piece.name: piece for piece in saved.pieces}
    # And both go on alike.
    for session in (saved.session, fresh):
        for param in session.tensors:
            param.grad = torch.full_like(param, 0.5)
        step(session)
    assert_same_state(saved.session, fresh)


@pytest.mark.parametrize("kind", ["adamw", "prodigy", "adamw-schedulefree"])
def test_an_optimizer_that_has_its_parameters_in_another_order(kind: str, save: Save) -> None:
    """torch's own way goes by position, and gives every tensor the moments of another."""
    saved = save(stepped(built(optimizer__type=kind)))
    fresh = built(optimizer__type=kind)
    fresh.params = dict(reversed(fresh.params.items()))
    fresh.optimizer = build_optimizer(fresh.config.optimizer, {"unet": fresh.tensors}, warmup_steps=0)
    fresh.scheduler = build_scheduler(fresh.schedule, fresh.optimizer)
    saved.into(fresh)
    for name, param in saved.session.params.items():
        mine, its = saved.session.optimizer.state[param], fresh.optimizer.state[fresh.params[name]]
        assert all(torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(its[key])) for key in mine)


def test_a_number_that_a_group_keeps_as_a_tensor(save: Save) -> None:
    """In its own format: an estimate that is added up in bf16 goes on in bf16."""
    changes = {"optimizer__type": "dadapt-adan-ip", "optimizer__d0": 1e-3, "precision__weights": "bf16"}
    saved, fresh = save(stepped(built(**changes))), built(**changes)
    saved.into(fresh)
    mine, its = (session.optimizer.param_groups[0]["numerator_weighted"] for session in (saved.session, fresh))
    assert mine.dtype == its.dtype == torch.bfloat16
    assert mine == its != 0


@pytest.mark.parametrize(
    "damaged",
    [
        {"dtype": "float32"},
        {"dtype": "bool", "value": 1.0},
        {"dtype": "float32", "value": "1"},
        {"dtype": "float32", "value": [1.0]},
        {"dtype": ["float32"], "value": 1.0},
        {"dtype": "float32", "value": 1.0, "device": "cpu"},
    ],
    ids=str,
)
def test_a_tensor_of_a_group_that_is_damaged(damaged: dict[str, Any], save: Save) -> None:
    saved = save(stepped(built(optimizer__type="dadapt-adan-ip")))
    path = saved.folder / "state" / "optimizer.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["groups"][0]["numerator_weighted"].keys() == {"dtype", "value"}
    found["groups"][0]["numerator_weighted"] = damaged
    path.write_text(json.dumps(found), encoding="utf-8")
    with pytest.raises(RunError, match=r"optimizer\.json is damaged"):
        saved.state()


def test_paged_state_is_put_where_the_optimizer_pages_it(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[torch.Tensor] = []

    def place(param: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        places.append(torch.zeros_like(param, dtype=dtype))
        return places[-1]

    saved = save(stepped(built(optimizer__type="paged-adamw8bit", optimizer__min_8bit_size=64)))
    fresh = built(optimizer__type="paged-adamw8bit", optimizer__min_8bit_size=64)
    monkeypatch.setattr(fresh.optimizer, "is_paged", True)
    monkeypatch.setattr(fresh.optimizer, "get_state_buffer", place)
    saved.into(fresh)
    assert_same_state(saved.session, fresh)
    held = [state[key] for state in fresh.optimizer.state.values() for key in ("state1", "state2")]
    assert {id(tensor) for tensor in held} == {id(tensor) for tensor in places}
    assert held


def test_counters_and_schedule(save: Save) -> None:
    saved = save(stepped(built(scheduler__type="cosine", scheduler__warmup=2)))
    fresh = built(scheduler__type="cosine", scheduler__warmup=2)
    restored = saved.into(fresh)
    assert (fresh.step, fresh.micro_step, fresh.optimizer_steps) == (STEPS, 2 * STEPS, STEPS)
    assert restored.position == fresh.scheduler.last_epoch == STEPS
    assert restored.lrs == [group["lr"] for group in saved.session.optimizer.param_groups]
    assert fresh.scheduler.get_last_lr() == saved.session.scheduler.get_last_lr()
    for session in (saved.session, fresh):
        for param in session.tensors:
            param.grad = torch.zeros_like(param)
        step(session)
    assert fresh.scheduler.get_last_lr() == saved.session.scheduler.get_last_lr()


def test_a_restarted_schedule_begins_at_its_beginning(save: Save) -> None:
    changes = {"scheduler__type": "cosine", "scheduler__warmup": 2}
    saved = save(stepped(built(**changes)))
    fresh = built(**changes, scheduler__on_resume="restart")
    restored = saved.into(fresh)
    assert restored.position == fresh.scheduler.last_epoch == 0
    assert restored.lrs == fresh.scheduler.get_last_lr() == [0.0]


def test_what_is_configured_stays_as_it_is_asked_for(save: Save) -> None:
    """The group's other values are the state's: counters, d, the mode."""
    saved = save(stepped(built(optimizer__type="prodigy", optimizer__lr=1.0)))
    group = json.loads((saved.folder / "state" / "optimizer.json").read_text(encoding="utf-8"))["groups"][0]
    assert group["k"] == STEPS
    fresh = built(optimizer__type="prodigy", optimizer__lr=0.5, optimizer__weight_decay=0.25, optimizer__d_coef=2.0)
    saved.into(fresh)
    (found,) = fresh.optimizer.param_groups
    assert (found["lr"], found["initial_lr"], found["weight_decay"], found["d_coef"]) == (0.5, 0.5, 0.25, 2.0)
    assert (found["k"], found["d_numerator"]) == (STEPS, group["d_numerator"])
    assert found["betas"] == (0.9, 0.999), "a tuple, as the optimizer had it"


@pytest.mark.parametrize("kind", [kind for kind, model in OPTIMIZERS.items() if model in SCHEDULE_FREE])
def test_schedule_free_goes_on_at_y(kind: str, save: Save) -> None:
    session = stepped(built(optimizer__type=kind))
    y = {name: param.detach().clone() for name, param in session.params.items()}
    saved, fresh = save(session), built(optimizer__type=kind)
    saved.into(fresh)
    assert point(fresh.optimizer) == "y"
    assert all(torch.equal(y[name], param) for name, param in fresh.params.items())
    assert fresh.optimizer.param_groups[0]["k"] == STEPS


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "weights"])
def test_the_average_keeps_its_format(dtype: str, save: Save) -> None:
    changes = {"ema__enabled": True, "ema__dtype": dtype, "precision__weights": "bf16"}
    saved, fresh = save(stepped(built(**changes))), built(**changes)
    saved.into(fresh)
    assert saved.session.ema is not None
    assert fresh.ema is not None
    assert fresh.ema.optimization_step == saved.session.ema.optimization_step == STEPS
    wanted = torch.float32 if dtype == "fp32" else torch.bfloat16
    for one, other in zip(saved.session.ema.shadow_params, fresh.ema.shadow_params, strict=True):
        assert one.dtype == other.dtype == wanted
        assert torch.equal(one, other)


def test_an_average_of_another_format_is_converted_and_told(save: Save) -> None:
    saved = save(stepped(built(ema__enabled=True)))
    fresh = built(ema__enabled=True, ema__dtype="bf16")
    saved.into(fresh)
    assert fresh.ema is not None
    assert {shadow.dtype for shadow in fresh.ema.shadow_params} == {torch.bfloat16}


def test_the_scaler(save: Save) -> None:
    session = stepped(built(precision__compute="fp16"))
    session.scaler.load_state_dict({**session.scaler.state_dict(), "scale": 1024.0, "_growth_tracker": 77})
    saved, fresh = save(session), built(precision__compute="fp16")
    restored = saved.into(fresh)
    assert restored.missing == []
    assert fresh.scaler.state_dict() == session.scaler.state_dict()
    assert (fresh.scaler.get_scale(), fresh.scaler.state_dict()["_growth_tracker"]) == (1024.0, 77)


def test_random_states(save: Save) -> None:
    changes = {"precision__weights": "bf16", "precision__stochastic_rounding": True}
    session = stepped(built(**changes))
    torch.manual_seed(123)
    torch.rand(7)
    saved = save(session)
    assert session.rounding is not None
    expected = torch.rand(5), torch.rand(5, generator=session.rounding.generator)
    fresh = built(**changes)
    torch.manual_seed(9)
    saved.into(fresh)
    assert fresh.rounding is not None
    assert torch.equal(torch.rand(5), expected[0])
    assert torch.equal(torch.rand(5, generator=fresh.rounding.generator), expected[1])


def test_a_step_that_was_stopped_in_its_middle(save: Save) -> None:
    changes = {"train__gradient_accumulation": 3}
    session = stepped(built(**changes))
    session.micro_step = 3 * STEPS + 2
    session.accumulated = Accumulated(2, torch.tensor(0.75), torch.tensor(0.125))
    for number, param in enumerate(session.tensors):
        param.grad = torch.full_like(param, float(number))
    saved, fresh = save(session), built(**changes)
    saved.into(fresh)
    assert fresh.accumulated is not None
    assert (fresh.accumulated.count, fresh.accumulated.loss, fresh.accumulated.leftover) == (2, 0.75, 0.125)
    assert fresh.micro_step == 3 * STEPS + 2
    for one, other in zip(session.tensors, fresh.tensors, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


# ---- what is lacking


EVERYTHING = {"ema__enabled": True, "precision__compute": "fp16", "optimizer__eps": 1e-4}


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("optimizer.safetensors", "the optimizer's state (it begins afresh)"),
        ("optimizer.json", "the optimizer's groups (their counters begin afresh)"),
        ("scheduler.json", "the schedule's position (its steps done are taken for it)"),
        ("scaler.json", "the GradScaler's scale (it begins again at 65536)"),
        ("ema.safetensors", "the average (EMA begins again at the weights as they are)"),
        ("random.safetensors", "the random states"),
    ],
)
def test_a_file_that_is_lacking(file: str, says: str, save: Save) -> None:
    session = stepped(built(**EVERYTHING))
    session.scaler.load_state_dict({**session.scaler.state_dict(), "scale": 1024.0})
    saved = save(session)
    (saved.folder / "state" / file).unlink()
    fresh = built(**EVERYTHING)
    restored = saved.into(fresh)
    assert restored.missing == [says]
    assert all(torch.equal(session.params[name], param) for name, param in fresh.params.items())
    assert (fresh.step, fresh.scheduler.last_epoch) == (STEPS, STEPS)
    assert bool(fresh.optimizer.state) == (file != "optimizer.safetensors")
    assert fresh.scaler.get_scale() == (65536 if file == "scaler.json" else 1024)
    assert fresh.ema is not None
    assert fresh.ema.optimization_step == (0 if file == "ema.safetensors" else STEPS)
    if file == "ema.safetensors":
        assert all(torch.equal(*both) for both in zip(fresh.ema.shadow_params, fresh.tensors, strict=True))


def test_a_tensor_that_is_lacking(save: Save) -> None:
    session = stepped(built())
    saved = save(session)
    path = saved.folder / "state" / "optimizer.safetensors"
    lost = list(session.params)[:2]
    save_file({key: value for key, value in load_file(path).items() if key.rpartition("::")[0] not in lost}, path)
    fresh = built()
    restored = saved.into(fresh)
    assert restored.missing == ["the optimizer's state of 2 tensors"]
    assert {name for name, param in fresh.params.items() if not fresh.optimizer.state.get(param)} == set(lost)


def test_a_tensor_that_never_had_state_is_not_lacking(save: Save) -> None:
    """It never had a gradient."""
    session = built()
    for param in session.tensors[1:]:
        param.grad = torch.ones_like(param)
    step(session)
    saved, fresh = save(session), built()
    assert saved.into(fresh).missing == []


def test_an_average_that_there_was_not_is_not_lacking(save: Save) -> None:
    saved, fresh = save(stepped(built())), built(ema__enabled=True)
    assert saved.into(fresh).missing == []
    assert fresh.ema is not None
    assert all(torch.equal(*both) for both in zip(fresh.ema.shadow_params, fresh.tensors, strict=True))
    assert fresh.ema.optimization_step == 0


def test_tensors_that_another_program_converted(save: Save) -> None:
    """They come back to the format that they were saved in, and which ones it was is known."""
    saved = save(stepped(built(ema__enabled=True)))
    for name in ("trained", "optimizer", "ema"):
        path = saved.folder / "state" / f"{name}.safetensors"
        save_file({key: value.bfloat16() for key, value in load_file(path).items()}, path, metadata={"updates": "3"})
    fresh = built(ema__enabled=True)
    restored = saved.into(fresh)
    assert set(restored.read_as.values()) == {"bfloat16"}
    items = {(item, key) for item, _, key in restored.read_as}
    assert items == {("weights", "weight"), ("ema", "shadow"), ("optimizer", "exp_avg"), ("optimizer", "exp_avg_sq")}
    assert len(restored.read_as) == 4 * len(fresh.params)
    for param in fresh.tensors:
        state = fresh.optimizer.state[param]
        assert {state["exp_avg"].dtype, state["exp_avg_sq"].dtype, param.dtype} == {torch.float32}
    step(fresh)


# ---- what does not fit


def test_weights_that_do_not_fit(save: Save) -> None:
    saved = save(stepped(built()))
    state, fresh = saved.state(), built()
    before = copy.deepcopy({name: param.detach() for name, param in fresh.params.items()})
    assert state.weights is not None
    weights = dict(state.weights)
    first, second, *_ = weights
    del weights[first]
    weights[second] = torch.zeros(3, 5)
    with pytest.raises(RunError) as caught:
        check_shapes(fresh, state, weights, saved.pieces)
    assert f"{first}: is not in the file" in str(caught.value)
    assert f"{second}: is [3, 5], and the model has {list(fresh.params[second].shape)}" in str(caught.value)
    assert "lora.init_from" in (caught.value.hint or "")
    assert all(torch.equal(before[name], param) for name, param in fresh.params.items())


def test_more_problems_than_one_can_read(save: Save) -> None:
    saved, fresh = save(stepped(built())), built()
    with pytest.raises(RunError) as caught:
        check_shapes(fresh, saved.state(), {}, saved.pieces)
    assert len(str(caught.value).splitlines()) == 10
    assert str(caught.value).endswith(f"… and {len(fresh.params) - 8} more")


def test_state_of_another_shape(save: Save) -> None:
    saved, fresh = save(stepped(built())), built()
    path = saved.folder / "state" / "optimizer.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith("::exp_avg"))
    tensors[name] = torch.zeros(2, 2)
    save_file(tensors, path)
    with pytest.raises(RunError, match=r"exp_avg is \[2, 2\], and was saved as \["):
        saved.into(fresh)


def test_the_average_of_another_shape(save: Save) -> None:
    saved, fresh = save(stepped(built(ema__enabled=True))), built(ema__enabled=True)
    path = saved.folder / "state" / "ema.safetensors"
    tensors = load_file(path)
    tensors[next(iter(tensors))] = torch.zeros(2, 2)
    save_file(tensors, path, metadata={"updates": "3"})
    with pytest.raises(RunError, match=r"\[2, 2\]"):
        saved.into(fresh)
