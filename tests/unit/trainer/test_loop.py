"""One optimizer step: what accumulation, short batches, clipping and scaling make of the gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainscope.proof.runs import RunSpec
from trainscope.runlog.reader import read_run
from trainscope.runlog.rundir import create_run
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.ahead import load_and_draw
from trainscope.trainer.build import build_session
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.data.order import MicroBatch
from trainscope.trainer.loop import optimizer_step
from trainscope.trainer.recorder import Recorder
from trainscope.trainer.session import Session

LORA: dict[str, Any] = {"train.method": "lora", "lora.rank": 4, "train.steps": 100, "probes.tables": []}


class Steps(Callback):
    """A session that is stepped with chosen samples, its complete gradients kept."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.session: Session = build_session(RunSpec({**LORA, **changes}).resolved())
        self.run = create_run(folder, "run")
        self.recorder = Recorder(self.session, RunWriter(self.run), [self])
        self.gradients: list[list[Tensor]] = []
        self.before: Callable[[Session], None] = lambda session: None
        with torch.no_grad():  # B = 0 would leave A without a gradient
            for pair in self.session.pairs:
                pair.b.fill_(0.01)

    def before_optimizer(self, session: Session) -> None:
        self.before(session)
        self.gradients.append([param.grad.clone() for param in session.tensors if param.grad is not None])

    def __call__(self, *batches: Iterable[int]) -> list[Tensor]:
        """One step; all batches at position 0, so that a sample has the same noise in whichever it stands."""
        micro_batches = [MicroBatch(0, 0, list(samples)) for samples in batches]
        optimizer_step(self.session, micro_batches, partial(load_and_draw, self.session), self.recorder, [self])
        return self.gradients[-1]

    def rows(self, table: str = "steps") -> list[dict[str, Any]]:
        self.recorder.log.flush()
        found: list[dict[str, Any]] = read_run(self.run.path).datasets[table].to_table().to_pylist()
        return found


@pytest.fixture
def steps(tmp_path: Path) -> Callable[..., Steps]:
    count = iter(range(100))
    return lambda **changes: Steps(tmp_path / str(next(count)), **{k.replace("__", "."): v for k, v in changes.items()})


def assert_close(one: list[Tensor], other: list[Tensor]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(a.abs().max()))


def test_two_batches_of_two_are_a_batch_of_four(steps: Callable[..., Steps]) -> None:
    whole, halves = steps(), steps()
    assert_close(whole([0, 1, 2, 3]), halves([0, 1], [2, 3]))
    one, other = whole.rows()[0], halves.rows()[0]
    assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-4)
    assert (one["samples"], one["micro_steps"]) == (4, 1)
    assert (other["samples"], other["micro_steps"]) == (4, 2)


def test_a_short_batch_weighs_its_share(steps: Callable[..., Steps]) -> None:
    """4 + 1 samples are five alike, and not two halves."""
    assert_close(steps()([0, 1, 2, 3, 4]), steps()([0, 1, 2, 3], [4]))


def test_the_gradient_is_the_mean_over_the_samples(steps: Callable[..., Steps]) -> None:
    alone = [steps()([sample]) for sample in range(3)]
    mean = [torch.stack(parts).mean(dim=0) for parts in zip(*alone, strict=True)]
    assert_close(steps()([0, 1, 2]), mean)


def test_every_sample_seen_is_recorded(steps: Callable[..., Steps]) -> None:
    stepped = steps()
    stepped([3, 1], [7])
    stepped([2])
    assert [(row["step"], row["sample"]) for row in stepped.rows("order")] == [(1, 3), (1, 1), (1, 7), (2, 2)]
    assert (stepped.session.step, stepped.session.micro_step) == (2, 3)


def test_gradients_are_gone_after_the_step(steps: Callable[..., Steps]) -> None:
    stepped = steps()
    stepped([0])
    assert all(param.grad is None for param in stepped.session.tensors)
    assert stepped.rows()[0]["grad_norm_before_backward"] == 0


def test_a_leftover_gradient_is_seen(steps: Callable[..., Steps]) -> None:
    stepped = steps()
    param = stepped.session.tensors[0]
    param.grad = torch.full_like(param, 2.0)
    stepped([0])
    assert stepped.rows()[0]["grad_norm_before_backward"] == pytest.approx(2.0 * math.sqrt(param.numel()))


@pytest.mark.filterwarnings("ignore:Detected call")
def test_clipping(steps: Callable[..., Steps]) -> None:
    """The norm is that before clipping; the coefficient is what the gradient was multiplied by."""
    seen: list[float] = []

    class AfterClipping(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            grads = [param.grad for group in self.param_groups for param in group["params"]]
            seen.append(float(torch.nn.utils.get_total_norm(grads)))

    stepped = steps(train__max_grad_norm=1e-3)
    stepped.session.optimizer = AfterClipping(stepped.session.tensors, lr=1.0)
    full = float(torch.nn.utils.get_total_norm(stepped([0, 1])))
    (row,) = stepped.rows()
    assert row["grad_norm"] == pytest.approx(full, rel=1e-5)
    assert row["clip_coef"] == pytest.approx(1e-3 / full, rel=1e-3)
    assert seen == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize(("limit", "coefficient"), [(0.0, None), (1e6, 1.0)])
def test_no_clipping(limit: float, coefficient: float | None, steps: Callable[..., Steps]) -> None:
    stepped = steps(train__max_grad_norm=limit)
    stepped([0])
    assert stepped.rows()[0]["clip_coef"] == coefficient


def test_a_skipped_step_steps_nothing(steps: Callable[..., Steps]) -> None:
    """fp16 over float32 weights: an infinite gradient halves the scale; optimizer, schedule and average stand still."""
    stepped = steps(precision__compute="fp16", ema__enabled=True, scheduler__type="cosine", optimizer__lr=1e-3)
    session = stepped.session
    assert session.scaler.is_enabled()
    weights = [param.detach().clone() for param in session.tensors]

    def overflow(session: Session) -> None:
        session.tensors[0].grad[0] = math.inf  # type: ignore[index]

    stepped.before = overflow
    stepped([0])
    stepped.before = lambda session: None
    assert all(torch.equal(a, b) for a, b in zip(weights, session.tensors, strict=True))
    assert (session.step, session.optimizer_steps, session.scheduler.last_epoch) == (1, 0, 0)
    assert session.ema is not None
    assert session.ema.optimization_step == 0
    stepped([0])
    first, second = stepped.rows()
    assert (first["skipped"], first["optimizer_steps"]) == (True, 0)
    assert math.isinf(first["grad_norm"])
    assert (second["skipped"], second["optimizer_steps"]) == (False, 1)
    assert second["loss_scale"] == first["loss_scale"] / 2
    assert second["grad_norm"] < 100, "the gradient is unscaled before it is measured"
    assert session.ema.optimization_step == 1


def test_the_average_is_updated_every_so_often(steps: Callable[..., Steps]) -> None:
    stepped = steps(ema__enabled=True, ema__every=3)
    counts = []
    for _ in range(7):
        stepped([0])
        assert stepped.session.ema is not None
        counts.append(stepped.session.ema.optimization_step)
    assert counts == [0, 0, 1, 1, 1, 2, 2]


def test_a_loss_that_is_not_finite_is_an_event_once(steps: Callable[..., Steps]) -> None:
    stepped = steps()
    stepped([0])
    next(latent for (sample, _), latent in stepped.session.data.latents.kept.items() if sample == 1).fill_(math.nan)
    stepped([1])
    stepped([1])
    (event,) = [row for row in stepped.rows("events") if row["kind"] == "nonfinite"]
    assert '"first_step": 2' in event["detail"]
    assert [math.isnan(row["loss"]) for row in stepped.rows()] == [False, True, True]


def test_the_parts_of_a_step_are_timed(steps: Callable[..., Steps]) -> None:
    stepped = steps()
    stepped([0, 1], [2])
    (row,) = stepped.rows()
    parts = [row[f"{part}_seconds"] for part in ("data", "forward", "backward", "optimizer")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= row["seconds"]
