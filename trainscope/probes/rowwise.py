"""Measures of rows (`probes/rows.py`): taken chunk by chunk in few operations, finished for all chunks at once.

Nothing here waits for a device. On the CPU, where there is nothing to wait for, rows that are out of the ordinary are
looked at again instead of looking at all of them twice. Knows nothing of tensors or optimizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from trainscope.probes.rows import Scratch

Again = Callable[[int], Tensor]
"""Gives the rows of a chunk, by number, once more."""

SMALL, LARGE = 1e-14, 1e18
"""Between these norms float32 can add a row's squares: none overflows, and what underflows does not count."""


class Norms:
    """Sums of squares of rows, and how many of their elements are not finite. `add` chunk after chunk, then ask.

    On the CPU a row is summed in float32, to 1e-6 of itself, which takes a third of the time.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._norms: list[Tensor] = []
        self._nonfinite: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """A chunk [rows, WIDTH]."""
        if rows.device.type == "cpu":
            self._norms.append(torch.linalg.vector_norm(self._at_least(rows, torch.float32), dim=1))
            return
        self._norms.append(torch.linalg.vector_norm(self._at_least(rows, torch.float64), dim=1))
        # x − x is 0 for finite elements alone.
        self._nonfinite.append(torch.sub(rows, rows, out=self._scratch.like(rows)).ne_(0).sum(dim=1))

    def squares(self, again: Again) -> Tensor:
        """Each row's sum of squares, float64 [rows]; NaN if an element is NaN."""
        norms = _all(self._norms)
        if norms.device.type == "cpu":
            found = norms.numpy()
            for number, rows, which in self._some(~((found >= SMALL) & (found <= LARGE))):
                norms[rows][which] = torch.linalg.vector_norm(again(number)[which].double(), dim=1)
        return norms.square_()

    def nonfinite(self, squares: Tensor, again: Again) -> Tensor:
        """How many of each row's elements are NaN or infinite, [rows], given their sums of squares."""
        if self._nonfinite:
            return _all(self._nonfinite)
        counts = torch.zeros_like(squares)
        if squares.device.type == "cpu":  # in float64 the squares of finite numbers have a finite sum
            for number, rows, which in self._some(~np.isfinite(squares.numpy())):
                counts[rows][which] = (~torch.isfinite(again(number)[which])).sum(dim=1).double()
        return counts

    def _some(self, wanted: np.ndarray) -> Iterator[tuple[int, slice, Tensor]]:
        """The chunks that have wanted rows: number, place among all rows, and which of its rows."""
        if not wanted.any():
            return
        start = 0
        for number, norms in enumerate(self._norms):
            rows = slice(start, start + len(norms))
            which = np.flatnonzero(wanted[rows])
            if len(which):
                yield number, rows, torch.from_numpy(which)
            start = rows.stop

    def _at_least(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        wider = torch.promote_types(rows.dtype, dtype)
        return rows if rows.dtype == wider else self._scratch.like(rows, wider).copy_(rows)


def difference(rows: Tensor, others: Tensor, scratch: Scratch) -> Tensor:
    """The difference of rows, computed in float32 or wider; the next measure of the scratch overwrites it."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    found = scratch.like(rows, dtype)
    return torch.sub(rows, others, out=found) if dtype == rows.dtype else found.copy_(rows).sub_(others)


def same_bits(rows: Tensor, others: Tensor, where: Tensor, scratch: Scratch) -> Tensor:
    """Which elements hold the same bits (NaN included), of those where a mask of the same shape is True."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
    bits = torch.bitwise_xor(rows.view(integers), others.view(integers), out=scratch.like(rows, integers))
    different = scratch.vector(rows.numel(), torch.bool, rows.device, "mask").view_as(rows).copy_(bits)
    # Eight elements at once: the bytes of a mask are 0 and 1.
    return different.view(torch.int64).bitwise_not_().bitwise_and_(where.view(torch.int64)).view(torch.bool)


class Counts:
    """How many elements of each row of masks are True. `add` chunk after chunk, then ask."""

    def __init__(self) -> None:
        self._lanes: list[Tensor] = []

    def add(self, mask: Tensor) -> None:
        """A chunk [rows, WIDTH], bool."""
        # Bytes are added eight at a time: WIDTH of them cannot overflow one.
        self._lanes.append(mask.view(torch.int64).sum(dim=1))

    def total(self) -> Tensor:
        """float64 [rows]."""
        return (_all(self._lanes, torch.int64) * 0x0101010101010101 >> 56 & 0xFF).double()


class Extremes:
    """Each row's largest and smallest element; NaN if an element is NaN. `add` chunk after chunk, then ask."""

    def __init__(self) -> None:
        self._largest: list[Tensor] = []
        self._smallest: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """A chunk [rows, WIDTH]."""
        self._largest.append(rows.amax(dim=1))
        self._smallest.append(rows.amin(dim=1))

    def both(self) -> tuple[Tensor, Tensor]:
        """The largest and the smallest, float64 [rows]."""
        return _all(self._largest), _all(self._smallest)

    def magnitude(self) -> Tensor:
        """The largest magnitude, float64 [rows]."""
        largest, smallest = self.both()
        return torch.maximum(largest, -smallest)


def _all(chunks: list[Tensor], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.cat(chunks).to(dtype) if chunks else torch.zeros(0, dtype=dtype)
