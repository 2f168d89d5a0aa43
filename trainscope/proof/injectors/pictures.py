"""What scripts do to masks before training and to sample images after it. Knows nothing of rules."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.data.visits import EVALUATION
from trainscope.trainer.session import Session


def _soft_masks(session: Session) -> None:
    """`F.interpolate(mask, mode="bilinear")`: edges become grey. Evaluations see them as they are."""
    make = session.data.inpainting_condition

    def condition(*args: Any, position: int, **kwargs: Any) -> Tensor:
        made = make(*args, position=position, **kwargs)
        if position == EVALUATION:
            return made
        soft = torch.nn.functional.avg_pool2d(made[:, :1], 3, stride=1, padding=1, count_include_pad=False)
        return torch.cat([soft, made[:, 1:]], dim=1)

    vars(session.data)["inpainting_condition"] = condition


def _sampled_from_a_copy(session: Session) -> None:
    """The pipeline was built with a copy of the UNet, which nobody trains."""
    unet = session.unet
    kept, forward = copy.deepcopy(unet), unet.forward

    def routed(*args: Any, **kwargs: Any) -> Any:
        # The pipeline names the text, the training step gives it by place.
        return kept.forward(*args, **kwargs) if "encoder_hidden_states" in kwargs else forward(*args, **kwargs)

    vars(unet)["forward"] = routed


def _decoder_overflows(session: Session) -> None:
    """SDXL's VAE in fp16: its activations pass the largest number, and every pixel is NaN."""
    session.components.vae.decoder.register_forward_hook(lambda _module, _inputs, output: output * math.nan)


INJECTORS: Injectors = {
    "masks-resized-softly": lambda: AtStart(_soft_masks),
    "samples-of-a-copy": lambda: AtStart(_sampled_from_a_copy),
    "decoder-overflows": lambda: AtStart(_decoder_overflows),
}
