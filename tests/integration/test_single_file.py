"""A run from a single file, by the command line: the same training as from the folder."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds
import pytest

from tests.integration.commands import QUIET, config_text, settings, trainscope
from tests.integration.published import tiny_architecture, write_tiny
from trainscope.trainer.models import recognise
from trainscope.trainer.models.architectures import architectures
from trainscope.trainer.models.load import load_components
from trainscope.trainer.models.tiny import tiny_folder


def _losses(folder: Path, *keys: str) -> list[float]:
    result = trainscope("run", folder / "cfg.toml", "--out", folder / "run", *settings(*QUIET, *keys))
    assert result.code in (0, 1), result.err
    if "model.tokenizer" in " ".join(keys):
        assert "StableDiffusionXLPipeline.from_single_file(" in result.out
    losses: list[float] = ds.dataset(folder / "run" / "log" / "steps").to_table(["loss"])["loss"].to_pylist()
    return losses


def test_a_single_file_trains_as_its_folder_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = load_components("tiny:sdxl", base_dir=tmp_path)
    architecture = tiny_architecture(components, "sdxl")
    write_tiny(components, architecture, tmp_path / "model.safetensors")
    monkeypatch.setattr(recognise, "architectures", lambda: {**architectures(), "tiny": architecture})
    runs = []
    for name, keys in (
        ("folder", ["model.base=tiny:sdxl"]),
        ("file", [f"model.base={tmp_path / 'model.safetensors'}", f"model.tokenizer={tiny_folder('sdxl')}"]),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "cfg.toml").write_text(config_text(steps=2))
        runs.append(_losses(folder, *keys))
    assert len(runs[0]) == 2
    assert runs[0] == runs[1]


def test_without_a_tokenizer_the_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    components = load_components("tiny:sd15", base_dir=tmp_path)
    architecture = tiny_architecture(components, "sd1")
    write_tiny(components, architecture, tmp_path / "model.safetensors")
    monkeypatch.setattr(recognise, "architectures", lambda: {"tiny": architecture})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "cfg.toml").write_text(config_text(steps=2))
    keys = settings(*QUIET, f"model.base={tmp_path / 'model.safetensors'}")
    result = trainscope("run", tmp_path / "cfg.toml", "--out", tmp_path / "run", *keys)
    assert result.code == 2
    assert "vocab.json and merges.txt" in result.message
    assert not (tmp_path / "run").exists()
