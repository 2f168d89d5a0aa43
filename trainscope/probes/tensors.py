"""The `tensors` table: what an optimizer step did to each trained tensor.

Gradients are read before the step, since some optimizers overwrite them in it. Knows nothing of which steps are probed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainscope.probes.formulas import places_of
from trainscope.probes.pending import ABSENT, NullWhere, Pending, absent
from trainscope.probes.rows import Rows, Scratch
from trainscope.probes.rowwise import Again, Counts, Extremes, Norms, difference, same_bits
from trainscope.probes.sampling import MEASURES as SAMPLED
from trainscope.probes.sampling import SAMPLE_ELEMENTS, StepSample, stride_of
from trainscope.probes.stored import Stored, strided

GRADIENT = ("grad_norm", "nonfinite", "nonzero_count", "grad_zero_count", "grad_absmax")
WEIGHT = ("weight_norm", "weight_nonfinite")
UPDATE = ("update_norm", "distance_from_start", "lost_count")
STATE = ("state_m_norm", "state_v_max", "state_v_min")
COUNTS = frozenset({"nonfinite", "grad_zero_count", "nonzero_count", "weight_nonfinite", "lost_count"})
FROM_SECOND_MOMENT = ("state_v_max", "state_v_min", "eps_dominated_fraction", "g2_over_v")


class TensorsProbe:
    """Call `before_step` right before the optimizer's step (gradients unscaled and clipped), `after_step` right after.

    Keeps a copy of every tensor as it was when the probe was made (θ₀), and from one call to the other a copy of every
    tensor and of where its gradient is zero. Where all that would take more than `memory_bytes`, it is a fixed sample
    of each tensor's elements, from which `update_norm`, `distance_from_start` and `lost_count` are estimated.
    """

    @torch.no_grad()
    def __init__(
        self, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, *, memory_bytes: int = 2**30
    ) -> None:
        self._names = list(params)
        self._tensors = list(params.values())
        self._optimizer = optimizer
        kinds = [(tensor.dtype, tensor.device) for tensor in self._tensors]
        sizes = [tensor.numel() for tensor in self._tensors]
        self._sizes = torch.tensor(sizes, dtype=torch.float64, device=self._tensors[0].device)
        self._rows = Rows(sizes, kinds)
        self._strides = strides_within(self._tensors, memory_bytes)
        kept = [-(-size // stride) for size, stride in zip(sizes, self._strides, strict=True)]
        self._keeps_all = kept == sizes
        self._kept = self._rows if self._keeps_all else Rows(kept, kinds)
        # An empty tensor is at zero in every measure.
        self._scale = self._sizes / torch.tensor(kept, dtype=torch.float64, device=self._sizes.device).clamp_min(1)
        weights = self._sampled(self._weights())
        self._start = [chunk.gather(weights) for chunk in self._kept.chunks]
        self._step_sample = StepSample(self._tensors, optimizer)
        self._first, self._second = places_of(optimizer, "m"), places_of(optimizer, "v")
        self._before: list[Tensor] = []
        self._nonzero: list[Tensor] = []
        self._gradient = torch.empty(0)
        self._without: tuple[list[bool], Tensor] | None = None
        self._stated: tuple[list[int], Rows] | None = None

    @property
    def reasons(self) -> dict[str, str]:
        """Columns that this optimizer gives nothing for or that are estimated, with the reason."""
        reasons: dict[str, str] = {}
        name = type(self._optimizer).__name__
        if not self._first:
            reasons["state_m_norm"] = f"{name} keeps no first moment"
        if not self._second:
            reasons.update(dict.fromkeys(FROM_SECOND_MOMENT, f"{name} keeps no second moment"))
        if self._step_sample.reason:
            reasons.update(dict.fromkeys(SAMPLED, self._step_sample.reason))
        share = self.share_of_elements
        if share < 1:
            reasons.update(dict.fromkeys(UPDATE, f"estimated from a fixed sample of {share:.1%} of the elements"))
        return reasons

    @property
    def share_of_elements(self) -> float:
        """The share of the trained elements that copies are kept of."""
        total = sum(tensor.numel() for tensor in self._tensors)
        kept = sum(-(-t.numel() // stride) for t, stride in zip(self._tensors, self._strides, strict=True))
        return kept / total if total else 1.0

    @torch.no_grad()
    def before_step(self) -> None:
        """Measure the gradients and copy the weights."""
        grads = [tensor.grad for tensor in self._tensors]
        flat, scratch = _flat_or_zero(grads, self._tensors), Scratch()
        norms, extremes, nonzero = Norms(scratch), Extremes(), Counts()
        self._nonzero = []
        for chunk in self._rows.chunks:
            grad = chunk.read(flat, scratch)
            mask = grad.bool()
            norms.add(grad)
            extremes.add(grad)
            nonzero.add(mask)
            if self._keeps_all:
                self._nonzero.append(mask)
        again = self._again(self._rows, flat, scratch)
        squares = norms.squares(again)
        sums = torch.stack([squares, norms.nonfinite(squares, again), nonzero.total()])
        total = self._rows.put_together(sums, "sum")
        top = self._rows.put_together(extremes.magnitude().unsqueeze(0), "max")
        top.nan_to_num_(nan=math.inf, posinf=math.inf)
        self._gradient = torch.stack([total[0].sqrt(), total[1], total[2], self._sizes - total[2], top[0]])
        for column in ("grad_norm", "grad_absmax"):
            self._gradient[GRADIENT.index(column)].masked_fill_(self._missing(grads), ABSENT)
        weights = self._sampled(self._weights())
        self._before = [chunk.gather(weights) for chunk in self._kept.chunks]
        if not self._keeps_all:
            sample = self._sampled(flat)
            self._nonzero = [chunk.gather(sample).bool() for chunk in self._kept.chunks]
        self._step_sample.before_step(grads)

    @torch.no_grad()
    def after_step(self, step: int) -> Pending:
        """Measure what the step changed."""
        weights, scratch = self._weights(), Scratch()
        norms, change = Norms(scratch), _Change(self._before, self._start, self._nonzero, scratch)
        for chunk in self._rows.chunks:
            now = chunk.read(weights, scratch)
            norms.add(now)
            if self._keeps_all:
                change.add(now)
        kept = self._sampled(weights)
        if not self._keeps_all:
            for chunk in self._kept.chunks:
                change.add(chunk.gather(kept, into=scratch))
        again = self._again(self._rows, weights, scratch)
        squares = norms.squares(again)
        weight = self._rows.put_together(torch.stack([squares, norms.nonfinite(squares, again)]), "sum")
        weight[0].sqrt_()
        changed = change.measured(self._again(self._kept, kept, scratch))
        self._before, self._nonzero = [], []
        update = self._kept.put_together(changed, "sum") * self._scale
        update[:2].sqrt_()
        # Of a sample it is an estimate.
        update[2] = update[2].round().minimum(self._gradient[GRADIENT.index("nonzero_count")])
        return Pending(
            table="tensors",
            step=step,
            keys={"param": list(self._names)},
            columns=(*GRADIENT, *WEIGHT, *UPDATE, *STATE, *SAMPLED),
            values=torch.cat([self._gradient, weight, update, self._state(), self._step_sample.measure()]),
            integers=COUNTS,
            null_where=NULL_WHERE,
        )

    @staticmethod
    def _again(rows: Rows, flat: Sequence[Tensor], scratch: Scratch) -> Again:
        return lambda number: rows.chunks[number].read(flat, scratch)

    def _state(self) -> Tensor:
        """Norm of the first moment, range of the second; ABSENT where the optimizer keeps none."""
        scratch = Scratch()
        first, layout = self._moments(self._first)
        norms = Norms(scratch)
        for chunk in layout.chunks:
            norms.add(chunk.read(first, scratch))
        squares = norms.squares(self._again(layout, first, scratch)).unsqueeze(0)
        norm = layout.put_together(squares, "sum", absent=ABSENT)
        norm = torch.where(norm == ABSENT, norm, norm.clamp_min(0).sqrt())
        second, layout = self._moments(self._second)
        extremes = Extremes()
        for chunk in layout.chunks:
            extremes.add(chunk.read(second, scratch, repeat=True))
        largest, smallest = extremes.both()
        highest = layout.put_together(largest.unsqueeze(0), "max", absent=ABSENT)
        lowest = layout.put_together(smallest.unsqueeze(0), "min", absent=ABSENT)
        return torch.cat([norm, highest, lowest])

    def _moments(self, places: tuple[Stored, ...]) -> tuple[Sequence[Tensor], Rows]:
        moments = _Moments(self._optimizer, self._tensors, places)
        return moments, self._layout(moments.sizes())

    def _missing(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Where there is no gradient: bool [tensors]. Seldom another than the step before, and kept on the device."""
        missing = [grad is None for grad in grads]
        if self._without is None or self._without[0] != missing:
            self._without = missing, torch.tensor(missing, device=self._sizes.device)
        return self._without[1]

    def _layout(self, sizes: list[int]) -> Rows:
        """The rows of what an optimizer has made of its state; seldom another than the step before."""
        if self._stated is None or self._stated[0] != sizes:
            kinds = [(tensor.dtype, tensor.device) for tensor in self._tensors]
            self._stated = sizes, Rows(sizes, kinds)
        return self._stated[1]

    def _weights(self) -> list[Tensor]:
        """The tensors, one-dimensional."""
        return [strided(tensor, 1) for tensor in self._tensors]

    def _sampled(self, flat: Sequence[Tensor]) -> Sequence[Tensor]:
        """What copies are kept of."""
        if self._keeps_all:
            return flat
        return [strided(tensor, stride) for tensor, stride in zip(flat, self._strides, strict=True)]


class _Change:
    """How kept rows differ from what they were before the step and at the start, and how many of them do not."""

    def __init__(
        self, before: Sequence[Tensor], start: Sequence[Tensor], nonzero: Sequence[Tensor], scratch: Scratch
    ) -> None:
        self._before, self._start, self._nonzero, self._scratch = before, start, nonzero, scratch
        self._update, self._distance, self._lost = Norms(scratch), Norms(scratch), Counts()
        self._number = 0

    def add(self, now: Tensor) -> None:
        """The next chunk, as it is after the step."""
        before, start, nonzero = (kept[self._number] for kept in (self._before, self._start, self._nonzero))
        self._update.add(difference(now, before, self._scratch))
        self._distance.add(difference(now, start, self._scratch))
        self._lost.add(same_bits(now, before, nonzero, self._scratch))
        self._number += 1

    def measured(self, again: Again) -> Tensor:
        """[UPDATE, rows]: sums of squares, and a count."""

        def since(kept: Sequence[Tensor]) -> Again:
            return lambda number: difference(again(number), kept[number], self._scratch)

        return torch.stack(
            [
                self._update.squares(since(self._before)),
                self._distance.squares(since(self._start)),
                self._lost.total(),
            ]
        )


class _Moments(Sequence[Tensor]):
    """A moment of those tensors that have it, from the first place that holds it.

    What is stored in eight bits is made float32 a tensor at a time.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, tensors: Sequence[Tensor], places: tuple[Stored, ...]) -> None:
        self._tensors = tensors
        self._states = [optimizer.state.get(tensor, {}) for tensor in tensors]
        self._places = [next((p for p in places if isinstance(s.get(p.key), Tensor)), None) for s in self._states]
        self._latest: tuple[int, Tensor] | None = None

    def sizes(self) -> list[int]:
        return [0 if place is None else t.numel() for t, place in zip(self._tensors, self._places, strict=True)]

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]  # slices are not asked for
        if self._latest is None or self._latest[0] != index:
            place = self._places[index]
            assert place is not None  # noqa: S101  a tensor without has no rows
            found = place.read(self._states[index], self._tensors[index].device)
            assert found is not None  # noqa: S101
            self._latest = index, found
        return self._latest[1]


def strides_within(tensors: Sequence[Tensor], memory_bytes: int) -> list[int]:
    """The distance of the elements that are kept of each tensor: 1, all of them, if there is room for that."""
    # The weights at the start and before the step, and where the gradient was zero.
    needed = sum(tensor.numel() * (2 * tensor.element_size() + 1) for tensor in tensors)
    if needed <= memory_bytes:
        return [1] * len(tensors)
    share = memory_bytes / needed
    return [stride_of(t.numel(), max(SAMPLE_ELEMENTS, int(t.numel() * share))) for t in tensors]


def _flat_or_zero(grads: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, one-dimensional; zeros where there is none."""
    return [
        tensor.new_zeros(tensor.numel()) if grad is None else strided(grad, 1)
        for grad, tensor in zip(grads, tensors, strict=True)
    ]


NULL_WHERE: NullWhere = {
    **absent("grad_norm", "grad_absmax", *STATE, *SAMPLED),
    # It may be -1 by itself; and where nothing was asked for, 0 / 0 is no measurement.
    "delivered": (("applied_norm", ABSENT), ("intended_norm", 0.0)),
}
