"""The `params` table: which tensors were asked to be trained, and whether they can be.

Knows nothing of how a model is loaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from trainscope.schema import Record

MEDIAN_ELEMENTS = 2**18
"""Of a larger tensor the median is that of so many elements, evenly spread: all of them take a large model long."""


class ParamsProbe:
    """Made while the tensors hold what the run began from: their magnitudes are read then, everything else later."""

    @torch.no_grad()
    def __init__(self, requested: Mapping[str, Tensor]) -> None:
        self._requested = requested
        self._magnitudes = {name: _magnitude(tensor) for name, tensor in requested.items()}

    def measure(self, models: Mapping[str, torch.nn.Module], optimizer: torch.optim.Optimizer) -> Record:
        """One row for each requested tensor, whose name begins with that of one of the `models`.

        `is_model_object` is false where the optimizer holds another object than the model's: it is trained for nobody.
        """
        group_of = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
        objects = {id(p) for model in models.values() for p in model.parameters()}
        rows: list[dict[str, Any]] = [
            {
                "param": name,
                "name": name.partition(".")[2].replace(".default.", "."),
                "component": name.partition(".")[0],
                "module": name.rpartition(".")[0],
                "shape": json.dumps(list(tensor.shape)),
                "dtype": str(tensor.dtype).removeprefix("torch."),
                "numel": tensor.numel(),
                "group": group_of.get(id(tensor)),
                "requires_grad": tensor.requires_grad,
                "in_optimizer": id(tensor) in group_of,
                "is_model_object": id(tensor) in objects,
                **self._magnitudes[name],
            }
            for name, tensor in self._requested.items()
        ]
        return Record("params", {key: [row[key] for row in rows] for key in rows[0]} if rows else {})


def _magnitude(tensor: Tensor) -> dict[str, float | None]:
    if not tensor.numel() or isinstance(tensor, DTensor):  # of a sharded one nobody has all elements
        return {"weight_rms": None, "weight_abs_median": None}
    flat = tensor.detach().reshape(-1)
    norm = torch.linalg.vector_norm(flat, dtype=torch.float64)
    sample = flat[:: math.ceil(flat.numel() / MEDIAN_ELEMENTS)]
    return {
        "weight_rms": float(norm) / math.sqrt(flat.numel()),
        "weight_abs_median": float(sample.float().abs().median()),
    }
