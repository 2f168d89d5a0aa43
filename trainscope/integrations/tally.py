"""What a loop says of the step under way: losses, and how many samples. Values stay on the device.

Knows nothing of the optimizer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Tally:
    """Losses come in two kinds: those that the loop tells, and those whose `backward` was seen. The first go before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._told: list[Tensor] = []
        self._differentiated: list[Tensor] = []
        self._samples: int | None = None
        self.had_losses = False
        self.had_samples = False

    def tell(self, loss: Tensor | float, samples: int | None) -> None:
        """The loss of a micro-batch: that of the step is their mean."""
        self._told.append(self._scalar(loss))
        if samples is not None:
            self._samples = (self._samples or 0) + samples

    def differentiate(self, loss: Tensor | float) -> None:
        """A loss whose gradient is taken: that of the step is their sum, as its gradient is."""
        self._differentiated.append(self._scalar(loss))

    def forget(self) -> None:
        """What was differentiated was another optimizer's."""
        self._differentiated.clear()

    def __bool__(self) -> bool:
        return bool(self._told or self._differentiated)

    def take(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The step's values on the device and on the host; a new step begins."""
        losses = self._told or self._differentiated
        measured: dict[str, Tensor] = {}
        if losses:
            total = torch.stack(losses).sum()
            measured["loss"] = total / len(losses) if self._told else total
        known = {"micro_steps": len(losses) or None, "samples": self._samples}
        self.had_losses |= bool(losses)
        self.had_samples |= self._samples is not None
        self._told, self._differentiated, self._samples = [], [], None
        return measured, known

    def _scalar(self, loss: Tensor | float) -> Tensor:
        if isinstance(loss, Tensor):
            # A copy: the loop may go on with its own in place.
            return loss.detach().to(self._device, torch.float64, copy=True).mean()
        return torch.tensor(float(loss), dtype=torch.float64, device=self._device)
