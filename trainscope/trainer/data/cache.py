"""What encoders computed, kept on disk for the next run: a safetensors file for each picture or caption.

An entry is named by a digest of everything that its value depends on, so a stale one is never found. A cache that does
not work costs time and nothing else: it warns once and the training goes on without. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from trainscope.probes.fingerprint import digest_of_all
from trainscope.runlog.durable import write_atomically

FORMAT = 1
"""Of the entries: raised when the same inputs come to mean other numbers."""


def default_folder() -> Path:
    """`$XDG_CACHE_HOME` (or `~/.cache`) / trainscope / cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainscope" / "cache"


def model_identity(*models: Any) -> dict[str, Any]:
    """What of models an encoding depends on: weights, their format, where they compute, and what else they are told."""
    return {
        "weights": [digest_of_all(model.state_dict()) for model in models],
        "computed": [f"{next(model.parameters()).dtype} on {model.device.type}" for model in models],
        "config": [
            {key: value for key, value in dict(_config(model)).items() if not key.startswith("_")} for model in models
        ],
    }


def _config(model: Any) -> Mapping[str, Any]:
    config = model.config
    found: Mapping[str, Any] = config if isinstance(config, Mapping) else config.to_dict()
    return found


class DiskCache:
    """Entries of one kind in `folder`, made by encoders that `about` identifies."""

    def __init__(self, folder: Path, about: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        self.folder = folder
        self._about = dict(about)
        self._warn = warn
        self._warned_of_damage = False
        self._usable = True

    def path(self, **subject: Any) -> Path:
        """The file of an entry: a digest of `subject`, of the encoders and of the format."""
        text = json.dumps({"format": FORMAT, "about": self._about, "of": subject}, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def get(self, make: Callable[[], dict[str, Tensor]], **subject: Any) -> dict[str, Tensor]:
        """The tensors of an entry, on the CPU: read, or made and kept for the next time."""
        path = self.path(**subject)
        found = self._read(path)
        if found is None:
            found = {name: tensor.cpu() for name, tensor in make().items()}
            self._write(path, found)
        return found

    def _read(self, path: Path) -> dict[str, Tensor] | None:
        if not self._usable:
            return None
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
                # safetensors has no checksum of its own.
                if tensors and (file.metadata() or {}).get("digest") == digest_of_all(tensors):
                    return tensors
        except SafetensorError:
            pass
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self._give_up(error)
            return None
        if not self._warned_of_damage:
            self._warned_of_damage = True
            self._warn(f"the cache entry {path} is damaged; it and others like it are encoded again and replaced")
        return None

    def _write(self, path: Path, tensors: dict[str, Tensor]) -> None:
        if not self._usable:
            return
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, save(whole, {"digest": digest_of_all(whole)}))
        except OSError as error:  # read-only, full, or a file in the way
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._usable = False
        reason = (error.strerror or str(error)).lower()
        self._warn(f"the cache {self.folder} cannot be used any more: {reason}; going on without")
