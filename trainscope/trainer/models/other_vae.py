"""`model.vae`: another VAE than the model's own, from a folder, a single file, or the hub.

Knows nothing of how a VAE is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from trainscope.errors import ModelError
from trainscope.trainer.models import hub
from trainscope.trainer.models.folder import STEM
from trainscope.trainer.models.parts import check_readable, find_weights, load_part
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.single_file import load_vae_file, refuse_pickle


def load_vae(name: str, *, base_dir: Path, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Load the VAE that `name` names, frozen and in `dtype`; relative paths are relative to `base_dir`.

    A folder or a hub id is a VAE's own, or a pipeline's with a folder vae; its config.json has the scaling factor. A
    file has none, and takes `config`, that of the VAE in whose place it comes. Raises `ModelError`.
    """
    path = base_dir / Path(name).expanduser()
    if path.is_dir():
        return _load_folder(path, name, dtype)
    refuse_pickle(path)
    if path.suffix.lower() == ".safetensors":
        if not path.is_file():
            raise ModelError(f"model.vae = {name!r}: there is no file {path}", hint=_ALLOWED)
        return load_vae_file(path, config, dtype)
    if not hub.is_hub_id(name):
        raise ModelError(f"model.vae = {name!r}: there is no folder {path}", hint=_ALLOWED)
    return _load_folder(hub.download_vae(name), name, dtype)


def _load_folder(folder: Path, name: str, dtype: torch.dtype) -> Any:
    place = next((place for place in (folder, folder / "vae") if (place / "config.json").is_file()), None)
    if place is None:
        raise ModelError(f"model.vae = {name!r}: {folder} has neither config.json nor vae/config.json", hint=_ALLOWED)
    weights, variant = find_weights(place, STEM, name)
    check_readable(weights, name)
    with quiet_libraries():
        from diffusers import AutoencoderKL

        return load_part(AutoencoderKL, place, variant, f"the VAE {name}", dtype)


_ALLOWED = 'use a diffusers folder, a .safetensors file, or a hub id such as "owner/name"'
