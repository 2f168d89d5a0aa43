"""Loads the parts of a diffusers folder: what `pipeline.save_pretrained()` writes, safetensors only.

Knows nothing of where the folder came from or of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainscope.errors import ModelError
from trainscope.trainer.models.parts import (
    AGAIN,
    Dtypes,
    Parts,
    check_readable,
    dtype_of,
    find_weights,
    first_line,
    load_part,
)
from trainscope.trainer.models.quiet import quiet_libraries

STEM = "diffusion_pytorch_model"
CLASSES = {
    "unet": "UNet2DConditionModel",
    "vae": "AutoencoderKL",
    "text_encoder": "CLIPTextModel",
    "text_encoder_2": "CLIPTextModelWithProjection",
}


@dataclass(frozen=True)
class Layout:
    """What a pipeline's folder holds: `required` files, and the parts with weights and how these files are named."""

    encoders: tuple[str, ...] = ("text_encoder",)

    @property
    def weights(self) -> Mapping[str, str]:
        """The parts with weights, and the names of their weight files without extension."""
        return {**dict.fromkeys(self.encoders, "model"), "unet": STEM, "vae": STEM}

    @property
    def tokenizers(self) -> tuple[str, ...]:
        return tuple(name.replace("text_encoder", "tokenizer") for name in self.encoders)

    @property
    def required(self) -> tuple[str, ...]:
        return (
            "model_index.json",
            "scheduler/scheduler_config.json",
            *(f"{name}/tokenizer_config.json" for name in self.tokenizers),
            *(f"{name}/config.json" for name in sorted(self.weights)),
        )


ONE, TWO = Layout(), Layout(("text_encoder", "text_encoder_2"))
PIPELINES = {
    "StableDiffusionPipeline": ONE,
    "StableDiffusionImg2ImgPipeline": ONE,
    "StableDiffusionInpaintPipeline": ONE,
    "StableDiffusionXLPipeline": TWO,
    "StableDiffusionXLImg2ImgPipeline": TWO,
    "StableDiffusionXLInpaintPipeline": TWO,
}


def layout_of(index: Path, source: str) -> Layout:
    """The layout that a model_index.json asks for. Raises `ModelError`: damaged, or of a pipeline not trained here."""
    described = _read_json(index, source)
    kind = described.get("_class_name") if isinstance(described, dict) else None
    if kind is None:
        raise ModelError(f"{source}: model_index.json is damaged: it does not say _class_name", hint=AGAIN)
    layout = PIPELINES.get(kind)
    if layout is None:
        raise ModelError(
            f"{source} is a {kind}; trainscope trains Stable Diffusion 1.x, 2.x and XL "
            f"({', '.join(name for name in PIPELINES if 'Img2Img' not in name)})",
            hint="set model.base to one of those",
        )
    if layout is TWO and (described.get("text_encoder") or [None])[0] is None:
        raise ModelError(f"{source} is the refiner of SDXL, which has one text encoder", hint="train the base model")
    return layout


def load_folder(folder: Path, *, source: str, dtypes: Dtypes, vae: bool = True) -> Parts:
    """Load a pipeline's folder; without `vae` its own is left out, and the part is None.

    Raises `ModelError`: no pipeline, one of another kind, missing parts, pickled or damaged weights.
    """
    layout = _check_layout(folder, source)
    parts = [part for part in layout.weights if vae or part != "vae"]
    weights = {part: find_weights(folder / part, layout.weights[part], source) for part in parts}
    for path, _ in weights.values():
        check_readable(path, source)
    with quiet_libraries():
        import diffusers
        import transformers

        models = {}
        for part in parts:
            library = transformers if part in layout.encoders else diffusers
            model_class = getattr(library, CLASSES[part])
            subject, dtype = f"the {part} of {source}", dtype_of(part, dtypes)
            models[part] = load_part(model_class, folder / part, weights[part][1], subject, dtype)
        try:
            tokenizers = tuple(transformers.CLIPTokenizer.from_pretrained(folder / name) for name in layout.tokenizers)
            scheduler = diffusers.DDPMScheduler.from_pretrained(folder / "scheduler")
        except Exception as error:  # whatever the libraries raise on a broken JSON file
            raise ModelError(
                f"the tokenizer or the scheduler of {source} cannot be loaded: {first_line(error)}", hint=AGAIN
            ) from error
    return Parts(
        tokenizers=tokenizers,
        text_encoders=tuple(models[name] for name in layout.encoders),
        vae=models.get("vae"),
        unet=models["unet"],
        noise_scheduler=scheduler,
        vae_config=_read_json(folder / "vae" / "config.json", source),
    )


def _check_layout(folder: Path, source: str) -> Layout:
    """Refuse what is no pipeline folder, or one of a pipeline that is not trained here."""
    index = folder / "model_index.json"
    layout = layout_of(index, source) if index.is_file() else ONE
    missing = [name for name in layout.required if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{source} is no diffusers pipeline: it lacks {', '.join(missing)}",
            hint="a folder written by pipeline.save_pretrained() has model_index.json and a folder for each part",
        )
    return layout


def _read_json(path: Path, source: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{source}: {path.parent.name}/{path.name} is damaged: {first_line(error)}", hint=AGAIN
        ) from error
