"""Generates sample images with the real diffusers pipeline, and compares them.

Sampling in the middle of a training must leave no trace in it: weights, modes, dtypes, devices and the global random
states are afterwards what they were. Knows nothing of when to sample, or of where images are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from trainscope.errors import DataError, ModelError
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.quiet import quiet_libraries

SAMPLERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {"set_alpha_to_one": False, "clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++ 2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {}),
}
"""Samplers by the names that user interfaces give them: diffusers' class, and what to set beside the schedule."""


def sample_images(
    components: Components,
    unet: Any,
    *,
    prompts: Sequence[str],
    negative_prompt: str = "",
    sampler: str = "ddim",
    steps: int = 20,
    guidance: float = 7.5,
    seed: int = 0,
    width: int = 512,
    height: int = 512,
    autocast_dtype: torch.dtype | None = None,
    inpaint_image: Image.Image | None = None,
    inpaint_mask: Image.Image | None = None,
) -> list[Image.Image]:
    """Generate one RGB image of `width` x `height` px (multiples of 8) for each prompt, each from the same `seed`.

    `unet` may be a copy with other weights (EMA) and in any floating-point dtype: its inputs are cast to its own, and
    the latents stay in the VAE's. A prompt's image does not depend on the other prompts. An inpainting model paints
    the light part of `inpaint_mask` in `inpaint_image`; without them the whole of a grey picture.
    Raises `ModelError` for an unknown sampler or an impossible size.
    """
    scheduler = build_sampler(sampler, components.noise_scheduler)
    if width % 8 or height % 8 or min(width, height) < 8:
        raise ModelError(f"a sample of {width}x{height} px is impossible: sides are multiples of 8")
    weight = next(unet.parameters())
    device = weight.device
    modules = [unet, components.vae, components.text_encoder]
    images: list[Image.Image] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(quiet_libraries())
        stack.enter_context(_rng_untouched(device))
        for module in modules:
            stack.enter_context(_evaluating(module))
            stack.enter_context(_on_device(module, device))
        stack.enter_context(_casting(unet, weight.dtype))
        stack.enter_context(
            torch.autocast(device.type, dtype=autocast_dtype) if autocast_dtype is not None else nullcontext()
        )
        pipeline = _build_pipeline(components, unet, scheduler)
        extra: dict[str, Any] = {}
        if components.inpainting:
            extra["image"] = _fitted(inpaint_image, "RGB", (128, 128, 128), width, height)
            extra["mask_image"] = _fitted(inpaint_mask, "L", 255, width, height)
        latent_dtype = components.vae.dtype
        for prompt in prompts:
            positive, negative = pipeline.encode_prompt(prompt, device, 1, guidance > 1, negative_prompt)
            latents = pipeline(
                prompt_embeds=positive.to(latent_dtype),
                negative_prompt_embeds=None if negative is None else negative.to(latent_dtype),
                num_inference_steps=steps,
                guidance_scale=guidance,
                width=width,
                height=height,
                generator=torch.Generator().manual_seed(seed),
                output_type="latent",
                **extra,
            ).images
            pixels = components.vae.decode(latents.to(latent_dtype) / components.vae.config.scaling_factor).sample
            images += pipeline.image_processor.postprocess(pixels.float(), output_type="pil")
    return images


def build_sampler(sampler: str, noise_scheduler: Any) -> Any:
    """The scheduler of diffusers for `sampler`, with the schedule and the prediction type of `noise_scheduler`."""
    if sampler not in SAMPLERS:
        near = get_close_matches(sampler, SAMPLERS, n=1)
        question = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelError(f"there is no sampler {sampler!r}{question}", hint=f"the samplers are {', '.join(SAMPLERS)}")
    with quiet_libraries():
        import diffusers

        name, settings = SAMPLERS[sampler]
        return getattr(diffusers, name).from_config(noise_scheduler.config, **settings)


def image_digest(image: Image.Image) -> str:
    """SHA-256 of the size and the RGB pixels, hexadecimal: the same for every file format that keeps the pixels."""
    pixels = image.convert("RGB")
    return hashlib.sha256(f"{pixels.width}x{pixels.height} ".encode() + pixels.tobytes()).hexdigest()


def image_distance(a: Image.Image, b: Image.Image) -> float:
    """Root mean square difference of the RGB pixels, 0 (the same) to 1. Raises `DataError` where the sizes differ."""
    if a.size != b.size:
        raise DataError(f"images of {a.width}x{a.height} and {b.width}x{b.height} px cannot be compared")
    first, second = (np.asarray(image.convert("RGB"), dtype=np.float64) / 255 for image in (a, b))
    return float(np.sqrt(np.mean((first - second) ** 2)))


def _build_pipeline(components: Components, unet: Any, scheduler: Any) -> Any:
    from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline

    pipeline_class = StableDiffusionInpaintPipeline if components.inpainting else StableDiffusionPipeline
    pipeline = pipeline_class(
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _fitted(image: Image.Image | None, mode: str, blank: Any, width: int, height: int) -> Image.Image:
    if image is None:
        return Image.new(mode, (width, height), blank)
    return image.convert(mode).resize((width, height), Image.Resampling.LANCZOS)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule has the mode that it had, not all the same."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


@contextmanager
def _on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Encoders that were put aside on the CPU are brought to the UNet's device, and back."""
    home = next(module.parameters()).device
    if home == device:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)


@contextmanager
def _casting(unet: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Cast the UNet's floating-point inputs to `dtype` and its output back, as the training step does."""
    outside: list[torch.dtype] = []

    def enter(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        outside.append(args[0].dtype)
        return tuple(map(cast, args)), {key: cast(value) for key, value in kwargs.items()}

    def cast(value: Any) -> Any:
        # Timesteps are left alone: in a low precision neighbours would become the same.
        return (
            value.to(dtype)
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim > 1
            else value
        )

    def leave(module: nn.Module, inputs: Any, output: Any) -> Any:
        back = outside.pop()
        return tuple(part.to(back) for part in output)

    hooks = [
        unet.register_forward_pre_hook(enter, with_kwargs=True),
        unet.register_forward_hook(leave),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _rng_untouched(device: torch.device) -> Iterator[None]:
    """Nothing here should draw from the global generators; should a scheduler do it all the same, nobody notices."""
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        yield
