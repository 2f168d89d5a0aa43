"""The `tensors` table: what an optimizer step did to each trained tensor.

Gradients are read before the step, since some optimizers overwrite them in it. Knows nothing of which steps are probed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from trainscope.probes.by_kernel import ByKernel, compiled_passes, is_plain
from trainscope.probes.by_rows import ByRows
from trainscope.probes.formulas import places_of
from trainscope.probes.moments import Moments
from trainscope.probes.pending import ABSENT, NullWhere, Pending, absent
from trainscope.probes.sample_chunk import MEASURES as SAMPLED
from trainscope.probes.sampling import SAMPLE_ELEMENTS, StepSample, stride_of

GRADIENT = ("grad_norm", "nonfinite", "nonzero_count", "grad_zero_count", "grad_absmax")
WEIGHT = ("weight_norm", "weight_nonfinite")
UPDATE = ("update_norm", "distance_from_start", "lost_count")
STATE = ("state_m_norm", "state_v_max", "state_v_min")
COUNTS = frozenset({"nonfinite", "grad_zero_count", "nonzero_count", "weight_nonfinite", "lost_count"})
FROM_SECOND_MOMENT = ("state_v_max", "state_v_min", "eps_dominated_fraction", "g2_over_v")


class TensorsProbe:
    """Call `before_step` right before the optimizer's step (gradients unscaled and clipped), `after_step` right after.

    Keeps a copy of every tensor as it was when the probe was made (θ₀), and from one call to the other a copy of every
    tensor and of where its gradient is zero. Where all that would take more than `memory_bytes`, it is a fixed sample
    of each tensor's elements, from which `update_norm`, `distance_from_start` and `lost_count` are estimated.
    """

    @torch.no_grad()
    def __init__(
        self, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, *, memory_bytes: int = 2**30
    ) -> None:
        self._names = list(params)
        self._tensors = list(params.values())
        self._optimizer = optimizer
        self._strides = strides_within(self._tensors, memory_bytes)
        self._looks = _looks(self._tensors, self._strides)
        self._moments = Moments(self._tensors, optimizer, places_of(optimizer, "m"), places_of(optimizer, "v"))
        self._step_sample = StepSample(self._tensors, optimizer)
        self._gradient = torch.empty(0)

    @property
    def reasons(self) -> dict[str, str]:
        """Columns that this optimizer gives nothing for or that are estimated, with the reason."""
        reasons: dict[str, str] = {}
        name = type(self._optimizer).__name__
        if not self._moments.first:
            reasons["state_m_norm"] = f"{name} keeps no first moment"
        if not self._moments.second:
            reasons.update(dict.fromkeys(FROM_SECOND_MOMENT, f"{name} keeps no second moment"))
        if self._step_sample.reason:
            reasons.update(dict.fromkeys(SAMPLED, self._step_sample.reason))
        share = self.share_of_elements
        if share < 1:
            reasons.update(dict.fromkeys(UPDATE, f"estimated from a fixed sample of {share:.1%} of the elements"))
        return reasons

    @property
    def share_of_elements(self) -> float:
        """The share of the trained elements that copies are kept of."""
        total = sum(tensor.numel() for tensor in self._tensors)
        kept = sum(-(-t.numel() // stride) for t, stride in zip(self._tensors, self._strides, strict=True))
        return kept / total if total else 1.0

    @torch.no_grad()
    def before_step(self) -> None:
        """Measure the gradients and copy the weights."""
        grads = [tensor.grad for tensor in self._tensors]
        self._gradient = self._together([(at, look.gradients([grads[i] for i in at])) for at, look in self._looks])
        self._step_sample.before_step(grads)

    @torch.no_grad()
    def after_step(self, step: int) -> Pending:
        """Measure what the step changed."""
        changed = self._together([(at, look.changes()) for at, look in self._looks])
        return Pending(
            table="tensors",
            step=step,
            keys={"param": list(self._names)},
            columns=(*GRADIENT, *WEIGHT, *UPDATE, *STATE, *SAMPLED),
            values=torch.cat([self._gradient, changed, self._moments.measure(), self._step_sample.measure()]),
            integers=COUNTS,
            null_where=NULL_WHERE,
        )

    def _together(self, parts: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
        """Measures of some of the tensors each, in the order of all."""
        if len(parts) == 1:
            return parts[0][1]
        device = self._tensors[0].device
        order = np.argsort(np.concatenate([at for at, _ in parts]))
        return torch.cat([part.to(device) for _, part in parts], dim=1)[:, torch.from_numpy(order).to(device)]


def _looks(tensors: Sequence[Tensor], strides: Sequence[int]) -> list[tuple[list[int], ByRows | ByKernel]]:
    """Which tensors are measured how."""
    plain = [number for number, tensor in enumerate(tensors) if is_plain(tensor) and strides[number] == 1]
    kernels = compiled_passes() if plain else None
    if kernels is None:
        plain = []
    elsewhere = sorted(set(range(len(tensors))) - set(plain))
    looks: list[tuple[list[int], ByRows | ByKernel]] = []
    if kernels is not None:
        looks.append((plain, ByKernel([tensors[i] for i in plain], kernels)))
    if elsewhere:
        looks.append((elsewhere, ByRows([tensors[i] for i in elsewhere], [strides[i] for i in elsewhere])))
    return looks


def strides_within(tensors: Sequence[Tensor], memory_bytes: int) -> list[int]:
    """The distance of the elements that are kept of each tensor: 1, all of them, if there is room for that."""
    # The weights at the start and before the step, and where the gradient was zero.
    needed = sum(tensor.numel() * (2 * tensor.element_size() + 1) for tensor in tensors)
    if needed <= memory_bytes:
        return [1] * len(tensors)
    share = memory_bytes / needed
    return [stride_of(t.numel(), max(SAMPLE_ELEMENTS, int(t.numel() * share))) for t in tensors]


NULL_WHERE: NullWhere = {
    **absent("grad_norm", "grad_absmax", *STATE, *SAMPLED),
    # It may be -1 by itself; and where nothing was asked for, 0 / 0 is no measurement.
    "delivered": (("applied_norm", ABSENT), ("intended_norm", 0.0)),
}
