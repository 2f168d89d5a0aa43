from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from trainscope.errors import ModelError
from trainscope.trainer.models import hub, tokenizers
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.tiny import tiny_folder
from trainscope.trainer.models.tokenizers import SOURCES, Reader, load_tokenizers

END = "<|endoftext|>"


@pytest.fixture
def readers(sdxl: Components) -> list[Reader]:
    return [Reader(END, len(sdxl.tokenizers[0])), Reader("!", len(sdxl.tokenizers[1]))]


@pytest.mark.parametrize("layout", ["pipeline", "one folder", "tokenizer alone", "older files"])
def test_folders_of_every_layout(layout: str, readers: list[Reader], sdxl: Components, tmp_path: Path) -> None:
    source = tiny_folder("sdxl")
    folder = {"pipeline": source, "one folder": source / "tokenizer"}.get(layout, tmp_path)
    if layout == "tokenizer alone":
        shutil.copytree(source / "tokenizer", tmp_path / "tokenizer")
    if layout == "older files":
        for name in ("vocab.json", "merges.txt"):
            shutil.copy(source / "tokenizer" / name, tmp_path)
    loaded = load_tokenizers(readers, folder=folder)
    for ours, theirs in zip(loaded, sdxl.tokenizers, strict=True):
        text = ["a red circle, 12", "naïve! fox"]
        settings = {"padding": "max_length", "truncation": True}
        assert ours(text, **settings).input_ids == theirs(text, **settings).input_ids
        assert ours.model_max_length == 77


def test_captions_are_padded_as_each_text_encoder_was_trained(readers: list[Reader]) -> None:
    first, second = load_tokenizers(readers, folder=tiny_folder("sd15") / "tokenizer")
    assert (first.pad_token, second.pad_token) == (END, "!")
    assert first.pad_token_id == first.eos_token_id
    assert second.pad_token_id != second.eos_token_id


def test_a_vocabulary_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="and the text encoder knows 49408"):
        load_tokenizers([Reader(END, 49408)], folder=tiny_folder("sd15") / "tokenizer")


def test_a_folder_without_a_tokenizer_names_the_files(tmp_path: Path, readers: list[Reader]) -> None:
    with pytest.raises(ModelError, match=r"wanted are vocab\.json and merges\.txt") as caught:
        load_tokenizers(readers, folder=tmp_path)
    assert "hf download openai/clip-vit-large-patch14" in str(caught.value.hint)
    with pytest.raises(ModelError, match="there is no folder"):
        load_tokenizers(readers, folder=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_a_damaged_tokenizer_is_one_line(name: str, tmp_path: Path, readers: list[Reader]) -> None:
    shutil.copy(tiny_folder("sd15") / "tokenizer" / "merges.txt", tmp_path)
    (tmp_path / name).write_text("{")
    if name == "vocab.json":
        (tmp_path / "vocab.json").write_text("[1")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load_tokenizers(readers[:1], folder=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("repository", "inside"), SOURCES)
def test_the_cache_of_the_hub_is_searched(
    repository: str, inside: str, tmp_path: Path, readers: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder("sd15") / "tokenizer", tmp_path / inside, dirs_exist_ok=True)
    monkeypatch.setattr(hub, "cached_snapshot", lambda name: tmp_path if name == repository else None)
    assert len(load_tokenizers(readers, folder=None)) == 2


def test_offline_and_not_cached_names_the_files(
    tmp_path: Path, readers: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"vocab\.json and merges\.txt .*HF_HUB_OFFLINE is set") as caught:
        load_tokenizers(readers, folder=None)
    assert "model.tokenizer" in str(caught.value.hint)


def test_online_the_files_are_downloaded_and_nothing_else(
    tmp_path: Path, readers: list[Reader], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, names: tuple[str, ...]) -> Path:
        asked.append((repository, names))
        return tiny_folder("sd15") / "tokenizer"

    monkeypatch.setattr(hub, "cached_snapshot", lambda name: None)
    monkeypatch.setattr(hub, "download_files", download)
    assert len(load_tokenizers(readers, folder=None)) == 2
    assert asked == [("openai/clip-vit-large-patch14", tokenizers.FILES)]


def test_a_folder_s_tokenizer_can_be_replaced(sdxl: Components, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder("sd15") / "tokenizer", tmp_path / "clip")
    loaded = load_components("tiny:sdxl", base_dir=tmp_path, tokenizer="clip")
    assert [tokenizer.pad_token for tokenizer in loaded.tokenizers] == [END, "!"]
    assert "clip" in loaded.tokenizers[0].name_or_path
