"""Real runs of the tiny models, made once for all tests that only read them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from trainscope.proof.runs import RunSpec, make_run, shapes_folder

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def short_run() -> Path:
    """A healthy run, too short for most rules. Read only."""
    return make_run(RunSpec({"train.steps": 12, "eval.every_steps": 6}))


@pytest.fixture(scope="session")
def faulty_run() -> Path:
    """A run with an error that has a remedy: bf16 weights that lose their updates. Read only."""
    return make_run(RunSpec({"precision.weights": "bf16", "optimizer.lr": 1e-6, "train.steps": 60}))


@pytest.fixture
def own_run(short_run: Path, tmp_path: Path) -> Path:
    """A copy of the short run, to damage."""
    return Path(shutil.copytree(short_run, tmp_path / "run"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the test's own, and the working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten captioned pictures, of which nine are trained on: an epoch of them is soon over. Read only."""
    folder = tmp_path_factory.mktemp("few")
    for picture in sorted(shapes_folder().glob("*.png"))[:10]:
        shutil.copy(picture, folder)
        shutil.copy(picture.with_suffix(".txt"), folder)
    return folder
