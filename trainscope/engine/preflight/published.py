"""The tensors of a single-file checkpoint under the names that diffusers and transformers have for them.

Names in the file are those of CompVis' latent-diffusion and Stability AI's generative-models, text encoders' also those
of OpenCLIP. The trainer lets diffusers convert them; tests hold both to the same names and shapes. Knows nothing of
how a file is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from trainscope.engine.preflight.stored import Weight, in_model
from trainscope.errors import ModelError
from trainscope.lora.kohya import LAYERS, from_sgm
from trainscope.lora.tensors import StoredTensor

UNET = "model.diffusion_model."
VAE = "first_stage_model."
ENCODERS = (
    ("cond_stage_model.transformer.", "text_encoder", "clip"),
    ("cond_stage_model.model.", "text_encoder", "open_clip"),
    ("conditioner.embedders.0.transformer.", "text_encoder", "clip"),
    ("conditioner.embedders.1.model.", "text_encoder_2", "open_clip"),
)
"""Where text encoders lie (Stable Diffusion 1, 2, and XL's two), which part they are, and whose names they have."""

_NORMS = {"in_layers.0": "norm1", "out_layers.0": "norm2"}
"""A resnet's norms, which no LoRA adapts and so `lora.kohya` leaves out."""
_OPEN_CLIP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_OPEN_CLIP_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_LAYER = re.compile(r"transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")
_UNUSED = re.compile(r"(.*\.)?(position_ids|logit_scale|attn_mask)$")
_LAST_OF_2 = "transformer.resblocks.23."
"""Stable Diffusion 2 was trained on the layer before the last, and diffusers leaves the last one out."""


def parts_of_file(path: Path, tensors: Iterable[StoredTensor]) -> list[Weight]:
    """The parts of a checkpoint. Raises `ModelError` for a file without Stable Diffusion's UNet."""
    found = [weight for tensor in tensors for weight in _weights(path, tensor)]
    if not any(weight.component == "unet" for weight in found):
        raise ModelError(
            f"{path} is no checkpoint of Stable Diffusion 1, 2 or XL: it has no tensor {UNET}…",
            hint="`trainscope run` says what it seems to be",
        )
    return found


def _weights(path: Path, tensor: StoredTensor) -> Iterator[Weight]:
    whole = Weight("", tensor.name, tensor.shape, tensor.dtype, path, tensor.start, tensor.end)
    if tensor.name.startswith(UNET):
        yield replace(whole, component="unet", name=_unet(tensor.name.removeprefix(UNET)))
    elif tensor.name.startswith(VAE):
        name = tensor.name.removeprefix(VAE)
        if not name.startswith(("loss.", "model_ema.")):
            yield replace(whole, component="vae", name=name)
    for prefix, component, layout in ENCODERS:
        if tensor.name.startswith(prefix):
            name = tensor.name.removeprefix(prefix)
            if _UNUSED.match(name):
                continue
            parts = [replace(whole, name=name)] if layout == "clip" else _open_clip(whole, name, component)
            for part in parts:
                yield replace(part, component=component, name=in_model(component, part.name))


def _unet(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module == "out.0":
        return f"conv_norm_out.{leaf}"
    path = from_sgm(module, LAYERS) or module
    for theirs, ours in _NORMS.items():
        if path.endswith(f".{theirs}"):
            path = f"{path.removesuffix(theirs)}{ours}"
    return f"{path}.{leaf}"


def _open_clip(whole: Weight, name: str, component: str) -> Iterator[Weight]:
    """OpenCLIP has query, key and value in one tensor, one below the other."""
    if component == "text_encoder_2" and name == "text_projection":
        yield replace(whole, name="text_projection.weight")
    elif name in _OPEN_CLIP:
        yield replace(whole, name=f"text_model.{_OPEN_CLIP[name]}")
    elif (found := _LAYER.fullmatch(name)) and not (component == "text_encoder" and name.startswith(_LAST_OF_2)):
        number, layer, leaf = found.groups()
        path = f"text_model.encoder.layers.{number}"
        if layer != "attn.in_proj":
            yield replace(whole, name=f"{path}.{_OPEN_CLIP_LAYER.get(layer, layer)}.{leaf}")
            return
        third = (whole.end - whole.start) // 3
        for place, half in enumerate(("q_proj", "k_proj", "v_proj")):
            yield replace(
                whole,
                name=f"{path}.self_attn.{half}.{leaf}",
                shape=(whole.shape[0] // 3, *whole.shape[1:]),
                start=whole.start + place * third,
                end=whole.start + (place + 1) * third,
            )
