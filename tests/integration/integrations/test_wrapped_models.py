"""`attach` on models that are wrapped: the same bits, tensors by their own names, or the reason why not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

import trainscope
from tests.unit.integrations.loops import loss_of, model, reasons

STEPS = 5
Wrap = Callable[[nn.Module], nn.Module]


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    destroy_process_group()


class Checkpointed(nn.Module):
    """Runs its model again in the backward pass."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.module = inner

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.module, x, use_reentrant=False)


def compiled(net: nn.Module) -> nn.Module:
    wrapped: Any = torch.compile(net, backend="aot_eager")
    return wrapped


def sharded(net: nn.Module) -> nn.Module:
    fully_shard(net, mesh=init_device_mesh("cpu", (1,)))
    return net


def trained(wrap: Wrap, out: Path | None) -> dict[str, Tensor]:
    """The weights afterwards, watched or not."""
    net = wrap(model())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    watch = trainscope.attach(net, optimizer, out=out, every=1) if out else None
    for _ in range(STEPS):
        loss_of(net).backward()
        optimizer.step()
        optimizer.zero_grad()
    if watch:
        watch.close()
    return {name: whole(param).detach().clone() for name, param in net.named_parameters()}


def whole(param: Any) -> Tensor:
    found: Tensor = param.full_tensor() if hasattr(param, "full_tensor") else param
    return found


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        pytest.param(compiled, "model.", marks=pytest.mark.slow),
        pytest.param(nn.parallel.DistributedDataParallel, "model.", marks=pytest.mark.slow),
        (Checkpointed, "model.module."),
        (sharded, None),
    ],
    ids=["torch.compile", "DDP", "checkpointing", "fully_shard"],
)
def test_watching_changes_no_bit_and_tells_what_it_saw(wrap: Wrap, prefix: str | None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    plain, watched = trained(wrap, None), trained(wrap, out)
    assert all(torch.equal(tensor, watched[name]) for name, tensor in plain.items())
    rows = trainscope.read_run(out).tables["tensors"]
    if prefix is None:
        assert rows.empty
        told = {table: reason for (table, _), reason in reasons(out).items() if "spread over processes" in reason}
        assert {"tensors", "state"} <= told.keys()
    else:
        assert set(rows["param"]) == {prefix + name for name, _ in model().named_parameters()}
        assert rows.groupby("param")["step"].nunique().min() == STEPS
        assert rows["delivered"].between(0.99, 1.01).all()
