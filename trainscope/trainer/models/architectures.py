"""The models that were published as single files: their configurations, and the list of their tensors.

Facts of the published files, kept as data in `published/`: a JSON file for each model with its config.json files, and
tensors.json.gz with the name and the shape of every tensor in the original key layout (CompVis' latent-diffusion,
Stability-AI's stablediffusion and generative-models), made and checked by `tests/integration/published.py`. Knows
nothing of how a file is read or a model built.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

NAMES = ("sd1", "sd2", "sdxl")
UNET = "model.diffusion_model."
VAE = "first_stage_model."
CONV_IN = f"{UNET}input_blocks.0.0.weight"
"""The UNet's first convolution: its input channels tell text to image (4) from inpainting (9)."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class PublishedEncoder:
    """A text encoder: transformers' class and configuration, and how its tensors are named in a single file."""

    model_class: Literal["CLIPTextModel", "CLIPTextModelWithProjection"]
    layout: Literal["clip", "open_clip"]
    """Names as in transformers, or as in OpenCLIP."""
    prefix: str
    pad_token: str
    """What its captions are padded with; the vocabularies are the same."""
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Architecture:
    """A published model. `unet`, `vae` and `scheduler` are the configurations of diffusers' classes."""

    title: str
    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text_encoders: tuple[PublishedEncoder, ...]
    scheduler: Mapping[str, Any]
    tensors: Shapes
    """Every tensor of the published file, by its name there."""
    optional: tuple[str, ...] = ()
    """Beginnings of the names of tensors that are published and not used; files that were saved anew lack them."""
    variants: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """What differs in the configurations "inpainting" (9 channels) and "epsilon" (of a model that predicts v)."""

    def configured(self, part: Literal["unet", "vae", "scheduler"], *variants: str) -> dict[str, Any]:
        """The configuration of a part, with what differs in `variants`."""
        config = dict(getattr(self, part))
        for name in variants:
            config |= self.variants.get(name, {}).get(part, {})
        return config


@cache
def architectures() -> Mapping[str, Architecture]:
    """The published models by short name."""
    folder = files(__package__) / "published"
    tensors = json.loads(gzip.decompress((folder / "tensors.json.gz").read_bytes()))
    return {
        name: read_architecture(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")), tensors[name])
        for name in NAMES
    }


def read_architecture(described: Mapping[str, Any], tensors: Mapping[str, list[int]]) -> Architecture:
    """An architecture from its JSON file and its list of tensors."""
    encoders = tuple(PublishedEncoder(**encoder) for encoder in described["text_encoders"])
    shapes = {name: tuple(shape) for name, shape in tensors.items()}
    return Architecture(
        **{
            **described,
            "text_encoders": encoders,
            "optional": tuple(described.get("optional", ())),
            "tensors": shapes,
        }
    )
