"""The LoRA pairs of a model, whichever library put them there: found by what peft's layers look like.

Knows nothing of peft itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class LayerPair:
    """The pair that an adapter keeps in a layer; its tensors and its scale are those of the moment."""

    module: str
    adapter: str
    layer: Any

    @property
    def a(self) -> Tensor:
        weight: Tensor = self.layer.lora_A[self.adapter].weight
        return weight

    @property
    def b(self) -> Tensor:
        weight: Tensor = self.layer.lora_B[self.adapter].weight
        return weight

    @property
    def base_weight(self) -> Tensor:
        return _base(self.layer)

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def alpha(self) -> float:
        return float(self.layer.lora_alpha[self.adapter])

    @property
    def scale(self) -> float:
        """What multiplies B A x now: 0 while the adapter is disabled."""
        return 0.0 if getattr(self.layer, "disable_adapters", False) else float(self.layer.scaling[self.adapter])


def find_pairs(models: Mapping[str, nn.Module]) -> list[LayerPair]:
    """All pairs whose adapted weight can be read as numbers; not those of a base that is packed into few bits."""
    return [pair for component, model in models.items() for pair in _pairs(component, model)]


def _pairs(component: str, model: nn.Module) -> Iterator[LayerPair]:
    for name, layer in model.named_modules():
        if not all(hasattr(layer, part) for part in ("lora_A", "lora_B", "lora_alpha", "scaling")):
            continue
        for adapter, a in layer.lora_A.items():
            b = dict(layer.lora_B.items()).get(adapter)
            readable = isinstance(getattr(a, "weight", None), Tensor) and isinstance(getattr(b, "weight", None), Tensor)
            if readable and a.weight.requires_grad and _base(layer).is_floating_point():
                suffix = "" if len(layer.lora_A) == 1 else f".{adapter}"
                yield LayerPair(f"{component}.{name}{suffix}", adapter, layer)


def _base(layer: Any) -> Tensor:
    base = layer.get_base_layer() if hasattr(layer, "get_base_layer") else layer.base_layer
    weight: Tensor = base.weight
    return weight
