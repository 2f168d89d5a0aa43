"""Everything that a training continues from, piece by piece: what it is called, its format, its digest.

The same reading is taken when a checkpoint is saved and after it was resumed, so the two can be compared by name. Reads
any optimizer and any schedule; knows nothing of files or of what a difference means (`continuity`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A piece of state. `item` is weights, optimizer, group, scheduler, ema …; `param` the tensor or group it is of.

    `dtype` and `shape` (a JSON list) are those of a tensor, None for a number. `value` is the digest of a tensor's
    bytes, or the number as JSON. `zero` says that all elements are 0.
    """

    item: str
    param: str | None
    key: str
    dtype: str | None
    shape: str | None
    value: str
    zero: bool = False

    @property
    def name(self) -> tuple[str, str | None, str]:
        return self.item, self.param, self.key


def tensor_digest(tensor: Tensor) -> str:
    """128-bit xxHash3 of a tensor's bytes in logical order: as quick as reading them, where SHA-256 takes minutes."""
    flat = tensor.detach().reshape(-1).contiguous().cpu()
    return xxhash.xxh3_128_hexdigest(flat.view(torch.uint8).numpy().data if flat.numel() else b"")


def digest_of_all(tensors: Mapping[str, Tensor]) -> str:
    """One digest over those of named tensors, in the order of their names."""
    return xxhash.xxh3_128_hexdigest("".join(tensor_digest(tensors[name]) for name in sorted(tensors)).encode())


def tensor_piece(item: str, param: str | None, key: str, tensor: Tensor) -> Piece:
    return Piece(
        item,
        param,
        key,
        str(tensor.dtype).removeprefix("torch."),
        json.dumps(list(tensor.shape)),
        tensor_digest(tensor),
        zero=not bool(tensor.any()),
    )


def number_piece(item: str, param: str | None, key: str, value: Any) -> Piece:
    return Piece(item, param, key, None, None, as_json(value))


def as_json(value: Any) -> str:
    """A number, text or list; NaN and the infinities as strings, and what JSON has no word for by its type."""
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    return json.dumps(value, default=lambda other: type(other).__name__)


def tensor_pieces(item: str, key: str, tensors: Mapping[str, Tensor]) -> Iterator[Piece]:
    for name, tensor in tensors.items():
        yield tensor_piece(item, name, key, tensor)


def optimizer_pieces(params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> Iterator[Piece]:
    """The state of every parameter, by name, and what the groups hold."""
    for name, param in params.items():
        for key, value in optimizer.state.get(param, {}).items():
            yield _piece("optimizer", name, str(key), value)
    for number, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key not in ("params", "name"):
                yield _piece("group", group_name(group, number), str(key), value)


def group_name(group: Mapping[str, Any], number: int) -> str:
    return str(group.get("name", f"group {number}"))


def scheduler_pieces(scheduler: Any) -> Iterator[Piece]:
    """Position and base learning rates of a torch schedule."""
    yield number_piece("scheduler", None, "last_epoch", scheduler.last_epoch)
    for number, base in enumerate(getattr(scheduler, "base_lrs", [])):
        yield _piece("scheduler", group_name(scheduler.optimizer.param_groups[number], number), "base_lr", base)


def number_pieces(item: str, values: Mapping[str, Any]) -> Iterator[Piece]:
    for key, value in values.items():
        yield number_piece(item, None, key, value)


def _piece(item: str, param: str | None, key: str, value: Any) -> Piece:
    if isinstance(value, Tensor):
        if value.numel() == 1:  # torch keeps step counters in tensors
            return number_piece(item, param, key, value.item())
        return tensor_piece(item, param, key, value)
    return number_piece(item, param, key, value)
