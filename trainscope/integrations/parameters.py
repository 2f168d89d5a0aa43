"""Which tensors a training trains, and what they are called: component first, as in `unet.conv_in.weight`.

Reads modules and optimizers; knows nothing of what is measured.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

COMPONENTS = (
    (r"UNet", "unet"),
    (r"CLIPText|T5Encoder|TextModel", "text_encoder"),
    (r"Transformer2DModel|Transformer3DModel", "transformer"),
    (r"ControlNet", "controlnet"),
    (r"Autoencoder", "vae"),
)
"""What a model is called by its class; every other one is called model."""
ORPHANS = "optimizer"
"""The component of tensors that the optimizer holds and that no model has."""


def unwrapped(model: Any) -> nn.Module:
    """The module within the wrappers of torch.compile, DDP and the like."""
    while True:
        inner: Any = getattr(model, "_orig_mod", None)
        if inner is None and re.search(r"DistributedDataParallel|DataParallel$", type(model).__name__):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            found: nn.Module = model
            return found
        model = inner


def plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer within the wrappers of Accelerate and Lightning, whose step is torch's own."""
    while not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        inner = getattr(optimizer, "optimizer", None) or getattr(optimizer, "_optimizer", None)
        if inner is None:
            raise TypeError(f"{type(optimizer).__name__} is not a torch.optim.Optimizer")
        optimizer = inner
    found: torch.optim.Optimizer = optimizer
    return found


def by_component(models: nn.Module | Iterable[nn.Module] | Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Models by the name that their tensors' names begin with."""
    if isinstance(models, Mapping):
        return {name: unwrapped(model) for name, model in models.items()}
    found: dict[str, nn.Module] = {}
    for model in [models] if isinstance(models, nn.Module) else models:
        inner = unwrapped(model)
        base: Any = getattr(inner, "get_base_model", lambda inner=inner: inner)
        kind = type(base()).__name__
        name = next((name for pattern, name in COMPONENTS if re.search(pattern, kind)), "model")
        number = sum(taken.rstrip("_0123456789") == name for taken in found)
        found[name if not number else f"{name}_{number + 1}"] = inner
    return found


def requested(
    models: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, others: Container[int] = ()
) -> dict[str, Tensor]:
    """By name: what the models let autograd reach, and what the optimizer holds, whoever has it.

    `others` are the ids of tensors that another optimizer trains.
    """
    held = {id(param): param for group in optimizer.param_groups for param in group["params"]}
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for component, model in models.items():
        for name, param in model.named_parameters():
            asked = param.requires_grad and id(param) not in others
            if (asked or id(param) in held) and id(param) not in seen:
                seen.add(id(param))
                found[f"{component}.{name.replace('_orig_mod.', '')}"] = param
    for number, group in enumerate(optimizer.param_groups):
        names = group.get("param_names") or []
        for index, param in enumerate(group["params"]):
            if id(param) not in seen:
                seen.add(id(param))
                found[f"{ORPHANS}.group{number}.{names[index] if index < len(names) else index}"] = param
    return found


def trained(tensors: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What is looked at while it trains: what the optimizer holds; if none of that is the models', theirs as well."""
    held = {id(param) for group in optimizer.param_groups for param in group["params"]}
    ours = {name: tensor for name, tensor in tensors.items() if id(tensor) in held}
    return dict(tensors) if all(name.startswith(f"{ORPHANS}.") for name in ours) else ours


def spread(models: Mapping[str, nn.Module], tensors: Iterable[Tensor]) -> str:
    """Why no process has all of the weights; empty where each has."""
    if any(isinstance(tensor, DTensor) for tensor in tensors):
        return "the weights are spread over processes"
    if any(type(tensor).__name__ == "FlatParameter" or hasattr(tensor, "ds_id") for tensor in tensors):
        return "the weights are spread over processes"
    kinds = {type(module).__name__ for model in models.values() for module in model.modules()}
    return "the weights are spread over processes" if "FullyShardedDataParallel" in kinds else ""
