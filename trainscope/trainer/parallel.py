"""Models that several processes train as one: replicated (DDP) or sharded (FSDP), by torch's own means.

Knows nothing of what the models compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from trainscope.trainer.processes import Processes


class Replicated(DistributedDataParallel):
    """DDP that can be asked for what the model inside it has."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("module"), name)


def replicate(model: nn.Module, processes: Processes, *, all_used: bool) -> nn.Module:
    """A wrapper of `model` whose backward pass averages gradients over the processes.

    Not `all_used`: some weights are left out of the loss, as the last layers of SDXL's text encoders are. The weights
    are the same everywhere already, so nothing is sent but gradients.
    """
    if processes.alone:
        return model
    return Replicated(
        model,
        device_ids=[processes.device] if processes.device and processes.device.type == "cuda" else None,
        broadcast_buffers=False,
        find_unused_parameters=not all_used,
        gradient_as_bucket_view=True,
    )


def shard(model: nn.Module, processes: Processes) -> None:
    """Spread the weights of `model` over the processes, in place: its parameters become DTensors (FSDP2)."""
    assert processes.device is not None  # noqa: S101
    mesh = init_device_mesh(processes.device.type, (processes.count,))
    for block in _blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _blocks(model: nn.Module) -> Iterable[nn.Module]:
    """The parts that are gathered one at a time: a UNet's blocks, a text encoder's layers."""
    for name in ("down_blocks", "up_blocks"):
        yield from getattr(model, name, ())
    if isinstance(middle := getattr(model, "mid_block", None), nn.Module):
        yield middle
    encoder = getattr(getattr(model, "text_model", model), "encoder", None)
    yield from getattr(encoder, "layers", ())


@contextmanager
def put_together(models: Sequence[nn.Module]) -> Iterator[None]:
    """Within it every process has all weights of sharded models. All processes must enter it."""
    sharded = [part for model in models for part in model.modules() if isinstance(part, FSDPModule)]
    for part in sharded:
        part.unshard()
    try:
        yield
    finally:
        for part in sharded:
            part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together; any other as it is. All processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def like(tensor: Tensor, param: Tensor) -> Tensor:
    """The shard of a whole `tensor` for this process, where `param` is sharded and of its shape; else as it is."""
    if isinstance(param, DTensor) and not isinstance(tensor, DTensor) and tensor.shape == param.shape:
        return distribute_tensor(tensor, param.device_mesh, param.placements, src_data_rank=None)
    return tensor


@contextmanager
def without_averaging(models: Sequence[nn.Module]) -> Iterator[None]:
    """Within it backward passes add to the gradients of this process only: for all micro-batches but a step's last."""
    with ExitStack() as stack:
        for model in models:
            if isinstance(model, DistributedDataParallel):
                stack.enter_context(model.no_sync())
            elif isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(False)
                stack.callback(model.set_requires_gradient_sync, True)
        yield
