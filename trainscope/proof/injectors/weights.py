"""What is done to trained weights beside the optimizer's own step: how they begin and decay. Knows nothing of rules."""

from __future__ import annotations

import torch

from trainscope.proof.injectors.kinds import AtStart, Injectors
from trainscope.trainer.callbacks import Callback
from trainscope.trainer.session import Session


@torch.no_grad()
def _pairs_begin_at_zero(session: Session) -> None:
    """cosmos-predict2.5#15: the adapters are added first, and the model's own initialisation then zeroes their A."""
    for pair in session.pairs:
        pair.a.zero_()


class _DecayNotTimesTheLr(Callback):
    """The paper's formula of AdamW, θ ← (1 − η·λ)θ, read with η = 1: λ = 0.01 is meant to be multiplied by the lr."""

    @torch.no_grad()
    def before_optimizer(self, session: Session) -> None:
        for group in session.optimizer.param_groups:
            for param in group["params"]:
                param.mul_(1 - group["weight_decay"])


INJECTORS: Injectors = {
    "lora-pairs-begin-at-zero": lambda: AtStart(_pairs_begin_at_zero),
    "decay-not-times-the-lr": _DecayNotTimesTheLr,
}
