"""What loaders do to adapters and parameters that the optimizer already holds. Knows nothing of rules."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.models.lora import ADAPTER
from trainscope.trainer.session import Session


def _alpha_of(value: Callable[[int], float]) -> Callable[[Session], None]:
    """A loader that knows tensors only, and takes its own default for the alpha that the file did not give it."""

    def change(session: Session) -> None:
        for pair in session.pairs:
            pair.layer.lora_alpha[ADAPTER] = value(pair.rank)
            pair.layer.set_scale(ADAPTER, 1.0)

    return change


@torch.no_grad()
def _parameters_replaced(session: Session) -> None:
    """diffusers#5840: the adapter is loaded anew after the optimizer was made, which keeps the parameters of before."""
    wanted = {id(param) for param in session.tensors}
    for module in session.unet.modules():
        for name, param in list(module.named_parameters(recurse=False)):
            if id(param) in wanted:
                setattr(module, name, nn.Parameter(param.detach().clone()))


def _optimizer_over_copies(session: Session) -> None:
    """The optimizer was made before the model was moved or wrapped, and holds the parameters of before."""
    for group in session.optimizer.param_groups:
        group["params"] = [param.detach().clone().requires_grad_() for param in group["params"]]


def _partly_frozen(session: Session) -> None:
    """An adapter that was loaded frozen, as peft does by default, and woken by names that match a part of it."""
    for name, param in session.params.items():
        param.requires_grad_("attn1" in name)


INJECTORS: Injectors = {
    "lora-alpha-taken-for-the-rank": lambda: AtStart(_alpha_of(float)),
    "lora-alpha-taken-for-1": lambda: AtStart(_alpha_of(lambda rank: 1.0)),
    "parameters-replaced": lambda: AtStart(_parameters_replaced),
    "optimizer-over-copies": lambda: AtStart(_optimizer_over_copies),
    "parameters-partly-frozen": lambda: AtStart(_partly_frozen),
}
