"""Probes make a step wait for the device no more often than it does without them.

On a CPU nothing waits, so what is counted are the calls that would: reading one number of a tensor, making a tensor
whose size depends on values, and copies from another device to this one. `benchmarks/gpu.py` asks a GPU itself.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from trainscope.config.optimizer import OPTIMIZERS
from trainscope.proof.runs import RunSpec
from trainscope.runlog.rundir import create_run
from trainscope.runlog.writer import RunWriter
from trainscope.trainer.ahead import Ahead
from trainscope.trainer.build import build_session
from trainscope.trainer.loop import optimizer_step
from trainscope.trainer.recorder import Recorder

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_consecutive", "_unique2", "equal", "is_nonzero"}


class Waits(TorchDispatchMode):
    """Counts the calls that wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITING or (name.startswith("index") and _has_mask(args)):
            self.counted[name] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(args: Any) -> bool:
    places = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(place, torch.Tensor) and place.dtype == torch.bool for place in places)


def waits(folder: Path, tables: list[str], **changes: Any) -> Counter[str]:
    """Of three steps, between one transfer to the host and the next."""
    spec = RunSpec({"train.steps": 100, "train.batch_size": 2, "probes.every": 1, "probes.tables": tables, **changes})
    session = build_session(spec.resolved())
    writer = RunWriter(create_run(folder, "run"))
    recorder = Recorder(session, writer)
    recorder.start()
    batches = Ahead(session, session.data.micro_batches(2, seed=session.seed))
    with Waits() as counting:
        for _ in range(3):
            optimizer_step(session, [next(batches), next(batches)], batches.take, recorder, ())
    recorder.log.flush()
    return counting.counted


def test_the_count_counts() -> None:
    tensor = torch.arange(6.0)
    with Waits() as counting:
        assert float(tensor[2]) == 2
        tensor.nonzero()
        tensor[tensor > 3] = 0
        bool(tensor.isfinite().all())
    assert counting.counted["_local_scalar_dense"] == 2
    assert counting.counted["nonzero"] == 1
    assert sum(counting.counted.values()) >= 4


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_no_probe_waits(kind: str, tmp_path: Path) -> None:
    changes = {"optimizer.type": kind, "ema.enabled": True, "train.method": "lora"}
    without = waits(tmp_path, [], **changes)
    assert waits(tmp_path, ["tensors", "ema", "adapters", "batches"], **changes) == without


@pytest.mark.parametrize(
    "changes",
    [
        {"train.method": "finetune"},
        {"precision.weights": "bf16"},
        {"precision.weights": "bf16", "precision.stochastic_rounding": True},
        {"precision.compute": "fp16", "train.method": "finetune"},
        {"probes.memory_mb": 1, "train.method": "finetune"},
        {"model.base": "tiny:sd15-inpainting"},
    ],
    ids=str,
)
def test_nor_with_other_trainings(changes: dict[str, Any], tmp_path: Path) -> None:
    without = waits(tmp_path, [], **changes)
    assert waits(tmp_path, ["tensors", "ema", "adapters", "batches"], **changes) == without
