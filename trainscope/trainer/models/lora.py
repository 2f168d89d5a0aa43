"""Puts a LoRA on a model, the UNet or a text encoder, and says what was put there.

The adapter is peft's, as diffusers places it (Hu et al. 2021: W x + s B A x, s = alpha / rank); a convolution's A has
its kernel, its B is 1×1 (as kohya-ss/sd-scripts, networks/lora.py, with conv_dim). Knows nothing of training, saving or
files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from trainscope.errors import ModelError
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.noise import generator

ADAPTER = "default"
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The default targets: the projections of the attentions, as in diffusers' train_text_to_image_lora.py."""
TEXT_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
"""The same of a text encoder."""


@dataclass(frozen=True)
class LoraPair:
    """The pair of one module: A [rank, in] and B [out, rank] (convolutions with their kernel's dimensions behind).

    `module` begins with the component: unet.down_blocks.0…
    """

    module: str
    a: nn.Parameter
    b: nn.Parameter
    rank: int
    alpha: float
    base_weight: nn.Parameter
    layer: Any = field(repr=False, compare=False)
    """peft's layer, which knows whether the pair is in effect."""

    @property
    def scale(self) -> float:
        """What multiplies B A x now: alpha / rank, 0 while the adapter is disabled."""
        return 0.0 if self.layer.disable_adapters else float(self.layer.scaling[ADAPTER])

    @property
    def component(self) -> str:
        return self.module.partition(".")[0]

    @property
    def path(self) -> str:
        """The module's name within its component."""
        return self.module.partition(".")[2]

    @property
    def kernel(self) -> bool:
        """Whether it is a convolution with a kernel above 1×1."""
        return any(side > 1 for side in self.a.shape[2:])

    @property
    def dropout(self) -> float:
        """The share of the adapter's inputs that is dropped in training."""
        return float(getattr(self.layer.lora_dropout[ADAPTER], "p", 0.0))


def add_lora(
    model: Any,
    *,
    component: str = "unet",
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    conv_rank: int | None = None,
    conv_alpha: float | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[LoraPair]:
    """Freeze `model` and add pairs to the modules whose names end in one of `targets` (None: the attentions').

    With `conv_rank` the UNet's 3×3 convolutions (of resnets, down- and upsamplers) get pairs too, of this rank and with
    `conv_alpha` (None: `alpha`), whether a target names them or not.

    A is uniform as in peft (Kaiming with a = √5), drawn by (seed, module) on the CPU in float32 and then cast to
    `dtype`, so that it is the same on every device; B is zero. The global random state is left as it was. Raises
    `ModelError`: a target that matches nothing or no linear layer or convolution, a `conv_rank` where there is no such
    convolution, or a model that has a LoRA already.
    """
    if rank < 1:
        raise ModelError(f"lora.rank must be at least 1, found {rank}")
    if getattr(model, "peft_config", None):
        raise ModelError(f"the {component} already has a LoRA", hint="fuse or remove it first")
    key, usual = ("lora.targets", ATTENTION) if component == "unet" else ("lora.text_encoder_targets", TEXT_ATTENTION)
    targets = usual if targets is None else tuple(targets)
    _check_targets(model, targets, key, usual)
    kernels = [] if conv_rank is None else kernel_modules(model)
    if conv_rank is not None and not kernels:
        raise ModelError(f"lora.conv_rank = {conv_rank}: the {component} has no 3×3 convolution in a resnet or sampler")
    from peft import LoraConfig

    model.requires_grad_(False)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[*targets, *kernels],
        # `^`: peft matches ends of names.
        rank_pattern={f"^{name}": conv_rank for name in kernels},
        alpha_pattern={} if conv_alpha is None else {f"^{name}": conv_alpha for name in kernels},
    )
    with quiet_libraries(), _rng_untouched(model):
        model.add_adapter(config, adapter_name=ADAPTER)
    pairs = lora_pairs(model, component)
    with torch.no_grad():
        for pair in pairs:
            first = torch.empty(pair.a.shape)
            nn.init.kaiming_uniform_(first, a=math.sqrt(5), generator=generator(seed, "lora", pair.module))
            pair.a.data = first.to(device=pair.a.device, dtype=dtype)
            pair.b.data = torch.zeros_like(pair.b, dtype=dtype)
            pair.a.requires_grad_(True)
            pair.b.requires_grad_(True)
    return pairs


def kernel_modules(model: nn.Module) -> list[str]:
    """The names of the 3×3 convolutions in resnets, down- and upsamplers: those that kohya adapts with `conv_dim`."""
    from diffusers.models.resnet import Downsample2D, ResnetBlock2D, Upsample2D

    found = {
        f"{outer}.{inner}": None
        for outer, block in model.named_modules()
        if isinstance(block, ResnetBlock2D | Downsample2D | Upsample2D)
        for inner, module in block.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    }
    return list(found)


def lora_pairs(model: Any, component: str = "unet") -> list[LoraPair]:
    """The pairs that `model` has, in the order of its modules; empty without a LoRA."""
    from peft.tuners.lora import LoraLayer

    return [
        LoraPair(
            module=f"{component}.{name}",
            a=layer.lora_A[ADAPTER].weight,
            b=layer.lora_B[ADAPTER].weight,
            rank=layer.r[ADAPTER],
            alpha=float(layer.lora_alpha[ADAPTER]),
            base_weight=layer.get_base_layer().weight,
            layer=layer,
        )
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer) and ADAPTER in layer.lora_A
    ]


def trained_parameters(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by component and name, in the models' order.

    Wrappers' prefixes are taken off: unet.conv_in.weight, whatever DDP or torch.compile call it.
    """
    return {
        f"{component}.{name.removeprefix('module.').replace('_orig_mod.', '')}": parameter
        for component, model in models.items()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _check_targets(model: nn.Module, targets: Sequence[str], key: str, examples: Sequence[str]) -> None:
    """Check each pattern by itself: peft is content when any of them matches, and trains less than was asked for."""
    names = {name: module for name, module in model.named_modules() if name}
    known = {".".join(name.split(".")[-length:]) for name, m in names.items() if _adaptable(m) for length in (1, 2, 3)}
    known = {name for name in known if not name[0].isdigit()}
    problems = []
    for target in targets:
        matched = [module for name, module in names.items() if name == target or name.endswith(f".{target}")]
        if matched and all(_adaptable(module) for module in matched):
            continue
        near = get_close_matches(target, sorted(known), n=3, cutoff=0.5)
        near = sorted(name for name in known if name.startswith(f"{target}."))[:3] or near
        found = f"matches {type(matched[0]).__name__}, which no LoRA fits on" if matched else "matches no module"
        problems.append(f"{target!r} {found}" + (f"; near it: {', '.join(near)}" if near else ""))
    if not targets:
        problems = ["no target is given"]
    if problems:
        raise ModelError(
            f"{key}: " + "\n  ".join(problems),
            hint=f"targets are ends of module names, such as {', '.join(examples)}",
        )


def _adaptable(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | nn.Conv2d)


@contextmanager
def _rng_untouched(model: nn.Module) -> Iterator[None]:
    """Give back the global generators, from which peft draws the initial weights, as they were."""
    devices = {parameter.device for parameter in model.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(device.index or 0 for device in devices)):
        yield
