"""Schedule-Free's two points: gradients are taken at y, the trained weights are x.

Follows arXiv 2405.15682 and facebookresearch/schedule_free. Knows nothing of what is done at x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """Whether an optimizer keeps its weights at y while it trains."""
    return all("train_mode" in group for group in optimizer.param_groups)


def point(optimizer: torch.optim.Optimizer) -> str | None:
    """Where the weights are by the optimizer's own account, "x" or "y"; None for one without two points."""
    if not is_schedule_free(optimizer):
        return None
    return "y" if all(group["train_mode"] for group in optimizer.param_groups) else "x"


@contextmanager
def _in_format_of_z(optimizer: Any, params: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Where weights that are rounded stochastically were stepped in float32, z is in float32 and they are not."""
    formats = [param.dtype for param in params]
    for param in params:
        z = optimizer.state.get(param, {}).get("z")
        if z is not None:
            param.data = param.data.to(z.dtype)
    yield
    for param, dtype in zip(params, formats, strict=True):
        param.data = param.data.to(dtype)


@contextmanager
def weights_at_x(optimizer: Any, params: Sequence[torch.nn.Parameter]) -> Iterator[None]:
    """Within it the parameters are at x; afterwards they are bit for bit the y that they were.

    The library's own way back, `train()`, computes y from x and z, and so moves its last bits every time.
    """
    if point(optimizer) != "y":
        yield
        return
    kept = [param.detach().clone() for param in params]
    with _in_format_of_z(optimizer, params):
        optimizer.eval()
    try:
        yield
    finally:
        with torch.no_grad():
            for param, y in zip(params, kept, strict=True):
                param.copy_(y)
        for group in optimizer.param_groups:
            group["train_mode"] = True
