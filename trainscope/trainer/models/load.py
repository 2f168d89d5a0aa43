"""Loads the parts of a Stable Diffusion pipeline for training: a tiny model, a diffusers folder, or a hub id.

Reads safetensors only: a pickle runs whatever code its author put in. All parts come frozen, in eval mode and in
float32; what is trained and in which precision is decided later. Knows nothing of the configuration or of training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainscope.errors import ModelError
from trainscope.trainer.models import hub, tiny
from trainscope.trainer.models.quiet import quiet_libraries

PIPELINES = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionImg2ImgPipeline")

REQUIRED = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
)
WEIGHTS = {
    "text_encoder": "model",
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
}
"""The parts with weights, and the names of their weight files without extension."""

VARIANTS = (None, "fp16", "bf16")
"""Preferred first: the full file, then those that some repositories publish instead."""


@dataclass
class Components:
    """The parts of a pipeline. `inpainting`: the UNet takes 9 channels. `source`: what was loaded, for the record.

    SDXL has two text encoders, each with its tokenizer; the others have one. `location` is the folder that diffusers
    loads the same pipeline from.
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


def load_components(base: str, *, base_dir: Path) -> Components:
    """Load the model that `base` names; relative folders are relative to `base_dir`.

    Raises `ModelError`: an unknown tiny name, a folder that is no diffusers pipeline, pickled or damaged weights, a
    UNet that is neither for text-to-image (4 channels) nor for inpainting (9), a hub id that cannot be reached.
    """
    if base.startswith("tiny:"):
        return _load_folder(tiny.tiny_folder(base.removeprefix("tiny:")), source=base)
    folder = base_dir / Path(base).expanduser()
    if folder.suffix in (".safetensors", ".ckpt", ".pt"):
        raise ModelError(
            f"model.base = {base!r} is a single file; trainscope loads diffusers folders",
            hint='convert it: python -c "from diffusers import StableDiffusionPipeline as P; '
            f"P.from_single_file({str(folder)!r}).save_pretrained('model')\"",
        )
    if folder.exists():
        return _load_folder(folder, source=str(folder))
    if not hub.is_hub_id(base):
        raise ModelError(
            f"model.base = {base!r}: there is no folder {folder}",
            hint='use a diffusers folder, a hub id such as "owner/name", or "tiny:sd15"',
        )
    return _load_folder(hub.download(base, REQUIRED, WEIGHTS, VARIANTS), source=base)


def _load_folder(folder: Path, *, source: str) -> Components:
    _check_layout(folder, source)
    weights = {part: _find_weights(folder / part, stem, source) for part, stem in WEIGHTS.items()}
    for path, _ in weights.values():
        _check_readable(path, source)
    with quiet_libraries():
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        classes = {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}
        models = {
            part: _load_part(model_class, folder, part, weights[part][1], source)
            for part, model_class in classes.items()
        }
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
            scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
        except Exception as error:  # whatever the libraries raise on a broken JSON file
            raise ModelError(f"the tokenizer or the scheduler of {source} cannot be loaded: {_line(error)}") from error
    unet, text_encoder = models["unet"], models["text_encoder"]
    channels, width = unet.config.in_channels, text_encoder.config.hidden_size
    if channels not in (4, 9):
        raise ModelError(
            f"the UNet of {source} takes {channels} input channels; allowed are 4 (text to image) and 9 (inpainting)",
            hint="depth, upscaling and instruction models are not supported",
        )
    if unet.config.cross_attention_dim != width:
        raise ModelError(
            f"{source}: the UNet attends to embeddings of width {unet.config.cross_attention_dim}, "
            f"and the text encoder gives width {width}",
            hint="its parts come from different models",
        )
    return Components(
        tokenizers=(tokenizer,),
        text_encoders=(text_encoder,),
        vae=models["vae"],
        unet=unet,
        noise_scheduler=scheduler,
        inpainting=channels == 9,
        source=source,
        location=folder,
    )


def _check_layout(folder: Path, source: str) -> None:
    """Refuse what is no pipeline folder, or one of a pipeline that is not trained here."""
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{source} is no diffusers pipeline: it lacks {', '.join(missing)}",
            hint="a folder written by pipeline.save_pretrained() has model_index.json and a folder for each part",
        )
    try:
        kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{source}: model_index.json is damaged: {_line(error)}", hint=_AGAIN) from error
    if kind not in PIPELINES:
        raise ModelError(
            f"{source} is a {kind}; trainscope trains Stable Diffusion 1.x and 2.x ({', '.join(PIPELINES[:2])})"
        )


def _find_weights(folder: Path, stem: str, source: str) -> tuple[Path, str | None]:
    """The weight file of a part (of a sharded one its index), and the variant that it is."""
    for variant in VARIANTS:
        suffix = f".{variant}" if variant else ""
        for path in (folder / f"{stem}{suffix}.safetensors", folder / f"{stem}.safetensors.index{suffix}.json"):
            if path.is_file():
                return path, variant
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise ModelError(
            f"{source} has pickled weights only ({folder.name}/{pickled[0]}); "
            "trainscope does not load them, since unpickling runs code",
            hint='if you trust its author, convert it once: python -c "from diffusers import DiffusionPipeline as P; '
            f"P.from_pretrained({source!r}, use_safetensors=False).save_pretrained('model')\"",
        )
    raise ModelError(f"{source} lacks {folder.name}/{stem}.safetensors", hint=_AGAIN)


def _check_readable(path: Path, source: str) -> None:
    """Find damaged files by their header before a library meets them with a traceback."""
    from safetensors import SafetensorError, safe_open

    files = [path]
    if path.suffix == ".json":
        try:
            files = [path.parent / name for name in sorted(set(json.loads(path.read_text())["weight_map"].values()))]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{source}: {path.name} is damaged: {_line(error)}", hint=_AGAIN) from error
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{source}: {path.parent.name}/{file.name} is damaged or incomplete: {_line(error)}", hint=_AGAIN
            ) from error


def _load_part(model_class: Any, folder: Path, part: str, variant: str | None, source: str) -> Any:
    try:
        model, report = model_class.from_pretrained(
            folder,
            subfolder=part,
            variant=variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # the libraries raise OSError, ValueError, RuntimeError and their own
        raise ModelError(f"the {part} of {source} cannot be loaded: {_line(error)}", hint=_AGAIN) from error
    missing = sorted(report["missing_keys"])
    if missing:  # the libraries would go on with random weights
        raise ModelError(
            f"the {part} of {source} lacks {len(missing)} tensors, the first is {missing[0]}",
            hint="its weights do not belong to its config.json",
        )
    return model.to(torch.float32).requires_grad_(False).eval()


_AGAIN = "download or save the model again"


def _line(error: BaseException) -> str:
    """The first line of an error, for a message of one line."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
