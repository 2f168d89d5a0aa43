"""A tensor of a model where it lies in a file, under the name that the trained model has for it; and its magnitude.

Of a large tensor a few pages are read, evenly spread: 5 GB of weights take seconds. Knows nothing of models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from io import RawIOBase
from itertools import groupby
from pathlib import Path

import numpy as np

from trainscope.errors import ModelError
from trainscope.lora.kohya import canonical
from trainscope.lora.tensors import FLOAT_NAMES, Floats, decode

PAGE = 4096
"""Bytes read at a time."""
PAGES = 8
"""Pages of a tensor that are read; those of float32 have 8192 elements."""
_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Weight:
    """A tensor of a part of the model: `dtype` is the file format's name, `start` and `end` are bytes of `file`."""

    component: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    start: int
    end: int

    @property
    def param(self) -> str:
        return f"{self.component}.{self.name}"

    @property
    def module(self) -> str:
        """The module that owns it, within its part."""
        return self.name.rpartition(".")[0]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def in_model(component: str, name: str) -> str:
    """A tensor's name in the loaded model: transformers 5.6 dropped `text_model.` of encoders without a projection."""
    name = canonical(component, name)
    return name.removeprefix("text_model.") if component == "text_encoder" and _flat_text() else name


@cache
def _flat_text() -> bool:
    try:
        major, minor = version("transformers").split(".")[:2]
    except PackageNotFoundError:
        return False
    return (int(major), int(minor)) >= (5, 6)


def magnitudes(weights: Iterable[Weight]) -> dict[str, dict[str, float]]:
    """`weight_rms` and `weight_abs_median` of tensors, by `param`; estimates where a tensor is large.

    Absent for formats that no weight has, and for tensors without a finite element. Raises `ModelError` where a file
    cannot be read any more.
    """
    found = {}
    by_place = sorted(weights, key=lambda weight: (weight.file, weight.start))
    for path, group in groupby(by_place, key=lambda weight: weight.file):
        try:
            with path.open("rb", buffering=0) as file:
                if hasattr(os, "posix_fadvise"):  # what lies between the pages is not read ahead
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                for weight in group:
                    if weight.dtype in FLOAT_NAMES and weight.numel:
                        found[weight.param] = _magnitude(_sample(file, weight))
        except OSError as error:
            raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    return {param: values for param, values in found.items() if values}


def _sample(file: RawIOBase, weight: Weight) -> Floats:
    size = _SIZES[weight.dtype]
    if weight.end - weight.start <= PAGE * PAGES:
        pieces = [(weight.start, weight.end - weight.start)]
    else:
        gap = (weight.end - weight.start - PAGE) // (PAGES - 1) // size * size
        pieces = [(weight.start + number * gap, PAGE) for number in range(PAGES)]
    content = bytearray()
    for start, count in pieces:
        file.seek(start)
        content += file.read(count) or b""
    return decode(bytes(content[: len(content) // size * size]), weight.dtype)


def _magnitude(sample: Floats) -> dict[str, float]:
    values = np.abs(sample[np.isfinite(sample)].astype(np.float64))
    if not values.size:
        return {}
    middle = (values.size - 1) // 2  # of two in the middle the lower one, as torch has it
    return {
        "weight_rms": float(np.sqrt(np.mean(values**2))),
        "weight_abs_median": float(np.partition(values, middle)[middle]),
    }
