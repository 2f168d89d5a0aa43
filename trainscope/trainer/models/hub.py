"""Fetches a pipeline from the Hugging Face hub into its cache: safetensors only, and without waiting for no network.

Knows nothing of what the files mean; `load.py` says which it needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainscope.errors import ModelError

TIMEOUT = 10.0
"""s, for the first answer of the hub."""


def is_hub_id(base: str) -> bool:
    """Whether `base` looks like "owner/name" and not like a path."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", base) is not None


def download(
    repository: str, required: Sequence[str], weights: Mapping[str, str], variants: Sequence[str | None]
) -> Path:
    """Return the folder of the cached snapshot of `repository`, after downloading what it lacks.

    With HF_HUB_OFFLINE set, or when the hub does not answer, the cached files are used if they are all there. Raises
    `ModelError` at once otherwise: offline, no such repository, no access, no safetensors.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return _cached(repository, required, weights, "HF_HUB_OFFLINE is set")
    try:
        info = huggingface_hub.HfApi().model_info(repository, timeout=TIMEOUT)
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
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        return _cached(repository, required, weights, "the hub does not answer", error)
    except Exception as error:  # httpx has exceptions of its own, and they changed with the versions
        return _cached(repository, required, weights, "the hub does not answer", error)
    files = [sibling.rfilename for sibling in info.siblings or []]
    wanted = choose_files(files, weights, variants)
    lacking = [part for part in weights if not any(re.match(rf"{part}/.*\.safetensors$", name) for name in wanted)]
    if lacking:
        raise ModelError(
            f"{repository} has no safetensors weights of {', '.join(lacking)}; "
            "trainscope does not load pickled ones, since unpickling runs code",
            hint='if you trust its author, convert it once: python -c "from diffusers import DiffusionPipeline as P; '
            f"P.from_pretrained({repository!r}, use_safetensors=False).save_pretrained('model')\"",
        )
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=info.sha, allow_patterns=wanted))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(
            f"the download of {repository} failed: {reason}",
            hint="run the same command again; what is complete is not downloaded twice",
        ) from error


def choose_files(files: Sequence[str], weights: Mapping[str, str], variants: Sequence[str | None]) -> list[str]:
    """Of a repository's files, those to download: all configurations, and each part's weights in one variant."""
    chosen = [name for name in files if name.endswith((".json", ".txt")) and name.count("/") <= 1]
    for part, stem in weights.items():
        for variant in variants:
            pattern = (
                re.escape(f"{part}/{stem}") + (rf"\.{variant}" if variant else "") + r"(-\d+-of-\d+)?\.safetensors"
            )
            found = [name for name in files if re.fullmatch(pattern, name)]
            if found:
                chosen += found
                break
    return chosen


def _cached(
    repository: str,
    required: Sequence[str],
    weights: Mapping[str, str],
    reason: str,
    cause: BaseException | None = None,
) -> Path:
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(repository, local_files_only=True))
    except Exception as error:
        raise _offline(repository, reason) from (cause or error)
    complete = all((folder / name).is_file() for name in required)
    if not complete or not all(any((folder / part).glob("*.safetensors")) for part in weights):
        raise _offline(repository, reason) from cause
    return folder


def _offline(repository: str, reason: str) -> ModelError:
    return ModelError(
        f"{repository} is not (completely) in the local cache, and {reason}",
        hint=f"download it where there is network: hf download {repository}; or set model.base to a folder",
    )
