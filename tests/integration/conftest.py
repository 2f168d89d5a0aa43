"""Real runs of the tiny models, made once for all tests that only read them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.integration.half_done import QUICK, STOP
from tests.integration.resuming import Values, resolved, trained
from trainscope.proof.runs import RunSpec, changed_base, config_text, make_run, shapes_folder

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


@pytest.fixture(scope="session")
def places(few: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A folder with a cfg.toml and, in runs/it, a run of it that was stopped half way. Made once; read only."""
    made: dict[str, Path] = {}

    def place(*changes: Values, stop_at: int = STOP) -> Path:
        values = {key: value for part in ({"data.dir": str(few)}, QUICK, *changes) for key, value in part.items()}
        key = repr((sorted(values.items()), stop_at))
        if key not in made:
            folder = tmp_path_factory.mktemp("place")
            (folder / "cfg.toml").write_text(config_text(changed_base(values)), encoding="utf-8")
            trained(resolved(few, QUICK, *changes), folder / "runs" / "it", stop_at=stop_at)
            made[key] = folder
        return made[key]

    return place


@pytest.fixture
def place(places: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """The same, of a test's own, and the working directory."""

    def own(*changes: Values, stop_at: int = STOP) -> Path:
        folder = Path(shutil.copytree(places(*changes, stop_at=stop_at), tmp_path / "place"))
        monkeypatch.chdir(folder)
        return folder

    return own
