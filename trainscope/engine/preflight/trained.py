"""Which tensors a configuration trains, with the names, shapes and formats that the run's own `params` will have.

Knows nothing of memory or of rules.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from trainscope.config.model import RunConfig
from trainscope.engine.preflight.stored import Weight, magnitudes

FORMATS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_ADAPTED_KERNELS = (".conv1", ".conv2", ".downsamplers.0.conv", ".upsamplers.0.conv")
"""The ends of the names of the 3×3 convolutions that `lora.conv_rank` adapts."""

_LOOKED_UP = ("token_embedding", "position_embedding")
"""Matrices that are no layers: a LoRA is not put on them."""


@dataclass(frozen=True)
class Trained:
    """A tensor that is going to be trained; `weight` is where it begins, None of an adapter, which is made."""

    param: str
    shape: tuple[int, ...]
    weight: Weight | None = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def is_lora_a(self) -> bool:
        return ".lora_A." in self.param


def trained_tensors(config: RunConfig, weights: Sequence[Weight]) -> list[Trained]:
    """The trained tensors: all of the parts in `train.parts`, or the adapters on them."""
    chosen = [weight for weight in weights if weight.component.removesuffix("_2") in config.train.parts]
    if config.train.method == "finetune":
        return [Trained(weight.param, weight.shape, weight) for weight in chosen]
    return [tensor for weight in chosen for tensor in _adapters(config, weight)]


def _adapters(config: RunConfig, weight: Weight) -> Iterator[Trained]:
    """The pair of a weight that the LoRA adapts (`trainer.models.lora`): A [rank, in, …], B [out, rank, …]."""
    rank = adapter_rank(config, weight)
    if rank is None:
        return
    out, into, *kernel = weight.shape
    module = f"{weight.component}.{weight.module}"
    yield Trained(f"{module}.lora_A.default.weight", (rank, into, *kernel))
    yield Trained(f"{module}.lora_B.default.weight", (out, rank, *(1 for _ in kernel)))


def adapter_rank(config: RunConfig, weight: Weight) -> int | None:
    """The rank of the LoRA's pair on the module of a weight; None where it has none."""
    lora, is_unet = config.lora, weight.component == "unet"
    if not weight.name.endswith(".weight") or len(weight.shape) not in (2, 4) or weight.module.endswith(_LOOKED_UP):
        return None
    is_kernel = is_unet and weight.shape[2:] == (3, 3) and f".{weight.module}".endswith(_ADAPTED_KERNELS)
    if is_kernel and lora.conv_rank is not None:
        return lora.conv_rank
    targets = lora.targets if is_unet else lora.text_encoder_targets
    return lora.rank if any(f".{weight.module}".endswith(f".{target}") for target in targets) else None


def param_rows(config: RunConfig, trained: Iterable[Trained]) -> Iterator[dict[str, Any]]:
    """The `params` table. Magnitudes are read from the files; those of adapters follow from how they are made."""
    tensors = list(trained)
    known = magnitudes(tensor.weight for tensor in tensors if tensor.weight is not None)
    for tensor in tensors:
        made = {} if tensor.weight or config.lora.init_from else _made(tensor)
        yield {
            "param": tensor.param,
            "name": tensor.param.partition(".")[2].replace(".default.", "."),
            "component": tensor.param.partition(".")[0],
            "module": tensor.param.rpartition(".")[0],
            "shape": json.dumps(list(tensor.shape)),
            "dtype": FORMATS[config.precision.weights],
            "numel": tensor.numel,
            **known.get(tensor.param, made),
        }


def _made(tensor: Trained) -> dict[str, float]:
    """An adapter's B is zero; its A is uniform in ±1/√inputs (Kaiming with a = √5, as peft does it)."""
    if not tensor.is_lora_a:
        return {"weight_rms": 0.0, "weight_abs_median": 0.0}
    bound = 1 / math.sqrt(math.prod(tensor.shape[1:]))
    return {"weight_rms": bound / math.sqrt(3), "weight_abs_median": bound / 2}
