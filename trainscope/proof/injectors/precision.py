"""What code does to number formats and the size of gradients behind the configuration's back. Knows nothing of rules.

The forward and the backward pass are changed where they are computed, so what follows of it is torch's own doing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.session import Session


def _computed_in_fp16(session: Session) -> None:
    """`accelerate config` once said fp16, and a script that asks for no format gets it, with its GradScaler."""
    session.compute_dtype = torch.float16
    session.scaler = torch.amp.GradScaler(session.device.type)


def _without_scaler(session: Session) -> None:
    """`torch.autocast` was put around the forward pass, and `loss.backward()` was left as it was."""
    session.scaler = torch.amp.GradScaler(session.device.type, enabled=False)


def _autocast_alone(session: Session) -> None:
    """Likewise, in a script whose configuration has no formats at all."""
    session.compute_dtype = torch.float16
    _without_scaler(session)


def _activations_times(factor: float) -> Callable[[Session], None]:
    """A layer whose outputs pass fp16's largest number, as in SDXL's VAE; the next one brings them back."""

    def change(session: Session) -> None:
        session.unet.conv_in.register_forward_hook(lambda _module, _inputs, output: output * factor / factor)

    return change


def _loss_divided_by(factor: float) -> Callable[[Session], None]:
    """A mean where the weights of a loss were meant to be divided by, which makes every gradient as much smaller."""

    def change(session: Session) -> None:
        def shrink(_module: object, _inputs: object, output: tuple[Tensor, ...]) -> None:
            if output[0].requires_grad:
                output[0].register_hook(lambda gradient: gradient / factor)

        session.unet.register_forward_hook(shrink)

    return change


def _first_losses_times(factor: float, steps: int) -> Callable[[Session], None]:
    """A loss weight that is huge where a run begins, and settles: a weighting by a running mean that starts at 0."""

    def change(session: Session) -> None:
        def grow(_module: object, _inputs: object, output: tuple[Tensor, ...]) -> None:
            if output[0].requires_grad and session.step < steps:
                output[0].register_hook(lambda gradient: gradient * factor)

        session.unet.register_forward_hook(grow)

    return change


INJECTORS: Injectors = {
    "computed-in-fp16": lambda: AtStart(_computed_in_fp16),
    "scaler-left-out": lambda: AtStart(_without_scaler),
    "autocast-to-fp16-alone": lambda: AtStart(_autocast_alone),
    "activations-beyond-fp16": lambda: AtStart(_activations_times(2.0**20)),
    "activations-at-times-beyond-fp16": lambda: AtStart(_activations_times(2.0**15)),
    "loss-divided-by-10000": lambda: AtStart(_loss_divided_by(1e4)),
    "first-losses-times-30": lambda: AtStart(_first_losses_times(30.0, 15)),
}
