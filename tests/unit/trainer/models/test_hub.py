"""The hub, without a network: what is asked of it, and what is said when it does not answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.trainer.conftest import weights_digest
from trainscope.errors import ModelError
from trainscope.trainer.models import hub
from trainscope.trainer.models.folder import ONE
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.tiny import tiny_folder

Publish = Callable[[Path], list[list[str]]]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Let the hub have a folder, whatever it is asked for; returns what was downloaded, call by call."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read from the environment at its import

    def publish(folder: Path) -> list[list[str]]:
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
        snapshot = tmp_path / "snapshot"
        calls: list[list[str]] = []

        def info(self: object, repository: str, **settings: object) -> Any:
            return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names], sha="0123")

        def download(repository: str, *, allow_patterns: list[str] | None = None, **settings: object) -> str:
            if allow_patterns is None:
                raise OSError("nothing is cached")
            calls.append([name for name in names if any(fnmatch(name, pattern) for pattern in allow_patterns)])
            for name in calls[-1]:
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(folder / name, snapshot / name)
            return str(snapshot)

        monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        return calls

    return publish


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, without network; returns where a snapshot of somebody/model would be."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--somebody--model" / "snapshots" / "0123"
    refs = snapshot.parents[1] / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("0123")
    return snapshot


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_of_a_pipeline_all_parts_are_downloaded(publish: Publish, name: str, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder(name), tmp_path / "source"))
    (source / "model.safetensors").write_bytes(b"a single file beside it")
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickled")
    calls = publish(source)
    loaded = load_components("somebody/model", base_dir=tmp_path)
    assert loaded.source == "somebody/model"
    assert loaded.sdxl == (name == "sdxl")
    assert calls[0] == ["model_index.json"]
    assert "unet/diffusion_pytorch_model.safetensors" in calls[1]
    assert ("text_encoder_2/model.safetensors" in calls[1]) == (name == "sdxl")
    assert not {"model.safetensors", "unet/diffusion_pytorch_model.bin"} & set(calls[1])


def test_another_kind_is_refused_before_its_weights_are_downloaded(publish: Publish, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder("sd15"), tmp_path / "source"))
    (source / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    calls = publish(source)
    with pytest.raises(ModelError, match="somebody/model is a StableDiffusion3Pipeline"):
        load_components("somebody/model", base_dir=tmp_path)
    assert calls == [["model_index.json"]]


def test_with_another_vae_its_own_is_not_downloaded(publish: Publish, tmp_path: Path) -> None:
    calls = publish(tiny_folder("sd15"))
    load_components("somebody/model", base_dir=tmp_path, vae=str(tiny_folder("sdxl") / "vae"))
    assert "vae/config.json" in calls[1]
    assert "vae/diffusion_pytorch_model.safetensors" not in calls[1]


@pytest.mark.parametrize("inside", ["", "vae"])
def test_of_a_vae_its_own_repository_or_that_of_a_pipeline_serves(
    publish: Publish, inside: str, tmp_path: Path, sdxl: Components
) -> None:
    source = tiny_folder("sdxl") if inside else tiny_folder("sdxl") / "vae"
    calls = publish(source)
    loaded = load_components("tiny:sd15", base_dir=tmp_path, vae="somebody/vae")
    assert weights_digest(loaded.vae) == weights_digest(sdxl.vae)
    assert not any("unet/diffusion" in name for name in calls[0])


@pytest.mark.parametrize("single", [False, True])
def test_a_repository_without_a_pipeline_is_refused(publish: Publish, single: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / ("model.safetensors" if single else "README.md")).write_text("")
    publish(source)
    with pytest.raises(ModelError, match=r"has no model_index\.json") as caught:
        load_components("somebody/model", base_dir=tmp_path)
    assert ("hf download somebody/model model.safetensors" in str(caught.value.hint)) == single


def test_pickled_weights_are_not_downloaded(publish: Publish, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_folder("sd15"), tmp_path / "source"))
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    calls = publish(source)
    with pytest.raises(ModelError, match="no safetensors weights of unet"):
        load_components("somebody/model", base_dir=tmp_path)
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_offline_a_complete_snapshot_serves(offline: Path, name: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder(name), offline)
    assert load_components("somebody/model", base_dir=tmp_path).sdxl == (name == "sdxl")


@pytest.mark.parametrize(
    "lacking", ["unet/config.json", "text_encoder_2/model.safetensors", "tokenizer_2/tokenizer_config.json"]
)
def test_offline_an_incomplete_snapshot_does_not(offline: Path, lacking: str, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder("sdxl"), offline)
    (offline / lacking).unlink()
    with pytest.raises(ModelError, match=r"not \(completely\) in the local cache, and HF_HUB_OFFLINE is set") as caught:
        load_components("somebody/model", base_dir=tmp_path)
    assert "hf download somebody/model" in str(caught.value.hint)


def test_offline_without_its_vae_a_snapshot_serves_with_another(offline: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder("sd15"), offline)
    (offline / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    load_components("somebody/model", base_dir=tmp_path, vae=str(tiny_folder("sd15") / "vae"))
    with pytest.raises(ModelError, match="completely"):
        load_components("somebody/model", base_dir=tmp_path)


def test_offline_a_vae_is_looked_for(offline: Path, tmp_path: Path, sdxl: Components) -> None:
    with pytest.raises(ModelError, match="completely"):
        load_components("tiny:sd15", base_dir=tmp_path, vae="somebody/model")
    shutil.copytree(tiny_folder("sdxl") / "vae", offline)
    loaded = load_components("tiny:sd15", base_dir=tmp_path, vae="somebody/model")
    assert weights_digest(loaded.vae) == weights_digest(sdxl.vae)


def test_offline_fails_at_once(offline: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
        load_components("nobody/no-such-model", base_dir=tmp_path)


def test_a_hub_that_does_not_answer_is_one_message(
    offline: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(ModelError, match="the hub does not answer"):
        load_components("nobody/no-such-model", base_dir=tmp_path)


def test_of_a_repository_only_what_is_needed_is_chosen() -> None:
    files = [
        "README.md", "model_index.json", "v1-5.ckpt", "v1-5.safetensors", "tokenizer/merges.txt", "unet/config.json",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "safety_checker/model.safetensors",
    ]  # fmt: skip
    assert set(hub.choose_files(files, ONE.weights, (None, "fp16"))) == {
        "model_index.json", "tokenizer/merges.txt", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
    }  # fmt: skip
