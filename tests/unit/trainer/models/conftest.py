"""Tiny models as single files, which the product knows as little of as of any other file: by a list of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from torch import Tensor

from tests.integration.published import tiny_architecture, write_tiny
from trainscope.trainer.models import recognise
from trainscope.trainer.models.architectures import Architecture, architectures
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.tiny import tiny_folder

LIKE = {"sd15": "sd1", "sd15-inpainting": "sd1", "sd2-v": "sd2", "sdxl": "sdxl"}


@dataclass(frozen=True)
class Single:
    """A tiny model `name`, and itself as the single file `path` with `tensors`."""

    name: str
    components: Components
    path: Path
    tensors: Mapping[str, Tensor]

    def load(self, **keys: object) -> Components:
        given = {"tokenizer": str(tiny_folder(self.name)), **keys}
        return load_components(self.path.name, base_dir=self.path.parent, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def published_tiny(sd15: Components, sd2: Components, sdxl: Components) -> Mapping[str, Architecture]:
    """The published architectures, and those of the tiny models."""
    tiny = {"sd1": sd15, "sd2": sd2, "sdxl": sdxl}
    return {**architectures(), **{f"tiny {like}": tiny_architecture(tiny[like], like) for like in tiny}}


@pytest.fixture
def single(
    published_tiny: Mapping[str, Architecture], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], Single]:
    """Write a tiny model as a single file; its architecture is known from now on."""
    monkeypatch.setattr(recognise, "architectures", lambda: published_tiny)

    def write(name: str) -> Single:
        components = load_components(f"tiny:{name}", base_dir=Path())
        path = tmp_path / f"{name}.safetensors"
        return Single(name, components, path, write_tiny(components, published_tiny[f"tiny {LIKE[name]}"], path))

    return write
