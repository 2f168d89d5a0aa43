"""The `state` table: every piece of state that an optimizer keeps of the trained tensors, whichever optimizer it is.

It is read where optimizers keep it, in `optimizer.state`, by the names that they gave it; what is stored in eight bits
is read as the values that it stands for. Knows nothing of any optimizer's arithmetic, nor of when to look.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainscope.probes.pending import ABSENT, Pending, absent
from trainscope.probes.stored import Stored

QUANTISED = re.compile(r"state(\d+)")
"""bitsandbytes' names: the table of `state1` is `qmap1`, its scales are `absmax1`."""
CODES = (torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2)
"""Formats of codes: what they stand for is written elsewhere."""


@dataclass(frozen=True)
class _Piece:
    """A number or a tensor of a parameter's state; `values` is how an eight-bit one is read, `problem` why it is not.

    `device` is the parameter's.
    """

    param: str
    key: str
    value: Tensor | float
    device: torch.device
    values: tuple[Stored, Mapping[str, Any]] | None = None
    problem: str = ""


class StateProbe:
    """Call `measure` between two steps. One look costs a pass over all state, and waits for nothing."""

    def __init__(self, params: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        self._params = dict(params)
        self._optimizer = optimizer
        self._unread = self._told = ""

    @torch.no_grad()
    def measure(self, step: int) -> Pending | None:
        """‖x‖₂ and max |x| of every piece; None where the optimizer keeps nothing."""
        found = [piece for name, param in self._params.items() for piece in self._pieces(name, param)]
        self._unread = self._reason(found)
        if not found:
            return None
        pieces, values = _measured(found, next(iter(self._params.values())).device)
        return Pending(
            table="state",
            step=step,
            keys={
                "param": [piece.param for piece in pieces],
                "key": [piece.key for piece in pieces],
                "dtype": [_dtype(piece.value) for piece in pieces],
                "shape": [json.dumps(list(p.value.shape)) if isinstance(p.value, Tensor) else None for p in pieces],
            },
            columns=("norm", "absmax"),
            values=values,
            null_where=absent("norm", "absmax"),
        )

    def news(self) -> str:
        """Why the last look did not read all of the state, if that was not said before; else empty."""
        said, self._told = self._told, self._unread
        return self._told if self._told != said else ""

    def _reason(self, pieces: Sequence[_Piece]) -> str:
        if not pieces:
            return f"{type(self._optimizer).__name__} keeps nothing of the trained tensors in `optimizer.state`"
        return "; ".join(sorted({f"{piece.key} {piece.problem}" for piece in pieces if piece.problem}))

    def _pieces(self, name: str, param: Tensor) -> Iterator[_Piece]:
        state = self._optimizer.state.get(param, {})
        for key, value in _flattened(state):
            if isinstance(value, Tensor):
                yield _tensor_piece(name, key, value, param.device, state)
            else:
                yield _Piece(name, key, value, param.device)


def _flattened(state: Any, prefix: str = "") -> Iterator[tuple[str, Tensor | float]]:
    """Tensors and numbers, also those within lists and mappings: `preconditioner.0`. A table of codes is no piece."""
    items: Any = ()
    if isinstance(state, Mapping):
        items = [(str(key), value) for key, value in state.items() if not _belongs_to_codes(str(key), state)]
    elif isinstance(state, list | tuple):
        items = [(str(number), value) for number, value in enumerate(state)]
    for key, value in items:
        if isinstance(value, Tensor) or (isinstance(value, int | float) and not isinstance(value, bool)):
            yield prefix + key, value
        else:
            yield from _flattened(value, f"{prefix}{key}.")


def _belongs_to_codes(key: str, state: Mapping[Any, Any]) -> bool:
    found = re.fullmatch(r"(?:qmap|absmax)(\d+)", key)
    return found is not None and f"state{found[1]}" in state


def _tensor_piece(param: str, key: str, value: Tensor, device: torch.device, state: Mapping[str, Any]) -> _Piece:
    found = QUANTISED.fullmatch(key)
    if found and isinstance(state.get(f"qmap{found[1]}"), Tensor):
        stored = Stored(key, qmap=f"qmap{found[1]}", absmax=f"absmax{found[1]}")
        if isinstance(state.get(stored.absmax), Tensor):
            return _Piece(param, key, value, device, (stored, state))
        return _Piece(param, key, value, device, problem="is in eight bits without the scales of its blocks")
    problem = ""
    if type(value) not in (Tensor, torch.nn.Parameter):
        problem = f"is a {type(value).__name__}, whose values are not read"
    elif value.layout != torch.strided:
        problem = f"is a {value.layout} tensor, whose values are not read"
    elif value.dtype in CODES:
        problem = f"is {_dtype(value)}, and what its codes stand for is not known"
    return _Piece(param, key, value, device, problem=problem)


def _measured(pieces: Sequence[_Piece], device: torch.device) -> tuple[list[_Piece], Tensor]:
    """The pieces, those that are alike together, and float64 [2, pieces]: norm and largest magnitude.

    ABSENT where a piece cannot be read.
    """
    kinds: dict[Any, list[_Piece]] = {}
    for piece in pieces:
        kinds.setdefault(_kind(piece), []).append(piece)
    parts: list[Tensor] = []
    for kind, alike in kinds.items():
        if kind in ("unread", "empty"):
            fill = ABSENT if kind == "unread" else 0.0
            parts.append(torch.full((2, len(alike)), fill, dtype=torch.float64, device=device))
        elif kind == "number":
            numbers = torch.tensor([abs(float(piece.value)) for piece in alike], dtype=torch.float64)
            parts.append(_there(numbers.expand(2, -1).contiguous(), device))
        elif kind == "codes":
            parts.append(torch.stack([_of_codes(piece) for piece in alike], dim=1).to(device))
        else:
            parts.append(_there(_norms([_as_real(piece) for piece in alike]), device))
    return [piece for alike in kinds.values() for piece in alike], torch.cat(parts, dim=1)


def _kind(piece: _Piece) -> Any:
    """What is measured in the same way: tensors by dtype and device."""
    value = piece.value
    if piece.problem:
        return "unread"
    if not isinstance(value, Tensor):
        return "number"
    if value.numel() == 0:
        return "empty"
    return "codes" if piece.values is not None else (value.dtype, value.device)


def _of_codes(piece: _Piece) -> Tensor:
    """float64 [2]. The scales are what is stored; a code stands for no more than its block's."""
    assert piece.values is not None  # noqa: S101  the caller looked
    stored, state = piece.values
    whole = stored.read(state, piece.device)
    assert whole is not None  # noqa: S101  it is there
    norm = torch.linalg.vector_norm(whole, dtype=torch.float64)
    return torch.stack([norm, state[stored.absmax].detach().max().double()])


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """Of each tensor ‖x‖₂ and max |x|, float64 [2, tensors]; NaN if an element is NaN."""
    both = [torch._foreach_norm(list(tensors), order, dtype=torch.float64) for order in (2.0, math.inf)]
    return torch.stack([torch.stack(list(norms)) for norms in both])


def _as_real(piece: _Piece) -> Tensor:
    """What norms can be taken of. What is paged is read in the order of the device's work, and so on the device."""
    value = piece.value
    assert isinstance(value, Tensor)  # noqa: S101  the caller looked
    value = value.detach()
    if getattr(piece.value, "is_paged", False):
        value = value.to(piece.device)
    if value.is_complex():
        return torch.view_as_real(value)
    return value if value.is_floating_point() else value.double()


def _there(values: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it."""
    if values.device == device:
        return values
    # A copy from pageable memory would wait for all that the device still has to do.
    source = values.pin_memory() if device.type == "cuda" and values.device.type == "cpu" else values
    return source.to(device, non_blocking=True)


def _dtype(value: Tensor | float) -> str | None:
    return str(value.dtype).removeprefix("torch.") if isinstance(value, Tensor) else None
