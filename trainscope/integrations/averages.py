"""Exponential averages of weights that other libraries keep: where their shadows are, and which decay an update used.

Reads diffusers' `EMAModel` and torch's `AveragedModel` by what they look like, and imports neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainscope.errors import TrainingError


class Average:
    """An average that somebody else updates. `method` is the name of what updates it."""

    method: str

    def __init__(self, keeper: Any) -> None:
        self.keeper = keeper

    @staticmethod
    def of(keeper: Any) -> Average:
        """Raises `TrainingError` for what is none, or none that can be read."""
        if isinstance(keeper, AveragedModel):
            return Averaged(keeper)
        if isinstance(getattr(keeper, "shadow_params", None), list) and hasattr(keeper, "cur_decay_value"):
            return Shadowed(keeper)
        raise TrainingError(
            f"ema: {type(keeper).__name__} cannot be read",
            hint="diffusers' EMAModel and torch's AveragedModel can",
        )

    def sources(self, candidates: Iterable[Sequence[Tensor]]) -> list[Tensor] | None:
        """The first of some lists of tensors whose averages the shadows can be, judged by their shapes."""
        shapes = [shadow.shape for shadow in self.shadows()]
        return next((list(found) for found in candidates if [tensor.shape for tensor in found] == shapes), None)

    def given(self, argument: Any) -> tuple[Any, list[Tensor]]:
        """What an update is called with, in a form that can be read twice, and the tensors in it."""
        raise NotImplementedError

    def shadows(self) -> list[Tensor]:
        """In the order of the tensors that they are averages of."""
        raise NotImplementedError

    def decay(self) -> float:
        """Of the update that has just been done."""
        raise NotImplementedError

    @property
    def asked_decay(self) -> float | None:
        """The decay that was asked for; None for a plain mean."""
        raise NotImplementedError


class Shadowed(Average):
    """diffusers' `EMAModel`: a list of shadows, updated by `step(parameters)`."""

    method = "step"

    def given(self, argument: Any) -> tuple[Any, list[Tensor]]:
        if isinstance(argument, nn.Module):
            return argument, list(argument.parameters())
        tensors = list(argument)
        return tensors, tensors

    def shadows(self) -> list[Tensor]:
        return list(self.keeper.shadow_params)

    def decay(self) -> float:
        return float(self.keeper.cur_decay_value)

    @property
    def asked_decay(self) -> float | None:
        return float(self.keeper.decay)


class Averaged(Average):
    """torch's `AveragedModel`: a copy of the model, updated by `update_parameters(model)`."""

    method = "update_parameters"

    def __init__(self, keeper: AveragedModel) -> None:
        super().__init__(keeper)
        # The counter lies on the model's device: asked at every update, it would have to be waited for.
        self._updates = int(keeper.n_averaged)

    def given(self, argument: Any) -> tuple[Any, list[Tensor]]:
        self._updates += 1
        return argument, list(argument.parameters())

    def shadows(self) -> list[Tensor]:
        return list(self.keeper.module.parameters())

    def decay(self) -> float:
        if self._updates <= 1:
            return 0.0  # the first update copies
        asked = self.asked_decay
        return (self._updates - 1) / self._updates if asked is None else asked

    @property
    def asked_decay(self) -> float | None:
        for function in (self.keeper.multi_avg_fn, self.keeper.avg_fn):
            if function is not None:
                return _decay_within(function)
        return None


def _decay_within(function: Callable[..., Any]) -> float | None:
    """The decay of what `get_ema_multi_avg_fn` made. Raises `TrainingError` for functions of another kind."""
    inner = inspect.unwrap(function)  # torch's are within a `no_grad`
    if inner.__module__ == AveragedModel.__module__ and "swa" in inner.__name__:
        return None
    if inspect.isfunction(inner):
        decay = inspect.getclosurevars(inner).nonlocals.get("decay")
        if isinstance(decay, int | float):
            return float(decay)
    raise TrainingError(
        "ema: the decay of the AveragedModel's avg_fn is not known", hint="make it by torch's get_ema_multi_avg_fn"
    )
