"""Which of diffusers' pipelines belongs to a model, and the pipeline made of a model's parts.

Knows nothing of sampling or saving, which both need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainscope.trainer.models.load import Components


def pipeline_class(inpainting: bool, *, sdxl: bool = False) -> str:
    """The name of diffusers' pipeline for a model."""
    return f"StableDiffusion{'XL' if sdxl else ''}{'Inpaint' if inpainting else ''}Pipeline"


def build_pipeline(components: Components, **replaced: Any) -> Any:
    """The pipeline of `components`, with other parts in place of some: unet, scheduler, text_encoder_2 …"""
    import diffusers

    parts: dict[str, Any] = {
        "vae": components.vae,
        "tokenizer": components.tokenizer,
        "scheduler": components.noise_scheduler,
        **components.models,
    }
    if components.sdxl:
        parts |= {"tokenizer_2": components.tokenizers[1], "add_watermarker": False}
    else:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    name = pipeline_class(components.inpainting, sdxl=components.sdxl)
    return getattr(diffusers, name)(**{**parts, **replaced})
