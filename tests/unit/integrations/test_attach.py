"""`attach`: it records what a loop does, and changes no bit of it whatever happens."""

from __future__ import annotations

import copy
import math
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.unit.integrations import loops
from tests.unit.integrations.loops import Begin, Outcome, loss_of, model, reasons, rows
from tests.unit.probes.strange import Whitening
from trainscope.errors import ConfigError, RunError, TrainingError
from trainscope.integrations.attach import attach
from trainscope.probes.tensors import TensorsProbe
from trainscope.runlog.reader import read_run

LOOPS: dict[str, Callable[[Begin], Outcome]] = {
    "diffusers' average": loops.averaged,
    "torch's average": partial(loops.averaged, kind="torch"),
    "closures": loops.closures,
    "scaled": loops.scaled,
    "estimating": loops.estimating,
    "low precision": loops.low_precision,
}


@contextmanager
def unwatched(*objects: object, **options: object) -> Iterator[None]:
    yield None


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        loss_of(net).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture
def net() -> nn.Module:
    return model()


@pytest.fixture
def optimizer(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(net.parameters(), lr=1e-2)


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_no_bit_is_changed(loop: Callable[[Begin], Outcome], tmp_path: Path) -> None:
    assert loop(partial(attach, out=tmp_path / "run", every=1)).same_as(loop(unwatched))
    assert {row["param"] for row in rows(tmp_path / "run", "tensors")} == {
        f"model.{name}" for name, _ in model().named_parameters()
    }
    assert read_run(tmp_path / "run").status == "completed"


def test_what_is_recorded(tmp_path: Path) -> None:
    run = tmp_path / "run"
    seen: dict[str, Any] = {"loss": [], "norm": [], "lr": []}

    @contextmanager
    def spying(net: nn.Module, optimizer: torch.optim.Optimizer, **options: Any) -> Iterator[Any]:
        def before(*_: object) -> None:
            grads = [param.grad.double() for param in net.parameters() if param.grad is not None]
            seen["norm"].append(math.sqrt(sum(float(grad.square().sum()) for grad in grads)))
            seen["lr"].append(optimizer.param_groups[0]["lr"])

        optimizer.register_step_pre_hook(before)
        with attach(net, optimizer, out=run, every=2, **options) as watch:
            tell = watch.loss
            watch.loss = lambda loss, samples: (seen["loss"].append(float(loss)), tell(loss, samples=samples))
            yield watch

    loops.averaged(spying)
    found = rows(run, "steps")
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    told = seen["loss"]
    assert [row["loss"] for row in found] == pytest.approx([sum(told[n : n + 2]) / 2 for n in range(0, 12, 2)])
    assert [row["grad_norm"] for row in found[1::2]] == pytest.approx(seen["norm"][1::2], rel=1e-6)
    assert {row["grad_norm"] for row in found[::2]} == {None}
    assert {(row["micro_steps"], row["samples"]) for row in found} == {(2, 10)}
    assert [row["lr"] for row in rows(run, "groups")] == pytest.approx(seen["lr"])
    assert [row["scheduler_type"] for row in rows(run, "groups")] == ["StepLR"] * 6
    averages = rows(run, "ema")
    assert {row["step"] for row in averages} == {2, 4, 6}
    assert [row["delivered"] for row in averages] == pytest.approx([1.0] * len(averages), abs=1e-3)
    keys = {row["key"]: (row["value"], row["origin"]) for row in rows(run, "config")}
    assert keys["optimizer.type"] == ("adamw", "observed")
    assert keys["optimizer.lr"] == ("0.01", "observed")
    assert keys["ema.decay"] == ("0.5", "observed")
    assert keys["ema.every"] == ("1", "observed")
    assert keys["precision.weights"] == ("fp32", "observed")
    assert "after clipping" in reasons(run)["steps", "grad_norm"]
    assert reasons(run)["batches", "latent_std"] == "the loop's batches are not known"


def test_state_of_any_optimizer_is_recorded_at_some_steps(net: nn.Module, tmp_path: Path) -> None:
    """At the first looks and then ever less often, at a distance that is the look's own; what is unreadable is told."""
    for every, looks in ((1, [1, 2, 3, 4, 6, 9, 13, 19, 28]), (4, [4, 8, 12, 16, 20, 28])):
        run = tmp_path / str(every)
        optimizer = Whitening(net.parameters())
        with attach(net, optimizer, out=run, every=every):
            steps(net, optimizer, 36)
        found = rows(run, "state")
        assert sorted({row["step"] for row in found}) == looks
        assert {row["param"] for row in found} == {f"model.{name}" for name, _ in net.named_parameters()}
        assert {row["step"]: row["norm"] for row in found if row["key"] == "count"} == {n: float(n) for n in looks}
        assert "codes is uint8" in reasons(run)["state", "norm"]
        assert reasons(run)["tensors", "delivered"] == "the step of Whitening cannot be recomputed"


def test_a_closure_is_looked_at_with_the_gradients_that_it_made(net: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    norms = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        norms.append(float(net[0].weight.grad.norm()))
        return loss

    with attach(net, optimizer, out=tmp_path / "run", every=1):
        optimizer.step(closure)
        optimizer.step(closure=closure)
    found = [row for row in rows(tmp_path / "run", "tensors") if row["param"] == "model.0.weight"]
    assert [row["grad_norm"] for row in found] == pytest.approx(norms, rel=1e-5)
    assert [row["update_norm"] for row in found] == pytest.approx([norm / 2 for norm in norms], rel=1e-4)
    assert all(row["loss"] is not None for row in rows(tmp_path / "run", "steps"))


def test_a_skipped_step_is_one(tmp_path: Path) -> None:
    loops.scaled(partial(attach, out=tmp_path / "run", every=1))
    found = rows(tmp_path / "run", "steps")
    skipped = [row["skipped"] for row in found]
    assert len(found) == 8
    assert skipped[0]
    assert not skipped[-1]
    assert found[-1]["optimizer_steps"] == skipped.count(False)
    assert found[0]["loss_scale"] == 2.0**127
    assert {row["step"] for row in rows(tmp_path / "run", "tensors")} == {
        row["step"] for row in found if not row["skipped"]
    }


def test_a_failing_probe_is_told_once_and_done_without(
    net: nn.Module, optimizer: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def fail(probe: TensorsProbe, step: int) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(TensorsProbe, "after_step", fail)
    with attach(net, optimizer, out=tmp_path / "run", every=1):
        steps(net, optimizer)
    assert capsys.readouterr().err.count("no such luck") == 1
    assert "no such luck" in reasons(tmp_path / "run")["tensors", "update_norm"]
    assert len(rows(tmp_path / "run", "steps")) == 3
    assert read_run(tmp_path / "run").status == "completed"


def test_recording_that_fails_ends_and_the_training_goes_on(
    net: nn.Module, optimizer: Any, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    watch = attach(net, optimizer, out=tmp_path / "run", every=1)
    steps(net, optimizer, 1)
    monkeypatch.setattr(watch._recorder, "step_done", lambda *_: 1 / 0)
    steps(net, optimizer, 3)
    assert capsys.readouterr().err.count("recording ends at step 2: ZeroDivisionError") == 1
    assert read_run(tmp_path / "run").status == "crashed"
    assert not optimizer._optimizer_step_pre_hooks


def test_a_forked_process_writes_nothing(net: nn.Module, optimizer: Any, tmp_path: Path) -> None:
    with attach(net, optimizer, out=tmp_path / "run", every=1) as watch:
        steps(net, optimizer, 1)
        child = os.fork()
        if child == 0:
            steps(net, optimizer, 5)
            watch.loss(1.0)
            watch.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        steps(net, optimizer, 1)
    assert [row["step"] for row in rows(tmp_path / "run", "steps")] == [1, 2]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x"), "crashed"),
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(3), "crashed"),
        (SystemExit(0), "completed"),
    ],
)
def test_how_it_ended(error: BaseException, status: str, net: nn.Module, optimizer: Any, tmp_path: Path) -> None:
    with pytest.raises(type(error)), attach(net, optimizer, out=tmp_path / "run"):  # noqa: PT012
        steps(net, optimizer, 1)
        raise error
    assert read_run(tmp_path / "run").status == status
    assert len(rows(tmp_path / "run", "tensors")) == 4


def test_a_step_that_fails_is_none(net: nn.Module, tmp_path: Path) -> None:
    class Failing(torch.optim.SGD):
        fails = False

        def step(self, closure: Any = None) -> Any:
            if self.fails:
                raise RuntimeError("out of memory")
            return super().step(closure)  # a step within a step: the hooks are called twice

    optimizer = Failing(net.parameters(), lr=0.1)
    with attach(net, optimizer, out=tmp_path / "run", every=1):
        steps(net, optimizer, 1)
        optimizer.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            steps(net, optimizer, 1)
        optimizer.fails = False
        steps(net, optimizer, 2)
    assert [row["step"] for row in rows(tmp_path / "run", "steps")] == [1, 2, 3]


def test_an_average_can_be_copied_and_pickled(net: nn.Module, optimizer: Any, tmp_path: Path) -> None:
    from diffusers.training_utils import EMAModel

    ema = EMAModel(net.parameters(), decay=0.5)
    with attach(net, optimizer, ema, out=tmp_path / "run", every=1):
        steps(net, optimizer, 1)
        twin = pickle.loads(pickle.dumps(copy.deepcopy(ema)))
        before = [shadow.clone() for shadow in ema.shadow_params]
        twin.step(net.parameters())
        assert all(map(torch.equal, before, ema.shadow_params))
        assert not all(map(torch.equal, before, twin.shadow_params))
    assert not rows(tmp_path / "run", "ema")
    assert "step" in vars(EMAModel)
    assert EMAModel.step.__module__ == "diffusers.training_utils"


def test_an_optimizer_of_other_tensors_shows(net: nn.Module, tmp_path: Path) -> None:
    optimizer = torch.optim.AdamW(copy.deepcopy(net).parameters(), lr=1e-2)
    with attach(net, optimizer, out=tmp_path / "run", every=1):
        steps(net, optimizer, 12)
    found = rows(tmp_path / "run", "params")
    assert [(row["in_optimizer"], row["is_model_object"]) for row in found] == [(False, True)] * 4 + [(True, False)] * 4
    moved = {row["distance_from_start"] for row in rows(tmp_path / "run", "tensors") if row["step"] == 12}
    assert moved == {0.0}


def test_what_another_optimizer_trains_is_not_asked_of_this_one(net: nn.Module, tmp_path: Path) -> None:
    first = torch.optim.AdamW(net[0].parameters(), lr=1e-2)
    second = torch.optim.AdamW(net[3].parameters(), lr=1e-2)
    with attach(net, first, out=tmp_path / "run", every=1):
        steps(net, first, 1)
    assert {row["param"] for row in rows(tmp_path / "run", "params")} == {"model.0.weight", "model.0.bias"}
    del second


def test_further_processes_write_their_steps_only(
    net: nn.Module, optimizer: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    with attach(net, optimizer, out=tmp_path / "run", every=1):
        monkeypatch.setenv("RANK", "1")
        with attach(net, optimizer, out=tmp_path / "run", every=1):
            steps(net, optimizer, 2)
        with pytest.raises(RunError, match="process 1"):
            attach(net, optimizer)
    assert [(row["step"], row["rank"]) for row in sorted(rows(tmp_path / "run", "steps"), key=str)] != []
    assert {row["rank"] for row in rows(tmp_path / "run", "steps")} == {0, 1}
    assert {row["rank"] for row in rows(tmp_path / "run", "tensors")} == {0}


def test_impossible_arguments_are_told_at_once(net: nn.Module, optimizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        attach(net, optimizer, every=0, budget=2.0, tables=["losses"], memory_mb=0, out=tmp_path / "run")
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        "every",
        "budget",
        "memory_mb",
        "tables",
    ]
    with pytest.raises(ConfigError, match="shadows"):
        attach(net, optimizer, AveragedModel(nn.Linear(2, 2), multi_avg_fn=get_ema_multi_avg_fn(0.9)))
    with pytest.raises(TrainingError, match="decay"):
        attach(net, optimizer, AveragedModel(net, avg_fn=lambda old, new, count: old), out=tmp_path / "run")
    with pytest.raises(TrainingError, match="cannot be read"):
        attach(net, optimizer, object(), out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
