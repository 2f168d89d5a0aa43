"""A fixed sample of the elements of each trained tensor, and what the optimizer does to it in a step.

`delivered` needs the optimizer's moments and a float32 copy of its arithmetic; on a sample of each tensor that costs
little, and the sample never changes, so that values of different steps compare. Knows nothing of tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainscope.probes.flat import Chunk, FlatLayout
from trainscope.probes.formulas import formula_of
from trainscope.probes.pending import ABSENT
from trainscope.probes.stored import strided
from trainscope.probes.updates.elements import Before

SAMPLE_ELEMENTS = 1024
"""Elements sampled of each tensor; a smaller tensor is taken whole."""

MEASURES = ("intended_norm", "applied_norm", "delivered", "eps_dominated_fraction", "g2_over_v")


@dataclass(frozen=True)
class _Sampled:
    """A chunk of the sample: the `columns` of its tensors, and how many elements of each, and which share, it has."""

    chunk: Chunk
    columns: Tensor
    count: Tensor
    share: Tensor


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
        self._before: list[tuple[_Sampled, int, Before, dict[str, Any]]] = []
        self._sampled: dict[tuple[int, ...], list[_Sampled]] = {}
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
                self._before.append((sampled, number, self._copy(sampled.chunk, grads), dict(group)))

    def measure(self) -> Tensor:
        """Call after the step."""
        device = self._tensors[0].device
        result = torch.full((len(MEASURES), len(self._tensors)), ABSENT, dtype=torch.float64, device=device)
        for sampled, number, before, group in self._before:
            assert self._formula is not None  # noqa: S101  `before_step` copies nothing without one
            chunk, after = sampled.chunk, self._optimizer.param_groups[number]
            step = self._formula.formula(before, group, after)
            applied = self._gather(chunk, {i: self._tensors[i] for i in chunk.indices}) - before.theta
            intended2, applied2 = (chunk.norms(vector).square() for vector in (step.delta, applied))
            [both] = chunk.sums(applied.double() * step.delta.double())
            # Energies of the whole tensor, so that those of tensors add up.
            result[:, sampled.columns] = torch.stack(
                [
                    (intended2 / sampled.share).sqrt(),
                    (applied2 / sampled.share).sqrt(),
                    both / intended2,
                    *_beside_second_moment(sampled, before.grad, step.v_hat, eps=group.get("eps", 0.0)),
                ]
            ).to(device)
        self._before = []
        return result

    def _cut(self, indices: Sequence[int]) -> list[_Sampled]:
        found: list[_Sampled] = []
        for chunk in chunks_of({index: self._view(self._tensors[index], index) for index in indices}):
            count = torch.tensor(chunk.sizes, dtype=torch.float64, device=chunk.device)
            whole = torch.tensor([self._tensors[i].numel() for i in chunk.indices], device=chunk.device)
            columns = torch.tensor(chunk.indices, device=self._tensors[0].device)
            found.append(_Sampled(chunk, columns, count, count / whole))
        return found

    def _copy(self, chunk: Chunk, grads: Sequence[Tensor | None]) -> Before:
        assert self._formula is not None  # noqa: S101
        tensors = {index: self._tensors[index] for index in chunk.indices}
        states = {index: self._optimizer.state.get(tensor, {}) for index, tensor in tensors.items()}
        remembered: dict[str, Tensor] = {}
        for name, stored in self._formula.state.items():
            parts: list[Tensor] = []
            for index, tensor in tensors.items():
                part = stored.read(states[index], tensor.device, stride=self._strides[index])
                parts.append(stored.before_first_step(self._view(tensor, index)) if part is None else part)
            remembered[name] = torch.cat(parts).float()
        steps = _steps([state.get("step", 0) for state in states.values()], chunk.device)
        return Before(
            theta=self._gather(chunk, tensors),
            grad=self._gather(chunk, {index: _known(grads[index]) for index in chunk.indices}),
            state=remembered,
            step=chunk.spread(steps),
        )

    def _gather(self, chunk: Chunk, tensors: Mapping[int, Tensor]) -> Tensor:
        return torch.cat([self._view(tensors[index], index) for index in chunk.indices]).float()

    def _view(self, tensor: Tensor, index: int) -> Tensor:
        return strided(tensor, self._strides[index])


def chunks_of(tensors: Mapping[int, Tensor]) -> list[Chunk]:
    """Chunks of some of a list's tensors, with their indices in the list."""
    indices = list(tensors)
    layout = FlatLayout(list(tensors.values()))
    return [Chunk(tuple(indices[n] for n in part.indices), part.sizes, part.device) for part in layout.chunks]


def _beside_second_moment(
    sampled: _Sampled, grad: Tensor, v_hat: Tensor | None, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Share of elements with √v̂ < 10·eps, and mean g² / mean v̂, each float64 [tensors]; ABSENT without a v̂."""
    chunk, count = sampled.chunk, sampled.count
    if v_hat is None:
        nothing = torch.full_like(count, ABSENT)
        return nothing, nothing
    [v_sum] = chunk.sums(v_hat)
    ratio = chunk.norms(grad).square() / v_sum
    return chunk.counts(v_hat.sqrt() < 10 * eps) / count, torch.where(v_sum == 0, ABSENT, ratio)


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
