"""What a step does to gradients and weights, on any device and in any format, measured row by row.

Copies are of all elements or, where there is no room for that, of a fixed sample of each tensor's. Knows nothing of
optimizers, nor of other ways to measure the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from trainscope.probes.pending import ABSENT
from trainscope.probes.rows import Rows, Scratch
from trainscope.probes.rowwise import Again, Counts, Extremes, Norms, difference, same_bits
from trainscope.probes.stored import strided


class ByRows:
    """Call `gradients` right before the step and `changes` right after it. Keeps a copy of the tensors as they are.

    `strides` are the distances of the elements that copies are kept of.
    """

    def __init__(self, tensors: Sequence[Tensor], strides: Sequence[int]) -> None:
        self._tensors, self._strides = list(tensors), list(strides)
        kinds = [(tensor.dtype, tensor.device) for tensor in tensors]
        sizes = [tensor.numel() for tensor in tensors]
        self._sizes = torch.tensor(sizes, dtype=torch.float64, device=tensors[0].device)
        self._rows = Rows(sizes, kinds)
        kept = [-(-size // stride) for size, stride in zip(sizes, strides, strict=True)]
        self._keeps_all = kept == sizes
        self._kept = self._rows if self._keeps_all else Rows(kept, kinds)
        # An empty tensor is at zero in every measure.
        self._scale = self._sizes / torch.tensor(kept, dtype=torch.float64, device=self._sizes.device).clamp_min(1)
        weights = self._sampled(self._weights())
        self._start = [chunk.gather(weights) for chunk in self._kept.chunks]
        self._before: list[Tensor] = []
        self._nonzero: list[Tensor] = []
        self._count = self._sizes
        self._without: tuple[list[bool], Tensor] | None = None

    def gradients(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Copy the weights, and measure: norm, elements that are not finite, not 0 and 0, largest magnitude.

        float64 [5, tensors]; norm and magnitude are ABSENT where there is no gradient.
        """
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
        again = _again(self._rows, flat, scratch)
        squares = norms.squares(again)
        sums = torch.stack([squares, norms.nonfinite(squares, again), nonzero.total()])
        total = self._rows.put_together(sums, "sum")
        top = self._rows.put_together(extremes.magnitude().unsqueeze(0), "max")
        top.nan_to_num_(nan=math.inf, posinf=math.inf)
        self._count = total[2]
        result = torch.stack([total[0].sqrt(), total[1], total[2], self._sizes - total[2], top[0]])
        for row in (0, 4):
            result[row].masked_fill_(self._missing(grads), ABSENT)
        weights = self._sampled(self._weights())
        self._before = [chunk.gather(weights) for chunk in self._kept.chunks]
        if not self._keeps_all:
            sample = self._sampled(flat)
            self._nonzero = [chunk.gather(sample).bool() for chunk in self._kept.chunks]
        return result

    def changes(self) -> Tensor:
        """Let the copies go, and measure: norm of the weights, elements that are not finite, norm of the update,
        distance from the start, elements that stand still though their gradient is not 0. float64 [5, tensors].
        """
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
        again = _again(self._rows, weights, scratch)
        squares = norms.squares(again)
        weight = self._rows.put_together(torch.stack([squares, norms.nonfinite(squares, again)]), "sum")
        weight[0].sqrt_()
        changed = change.measured(_again(self._kept, kept, scratch))
        self._before, self._nonzero = [], []
        update = self._kept.put_together(changed, "sum") * self._scale
        update[:2].sqrt_()
        # Of a sample it is an estimate.
        update[2] = update[2].round().minimum(self._count)
        return torch.cat([weight, update])

    def _missing(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Where there is no gradient: bool [tensors]. Seldom another than the step before, and kept on the device."""
        missing = [grad is None for grad in grads]
        if self._without is None or self._without[0] != missing:
            self._without = missing, torch.tensor(missing, device=self._sizes.device)
        return self._without[1]

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
        """Sums of squares of both differences, and a count: [3, rows]."""

        def since(kept: Sequence[Tensor]) -> Again:
            return lambda number: difference(again(number), kept[number], self._scratch)

        return torch.stack(
            [
                self._update.squares(since(self._before)),
                self._distance.squares(since(self._start)),
                self._lost.total(),
            ]
        )


def _again(rows: Rows, flat: Sequence[Tensor], scratch: Scratch) -> Again:
    return lambda number: rows.chunks[number].read(flat, scratch)


def _flat_or_zero(grads: Sequence[Tensor | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """The gradients, one-dimensional; zeros where there is none."""
    return [
        tensor.new_zeros(tensor.numel()) if grad is None else strided(grad, 1)
        for grad, tensor in zip(grads, tensors, strict=True)
    ]
