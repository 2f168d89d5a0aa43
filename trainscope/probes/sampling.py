"""A fixed sample of the elements of each trained tensor, and what the optimizer does to it in a step.

`delivered` needs the optimizer's moments and a float32 copy of its arithmetic; on a sample of each tensor that costs
little, and the sample never changes, so that values of different steps compare. Knows nothing of tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from trainscope.probes.flat import FlatLayout
from trainscope.probes.formulas import formula_of
from trainscope.probes.pending import ABSENT
from trainscope.probes.sample_chunk import MEASURES, SampleChunk
from trainscope.probes.stored import strided
from trainscope.probes.updates.elements import Before

SAMPLE_ELEMENTS = 1024
"""Elements sampled of each tensor; a smaller tensor is taken whole."""


class StepSample:
    """Compares the update that arrived with the one that the optimizer's formula asked for.

    `measure` gives float64 [len(MEASURES), tensors] on the device; ABSENT where there is nothing to compare.
    """

    def __init__(self, tensors: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._tensors = list(tensors)
        self._optimizer = optimizer
        self._formula = formula_of(optimizer)
        self._strides = [stride_of(tensor.numel()) for tensor in tensors]
        self._groups = _groups(self._tensors, optimizer)
        self._before: list[tuple[SampleChunk, int, Before, dict[str, Any]]] = []
        self._sampled: dict[tuple[int, ...], list[SampleChunk]] = {}
        """By the tensors that have a gradient. Made anew for each step, it would wait for the device each time."""

    @property
    def reason(self) -> str:
        """Why there is nothing to compare; empty if there is."""
        if self._formula is None:
            return f"the step of {type(self._optimizer).__name__} cannot be recomputed"
        return ""

    def before_step(self, grads: Sequence[Tensor | None]) -> None:
        """Copy what the step is going to overwrite."""
        self._before = []
        if self._formula is None:
            return
        for number, indices in self._groups.items():
            group = self._optimizer.param_groups[number]
            present = tuple(index for index in indices if grads[index] is not None and self._tensors[index].numel())
            if present not in self._sampled:
                self._sampled[present] = self._cut(present)
            for sampled in self._sampled[present]:
                self._before.append((sampled, number, self._copy(sampled, grads), dict(group)))

    def measure(self) -> Tensor:
        """Call after the step."""
        device = self._tensors[0].device
        result = torch.full((len(MEASURES), len(self._tensors)), ABSENT, dtype=torch.float64, device=device)
        for chunk, number, before, group in self._before:
            assert self._formula is not None  # noqa: S101  `before_step` copies nothing without one
            asked = self._formula.formula(before, group, self._optimizer.param_groups[number])
            result[:, chunk.columns] = chunk.compare(before, asked, eps=group.get("eps", 0.0)).to(device)
        self._before = []
        return result

    def _cut(self, indices: Sequence[int]) -> list[SampleChunk]:
        """Chunks of the sample of some of the tensors."""
        layout = FlatLayout([strided(self._tensors[index], self._strides[index]) for index in indices])
        chunks = [replace(part, indices=tuple(indices[n] for n in part.indices)) for part in layout.chunks]
        tensors, strides, device = self._tensors, self._strides, self._tensors[0].device
        return [
            SampleChunk(chunk, [tensors[i] for i in chunk.indices], [strides[i] for i in chunk.indices], device)
            for chunk in chunks
        ]

    def _copy(self, sampled: SampleChunk, grads: Sequence[Tensor | None]) -> Before:
        assert self._formula is not None  # noqa: S101
        chunk = sampled.chunk
        states = [self._optimizer.state.get(self._tensors[index], {}) for index in chunk.indices]
        return Before(
            theta=sampled.theta(),
            grad=sampled.gather([_known(grads[index]) for index in chunk.indices]),
            state={name: sampled.remembered(stored, states) for name, stored in self._formula.state.items()},
            step=chunk.spread(_steps([state.get("step", 0) for state in states], chunk.device)),
        )


def stride_of(numel: int, wanted: int = SAMPLE_ELEMENTS) -> int:
    """The distance of about so many elements, without a common factor with the tensor's dimensions.

    A stride that divides a dimension would sample one row or one place of every kernel only.
    """
    stride = max(1, -(-numel // wanted))
    while stride > 1 and math.gcd(stride, numel) > 1:
        stride += 1
    return stride


def _steps(steps: Sequence[Tensor | int], device: torch.device) -> Tensor:
    """How often each tensor has been stepped, float32 [tensors]; a count that lies on a device is not waited for."""
    counted = [step for step in steps if isinstance(step, Tensor)]
    if len(counted) == len(steps) and len({(step.dtype, step.device, step.shape) for step in counted}) == 1:
        return torch.stack(counted).reshape(-1).to(device, torch.float32)
    if counted:
        return torch.stack([torch.as_tensor(s, dtype=torch.float32).reshape(()).to(device) for s in steps])
    return torch.tensor(steps, dtype=torch.float32, device=device)


def _groups(tensors: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> dict[int, list[int]]:
    group_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    groups: dict[int, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if id(tensor) in group_of:
            groups.setdefault(group_of[id(tensor)], []).append(index)
    return groups


def _known(grad: Tensor | None) -> Tensor:
    assert grad is not None  # noqa: S101  only tensors with a gradient are sampled
    return grad
