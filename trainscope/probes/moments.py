"""How large an optimizer's first and second moment are, wherever and however it keeps them.

Knows nothing of what the optimizer does with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainscope.probes.by_kernel import addresses, compiled_passes, is_plain, pieces_of
from trainscope.probes.pending import ABSENT
from trainscope.probes.rows import Rows, Scratch
from trainscope.probes.rowwise import Extremes, Norms
from trainscope.probes.stored import Stored

State = Mapping[str, Any]


class Moments:
    """Call `measure` after a step. `first` and `second` are the places to look for the moments, in that order."""

    def __init__(
        self,
        tensors: Sequence[Tensor],
        optimizer: torch.optim.Optimizer,
        first: tuple[Stored, ...],
        second: tuple[Stored, ...],
    ) -> None:
        self._tensors, self._optimizer = list(tensors), optimizer
        self.first, self.second = first, second
        self._kinds = [(tensor.dtype, tensor.device) for tensor in tensors]
        self._layout: tuple[list[int], Rows] | None = None
        kernels = compiled_passes() if any(map(is_plain, tensors)) else None
        self._compiled = None if kernels is None else _Compiled(self._tensors, kernels)

    def measure(self) -> Tensor:
        """Norm of the first moment, largest and smallest element of the second: float64 [3, tensors].

        ABSENT where the optimizer has made none.
        """
        states = [self._optimizer.state.get(tensor, {}) for tensor in self._tensors]
        first, second = (self._look(states, places) for places in (self.first, self.second))
        plain: Tensor | None = None
        if self._compiled is not None:
            plain = self._compiled.measure(first.take_plain(), second.take_plain()).to(self._kinds[0][1])
        if plain is not None and not any(first.sizes()) and not any(second.sizes()):
            return plain
        rest = torch.cat([self._norms(first), self._ranges(second)])
        return rest if plain is None else torch.where(rest == ABSENT, plain, rest)

    def _look(self, states: Sequence[State], places: tuple[Stored, ...]) -> _Found:
        return _Found(self._tensors, states, places)

    def _norms(self, moments: _Found) -> Tensor:
        """[1, tensors]."""
        layout, scratch = self._rows(moments.sizes()), Scratch()
        norms = Norms(scratch)
        for chunk in layout.chunks:
            norms.add(chunk.read(moments, scratch))
        squares = norms.squares(lambda number: layout.chunks[number].read(moments, scratch)).unsqueeze(0)
        norm = layout.put_together(squares, "sum", absent=ABSENT)
        return torch.where(norm == ABSENT, norm, norm.clamp_min(0).sqrt())

    def _ranges(self, moments: _Found) -> Tensor:
        """[2, tensors]."""
        layout, scratch = self._rows(moments.sizes()), Scratch()
        extremes = Extremes()
        for chunk in layout.chunks:
            extremes.add(chunk.read(moments, scratch, repeat=True))
        largest, smallest = extremes.both()
        highest = layout.put_together(largest.unsqueeze(0), "max", absent=ABSENT)
        return torch.cat([highest, layout.put_together(smallest.unsqueeze(0), "min", absent=ABSENT)])

    def _rows(self, sizes: list[int]) -> Rows:
        """The rows of what an optimizer has made of its state; seldom another than the step before."""
        if self._layout is None or self._layout[0] != sizes:
            self._layout = sizes, Rows(sizes, self._kinds)
        return self._layout[1]


class _Compiled:
    """The same of moments in plain memory, in one compiled pass."""

    def __init__(self, tensors: Sequence[Tensor], kernels: ModuleType) -> None:
        self._kernels = kernels
        self._sizes = [tensor.numel() for tensor in tensors]
        self._pieces = pieces_of(self._sizes)
        self._measured = np.flatnonzero(self._sizes)
        self._firsts = np.flatnonzero(self._pieces[:, 1] == 0)

    def measure(self, first: Sequence[Tensor | None], second: Sequence[Tensor | None]) -> Tensor:
        """float64 [3, tensors]; ABSENT where there is none."""
        out = np.empty((4, len(self._pieces)))
        at = addresses(first, self._sizes), addresses(second, self._sizes)
        self._kernels.moments(self._pieces, *at, out)
        squares = np.add.reduceat(out[0], self._firsts)
        ends = [np.maximum.reduceat(out[2], self._firsts), np.minimum.reduceat(out[3], self._firsts)]
        ranges = [self._kernels.ordered(end.astype(np.int32)).view(np.float32).astype(np.float64) for end in ends]
        either = np.isnan(ranges[0]) | np.isnan(ranges[1])
        result = np.full((3, len(self._sizes)), ABSENT)
        for row, (values, there) in enumerate(zip([np.sqrt(squares), *ranges], [at[0], at[1], at[1]], strict=True)):
            if row:
                values[either] = np.nan
            result[row, self._measured] = np.where(there[self._measured] != 0, values, ABSENT)
        return torch.from_numpy(result)


class _Found(Sequence[Tensor]):
    """A moment of those tensors that have it, from the first place that holds it.

    What is stored in eight bits is made float32 a tensor at a time.
    """

    def __init__(self, tensors: Sequence[Tensor], states: Sequence[State], places: tuple[Stored, ...]) -> None:
        self._tensors, self._states = tensors, states
        self._places = [
            next((place for place in places if isinstance(state.get(place.key), Tensor)), None) for state in states
        ]
        self._latest: tuple[int, Tensor] | None = None

    def take_plain(self) -> list[Tensor | None]:
        """Those whose memory can be read as it is; they are no longer among the others."""
        taken: list[Tensor | None] = [None] * len(self._tensors)
        for index, (tensor, state, place) in enumerate(zip(self._tensors, self._states, self._places, strict=True)):
            moment = None if place is None or place.qmap in state else state[place.key]
            if (
                moment is not None
                and is_plain(moment)
                and (moment.numel(), moment.device) == (tensor.numel(), tensor.device)
            ):
                taken[index], self._places[index] = moment, None
        return taken

    def sizes(self) -> list[int]:
        """Elements of each; 0 where there is none."""
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
