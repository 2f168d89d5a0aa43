"""Writes a LoRA as a new safetensors file, whole or not at all, and never over another file.

The file is written beside its place, synced to the disk, and only then given its name. Knows nothing of ranks.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from trainscope.errors import ModelError
from trainscope.lora.adapters import PEFT_CONFIG
from trainscope.lora.file import LoraFile
from trainscope.lora.header import checksum, file_metadata, peft_config
from trainscope.lora.resize import ResizedPair
from trainscope.lora.tensors import NewTensor

_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def write_resized(file: LoraFile, resized: Sequence[ResizedPair], out: Path, story: str) -> list[Path]:
    """Write the resized pairs, and unchanged what belongs to no pair, to `out`; return the files written.

    peft's layout needs its adapter_config.json beside it, which is written too. Raises `ModelError` when something is
    there already or the place cannot be written.
    """
    configuration = peft_config(file, resized) if file.layout == "peft" else None
    return write_lora(out, _tensors(file, resized), file_metadata(file, resized, story), configuration)


def write_lora(
    out: Path, tensors: Mapping[str, NewTensor], metadata: Mapping[str, str], configuration: str | None = None
) -> list[Path]:
    """Write tensors and metadata, whose checksum is renewed, to `out`, and peft's `configuration` beside it.

    Returns the files written. Raises `ModelError` when something is there already or the place cannot be written.
    """
    check_free(out, "diffusers" if configuration is None else "peft")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        written = [out]
        _place(out, serialized(tensors, metadata))
        if configuration is not None:
            written.append(out.parent / PEFT_CONFIG)
            _place(written[-1], [configuration.encode()])
    except OSError as error:
        raise ModelError(f"cannot write {out}: {error.strerror or error}", hint="name another place") from error
    return written


def check_free(out: Path, layout: str) -> None:
    """Raise `ModelError` unless `out` can become a new file, and peft's configuration beside it too."""
    if out.suffix != ".safetensors":
        raise ModelError(f"{out} does not end in .safetensors, by which loaders know it", hint=f"{out}.safetensors")
    for path in (out, *([out.parent / PEFT_CONFIG] if layout == "peft" else [])):
        if os.path.lexists(path):
            raise ModelError(f"{path} exists, and nothing is written over it", hint="name another file or folder")


def serialized(tensors: Mapping[str, NewTensor], metadata: Mapping[str, str]) -> list[bytes]:
    """The parts of a safetensors file, to be written one after the other; a checksum in the metadata is renewed."""
    metadata = dict(metadata)
    checksum(metadata, [tensor.content for _, tensor in _in_order(tensors)])
    header: dict[str, object] = {"__metadata__": metadata}
    parts = []
    position = 0
    for name, tensor in _in_order(tensors):
        end = position + len(tensor.content)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        parts.append(tensor.content)
        position = end
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data is aligned
    return [len(text).to_bytes(8, "little"), text, *parts]


def _in_order(tensors: Mapping[str, NewTensor]) -> list[tuple[str, NewTensor]]:
    """As safetensors orders them: wide dtypes first, so that every tensor is aligned, then by name."""
    return sorted(tensors.items(), key=lambda item: (-_BYTES.get(item[1].dtype, 1), item[0]))


def _tensors(file: LoraFile, resized: Sequence[ResizedPair]) -> dict[str, NewTensor]:
    tensors = {}
    for name in file.rest:
        stored = file.tensors.tensors[name]
        tensors[name] = NewTensor(stored.dtype, stored.shape, file.tensors.raw(name))
    for new in resized:
        pair = new.pair
        tensors[pair.down_name] = NewTensor(new.dtype, new.down_shape, new.down)
        tensors[pair.up_name] = NewTensor(new.dtype, new.up_shape, new.up)
        if file.layout == "kohya" or pair.alpha_origin == "stored":
            # float32 whatever the pair's dtype: an alpha rounded to bfloat16 is another strength.
            tensors[pair.alpha_name] = NewTensor("F32", (), np.array(new.alpha, dtype="<f4").tobytes())
    return tensors


def _place(path: Path, parts: Sequence[bytes]) -> None:
    """Write a file beside its place, sync it, and give it its name unless that is taken by now."""
    beside = path.parent / f".{path.name}-{secrets.token_hex(6)}"
    try:
        with beside.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        _name(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    if os.name != "nt":  # Windows cannot open folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _name(beside: Path, path: Path) -> None:
    """A rename would replace what has come there meanwhile; a second name for the same file cannot."""
    try:
        path.hardlink_to(beside)
    except FileExistsError:
        raise ModelError(f"{path} exists, and nothing is written over it", hint="name another file") from None
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise ModelError(f"{path} exists, and nothing is written over it", hint="name another file") from None
        beside.rename(path)
