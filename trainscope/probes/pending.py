"""Measurements that are still on the device, and their one transfer to the host.

A probe returns `Pending` rows without waiting for the device; `collect` brings those of many steps over at once.
Knows nothing of what the values mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainscope.schema import Record

NullWhere = dict[str, tuple[tuple[str, float], ...]]
"""Column → (other column, value) pairs: NULL where the other column has that value."""

ABSENT = -1.0
"""Stands for NULL on the device, in measures that cannot be negative."""


MANY = 32
"""Rows from which on a record of a step is left by itself."""


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
    """Makes the rows of the table from these, on the host; they may be of several steps."""


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
    """Bring pending rows to the host, with one transfer for each device: measures are arrays, keys as they were.

    Few rows of several steps make one record: a record costs as much as a row does.
    """
    if not pending:
        return []
    together: dict[tuple[Any, ...], list[tuple[Pending, np.ndarray]]] = {}
    for number, (item, values) in enumerate(zip(pending, _transfer([p.values for p in pending]), strict=True)):
        alone = number if values.shape[1] >= MANY else None
        together.setdefault((item.table, item.columns, *item.keys, alone), []).append((item, values))
    return [_record(*zip(*items, strict=True)) for items in together.values()]


def _transfer(tensors: Sequence[Tensor]) -> list[np.ndarray]:
    by_device: dict[torch.device, list[int]] = {}
    for index, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(index)
    here = by_device.pop(torch.device("cpu"), [])
    result = {index: tensors[index].detach().numpy() for index in here}
    for indices in by_device.values():
        host = torch.cat([tensors[index].reshape(-1) for index in indices]).detach().cpu()
        for index, part in zip(indices, host.split([tensors[index].numel() for index in indices]), strict=True):
            result[index] = part.reshape(tensors[index].shape).numpy()
    return [result[index] for index in range(len(tensors))]


def _record(items: Sequence[Pending], parts: Sequence[np.ndarray]) -> Record:
    item = items[0]
    values = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
    steps = np.repeat([each.step for each in items], [part.shape[1] for part in parts])
    columns: dict[str, Any] = {"step": steps}
    for name, key in item.keys.items():
        columns[name] = key if len(items) == 1 else [value for each in items for value in each.keys[name]]
    measured = dict(zip(item.columns, values, strict=True))
    for name, column in measured.items():
        found = [measured[other] == sentinel for other, sentinel in item.null_where.get(name, ())]
        null = np.logical_or.reduce(found) if found else None
        if name in item.integers:
            column = _whole(name, column)
        columns[name] = column if null is None else np.ma.MaskedArray(column, mask=null)
    record = Record(item.table, columns)
    return item.fold(record) if item.fold else record


def _whole(name: str, values: np.ndarray) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{name} counts, and has NaN or infinite values")
    return values.astype(np.int64)


def absent(*columns: str) -> NullWhere:
    """`null_where` of columns that hold `ABSENT` where they have no value."""
    return {name: ((name, ABSENT),) for name in columns}
