"""What an update formula is given and gives: sampled elements as flat vectors. Knows nothing of any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Before:
    """Sampled elements of one parameter group before a step; all vectors are float32 [elements].

    `state` holds what the optimizer remembers, by the names of its `StepFormula`; `step` counts the updates that each
    parameter has had, 0 where the optimizer counts by group.
    """

    theta: Tensor
    grad: Tensor
    state: Mapping[str, Tensor]
    step: Tensor


@dataclass(frozen=True)
class Intended:
    """`delta` is the update asked for; `v_hat` the second moment of g that it divides by, without bias, if it does."""

    delta: Tensor
    v_hat: Tensor | None


Formula = Callable[[Before, Mapping[str, Any], Mapping[str, Any]], Intended]
"""(elements, the group before the step, the group after it) → the update."""
