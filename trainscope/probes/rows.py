"""Tensors laid end to end in rows of one length, so that one operation measures hundreds of them.

A model has hundreds of small tensors; an operation on each costs more in calls than in arithmetic. `Rows` gives each
tensor whole rows, the last filled up, and cuts the rows into chunks small enough for a processor's cache: measures are
taken row by row, chunk by chunk, and those of a tensor's rows are put together at the end. Knows nothing of what is
measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WIDTH = 128
"""Elements in a row. bfloat16 counts so many without rounding, and so does a byte."""
CHUNK_ELEMENTS = {"cpu": 2**18}
"""Elements that are measured at once; on other devices a call costs more than memory does."""
CHUNK_ELEMENTS_ELSEWHERE = 2**24
IN_PLACE_ELEMENTS = 2**16
"""From here on a tensor has chunks of its own, which are read where they lie; what is left of a row is not."""


@dataclass(frozen=True)
class _Piece:
    """A tensor's elements from `start` to `stop` in a chunk, and how many are missing to whole rows."""

    index: int
    start: int
    stop: int
    padding: int

    @property
    def elements(self) -> int:
        return self.stop - self.start + self.padding


@dataclass(frozen=True)
class Chunk:
    """Some rows: pieces of tensors of one dtype and device."""

    pieces: tuple[_Piece, ...]

    def gather(self, flat: Sequence[Tensor], *, repeat: bool = False, into: Scratch | None = None) -> Tensor:
        """The chunk's part of a list of one-dimensional tensors [rows, WIDTH], a copy.

        Rows are filled up with zeros, or with `repeat` with elements of the same tensor.
        """
        parts: list[Tensor] = []
        zeros: Tensor | None = None
        for piece in self.pieces:
            whole = flat[piece.index]
            part = whole if piece.stop - piece.start == whole.numel() else whole[piece.start : piece.stop]
            parts.append(part)
            if piece.padding and repeat:
                parts.append(part.repeat(-(-piece.padding // part.numel()))[: piece.padding])
            elif piece.padding:
                if zeros is None or zeros.dtype != part.dtype:
                    zeros = part.new_zeros(WIDTH)
                parts.append(zeros[: piece.padding])
        if into is None or len({part.dtype for part in parts}) > 1:
            return torch.cat(parts).view(-1, WIDTH)
        size = sum(piece.elements for piece in self.pieces)
        return torch.cat(parts, out=into.vector(size, parts[0].dtype, parts[0].device)).view(-1, WIDTH)

    def read(self, flat: Sequence[Tensor], scratch: Scratch, *, repeat: bool = False) -> Tensor:
        """The same, not to be written to: it may be the tensor itself."""
        if len(self.pieces) == 1 and not self.pieces[0].padding and flat[self.pieces[0].index].is_contiguous():
            piece = self.pieces[0]
            return flat[piece.index][piece.start : piece.stop].view(-1, WIDTH)
        return self.gather(flat, repeat=repeat, into=scratch)


class Rows:
    """The rows of a fixed list of tensors, given by size; an empty tensor has none."""

    def __init__(self, sizes: Sequence[int], kinds: Sequence[tuple[torch.dtype, torch.device]]) -> None:
        self.device = kinds[0][1] if kinds else torch.device("cpu")
        self.chunks: list[Chunk] = []
        self._count = len(sizes)
        shared: list[_Piece] = []
        for kind in dict.fromkeys(kinds):
            limit = CHUNK_ELEMENTS.get(kind[1].type, CHUNK_ELEMENTS_ELSEWHERE)
            for index in (index for index, other in enumerate(kinds) if other == kind):
                alone = sizes[index] // WIDTH * WIDTH if sizes[index] >= IN_PLACE_ELEMENTS else 0
                for start in range(0, alone, limit):
                    self._close([_Piece(index, start, min(alone, start + limit), 0)])
                start = alone
                while start < sizes[index]:
                    room = limit - sum(piece.elements for piece in shared)
                    if room <= 0:
                        self._close(shared)
                        continue
                    stop = min(sizes[index], start + room)
                    shared.append(_Piece(index, start, stop, -(stop - start) % WIDTH))
                    start = stop
            self._close(shared)
        owners = [p.index for chunk in self.chunks for p in chunk.pieces for _ in range(p.elements // WIDTH)]
        # By numpy, since the device would be waited for.
        columns, lengths = np.unique(np.array(owners, dtype=np.int64), return_counts=True)
        self._by_tensor = torch.from_numpy(np.argsort(owners, kind="stable")).to(self.device)
        self._columns, self._lengths = (
            torch.from_numpy(columns).to(self.device),
            torch.from_numpy(lengths).to(self.device),
        )

    def put_together(self, measured: Tensor, how: str, *, absent: float = 0.0) -> Tensor:
        """Each tensor's "sum", "max" or "min" of measures [measures, rows], chunk after chunk: float64 [measures,
        tensors].
        """
        result = torch.full((len(measured), self._count), absent, dtype=torch.float64, device=self.device)
        if self.chunks:
            # `unsafe` only skips the check that the lengths add up, which would wait for the device.
            found = torch.segment_reduce(measured.T[self._by_tensor].double(), how, lengths=self._lengths, unsafe=True)
            result[:, self._columns] = found.T
        return result

    def _close(self, pieces: list[_Piece]) -> None:
        if pieces:
            self.chunks.append(Chunk(tuple(pieces)))
            pieces.clear()


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
