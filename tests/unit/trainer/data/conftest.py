"""Pictures of several shapes, and the training data that is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainscope.config.load import ResolvedConfig
from trainscope.proof.runs import RunSpec
from trainscope.trainer.build import build_session
from trainscope.trainer.data import dataset
from trainscope.trainer.data.dataset import TrainingData, load_data
from trainscope.trainer.models.load import Components
from trainscope.trainer.session import Session

BUCKETS = {
    "data.resolution": 32,
    "data.buckets.enabled": True,
    "data.buckets.min": 16,
    "data.buckets.max": 64,
    "data.buckets.step": 16,
}
SIZES = {
    "wide": (96, 40),
    "tall": (40, 100),
    "square": (50, 52),
    "square2": (64, 64),
    "tiny": (20, 12),
    "wide2": (80, 33),
}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Pictures of several shapes, each with four tags."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, (name, size) in enumerate(SIZES.items()):
        picture = Image.effect_noise(size, 60 + number).convert("RGB")
        picture.paste((200, 30 * number, 10), (0, 0, size[0] // 2, size[1] // 2))
        picture.save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(f"{name}, red, circle, star", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's cache folder for each test; the tiny models stay where they are."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(dataset, "default_folder", lambda: folder)
    return folder


def resolved(data: Path, **changes: Any) -> ResolvedConfig:
    keys = {key.replace("__", "."): value for key, value in changes.items()}
    lora = {"train.method": "lora", "data.validation_split": 0.0, "data.dir": str(data)}
    return RunSpec({**lora, **keys}).resolved()


def load(data: Path, components: Components, told: list[str] | None = None, **changes: Any) -> TrainingData:
    return load_data(resolved(data, **changes), components, warn=[].append if told is None else told.append)


def session(data: Path, **changes: Any) -> Session:
    return build_session(resolved(data, **changes))
