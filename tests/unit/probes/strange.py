"""An optimizer that no library has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Whitening(torch.optim.Optimizer):
    """Nobody's optimizer: state in lists, in mappings, of whole numbers, complex, in half precision, and none at all.

    Its step is a plain one; only what it remembers is unusual.
    """

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for param in group["params"]:
                self._remember(self.state[param], param.grad)
                param.sub_(param.grad, alpha=group["lr"])

    def _remember(self, state: dict[Any, Any], grad: Tensor) -> None:
        state["count"] = state.get("count", 0) + 1
        state["note"], state["is_warm"], state["nothing"] = "text", True, None
        state["factors"] = [grad.flatten()[:3].double().clone(), {"scale": torch.tensor(-2.5)}]
        state["half"] = grad.to(torch.bfloat16).t() if grad.dim() == 2 else grad.to(torch.bfloat16)
        state["spectrum"] = torch.fft.fft(grad.flatten())
        state["seen"] = (grad != 0).flatten()
        state["empty"] = torch.zeros(0, 4)
        state["codes"] = torch.full((5,), 7, dtype=torch.uint8)
        state["sparse"] = torch.eye(3).to_sparse()
