"""Measurements that are still on the device, and their one transfer to the host.

A probe returns `Pending` rows without waiting for the device; `collect` brings those of many steps over at once.
Knows nothing of what the values mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trainscope.schema import Record

NullWhere = dict[str, tuple[tuple[str, float], ...]]
"""Column → (other column, value) pairs: NULL where the other column has that value."""

ABSENT = -1.0
"""Stands for NULL on the device, in measures that cannot be negative."""


@dataclass(frozen=True)
class Pending:
    """Rows of one table at one step: `values` is float64 [len(columns), rows] on the device.

    `keys` are the columns known on the host. `null_where` says which of a column's values mean "none".
    """

    table: str
    step: int
    keys: dict[str, list[Any]]
    columns: tuple[str, ...]
    values: Tensor
    integers: frozenset[str] = frozenset()
    null_where: NullWhere = field(default_factory=dict)
    fold: Callable[[Record], Record] | None = None
    """Makes the rows of the table from these, on the host."""


@dataclass(frozen=True)
class Part:
    """Some of the rows of a step under way: `keys` on the host, `values` float64 [columns, rows] on the device."""

    keys: dict[str, list[Any]]
    values: Tensor

    def as_json(self) -> dict[str, Any]:
        """Brought to the host; float64 survives JSON bit by bit."""
        return {"keys": self.keys, "values": self.values.tolist()}

    @classmethod
    def from_json(cls, found: Mapping[str, Any], device: torch.device) -> Part:
        return cls(dict(found["keys"]), torch.tensor(found["values"], dtype=torch.float64, device=device))


def join(parts: Sequence[Part]) -> Part:
    """The rows of all of them, in order."""
    if len(parts) == 1:
        return parts[0]
    keys = {name: [value for part in parts for value in part.keys[name]] for name in parts[0].keys}
    return Part(keys, torch.cat([part.values for part in parts], dim=1))


def collect(pending: Sequence[Pending]) -> list[Record]:
    """Bring pending rows to the host, with one transfer for each device."""
    if not pending:
        return []
    flat = _transfer([item.values for item in pending])
    return [_record(item, values) for item, values in zip(pending, flat, strict=True)]


def _transfer(tensors: Sequence[Tensor]) -> list[list[list[float]]]:
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(index)
    result: dict[int, list[list[float]]] = {}
    for indices in by_device.values():
        host = torch.cat([tensors[index].reshape(-1) for index in indices]).cpu()
        for index, part in zip(indices, host.split([tensors[index].numel() for index in indices]), strict=True):
            result[index] = part.reshape(tensors[index].shape).tolist()
    return [result[index] for index in range(len(tensors))]


def _record(item: Pending, values: list[list[float]]) -> Record:
    rows = len(values[0]) if values else 0
    columns: dict[str, list[Any]] = {"step": [item.step] * rows, **item.keys}
    for name, column in zip(item.columns, values, strict=True):
        columns[name] = [int(value) for value in column] if name in item.integers else list(column)
    measured = dict(zip(item.columns, values, strict=True))
    for name, conditions in item.null_where.items():
        for other, sentinel in conditions:
            columns[name] = [
                None if given == sentinel else value
                for value, given in zip(columns[name], measured[other], strict=True)
            ]
    record = Record(item.table, columns)
    return item.fold(record) if item.fold else record


def absent(*columns: str) -> NullWhere:
    """`null_where` of columns that hold `ABSENT` where they have no value."""
    return {name: ((name, ABSENT),) for name in columns}
