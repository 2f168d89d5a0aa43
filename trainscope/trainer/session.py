"""Everything that a training consists of, in one place: what the loop steps, checkpoints save and callbacks see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR

from trainscope.config.load import ResolvedConfig
from trainscope.config.model import RunConfig
from trainscope.config.plan import Plan
from trainscope.probes.fingerprint import digest_of_all
from trainscope.probes.pending import Part
from trainscope.trainer.data.dataset import TrainingData
from trainscope.trainer.ema import averaged_weights
from trainscope.trainer.loss import Objective
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.lora import LoraPair
from trainscope.trainer.noise import Draws
from trainscope.trainer.optimizers import StochasticRounding
from trainscope.trainer.optimizers.schedule import Schedule
from trainscope.trainer.optimizers.schedulefree import point, weights_at_x
from trainscope.trainer.processes import Processes


@dataclass(frozen=True)
class Accumulated:
    """A step stopped between two of its micro-batches: how many are done, and what they added up to."""

    count: int
    loss: Tensor
    """Their share of the step's mean loss, a scalar."""
    leftover: Tensor
    """‖g‖₂ that was there before the first of them, a scalar."""
    seen: dict[str, Part] = field(default_factory=dict)
    """What the probes saw of them, by table: rows are written when the step is done."""


@dataclass
class Session:
    """A training under way. `step` counts the optimizer steps done, `micro_step` the batches used."""

    resolved: ResolvedConfig
    plan: Plan
    seed: int
    device: torch.device
    compute_dtype: torch.dtype
    components: Components
    wrapped: Components
    """The same, as the training calls them: in several processes they average their gradients."""
    processes: Processes
    params: dict[str, torch.nn.Parameter]
    """The trained tensors by component and name: unet.conv_in.weight."""
    pairs: list[LoraPair]
    """The LoRA pairs; empty for a full fine-tune."""
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    """The shape that `scheduler` follows."""
    scheduler: LambdaLR
    scaler: torch.amp.GradScaler
    """Disabled unless fp16 is computed with float32 weights."""
    rounding: StochasticRounding | None
    ema: EMAModel | None
    data: TrainingData
    draws: Draws
    """The noise and the timesteps."""
    objective: Objective
    """What is minimised."""
    step: int = 0
    micro_step: int = 0
    optimizer_steps: int = 0
    """Steps that the optimizer really made: those skipped by the GradScaler are not among them."""
    accumulated: Accumulated | None = None
    """The step under way, where the training was stopped in the middle of one."""
    probes_every: int | None = None
    """Steps between looks that the probes settled on, so that a resumed run need not find it out again."""

    @property
    def config(self) -> RunConfig:
        return self.resolved.config

    @property
    def unet(self) -> UNet2DConditionModel:
        return self.components.unet

    @cached_property
    def frozen_digest(self) -> str:
        """Digest of the UNet's frozen weights, which the trained ones are changes of."""
        return digest_of_all({name: p for name, p in self.unet.named_parameters() if f"unet.{name}" not in self.params})

    @property
    def trained_models(self) -> list[torch.nn.Module]:
        """The models that have trained tensors."""
        components = {name.partition(".")[0] for name in self.params}
        return [model for name, model in self.components.models.items() if name in components]

    @property
    def wrapped_models(self) -> list[torch.nn.Module]:
        """Those of them that average gradients over the processes, as the training calls them."""
        components = {name.partition(".")[0] for name in self.params}
        return [] if self.processes.alone else [m for name, m in self.wrapped.models.items() if name in components]

    @property
    def is_sharded(self) -> bool:
        return any(isinstance(tensor, DTensor) for tensor in self.params.values())

    @property
    def tensors(self) -> list[torch.nn.Parameter]:
        return list(self.params.values())

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in `precision.compute`."""
        if self.compute_dtype == torch.float32:
            yield
            return
        with torch.autocast(self.device.type, dtype=self.compute_dtype):
            yield

    @contextmanager
    def weights(self, which: str) -> Iterator[None]:
        """The trained weights ("raw"; Schedule-Free's at x), or their average in their place ("ema")."""
        if which == "raw":
            with weights_at_x(self.optimizer, self.tensors):
                yield
        else:
            assert self.ema is not None  # noqa: S101  callers ask `weight_sets`
            with averaged_weights(self.ema, self.tensors):
                yield

    def point(self, which: str) -> str | None:
        """Where Schedule-Free's weights are now, "x" or "y"; None for the average and for every other optimizer."""
        return point(self.optimizer) if which == "raw" else None

    @property
    def weight_sets(self) -> tuple[str, ...]:
        return ("raw",) if self.ema is None else ("raw", "ema")
