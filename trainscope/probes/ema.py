"""The `ema` table: what an update of an exponential moving average did to each shadow tensor.

The update that was meant, (1 − decay)(θ − shadow), is always known, so `delivered` is exact and over all elements.
Knows nothing of the class that keeps the average.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainscope.probes.flat import FlatLayout, same_bits
from trainscope.probes.pending import NullWhere, Pending

MEASURES = (
    "lag_norm",
    "intended_norm",
    "applied_norm",
    "delivered",
    "nonzero_count",
    "lost_count",
    "distance_from_start",
)


class EmaProbe:
    """Call `before_update` and `after_update` around the average's update, with its shadow tensors at that moment.

    Shadows may change dtype, device or identity from one update to the next; their order is that of `params`. They may
    lie on another device than the tensors: what is measured is measured there, and `device` is where to keep a copy of
    the tensors as they are now.
    """

    def __init__(self, params: Mapping[str, Tensor], device: torch.device | None = None) -> None:
        self._names = list(params)
        self._tensors = list(params.values())
        self._start = [tensor.detach().to(device, copy=True) for tensor in self._tensors]
        self._before: list[Tensor] = []

    @torch.no_grad()
    def before_update(self, shadows: Sequence[Tensor]) -> None:
        """Copy the shadows."""
        self._before = [chunk.gather(shadows) for chunk in FlatLayout(shadows).chunks]

    @torch.no_grad()
    def after_update(self, step: int, shadows: Sequence[Tensor], decay: float) -> Pending:
        """Measure what the update changed."""
        device = self._tensors[0].device
        values = torch.zeros((len(MEASURES), len(shadows)), dtype=torch.float64, device=device)
        for chunk, before in zip(FlatLayout(shadows).chunks, self._before, strict=True):
            after = chunk.gather(shadows)
            theta = chunk.gather(self._tensors).to(chunk.device).double()
            start = chunk.gather(self._start).to(chunk.device).double()
            old, new = before.double(), after.double()
            gap = theta - old
            intended, applied = (1 - decay) * gap, new - old
            different = gap != 0
            intended_norm = chunk.norms(intended)
            (both,) = chunk.sums(applied * intended)
            rows = [
                chunk.norms(theta - new),
                intended_norm,
                chunk.norms(applied),
                both / intended_norm.square(),
                chunk.counts(different),
                chunk.counts(different & same_bits(after, before)),
                chunk.norms(new - start),
            ]
            columns = torch.tensor(chunk.indices, device=device)
            values[:, columns] = torch.stack(rows).to(device)
        self._before = []
        return Pending(
            table="ema",
            step=step,
            keys={
                "param": list(self._names),
                "decay": [decay] * len(shadows),
                "dtype": [str(shadow.dtype).removeprefix("torch.") for shadow in shadows],
            },
            columns=MEASURES,
            values=values,
            integers=frozenset({"nonzero_count", "lost_count"}),
            null_where=NULL_WHERE,
        )


NULL_WHERE: NullWhere = {"delivered": (("intended_norm", 0.0),)}
