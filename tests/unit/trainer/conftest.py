"""The tiny models, built and loaded once; what a test changes, it changes on a copy."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.tiny import tiny_folder

SHAPES = Path(__file__).parents[3] / "examples" / "shapes"

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sd15_folder() -> Path:
    return tiny_folder("sd15")


@pytest.fixture(scope="session")
def sd15() -> Components:
    """Shared by all tests: read only."""
    return load_components("tiny:sd15", base_dir=Path())


@pytest.fixture(scope="session")
def inpainting() -> Components:
    """Shared by all tests: read only."""
    return load_components("tiny:sd15-inpainting", base_dir=Path())


@pytest.fixture(scope="session")
def sd2() -> Components:
    """Shared by all tests: read only."""
    return load_components("tiny:sd2-v", base_dir=Path())


@pytest.fixture(scope="session")
def sdxl() -> Components:
    """Shared by all tests: read only."""
    return load_components("tiny:sdxl", base_dir=Path())


@pytest.fixture
def own_sd15(sd15: Components) -> Components:
    """A copy for one test."""
    return copy.deepcopy(sd15)


@pytest.fixture
def own_inpainting(inpainting: Components) -> Components:
    """A copy for one test."""
    return copy.deepcopy(inpainting)


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of plain pictures: `pictures("a.png", "b.png", captions=False)`."""

    def write(*names: str, captions: bool = True, size: tuple[int, int] = (24, 16)) -> Path:
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        for number, name in enumerate(names):
            Image.new("RGB", size, (10 * number, 100, 200)).save(folder / name)
            if captions:
                (folder / name).with_suffix(".txt").write_text(f"caption of {name}\n", encoding="utf-8")
        return folder

    return write


def weights_digest(module: torch.nn.Module) -> str:
    """A digest of all tensors, bit by bit, with their names and dtypes."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
