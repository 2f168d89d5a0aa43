"""Loads a Stable Diffusion model for training: a tiny one, a diffusers folder, a single file, or a hub id.

Reads safetensors only: a pickle runs whatever code its author put in. All parts come frozen and in eval
mode; what is trained is decided later. Knows nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from trainscope.errors import ModelError
from trainscope.trainer.models import hub, tiny
from trainscope.trainer.models.folder import load_folder
from trainscope.trainer.models.other_vae import load_vae
from trainscope.trainer.models.parts import Dtypes, Parts, dtype_of
from trainscope.trainer.models.schedule import adjusted_schedule
from trainscope.trainer.models.single_file import PICKLED, load_single_file
from trainscope.trainer.models.tokenizers import Reader, load_tokenizers

CHANNELS = {4: "text to image", 9: "inpainting"}


@dataclass
class Components:
    """The parts of a pipeline. `inpainting`: the UNet takes 9 channels. `source`: what was loaded, for the record.

    SDXL has two text encoders, each with its tokenizer; the others have one. `location` is the folder or the file that
    diffusers loads the same pipeline from.
    """

    tokenizers: tuple[Any, ...]
    text_encoders: tuple[Any, ...]
    vae: Any
    unet: Any
    noise_scheduler: Any
    inpainting: bool
    source: str
    location: Path

    @property
    def models(self) -> dict[str, torch.nn.Module]:
        """What can be trained, by the names that diffusers gives the parts of a pipeline."""
        names = ("text_encoder", "text_encoder_2")
        return {"unet": self.unet, **dict(zip(names, self.text_encoders, strict=False))}

    @property
    def sdxl(self) -> bool:
        return len(self.text_encoders) > 1

    @property
    def tokenizer(self) -> Any:
        return self.tokenizers[0]

    @property
    def text_encoder(self) -> Any:
        return self.text_encoders[0]


def load_components(
    base: str,
    *,
    base_dir: Path,
    tokenizer: str | None = None,
    vae: str | None = None,
    prediction_type: str = "auto",
    zero_terminal_snr: bool = False,
    dtypes: Dtypes = MappingProxyType({}),
    warn: Callable[[str], None] = lambda message: None,
) -> Components:
    """Load the model that `base` names; relative paths are relative to `base_dir`.

    `tokenizer` to `zero_terminal_snr` are keys of `[model]`; `dtypes` are the formats of the parts, float32 where none
    is given, which they are loaded in, so that no larger copy is ever there. `warn` is told what was taken for granted.

    Raises `ModelError`: an unknown tiny name, no pipeline and no checkpoint, pickled or damaged weights, a UNet that is
    neither for text-to-image (4 channels) nor for inpainting (9), parts that do not belong together, a hub id that
    cannot be reached.
    """
    location = _location(base, base_dir, vae=vae is None)
    source = base if base.startswith("tiny:") or not (base_dir / Path(base).expanduser()).exists() else str(location)
    own_tokenizer = base_dir / Path(tokenizer).expanduser() if tokenizer is not None else None
    if location.is_file():
        parts = load_single_file(
            location,
            vae=vae is None,
            tokenizer=own_tokenizer,
            dtypes=dtypes,
            prediction_type=prediction_type,
            warn=warn,
        )
    else:
        parts = load_folder(location, source=source, dtypes=dtypes, vae=vae is None)
        if own_tokenizer is not None:
            readers = [
                Reader(old.pad_token, encoder.config.vocab_size)
                for old, encoder in zip(parts.tokenizers, parts.text_encoders, strict=True)
            ]
            parts.tokenizers = load_tokenizers(readers, folder=own_tokenizer)
    if vae is not None:
        parts.vae = load_vae(vae, base_dir=base_dir, config=parts.vae_config, dtype=dtype_of("vae", dtypes))
    parts.noise_scheduler = adjusted_schedule(parts.noise_scheduler, prediction_type, zero_terminal_snr)
    _check_fit(parts, source)
    return Components(
        tokenizers=parts.tokenizers,
        text_encoders=parts.text_encoders,
        vae=parts.vae,
        unet=parts.unet,
        noise_scheduler=parts.noise_scheduler,
        inpainting=parts.unet.config.in_channels == 9,
        source=source,
        location=location,
    )


def _location(base: str, base_dir: Path, *, vae: bool) -> Path:
    """The folder or file of a base; tiny models are built and hub ids downloaded."""
    if base.startswith("tiny:"):
        return tiny.tiny_folder(base.removeprefix("tiny:"))
    path = base_dir / Path(base).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in (".safetensors", *PICKLED)):
        return path
    allowed = 'use a diffusers folder, a .safetensors file, a hub id such as "owner/name", or "tiny:sd15"'
    if path.is_file():
        raise ModelError(f"model.base = {base!r} is a file, and no .safetensors", hint=allowed)
    if path.suffix.lower() in (".safetensors", *PICKLED):
        raise ModelError(f"model.base = {base!r}: there is no file {path}", hint=allowed)
    if not hub.is_hub_id(base):
        raise ModelError(f"model.base = {base!r}: there is no folder {path}", hint=allowed)
    return hub.download_pipeline(base, vae=vae)


def _check_fit(parts: Parts, source: str) -> None:
    """Refuse UNets that are not trained here, and parts of different models."""
    unet, vae = parts.unet, parts.vae
    channels = unet.config.in_channels
    if channels not in CHANNELS:
        raise ModelError(
            f"the UNet of {source} takes {channels} input channels; "
            f"allowed are {' and '.join(f'{count} ({use})' for count, use in CHANNELS.items())}",
            hint="depth, upscaling and instruction models are not supported",
        )
    widths = [encoder.config.hidden_size for encoder in parts.text_encoders]
    if unet.config.cross_attention_dim != sum(widths):
        raise ModelError(
            f"{source}: the UNet attends to embeddings of width {unet.config.cross_attention_dim}, and the text "
            f"{'encoder gives' if len(widths) == 1 else 'encoders give'} width {' + '.join(map(str, widths))}",
            hint="its parts come from different models",
        )
    if vae.config.latent_channels != unet.config.out_channels:
        raise ModelError(
            f"the VAE's latents have {vae.config.latent_channels} channels, and the UNet of {source} denoises "
            f"{unet.config.out_channels}",
            hint="a VAE belongs to the models that were trained with it",
        )
