"""Generates sample images with the real diffusers pipeline, and compares them.

Sampling in the middle of a training must leave no trace in it: weights, modes, dtypes, devices and the global random
states are afterwards what they were. Knows nothing of when to sample, or of where images are kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from trainscope.errors import DataError, ModelError
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.pipelines import build_pipeline
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.text import TextEmbedding, encode_text
from trainscope.trainer.models.vae import vae_decode, vae_encode
from trainscope.trainer.samplers import build_sampler


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
    encode: Callable[[Sequence[str]], TextEmbedding] | None = None,
    autocast_dtype: torch.dtype | None = None,
    inpaint_image: Image.Image | None = None,
    inpaint_mask: Image.Image | None = None,
) -> list[Image.Image]:
    """Generate one RGB image of `width` x `height` px (multiples of 8) for each prompt, each from the same `seed`.

    `encode` reads prompts as training reads captions; plain `encode_text` if None. `unet` may be a copy with other
    weights (EMA) and in any floating-point dtype: its inputs are cast to its own, and the latents stay float32. A
    prompt's image does not depend on the other prompts. An inpainting model paints the light part of `inpaint_mask` in
    `inpaint_image`; without them the whole of a grey picture. Non-finite pixels come out black.
    Raises `ModelError` for an unknown sampler or an impossible size.
    """
    scheduler = build_sampler(sampler, components.noise_scheduler)
    encode = encode or partial(encode_text, components)
    if width % 8 or height % 8 or min(width, height) < 8:
        raise ModelError(f"a sample of {width}x{height} px is impossible: sides are multiples of 8")
    weight = next(unet.parameters())
    device = weight.device
    images: list[Image.Image] = []
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(quiet_libraries())
        stack.enter_context(_rng_untouched(device))
        for module in (unet, components.vae, *components.text_encoders):
            stack.enter_context(_evaluating(module))
            stack.enter_context(_on_device(module, device))
        stack.enter_context(_casting(unet, weight.dtype))
        pipeline = build_pipeline(components, unet=unet, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        fixed: dict[str, Any] = {}
        if components.inpainting:
            fixed = _to_paint(components, pipeline, inpaint_image, inpaint_mask, width, height)
        for prompt in prompts:
            with _autocast(device, autocast_dtype):
                latents = pipeline(
                    **_text(encode, prompt, negative_prompt if guidance > 1 else None),
                    num_inference_steps=steps,
                    guidance_scale=guidance,
                    width=width,
                    height=height,
                    generator=torch.Generator().manual_seed(seed),
                    output_type="latent",
                    **fixed,
                ).images
            pixels = vae_decode(components.vae, latents)
            images += pipeline.image_processor.postprocess(pixels.nan_to_num(nan=-1.0), output_type="pil")
    return images


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


def _text(encode: Callable[[Sequence[str]], TextEmbedding], prompt: str, negative: str | None) -> dict[str, Tensor]:
    """A prompt, and what it is guided away from, as the pipelines take them; both are of one length."""
    encoded = encode([prompt] if negative is None else [prompt, negative])
    named = {"prompt_embeds": encoded.hidden}
    if encoded.pooled is not None:
        named["pooled_prompt_embeds"] = encoded.pooled
    rows = {name: rows.float() for name, rows in named.items()}
    given = {name: row[:1] for name, row in rows.items()}
    if negative is not None:
        given |= {f"negative_{name}": row[1:] for name, row in rows.items()}
    return given


def _to_paint(
    components: Components, pipeline: Any, image: Image.Image | None, mask: Image.Image | None, width: int, height: int
) -> dict[str, Any]:
    """What an inpainting pipeline is given besides; the masked picture is encoded as it is in training."""
    picture = _fitted(image, "RGB", (128, 128, 128), width, height)
    light = _fitted(mask, "L", 255, width, height)
    pixels = pipeline.image_processor.preprocess(picture, height=height, width=width)
    kept = pipeline.mask_processor.preprocess(light, height=height, width=width) < 0.5
    return {
        "image": picture,
        "mask_image": light,
        "masked_image_latents": vae_encode(components.vae, pixels * kept),
    }


def _fitted(image: Image.Image | None, mode: str, blank: Any, width: int, height: int) -> Image.Image:
    if image is None:
        return Image.new(mode, (width, height), blank)
    return image.convert(mode).resize((width, height), Image.Resampling.LANCZOS)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


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
