"""Tensors laid end to end in rows of one length, so that one operation measures hundreds of them.

A model has hundreds of small tensors; an operation on each costs more in calls than in arithmetic. `Rows` gives each
tensor whole rows, the last filled up, and cuts the rows into chunks small enough for a processor's cache: measures are
taken row by row, chunk by chunk, and those of a tensor's rows are put together at the end. Knows nothing of what is
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

WIDTH = 128
"""Elements in a row. bfloat16 counts so many without rounding."""
CHUNK_ELEMENTS = {"cpu": 2**18}
"""Elements that are measured at once; on other devices a call costs more than memory does."""
CHUNK_ELEMENTS_ELSEWHERE = 2**24
IN_PLACE_ELEMENTS = 2**17
"""From here on a tensor of whole rows has chunks of its own, so that it can be read where it lies."""


@dataclass(frozen=True)
class _Piece:
    """A tensor's elements from `start` to `stop` in a chunk, and how many are missing to whole rows."""

    index: int
    start: int
    stop: int
    padding: int


@dataclass(frozen=True)
class Chunk:
    """Some rows: pieces of tensors of one dtype and device. `rows` is where they stand among all."""

    pieces: tuple[_Piece, ...]
    rows: slice
    device: torch.device

    def gather(self, flat: Sequence[Tensor], *, padded_with: float = 0.0, into: Scratch | None = None) -> Tensor:
        """The chunk's part of a list of one-dimensional tensors [rows, WIDTH], a copy."""
        parts: list[Tensor] = []
        padding: Tensor | None = None
        for piece in self.pieces:
            part = flat[piece.index]
            parts.append(part if piece.stop - piece.start == part.numel() else part[piece.start : piece.stop])
            if piece.padding:
                if padding is None or padding.dtype != part.dtype:
                    padding = torch.full((WIDTH,), padded_with, dtype=part.dtype, device=part.device)
                parts.append(padding[: piece.padding])
        if into is None or len({part.dtype for part in parts}) > 1:
            return torch.cat(parts).view(-1, WIDTH)
        size = (self.rows.stop - self.rows.start) * WIDTH
        return torch.cat(parts, out=into.vector(size, parts[0].dtype, parts[0].device)).view(-1, WIDTH)

    def read(self, flat: Sequence[Tensor], scratch: Scratch, *, padded_with: float = 0.0) -> Tensor:
        """The same, not to be written to: it may be the tensor itself."""
        if len(self.pieces) == 1 and not self.pieces[0].padding and flat[self.pieces[0].index].is_contiguous():
            piece = self.pieces[0]
            return flat[piece.index][piece.start : piece.stop].view(-1, WIDTH)
        return self.gather(flat, padded_with=padded_with, into=scratch)


class Rows:
    """The rows of a fixed list of tensors, given by size; an empty tensor has none."""

    def __init__(self, sizes: Sequence[int], kinds: Sequence[tuple[torch.dtype, torch.device]]) -> None:
        self.device = kinds[0][1] if kinds else torch.device("cpu")
        self.order = [index for kind in dict.fromkeys(kinds) for index, other in enumerate(kinds) if other == kind]
        """The tensors in the order of their rows."""
        self.order = [index for index in self.order if sizes[index]]
        self.chunks: list[Chunk] = []
        self._count = len(sizes)
        self._pieces: list[_Piece] = []
        self._first_row = 0
        self._kind = kinds[0] if kinds else (torch.float32, self.device)
        for index in self.order:
            self._place(index, sizes[index], kinds[index])
        if self._pieces:
            self._close(self._kind[1])
        lengths = [-(-sizes[index] // WIDTH) for index in self.order]
        self._lengths = torch.tensor(lengths, device=self.device)
        self._columns = torch.tensor(self.order, dtype=torch.long, device=self.device)

    def empty(self, measures: int) -> Tensor:
        """Where measures of all rows are put, chunk by chunk: float64 [measures, rows]."""
        rows = self.chunks[-1].rows.stop if self.chunks else 0
        return torch.empty((measures, rows), dtype=torch.float64, device=self.device)

    def put_together(self, measured: Tensor, how: str, *, absent: float = 0.0) -> Tensor:
        """Each tensor's "sum", "max" or "min" of measures of its rows: float64 [measures, tensors]."""
        result = torch.full((len(measured), self._count), absent, dtype=torch.float64, device=self.device)
        if self.order:
            # `unsafe` only skips the check that the lengths add up, which would wait for the device.
            found = torch.segment_reduce(measured.T.contiguous(), how, lengths=self._lengths, unsafe=True)
            result[:, self._columns] = found.T
        return result

    def _place(self, index: int, size: int, kind: tuple[torch.dtype, torch.device]) -> None:
        device = kind[1]
        limit = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS_ELSEWHERE)
        is_alone = size >= IN_PLACE_ELEMENTS and size % WIDTH == 0
        if self._pieces and (self._kind != kind or is_alone):
            self._close(self._kind[1])
        self._kind = kind
        start = 0
        while start < size:
            room = limit - self._filled()
            if room <= 0:
                self._close(device)
                continue
            stop = min(size, start + room)
            self._pieces.append(_Piece(index, start, stop, -(stop - start) % WIDTH))
            start = stop
        if is_alone:
            self._close(device)

    def _filled(self) -> int:
        return sum(piece.stop - piece.start + piece.padding for piece in self._pieces)

    def _close(self, device: torch.device) -> None:
        stop = self._first_row + self._filled() // WIDTH
        self.chunks.append(Chunk(tuple(self._pieces), slice(self._first_row, stop), device))
        self._pieces, self._first_row = [], stop


class Scratch:
    """Memory for what a measure needs on the way. Asked anew for each chunk, much of the time would go into that."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def vector(self, size: int, dtype: torch.dtype, device: torch.device, purpose: str = "gathered") -> Tensor:
        """An uninitialised vector; the next of its kind overwrites it."""
        kind = (purpose, dtype, device)
        buffer = self._buffers.get(kind)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[kind] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size]

    def like(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The same with the rows' shape, beside those that are gathered."""
        return self.vector(rows.numel(), dtype or rows.dtype, rows.device, "computed").view_as(rows)

    def squares(self, rows: Tensor) -> Tensor:
        """Each row's sum of squares, float64 [rows]; NaN if an element is NaN."""
        wide = rows if rows.dtype == torch.float64 else self.like(rows, torch.float64).copy_(rows)
        norms: Tensor = torch.linalg.vector_norm(wide, dim=1)
        return norms.square_()

    def squares_of_difference(self, rows: Tensor, others: Tensor) -> Tensor:
        """Each row's sum of squared differences, computed in float32 or wider."""
        dtype = torch.promote_types(rows.dtype, torch.float32)
        difference = self.like(rows, dtype)
        if dtype == rows.dtype:
            torch.sub(rows, others, out=difference)
        else:
            difference.copy_(rows).sub_(others)
        return self.squares(difference)

    def largest(self, rows: Tensor) -> Tensor:
        """Each row's largest magnitude [rows]; NaN if an element is NaN."""
        return torch.abs(rows, out=self.like(rows)).amax(dim=1)

    def count_nonfinite(self, rows: Tensor) -> Tensor:
        """How many of each row's elements are NaN or infinite: x − x is 0 for all others."""
        return torch.sub(rows, rows, out=self.like(rows)).ne_(0).sum(dim=1)

    def count_nonzero(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """How many of each row's elements are not zero (NaN is not), and which: ones and zeros of the rows' dtype."""
        nonzero = self.like(rows).copy_(rows).ne_(0)
        return nonzero.sum(dim=1), nonzero

    def count_same(self, rows: Tensor, others: Tensor, where: Tensor) -> Tensor:
        """How many of each row's elements hold the same bits (NaN included), where a mask of the same shape is True."""
        integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[rows.element_size()]
        same = torch.bitwise_xor(rows.view(integers), others.view(integers), out=self.like(rows, integers))
        return same.eq_(0).mul_(where).sum(dim=1, dtype=torch.int32)
