"""What a script that knows nothing of us trains: its models, schedule and averages, found among all living objects.

Looked for once, at the first step of an optimizer. Knows nothing of what is done with them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from trainscope.integrations.parameters import unwrapped


@dataclass(frozen=True)
class Found:
    """The outermost modules that have tensors of the optimizer, its schedule, and all averages that there are."""

    models: list[nn.Module]
    scheduler: object | None
    averages: list[Any]


def look_around(optimizer: torch.optim.Optimizer) -> Found:
    """If no living module has a tensor of the optimizer, the models are those whose tensors have a gradient."""
    modules: list[nn.Module] = []
    schedulers: list[Any] = []
    averages: list[Any] = []
    average_kinds = tuple(average_classes())
    for found in gc.get_objects():
        kind = type(found)  # `isinstance` would ask proxies, which may import or fail
        if issubclass(kind, average_kinds):
            averages.append(found)
        elif issubclass(kind, nn.Module):
            modules.append(found)
        elif issubclass(kind, LRScheduler | ReduceLROnPlateau) and getattr(found, "optimizer", None) is optimizer:
            schedulers.append(found)
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    owners = [module for module in modules if any(id(param) in held for param in _own(module))]
    if not owners:
        owners = [module for module in modules if any(param.grad is not None for param in _own(module))]
    inner = {id(part) for scheduler in schedulers for part in getattr(scheduler, "_schedulers", ())}
    outer = [scheduler for scheduler in schedulers if id(scheduler) not in inner]
    return Found(_outermost(owners, modules), outer[0] if outer else None, averages)


def held_by_others(optimizer: torch.optim.Optimizer) -> set[int]:
    """The ids of tensors that other living optimizers hold, and this one does not."""
    others = [found for found in gc.get_objects() if issubclass(type(found), torch.optim.Optimizer)]
    ours = {id(param) for group in optimizer.param_groups for param in group["params"]}
    return {id(param) for other in others for group in other.param_groups for param in group["params"]} - ours


def average_classes() -> Iterable[type]:
    """The classes of averages that can be read, as far as they are imported."""
    yield AveragedModel
    diffusers = sys.modules.get("diffusers.training_utils")
    if diffusers is not None and hasattr(diffusers, "EMAModel"):
        yield diffusers.EMAModel


def _own(module: nn.Module) -> list[nn.Parameter]:
    return [param for param in module._parameters.values() if param is not None]


def _outermost(owners: list[nn.Module], modules: list[nn.Module]) -> list[nn.Module]:
    """The modules at the top that have the owners within them, those with the most of them first; none twice."""
    parents: dict[int, list[nn.Module]] = {}
    for module in modules:
        for child in module._modules.values():
            if child is not None:
                parents.setdefault(id(child), []).append(module)
    within: dict[int, int] = {}
    tops: dict[int, nn.Module] = {}
    for owner in owners:
        seen: set[int] = set()
        pending = [owner]
        while pending:
            module = pending.pop()
            if id(module) in seen:
                continue
            seen.add(id(module))
            above = parents.get(id(module), [])
            pending += above
            if not above:
                tops[id(module)] = module
                within[id(module)] = within.get(id(module), 0) + 1
    ordered = sorted(tops.values(), key=lambda module: -within[id(module)])
    chosen: list[nn.Module] = []
    taken: set[int] = set()
    for module in map(unwrapped, ordered):
        parts = {id(part) for part in module.modules()}
        if not parts <= taken:
            chosen.append(module)
            taken |= parts
    return chosen
