"""Everything that a training consists of, in one place: what the loop steps, checkpoints save and callbacks see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from trainscope.config.load import ResolvedConfig
from trainscope.config.model import RunConfig
from trainscope.config.plan import Plan
from trainscope.trainer.data.dataset import TrainingData
from trainscope.trainer.ema import averaged_weights
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.lora import LoraPair
from trainscope.trainer.optimizers import StochasticRounding


@dataclass
class Session:
    """A training under way. `step` counts the optimizer steps done, `micro_step` the batches used."""

    resolved: ResolvedConfig
    plan: Plan
    seed: int
    device: torch.device
    compute_dtype: torch.dtype
    components: Components
    params: dict[str, torch.nn.Parameter]
    """The trained tensors by name."""
    pairs: list[LoraPair]
    """The LoRA pairs; empty for a full fine-tune."""
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    """Disabled unless fp16 is computed with float32 weights."""
    rounding: StochasticRounding | None
    ema: EMAModel | None
    data: TrainingData
    step: int = 0
    micro_step: int = 0
    optimizer_steps: int = 0
    """Steps that the optimizer really made: those skipped by the GradScaler are not among them."""

    @property
    def config(self) -> RunConfig:
        return self.resolved.config

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.components.unet

    @property
    def tensors(self) -> list[torch.nn.Parameter]:
        return list(self.params.values())

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in `precision.compute`."""
        low = self.compute_dtype != torch.float32
        with torch.autocast(self.device.type, dtype=self.compute_dtype if low else None, enabled=low):
            yield

    @contextmanager
    def weights(self, which: str) -> Iterator[None]:
        """The trained weights as they are ("raw"), or their average in their place ("ema")."""
        if which == "raw":
            yield
        else:
            assert self.ema is not None  # noqa: S101  callers ask `weight_sets`
            with averaged_weights(self.ema, self.tensors):
                yield

    @property
    def weight_sets(self) -> tuple[str, ...]:
        return ("raw",) if self.ema is None else ("raw", "ema")


@dataclass(frozen=True)
class Batch:
    """What one forward pass is given: latents [b, 4, h, w], text [b, tokens, dim], and what identifies it.

    `condition` [b, 5, h, w] is the mask and the masked image's latents of an inpainting model, else None.
    """

    samples: list[int]
    latents: Tensor
    text: Tensor
    condition: Tensor | None
