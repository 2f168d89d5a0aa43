"""Some tensors' sampled elements laid end to end: gathered, and compared with what a formula asked for.

What is float32 on the CPU is gathered and added up by compiled passes. Knows nothing of optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainscope.probes.by_kernel import addresses, compiled_passes, is_plain
from trainscope.probes.flat import Chunk
from trainscope.probes.pending import ABSENT
from trainscope.probes.stored import Stored, strided
from trainscope.probes.updates.elements import Before, Intended

MEASURES = ("intended_norm", "applied_norm", "delivered", "eps_dominated_fraction", "g2_over_v")


class SampleChunk:
    """Every `strides`-th element of tensors of one dtype and device, which `chunk` lays out."""

    def __init__(self, chunk: Chunk, tensors: Sequence[Tensor], strides: Sequence[int], device: torch.device) -> None:
        """`device` is where the measures of all chunks are."""
        self.chunk, self._tensors, self._strides = chunk, list(tensors), list(strides)
        self.columns = torch.tensor(chunk.indices, device=device)
        self._count = torch.tensor(chunk.sizes, dtype=torch.float64, device=chunk.device)
        self._sizes = [tensor.numel() for tensor in tensors]
        # Energies are of the whole tensor, so that those of tensors add up.
        self._share = self._count / torch.tensor(self._sizes, device=chunk.device)
        self._ends = np.cumsum([0, *chunk.sizes], dtype=np.int64)
        self._kernels = compiled_passes() if all(map(is_plain, tensors)) else None

    def theta(self) -> Tensor:
        """The tensors' elements as they are now, float32 [elements]."""
        return self.gather(self._tensors)

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """The same elements of other tensors of the same shapes, float32 [elements]. Always a copy."""
        if self._kernels is not None and all(map(is_plain, tensors)):
            out = np.empty(int(self._ends[-1]), np.float32)
            at = addresses(tensors, self._sizes)
            self._kernels.gather(at, np.array(self._strides, dtype=np.int64), self._ends, out)
            return torch.from_numpy(out)
        return torch.cat([strided(t, stride) for t, stride in zip(tensors, self._strides, strict=True)]).float()

    def remembered(self, stored: Stored, states: Sequence[Mapping[str, Any]]) -> Tensor:
        """The same elements of a piece of state, float32 [elements], as it is before the next step."""
        plain = [piece for state in states if (piece := _plain(state, stored)) is not None]
        if self._kernels is not None and len(plain) == len(states):
            return self.gather(plain)
        parts: list[Tensor] = []
        for state, tensor, stride in zip(states, self._tensors, self._strides, strict=True):
            part = stored.read(state, tensor.device, stride=stride)
            parts.append(stored.before_first_step(strided(tensor, stride)) if part is None else part)
        return torch.cat(parts).float()

    def compare(self, before: Before, asked: Intended, *, eps: float) -> Tensor:
        """What arrived since `before` beside what was asked for: float64 [len(MEASURES), tensors]."""
        intended, applied, both, squares, second, dominated = self._sums(before, asked, eps)
        nothing = torch.full_like(self._count, ABSENT)
        return torch.stack(
            [
                (intended / self._share).sqrt(),
                (applied / self._share).sqrt(),
                both / intended,
                nothing if asked.v_hat is None else dominated / self._count,
                nothing if asked.v_hat is None else torch.where(second == 0, ABSENT, squares / second),
            ]
        )

    def _sums(self, before: Before, asked: Intended, eps: float) -> Tensor:
        """As `kernels.compare` has it, float64 [6, tensors]."""
        chunk, after = self.chunk, self.theta()
        vectors = [
            before.theta,
            after,
            asked.delta,
            before.grad,
            before.grad[:0] if asked.v_hat is None else asked.v_hat,
        ]
        if self._kernels is not None and all(v.dtype is torch.float32 and v.is_contiguous() for v in vectors):
            out = np.empty((6, len(chunk.sizes)))
            self._kernels.compare(self._ends, *[v.numpy() for v in vectors], np.float32(10 * eps), out)
            return torch.from_numpy(out)
        applied = after - before.theta
        none = torch.zeros_like(self._count)
        return torch.stack(
            [
                *(chunk.norms(vector).square() for vector in (asked.delta, applied)),
                *chunk.sums(applied.double() * asked.delta.double()),
                chunk.norms(before.grad).square(),
                none if asked.v_hat is None else chunk.sums(asked.v_hat)[0],
                none if asked.v_hat is None else chunk.counts(asked.v_hat.sqrt() < 10 * eps),
            ]
        )


def _plain(state: Mapping[str, Any], stored: Stored) -> Tensor | None:
    """A piece of state that can be read as it is."""
    piece = None if stored.qmap in state else state.get(stored.key)
    return piece if isinstance(piece, Tensor) and is_plain(piece) else None
