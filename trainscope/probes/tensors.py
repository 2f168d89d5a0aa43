"""The `tensors` table: what an optimizer step did to each trained tensor.

Gradients are read before the step, since some optimizers overwrite them in it. Knows nothing of which steps are probed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trainscope.probes.flat import same_bits
from trainscope.probes.formulas import places_of
from trainscope.probes.pending import ABSENT, NullWhere, Pending, absent
from trainscope.probes.sampling import MEASURES as SAMPLED
from trainscope.probes.sampling import StepSample, chunks_of
from trainscope.probes.stored import Stored

GRADIENT = ("grad_norm", "grad_absmax", "nonfinite", "grad_zero_count", "nonzero_count")
UPDATE = ("weight_norm", "weight_nonfinite", "update_norm", "lost_count", "distance_from_start")
STATE = ("state_m_norm", "state_v_max", "state_v_min")
COUNTS = frozenset({"nonfinite", "grad_zero_count", "nonzero_count", "weight_nonfinite", "lost_count"})
FROM_SECOND_MOMENT = ("state_v_max", "state_v_min", "eps_dominated_fraction", "g2_over_v")


class TensorsProbe:
    """Call `before_step` right before the optimizer's step (gradients unscaled and clipped), `after_step` right after.

    Keeps a copy of every tensor as it was when the probe was made (θ₀), and from one call to the other a copy of every
    tensor and of the counts of its gradient.
    """

    def __init__(self, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._names = list(params)
        self._tensors = list(params.values())
        self._optimizer = optimizer
        # An empty tensor has no largest element; it stays at zero in every measure.
        self._chunks = chunks_of({index: tensor for index, tensor in enumerate(self._tensors) if tensor.numel()})
        self._start = [chunk.gather(self._tensors) for chunk in self._chunks]
        self._sample = StepSample(self._tensors, optimizer)
        self._first, self._second = places_of(optimizer, "m"), places_of(optimizer, "v")
        self._before: list[Tensor] = []
        self._nonzero: list[Tensor | None] = []
        self._gradient = torch.empty(0)
        self._has_grad: list[bool] = []

    @property
    def reasons(self) -> dict[str, str]:
        """Columns that this optimizer gives nothing for, with the reason."""
        reasons: dict[str, str] = {}
        name = type(self._optimizer).__name__
        if not self._first:
            reasons["state_m_norm"] = f"{name} keeps no first moment"
        if not self._second:
            reasons.update(dict.fromkeys(FROM_SECOND_MOMENT, f"{name} keeps no second moment"))
        if self._sample.reason:
            reasons.update(dict.fromkeys(SAMPLED, self._sample.reason))
        return reasons

    @torch.no_grad()
    def before_step(self) -> None:
        """Measure the gradients and copy the weights."""
        grads = [tensor.grad for tensor in self._tensors]
        self._has_grad = [grad is not None for grad in grads]
        filled = [
            torch.zeros_like(tensor) if grad is None else grad
            for tensor, grad in zip(self._tensors, grads, strict=True)
        ]
        self._gradient = self._zeros(len(GRADIENT))
        self._before, self._nonzero = [], []
        for chunk in self._chunks:
            grad = chunk.gather(filled)
            nonzero = grad != 0  # NaN is not zero
            nonzeros = chunk.counts(nonzero)
            zeros = torch.tensor(chunk.sizes, dtype=torch.float64, device=grad.device) - nonzeros
            largest = torch.nan_to_num(chunk.norms(grad, math.inf), nan=math.inf, posinf=math.inf)
            nonfinite = chunk.counts(~torch.isfinite(grad))
            self._put(self._gradient, chunk.indices, [chunk.norms(grad), largest, nonfinite, zeros, nonzeros])
            self._before.append(chunk.gather(self._tensors))
            self._nonzero.append(_unless_all(nonzero))
        self._sample.before_step(grads)

    @torch.no_grad()
    def after_step(self, step: int) -> Pending:
        """Measure what the step changed."""
        update = self._zeros(len(UPDATE))
        for chunk, before, nonzero, start in zip(self._chunks, self._before, self._nonzero, self._start, strict=True):
            now = chunk.gather(self._tensors)
            wide = now.float()
            same = same_bits(now, before)
            rows = [
                chunk.norms(wide),
                chunk.counts(~torch.isfinite(now)),
                chunk.norms(wide - before.float()),
                chunk.counts(same if nonzero is None else nonzero & same),
                chunk.norms(wide - start.float()),
            ]
            self._put(update, chunk.indices, rows)
        self._before, self._nonzero = [], []
        values = torch.cat([self._gradient, update, self._state(), self._sample.measure()])
        has_grad = torch.tensor(self._has_grad, dtype=torch.float64, device=values.device)
        return Pending(
            table="tensors",
            step=step,
            keys={"param": list(self._names)},
            columns=(*GRADIENT, *UPDATE, *STATE, *SAMPLED),
            values=self._without_gradient(values, has_grad),
            integers=COUNTS,
            null_where=NULL_WHERE,
        )

    def _without_gradient(self, values: Tensor, has_grad: Tensor) -> Tensor:
        """Mark the gradient's norms of tensors that have none."""
        rows = torch.tensor([GRADIENT.index("grad_norm"), GRADIENT.index("grad_absmax")], device=values.device)
        values[rows] = torch.where(has_grad.bool(), values[rows], ABSENT)
        return values

    def _state(self) -> Tensor:
        """Norm of the first moment, range of the second; ABSENT where the optimizer keeps none."""
        result = torch.full_like(self._zeros(len(STATE)), ABSENT)
        for chunk in self._chunks:  # moments that are stored in eight bits are float32 one chunk at a time
            first = self._moments(self._first, chunk.indices)
            if first:
                norms = torch._foreach_norm(list(first.values()), 2, dtype=torch.float32)
                self._put(result[:1], tuple(first), [torch.stack(list(norms)).double()])
            second = self._moments(self._second, chunk.indices)
            if second:
                ranges = [torch.stack(torch.aminmax(moment)).double() for moment in second.values()]
                lowest, highest = torch.stack(ranges).unbind(1)
                self._put(result[1:], tuple(second), [highest, lowest])
        return result

    def _moments(self, places: tuple[Stored, ...], indices: tuple[int, ...]) -> dict[int, Tensor]:
        """A moment of those tensors that have it, flat, from the first place that holds it."""
        found: dict[int, Tensor] = {}
        for index in indices:
            state = self._optimizer.state.get(self._tensors[index], {})
            for place in places:
                moment = place.read(state, self._tensors[index].device)
                if moment is not None:
                    found[index] = moment
                    break
        return found

    def _zeros(self, rows: int) -> Tensor:
        return torch.zeros((rows, len(self._tensors)), dtype=torch.float64, device=self._tensors[0].device)

    @staticmethod
    def _put(target: Tensor, indices: tuple[int, ...], rows: list[Tensor]) -> None:
        columns = torch.tensor(indices, device=target.device)
        target[:, columns] = torch.stack([row.to(target.device) for row in rows])


def _unless_all(mask: Tensor) -> Tensor | None:
    """The mask, or None where all of it is True: a quarter of a copy of the weights less to keep.

    On an accelerator it is kept: to look at it would wait for all that is still to be computed there.
    """
    return None if mask.device.type == "cpu" and bool(mask.all()) else mask


NULL_WHERE: NullWhere = {
    **absent("grad_norm", "grad_absmax", *STATE, *SAMPLED),
    # It may be -1 by itself; and where nothing was asked for, 0 / 0 is no measurement.
    "delivered": (("applied_norm", ABSENT), ("intended_norm", 0.0)),
}
