"""The `env` table: on what, and with which versions, a run was made. Knows nothing of what it was."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import torch

import trainscope

LIBRARIES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "lightning",
    "pytorch-lightning",
    "prodigyopt",
    "schedulefree",
    "bitsandbytes",
    "lion-pytorch",
    "safetensors",
    "numpy",
    "numba",
    "pyarrow",
)


def environment(device: torch.device) -> dict[str, str]:
    """Facts by name; no user, path or variable of the environment is among them."""
    return dict(_facts(device))


def _facts(device: torch.device) -> Iterator[tuple[str, str]]:
    yield "trainscope", trainscope.__version__
    yield "python", platform.python_version()
    yield "platform", platform.platform()
    yield "cpu.cores", str(os.cpu_count())
    yield "cpu.threads", str(torch.get_num_threads())
    yield "device", str(device)
    if device.type == "cuda":
        yield "device.name", torch.cuda.get_device_name(device)
        yield "device.memory_bytes", str(torch.cuda.get_device_properties(device).total_memory)
    for library in LIBRARIES:
        try:
            yield library, importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
