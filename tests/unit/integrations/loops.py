"""Small trainings of other people's making, each with something of its own: what `attach` has to bear."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainscope.runlog.reader import read_run

Begin = Callable[..., AbstractContextManager[Any]]
"""Called with model, optimizer and options before the first step."""


@dataclass
class Outcome:
    """All that a training leaves."""

    tensors: dict[str, Tensor]

    def same_as(self, other: Outcome) -> bool:
        return self.tensors.keys() == other.tensors.keys() and all(
            torch.equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items()
        )


def model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Dropout(0.1), nn.Linear(16, 4))


def outcome(net: nn.Module, optimizer: Any, *more: Tensor) -> Outcome:
    state = {
        f"state {number} {key}": value
        for number, group in enumerate(optimizer.param_groups)
        for param in group["params"]
        for key, value in optimizer.state.get(param, {}).items()
        if isinstance(value, Tensor)
    }
    weights = {name: tensor.detach() for name, tensor in net.named_parameters()}
    extra = {f"more {index}": tensor.detach() for index, tensor in enumerate(more)}
    return Outcome(copy.deepcopy({**weights, **state, **extra, "rng": torch.random.get_rng_state()}))


def loss_of(net: nn.Module) -> Tensor:
    return net(torch.randn(5, 8)).square().mean()


def averaged(begin: Begin, kind: str = "diffusers") -> Outcome:
    """AdamW with a schedule, accumulation, clipping and an average."""
    from diffusers.training_utils import EMAModel

    net = model()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    ema: Any = (
        EMAModel(net.parameters(), decay=0.5)
        if kind == "diffusers"
        else AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    )
    with begin(net, optimizer, ema=ema, scheduler=schedule) as watch:
        for _ in range(6):
            for _ in range(2):
                loss = loss_of(net)
                if watch is not None:
                    watch.loss(loss, samples=5)
                (loss / 2).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.1)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if kind == "diffusers":
                ema.step(parameters=(param for param in net.parameters()))
            else:
                ema.update_parameters(net)
    shadows = ema.shadow_params if kind == "diffusers" else list(ema.parameters())
    return outcome(net, optimizer, *shadows)


def closures(begin: Begin) -> Outcome:
    """LBFGS, which calls a closure several times a step."""
    net = model()
    optimizer = torch.optim.LBFGS(net.parameters(), lr=0.1, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(net)
        loss.backward()
        return loss

    with begin(net, optimizer):
        for _ in range(4):
            optimizer.step(closure)
    return outcome(net, optimizer)


def scaled(begin: Begin) -> Outcome:
    """A GradScaler whose first steps overflow and are skipped."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2, momentum=0.9, nesterov=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    with begin(net, optimizer, scaler=scaler):
        for _ in range(8):
            scaler.scale(loss_of(net) * 8).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    return outcome(net, optimizer, torch.tensor(scaler.get_scale()))


def estimating(begin: Begin) -> Outcome:
    """Prodigy, which overwrites its gradients in the step."""
    from prodigyopt import Prodigy

    net = model()
    optimizer = Prodigy(net.parameters(), lr=1.0, weight_decay=0.01)
    with begin(net, optimizer):
        for _ in range(5):
            loss_of(net).backward()
            optimizer.step()
            optimizer.zero_grad()
    return outcome(net, optimizer)


def low_precision(begin: Begin) -> Outcome:
    """Weights in bf16."""
    net = model().bfloat16()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    with begin(net, optimizer):
        for _ in range(5):
            net(torch.randn(5, 8, dtype=torch.bfloat16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    return outcome(net, optimizer)


def rows(run: str | Path, table: str) -> list[dict[str, Any]]:
    """The rows of a run's table, by step."""
    found = read_run(run).datasets[table].to_table().to_pylist()
    return sorted(found, key=lambda row: row.get("step") or 0)


def reasons(run: str | Path) -> dict[tuple[str, str], str]:
    return {(row["table"], row["column"]): row["reason"] for row in rows(run, "coverage")}
