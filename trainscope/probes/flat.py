"""Tensors laid end to end, so that one operation measures hundreds of them.

A model has hundreds of small tensors; an operation on each costs more in calls than in arithmetic. A `FlatLayout` cuts
the list of tensors into chunks of one dtype and device and bounded size, concatenates each chunk, and reduces by
segments. Knows nothing of what is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**22
"""Elements that are measured at once: bounds the temporary memory. A larger tensor is a chunk of its own."""

EXACT_IN_FLOAT32 = 2**24
"""Up to here a float32 counts without rounding."""


@dataclass(frozen=True)
class Chunk:
    """Some of the layout's tensors: their indices and sizes."""

    indices: tuple[int, ...]
    sizes: tuple[int, ...]
    device: torch.device

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """The chunk's part of a list of tensors, in logical order, as one vector [elements]. Always a copy."""
        return torch.cat([tensors[index].detach().reshape(-1) for index in self.indices])

    def split(self, flat: Tensor) -> list[Tensor]:
        return list(flat.split(list(self.sizes)))

    @cached_property
    def _lengths(self) -> Tensor:
        return torch.tensor(self.sizes, device=self.device)

    def spread(self, values: Tensor) -> Tensor:
        """A value of each tensor [tensors], for each of its elements [elements]."""
        # The size is given since the device would have to be asked for it.
        return torch.repeat_interleave(values, self._lengths, output_size=sum(self.sizes))

    def sums(self, *vectors: Tensor) -> Tensor:
        """Sum of each tensor's segment, in float64: [len(vectors), tensors]."""
        return torch.stack([self._sum(vector.double()) for vector in vectors])

    def counts(self, mask: Tensor) -> Tensor:
        """How many of each tensor's elements are True, as float64 [tensors]."""
        return self._sum(mask.float() if max(self.sizes) < EXACT_IN_FLOAT32 else mask.double()).double()

    def norms(self, vector: Tensor, order: float = 2.0) -> Tensor:
        """Norm of each tensor's segment, as float64 [tensors]; NaN if an element is NaN."""
        return torch.stack(list(torch._foreach_norm(self.split(vector), order, dtype=torch.float64)))

    def _sum(self, vector: Tensor) -> Tensor:
        # `unsafe` only skips the check that the lengths add up, which would wait for the device.
        return torch.segment_reduce(vector, "sum", lengths=self._lengths, unsafe=True)


class FlatLayout:
    """The chunks of a fixed list of tensors."""

    def __init__(self, tensors: Sequence[Tensor], *, chunk_elements: int = CHUNK_ELEMENTS) -> None:
        self.count = len(tensors)
        self.chunks = tuple(_cut(tensors, chunk_elements))


def _cut(tensors: Sequence[Tensor], limit: int) -> Iterator[Chunk]:
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for index, tensor in enumerate(tensors):
        kinds.setdefault((tensor.dtype, tensor.device), []).append(index)
    for (_, device), indices in kinds.items():
        chunk: list[int] = []
        elements = 0
        for index in indices:
            size = tensors[index].numel()
            if chunk and elements + size > limit:
                yield _chunk(chunk, tensors, device)
                chunk, elements = [], 0
            chunk.append(index)
            elements += size
        if chunk:
            yield _chunk(chunk, tensors, device)


def _chunk(indices: Sequence[int], tensors: Sequence[Tensor], device: torch.device) -> Chunk:
    return Chunk(tuple(indices), tuple(tensors[index].numel() for index in indices), device)


def same_bits(a: Tensor, b: Tensor) -> Tensor:
    """Element by element, whether two tensors of one floating dtype hold the same bits (NaN included)."""
    as_integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return a.view(as_integer) == b.view(as_integer)
