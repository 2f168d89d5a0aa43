"""Reads and encodes the tensors of a safetensors file with numpy alone, bfloat16 included.

The format: 8 bytes of header length (little-endian), a JSON header with dtype, shape and offsets by tensor name, the
data. safetensors' own parser judges whether a file is whole; this reads the bytes, because numpy has no bfloat16.
Knows nothing of LoRA, and never unpickles anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainscope.errors import ModelError

Floats = NDArray[np.float32]

FLOAT_NAMES = {"F64": "fp64", "F32": "fp32", "F16": "fp16", "BF16": "bf16"}
"""The dtypes that a weight can have, by the format's name, and what the field calls them."""
WRITABLE = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""What a weight can be written as, with the format's names."""

_NUMPY = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1",
}  # fmt: skip

_NOT_SAFETENSORS = (
    (b"PK\x03\x04", "a pickled PyTorch file", "trainscope never unpickles: save it as .safetensors where you trust it"),
    (b"\x80\x02", "a pickled PyTorch file", "trainscope never unpickles: save it as .safetensors where you trust it"),
    (b"\x80\x04", "a pickled file", "trainscope never unpickles: save it as .safetensors where you trust it"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "`git lfs pull` fetches the file"),
    (b"<", "a web page, not a model", "download the file itself, not the page about it"),
)
"""What is often found in the place of a safetensors file: its first bytes, what it is, and what to do."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: the format's dtype name, shape, and the first and last byte (exclusive) in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write: the format's dtype name, its shape and its bytes."""

    dtype: str
    shape: Sequence[int]
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class TensorFile:
    """A whole safetensors file: its text metadata, and its tensors by name in the order of the header."""

    path: Path
    metadata: dict[str, str]
    tensors: dict[str, StoredTensor]

    def raw(self, name: str) -> bytes:
        """The bytes of a tensor. Raises `ModelError` when the file has shrunk or gone since it was opened."""
        tensor = self.tensors[name]
        try:
            with self.path.open("rb") as file:
                file.seek(tensor.start)
                content = file.read(tensor.end - tensor.start)
        except OSError as error:
            raise ModelError(f"cannot read {self.path}: {error.strerror or error}") from error
        if len(content) != tensor.end - tensor.start:
            raise ModelError(f"{self.path} ends within {printable(name)}", hint="copy or download it again")
        return content

    def array(self, name: str) -> Floats:
        """A tensor as float32 in its shape; float64 is rounded. Raises `ModelError` for a dtype that is not read."""
        tensor = self.tensors[name]
        if tensor.dtype not in _NUMPY:
            raise ModelError(f"{self.path}: {printable(name)} is stored as {tensor.dtype}, which is not read")
        return decode(self.raw(name), tensor.dtype).reshape(tensor.shape)


def open_tensors(path: Path) -> TensorFile:
    """Read the header of a safetensors file. Raises `ModelError` for anything that is not one, whole and sound."""
    from safetensors import SafetensorError, safe_open

    try:
        if not path.is_file():
            raise ModelError(f"{path}: no such file" if not path.exists() else f"{path} is not a regular file")
        with path.open("rb") as file:
            begin = file.read(64)
        if not begin:
            raise ModelError(f"{path} is empty", hint="copy or download it again")
        try:
            with safe_open(path, framework="numpy") as checked:
                metadata = dict(checked.metadata() or {})
        except (SafetensorError, ValueError, OSError) as error:
            raise _explained(path, begin, error) from error
        return TensorFile(path, metadata, _header(path))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error


def decode(content: bytes, dtype: str) -> Floats:
    """The elements of a stored tensor, flat, as float32. `dtype` is the format's name."""
    values = np.frombuffer(content, dtype=_NUMPY[dtype])
    if dtype == "BF16":  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is reported as such
        return values.astype(np.float32)


def encode(values: NDArray[np.floating], dtype: str) -> bytes:
    """The bytes of `values` as `dtype` (the format's F32, BF16, F16), rounded to nearest, ties to even."""
    with np.errstate(over="ignore", under="ignore"):  # what overflows becomes infinite, which the caller looks for
        if dtype != "BF16":
            return values.astype(_NUMPY[dtype]).tobytes()
        single = np.ascontiguousarray(values, dtype="<f4")
    bits = single.view("<u4").astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    # Rounding would carry a NaN over into a zero of the other sign.
    return np.where(np.isnan(single), np.array(0x7FC0, dtype="<u2"), rounded).tobytes()


def printable(text: str) -> str:
    """Text from a file, fit for a terminal: no control characters, which could move the cursor or hide a part."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _header(path: Path) -> dict[str, StoredTensor]:
    """The tensors by the header, which safetensors has found sound."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {
        name: StoredTensor(
            name,
            entry["dtype"],
            tuple(entry["shape"]),
            8 + length + entry["data_offsets"][0],
            8 + length + entry["data_offsets"][1],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _explained(path: Path, begin: bytes, error: Exception) -> ModelError:
    """What a file is that is no safetensors file."""
    for magic, kind, hint in _NOT_SAFETENSORS:
        if begin.lstrip().startswith(magic):
            return ModelError(f"{path} is {kind}", hint=hint)
    return ModelError(
        f"{path} is not a whole safetensors file: {printable(str(error))}", hint="copy or download it again"
    )
