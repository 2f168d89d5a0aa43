"""What a step does to gradients and weights in float32 on the CPU, measured by compiled passes (`probes/kernels.py`).

A tenth of the time of `probes/by_rows.py`, which measures the same. Knows nothing of optimizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from trainscope.probes.pending import ABSENT

PIECE_ELEMENTS = 2**16


@cache
def compiled_passes() -> ModuleType | None:
    """`probes/kernels.py`, ready to be called; None where there is no numba that works."""
    try:
        from trainscope.probes import kernels

        kernels.make_ready()
    except Exception:  # numba is missing, does not know this numpy, cannot compile here: rows need none of it
        return None
    return kernels


def is_plain(tensor: Tensor) -> bool:
    """Whether the tensor's memory can be read by its address: contiguous float32 on the CPU, and not empty."""
    return (
        tensor.dtype is torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.is_contiguous()
        and tensor.numel() > 0
    )


def pieces_of(sizes: Sequence[int]) -> np.ndarray:
    """Pieces of tensors that lie end to end in copies, int64 [pieces, 4]: tensor, start, stop, place in a copy."""
    ends = np.cumsum([0, *sizes])
    found = [
        (tensor, start, min(size, start + PIECE_ELEMENTS), ends[tensor] + start)
        for tensor, size in enumerate(sizes)
        for start in range(0, size, PIECE_ELEMENTS)
    ]
    return np.array(found, dtype=np.int64).reshape(-1, 4)


def addresses(tensors: Sequence[Tensor | None], sizes: Sequence[int]) -> np.ndarray:
    """int64 [tensors], 0 for none. Raises `RuntimeError` if one has not so many elements as it should have."""
    # What a kernel reads beyond a tensor's end would end the process.
    if any(tensor is not None and tensor.numel() != size for tensor, size in zip(tensors, sizes, strict=True)):
        raise RuntimeError("a tensor has another size than when the training began")
    return np.array([0 if tensor is None else tensor.data_ptr() for tensor in tensors], dtype=np.int64)


class ByKernel:
    """Call `gradients` right before the step and `changes` right after it; both measure what `ByRows` does.

    The tensors are `is_plain`. Keeps a copy of them as they are.
    """

    def __init__(self, tensors: Sequence[Tensor], kernels: ModuleType) -> None:
        self._kernels = kernels
        self._tensors = list(tensors)
        self._sizes = [tensor.numel() for tensor in tensors]
        self._pieces = pieces_of(self._sizes)
        self._firsts = np.flatnonzero(self._pieces[:, 1] == 0)
        self._zeros = np.empty((len(self._pieces), PIECE_ELEMENTS // kernels.BLOCK), np.int32)
        self._start = self._copy()
        self._before, self._nonzero = torch.empty(0), np.empty(0, np.uint8)

    def gradients(self, grads: Sequence[Tensor | None]) -> Tensor:
        """Copy the weights and measure the gradients, float64 [5, tensors]."""
        readable = [grad if grad is None or is_plain(grad) else _plain(grad) for grad in grads]
        self._before = self._copy()
        self._nonzero = np.empty(sum(self._sizes), dtype=np.uint8)
        out = np.empty((4, len(self._pieces)))
        self._kernels.gradient(self._pieces, addresses(readable, self._sizes), self._nonzero, self._zeros, out)
        squares, nonfinite, nonzero = np.add.reduceat(out[:3], self._firsts, axis=1)
        largest = np.maximum.reduceat(out[3], self._firsts).astype(np.int32).view(np.float32).astype(np.float64)
        largest[np.isnan(largest)] = np.inf
        result = np.stack([np.sqrt(squares), nonfinite, nonzero, np.array(self._sizes) - nonzero, largest])
        missing = [number for number, grad in enumerate(grads) if grad is None]
        result[np.ix_([0, 4], missing)] = ABSENT
        return torch.from_numpy(result)

    def changes(self) -> Tensor:
        """Let the copies go and measure the weights, float64 [5, tensors]."""
        out = np.empty((5, len(self._pieces)))
        self._kernels.change(self._pieces, self._weights(), *self._copies(), self._nonzero, self._zeros, out)
        self._before, self._nonzero = torch.empty(0), np.empty(0, np.uint8)
        total = np.add.reduceat(out, self._firsts, axis=1)
        for row in (0, 2, 3):
            np.sqrt(total[row], out=total[row])
        return torch.from_numpy(total)

    def _copy(self) -> Tensor:
        """The tensors end to end; torch copies with all threads."""
        return torch.cat([tensor.detach().view(-1) for tensor in self._tensors])

    def _copies(self) -> tuple[np.ndarray, np.ndarray]:
        return self._before.numpy(), self._start.numpy()

    def _weights(self) -> np.ndarray:
        if not all(map(is_plain, self._tensors)):
            raise RuntimeError("weights that were float32 on the CPU are no longer")
        return addresses(self._tensors, self._sizes)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32).contiguous()
