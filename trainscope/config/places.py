"""Where trainscope keeps what it makes once: the folder of a tiny model, known before anything could build it.

Reads the code that builds them as bytes, for its digest; knows nothing of what it does.
"""

from __future__ import annotations

import hashlib
import os
from importlib.metadata import version
from pathlib import Path

import trainscope

TINY_CODE = ("tiny.py", "tiny_text.py", "tiny_vae.py")
TINY_LIBRARIES = ("torch", "diffusers", "transformers")


def tiny_place(name: str) -> Path:
    """`$XDG_CACHE_HOME` (or `~/.cache`) / trainscope / tiny / <version>-<name>, whether the model is there or not.

    Raises `importlib.metadata.PackageNotFoundError` where a library that builds it is not installed.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainscope" / "tiny"
    return root / f"{_tiny_version()}-{name}"


def _tiny_version() -> str:
    """A digest of everything that the weights depend on: the code, and the libraries that initialise and save."""
    digest = hashlib.sha256()
    for module in TINY_CODE:
        digest.update((Path(trainscope.__file__).parent / "trainer" / "models" / module).read_bytes())
    for library in TINY_LIBRARIES:
        digest.update(f"{library} {version(library)}\n".encode())
    return digest.hexdigest()[:12]
