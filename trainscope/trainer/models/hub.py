"""Fetches models from the Hugging Face hub into its cache: safetensors only, and without waiting for no network.

Of a repository only what is needed is downloaded. Knows nothing of what is in the files.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainscope.errors import ModelError
from trainscope.trainer.models.folder import STEM, Layout, layout_of
from trainscope.trainer.models.parts import VARIANTS, first_line

TIMEOUT = 10.0
"""s, for the first answer of the hub."""
INDEX = "model_index.json"


def is_hub_id(base: str) -> bool:
    """Whether `base` looks like "owner/name" and not like a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base) is not None


def download_pipeline(repository: str, *, vae: bool = True) -> Path:
    """Return the folder of the cached snapshot of a pipeline, after downloading what it lacks; without `vae`, not that.

    The pipeline's kind is looked at before its weights are downloaded. With HF_HUB_OFFLINE set, or when the hub does
    not answer, the cached files are used if they are all there. Raises `ModelError` at once otherwise: offline, no such
    repository, no access, no pipeline, one of another kind, no safetensors.
    """

    def weights(layout: Layout) -> dict[str, str]:
        return {part: stem for part, stem in layout.weights.items() if vae or part != "vae"}

    def complete(folder: Path) -> bool:
        if not (folder / INDEX).is_file():
            return False
        layout = layout_of(folder / INDEX, repository)
        return all((folder / name).is_file() for name in layout.required) and _has_weights(folder, weights(layout))

    found = _files(repository)
    if isinstance(found, _Unreachable):
        return _cached(repository, complete, found)
    if INDEX not in found.names:
        raise ModelError(
            f"{repository} is no diffusers pipeline: it has no {INDEX}",
            hint=_single_file_hint(repository, found.names),
        )
    index = _fetch(repository, found.revision, [INDEX]) / INDEX
    return _download(repository, found, weights(layout_of(index, repository)))


def download_vae(repository: str) -> Path:
    """Return the folder of the cached snapshot of a repository with a VAE, at its top or in vae/, likewise."""
    found = _files(repository)
    if isinstance(found, _Unreachable):
        return _cached(
            repository, lambda folder: any(_has_weights(folder, {part: STEM}) for part in ("", "vae")), found
        )
    return _download(repository, found, {"vae" if "vae/config.json" in found.names else "": STEM})


def download_files(repository: str, names: Sequence[str]) -> Path:
    """Return the folder of the snapshot of `repository` with those of the files `names` that it has."""
    found = _files(repository)
    if isinstance(found, _Unreachable):
        raise _offline(repository, found.reason) from found.cause
    return _fetch(repository, found.revision, names)


def cached_snapshot(repository: str) -> Path | None:
    """The folder of the cached snapshot, complete or not, or None; the hub is not asked."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
    except Exception:  # LocalEntryNotFoundError, and whatever a damaged cache raises
        return None


def choose_files(files: Sequence[str], weights: Mapping[str, str], variants: Sequence[str | None]) -> list[str]:
    """Of a repository's files, those to download: all configurations, and each part's weights in one variant.

    `weights` are the parts' folders ("" is the top) with the names of their weight files without extension.
    """
    chosen = [name for name in files if name.endswith((".json", ".txt")) and name.count("/") <= 1]
    for part, stem in weights.items():
        for variant in variants:
            start = re.escape(f"{part}/{stem}" if part else stem)
            pattern = start + (rf"\.{variant}" if variant else "") + r"(-\d+-of-\d+)?\.safetensors"
            found = [name for name in files if re.fullmatch(pattern, name)]
            if found:
                chosen += found
                break
    return chosen


@dataclass(frozen=True)
class _Found:
    """What a repository has, at a revision."""

    names: list[str]
    revision: str


@dataclass(frozen=True)
class _Unreachable:
    """Why the hub was not asked, or did not answer."""

    reason: str
    cause: BaseException | None = None


def _files(repository: str) -> _Found | _Unreachable:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return _Unreachable("HF_HUB_OFFLINE is set")
    try:
        info: Any = huggingface_hub.HfApi().model_info(repository, timeout=TIMEOUT)
    except GatedRepoError as error:
        raise ModelError(
            f"{repository} asks for a licence to be accepted",
            hint=f"accept it on https://huggingface.co/{repository} and log in with `hf auth login`",
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"there is neither a folder nor a model {repository!r} on the hub",
            hint="check the spelling; for a private model log in with `hf auth login`",
        ) from error
    except Exception as error:  # OSError, RuntimeError, HfHubHTTPError; httpx's own changed with the versions
        return _Unreachable("the hub does not answer", error)
    return _Found([sibling.rfilename for sibling in info.siblings or []], info.sha)


def _download(repository: str, found: _Found, weights: Mapping[str, str]) -> Path:
    wanted = choose_files(found.names, weights, VARIANTS)
    lacking = [part for part in weights if not any(_is_weight(name, part) for name in wanted)]
    if lacking:
        raise ModelError(
            f"{repository} has no safetensors weights of {', '.join(part or 'a VAE' for part in lacking)}; "
            "trainscope does not load pickled ones, since unpickling runs code",
            hint='if you trust its author, convert it once: python -c "from diffusers import DiffusionPipeline as P; '
            f"P.from_pretrained({repository!r}, use_safetensors=False).save_pretrained('model')\"",
        )
    return _fetch(repository, found.revision, wanted)


def _fetch(repository: str, revision: str, wanted: Sequence[str]) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=list(wanted)))
    except Exception as error:
        raise ModelError(
            f"the download of {repository} failed: {first_line(error)}",
            hint="run the same command again; what is complete is not downloaded twice",
        ) from error


def _cached(repository: str, complete: Callable[[Path], bool], unreachable: _Unreachable) -> Path:
    folder = cached_snapshot(repository)
    if folder is None or not complete(folder):
        raise _offline(repository, unreachable.reason) from unreachable.cause
    return folder


def _has_weights(folder: Path, weights: Mapping[str, str]) -> bool:
    return all(any((folder / part).glob(f"{stem}*.safetensors")) for part, stem in weights.items())


def _is_weight(name: str, part: str) -> bool:
    return name.endswith(".safetensors") and name.rpartition("/")[0] == part


def _single_file_hint(repository: str, files: Sequence[str]) -> str:
    single = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if not single:
        return "use a repository with a folder for each part, as pipeline.push_to_hub() makes it"
    return (
        f"download its single file: hf download {repository} {single[0]} --local-dir .; then model.base = {single[0]!r}"
    )


def _offline(repository: str, reason: str) -> ModelError:
    return ModelError(
        f"{repository} is not (completely) in the local cache, and {reason}",
        hint=f"download it where there is network: hf download {repository}; or set model.base to a folder",
    )
