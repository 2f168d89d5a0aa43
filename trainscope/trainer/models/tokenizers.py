"""The tokenizers of a single-file model, which has none in it: from a folder, or from the hub's cache.

All published models share one vocabulary, CLIP's; they differ in the token that captions are padded with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainscope.errors import ModelError
from trainscope.trainer.models import hub
from trainscope.trainer.models.parts import first_line
from trainscope.trainer.models.quiet import quiet_libraries

FILES = ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json")
"""Downloaded; the first two are enough."""
SOURCES = (
    ("openai/clip-vit-large-patch14", ""),
    ("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", ""),
    ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", ""),
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("stabilityai/stable-diffusion-2-1", "tokenizer"),
    ("stabilityai/stable-diffusion-xl-base-1.0", "tokenizer"),
)
"""Repositories with the vocabulary, and the folder in them. Only the first is downloaded from."""
TOKENS = 77


@dataclass(frozen=True)
class Reader:
    """What a tokenizer has to know of the text encoder that reads its tokens."""

    pad_token: str
    vocabulary: int


def load_tokenizers(readers: Sequence[Reader], *, folder: Path | None) -> tuple[Any, ...]:
    """A `CLIPTokenizer` for each text encoder, from `folder`, else from the hub's cache, else from the hub.

    `folder` has the files in it, or folders tokenizer and tokenizer_2, as a pipeline's has. Raises `ModelError` with
    the names of the files where there are none, and where the vocabulary is not that of the text encoder.
    """
    if folder is None:
        found = _cached()
        places = [found] * len(readers)
    else:
        places = _in_folder(folder, len(readers))
    return tuple(_load(place, reader) for place, reader in zip(places, readers, strict=True))


def _in_folder(folder: Path, count: int) -> list[Path]:
    if not folder.is_dir():
        raise ModelError(f"model.tokenizer: there is no folder {folder}", hint=_way())
    places: list[Path] = []
    for name in ("tokenizer", "tokenizer_2")[:count]:
        options = [folder / name, folder, *places]
        place = next((option for option in options if _complete(option)), None)
        if place is None:
            raise ModelError(
                f"model.tokenizer: {folder} has no tokenizer: wanted are vocab.json and merges.txt "
                f"(or tokenizer.json), in it or in {name}/",
                hint=_way(),
            )
        places.append(place)
    return places


def _cached() -> Path:
    for repository, inside in SOURCES:
        snapshot = hub.cached_snapshot(repository)
        if snapshot is not None and _complete(snapshot / inside):
            return snapshot / inside
    repository, inside = SOURCES[0]
    try:
        folder = hub.download_files(repository, FILES) / inside
    except ModelError as error:
        raise ModelError(
            "a single-file model has no tokenizer in it, and the hub's cache has none of "
            f"{', '.join(name for name, _ in SOURCES)}; wanted are vocab.json and merges.txt ({error})",
            hint=_way(),
        ) from error
    if not _complete(folder):
        raise ModelError(f"{repository} has no vocab.json and merges.txt any more", hint=_way())
    return folder


def _complete(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in FILES[:2])


def _load(folder: Path, reader: Reader) -> Any:
    try:
        with quiet_libraries():
            from transformers import CLIPTokenizer

            tokenizer = CLIPTokenizer.from_pretrained(
                folder, pad_token=reader.pad_token, model_max_length=TOKENS, local_files_only=True
            )
    except Exception as error:  # whatever the libraries raise on a broken JSON file
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {first_line(error)}", hint=_way()) from error
    if len(tokenizer) != reader.vocabulary:
        raise ModelError(
            f"the tokenizer in {folder} has {len(tokenizer)} tokens, and the text encoder knows {reader.vocabulary}",
            hint="it belongs to another model",
        )
    return tokenizer


def _way() -> str:
    return (
        f"where there is network: hf download {SOURCES[0][0]} {' '.join(FILES)} --local-dir clip; "
        'then model.tokenizer = "clip"'
    )
