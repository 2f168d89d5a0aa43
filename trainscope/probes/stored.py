"""Where an optimizer keeps a tensor of its state, and how it is read: plain or in eight bits, whole or sampled.

Knows nothing of which optimizer keeps what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainscope.probes.quantised import dequantise


@dataclass(frozen=True)
class Stored:
    """A tensor of the state, by its key.

    Before the first step an optimizer has none: it stands for `starts_at` then, or for the parameter itself. What may
    be stored in eight bits has its table and scales under `qmap` and `absmax`; small tensors are stored plainly all the
    same.
    """

    key: str
    starts_at: float = 0.0
    starts_as_parameter: bool = False
    qmap: str = ""
    absmax: str = ""

    def read(self, state: Mapping[str, Any], device: torch.device, *, stride: int = 1) -> Tensor | None:
        """Every `stride`-th element in logical order, [elements]; None where the optimizer has not made it.

        `device` is the parameter's: paged state is shared with the computer's memory and counts as lying there.
        """
        tensor = state.get(self.key)
        if not isinstance(tensor, Tensor):
            return None
        qmap = state.get(self.qmap)
        if isinstance(qmap, Tensor):
            return dequantise(tensor, qmap, state[self.absmax], stride=stride)
        flat = strided(tensor, stride)
        return flat if flat.device == device else flat.to(device)

    def before_first_step(self, parameter: Tensor) -> Tensor:
        """What a sample of the tensor is, given that of the parameter."""
        return parameter if self.starts_as_parameter else torch.full_like(parameter, self.starts_at)


def strided(tensor: Tensor, stride: int) -> Tensor:
    """Every `stride`-th element of a tensor in logical order, [elements]; call it where no gradient is recorded."""
    if tensor.is_contiguous():
        return tensor.as_strided((-(-tensor.numel() // stride),), (stride,))
    return tensor.reshape(-1)[::stride]
