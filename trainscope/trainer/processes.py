"""The processes that train one model together, as `torchrun` and `accelerate launch` start them.

Every process builds the same session and takes its share of each batch; the first one keeps the run directory. Knows
nothing of models or of what is trained.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainscope.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """One of `count` processes; alone it is rank 0 of 1, and everything here costs nothing."""

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    """The device that this process is to use; None leaves it to `run.device`."""
    control: Any = None
    """A gloo group, for what is agreed between the hosts without waiting for the devices."""

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        return self.count == 1

    def share(self, samples: Sequence[int]) -> list[int]:
        """The part of a batch for this process: as equal as can be, empty where processes outnumber samples."""
        return list(samples[self.rank :: self.count])

    def from_main(self, value: T) -> T:
        """What the first process has; `value` of the others is ignored. All must call it."""
        if self.alone:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def any(self, flag: bool) -> bool:
        """Whether one of them says yes. All must call it."""
        if self.alone:
            return flag
        said = torch.tensor(int(flag))
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX, group=self.control)
        return bool(said.item())

    def gather(self, value: T) -> list[T]:
        """What each process has, by rank. All must call it."""
        if self.alone:
            return [value]
        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value, group=self.control)
        return found

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over the processes, on its device. All must call it."""
        if self.alone:
            return value
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total / self.count

    def wait(self) -> None:
        """Until all are here."""
        if not self.alone:
            torch.distributed.barrier(group=self.control)


ALONE = Processes()


def join(device: str, environment: Mapping[str, str] = os.environ) -> Processes:
    """Meet the processes that were started together; alone if there are no others.

    `device` is `run.device`. Raises `ConfigError` for what a launcher was asked for and is not done here.
    """
    _refuse_what_is_not_done(environment)
    count = int(environment.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f'run.device = "{device}" with {count} processes: each takes a device of its own',
            hint='run.device = "auto"',
        )
    from accelerate import PartialState

    wants_cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=wants_cpu)
    return Processes(
        rank=state.process_index,
        count=state.num_processes,
        device=torch.device("cpu") if wants_cpu else state.device,
        control=torch.distributed.new_group(backend="gloo"),
    )


def leave(processes: Processes) -> None:
    """Say goodbye, so that nobody waits for this process any more."""
    if not processes.alone and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def asks_for_fsdp(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether `accelerate launch --use_fsdp` started this."""
    return _is_on(environment, "ACCELERATE_USE_FSDP")


def _is_on(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in ("true", "1", "yes", "on")


LAUNCHED = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}


def _refuse_what_is_not_done(environment: Mapping[str, str]) -> None:
    problems = [
        f"{meaning} was asked for, and trainscope trains with DDP or FSDP"
        for name, meaning in LAUNCHED.items()
        if _is_on(environment, name)
    ]
    precision = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", ""):
        problems.append(f"--mixed_precision {precision}: set precision.compute instead")
    accumulation = environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if accumulation not in ("1", ""):
        problems.append(f"--gradient_accumulation_steps {accumulation}: set train.gradient_accumulation instead")
    backend = environment.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if backend not in ("no", ""):
        problems.append(f"--dynamo_backend {backend}: compiled training is not offered")
    if problems:
        raise ConfigError(
            "accelerate was told what trainscope does not do:",
            problems=problems,
            hint="accelerate launch --num_processes N --mixed_precision no …, or torchrun --nproc-per-node N …",
        )
