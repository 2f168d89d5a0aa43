"""Single-file checkpoints in the published key layout, for tests: the reverse of what the package does with them.

    python -m tests.integration.published

makes trainscope/trainer/models/published/tensors.json.gz anew: models of the published sizes are built without storage,
and their tensors named as in the original files.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from trainscope.trainer.models import architectures as data
from trainscope.trainer.models.architectures import Architecture, PublishedEncoder
from trainscope.trainer.models.load import Components

TENSORS = Path(data.__file__).parent / "published" / "tensors.json.gz"
DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"}

RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
EMBEDDINGS = ("token_embedding.weight", "position_embedding.weight", "positional_embedding")
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def published_unet(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A UNet's tensors by their names in openaimodel.py, where blocks are numbered through."""
    layers = config["layers_per_block"]
    attended = [kind != "UpBlock2D" for kind in config["up_block_types"]]
    named = {}
    for name, tensor in state.items():
        stem, _, kind = name.rpartition(".")
        if stem in UNET_ENDS:
            named[f"{UNET_ENDS[stem]}.{kind}"] = tensor
            continue
        if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", stem):
            place = f"input_blocks.{(int(match[1]) + 1) * (layers + 1)}.0.op"
        elif match := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", stem):
            block = int(match[1])
            place = f"output_blocks.{block * (layers + 1) + layers}.{2 if attended[block] else 1}.conv"
        elif match := re.fullmatch(
            r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?(resnets|attentions)\.(\d+)\.(.*)", stem
        ):
            side, block, what, layer = match[1], int(match[2] or 0), match[3], int(match[4])
            inner = RESNET[match[5]] if what == "resnets" else match[5]
            if side == "mid_block":
                place = f"middle_block.{2 * layer if what == 'resnets' else 1}.{inner}"
            else:
                first = block * (layers + 1) + (1 if side == "down_blocks" else 0)
                side = "input_blocks" if side == "down_blocks" else "output_blocks"
                place = f"{side}.{first + layer}.{0 if what == 'resnets' else 1}.{inner}"
        else:
            raise ValueError(name)
        named[f"{place}.{kind}"] = tensor
    return named


def published_vae(state: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """A VAE's tensors by their names in CompVis' model.py; its attention was made of 1x1 convolutions."""
    last = len(config["up_block_types"]) - 1
    named = {}
    for name, tensor in state.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{last - int(m[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        if match := re.fullmatch(r"(.*)mid_block\.attentions\.0\.(.*)\.(weight|bias)", new):
            new = f"{match[1]}mid.attn_1.{VAE_ATTENTION[match[2]]}.{match[3]}"
            tensor = tensor[:, :, None, None] if tensor.ndim == 2 else tensor
        named[new] = tensor
    return named


def published_encoder(state: Mapping[str, Tensor], encoder: PublishedEncoder, unused_layer: bool) -> dict[str, Tensor]:
    """A text encoder's tensors; OpenCLIP has query, key and value in one, and a layer that Stable Diffusion 2 skips."""
    plain = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    if encoder.layout == "clip":
        positions = torch.arange(encoder.config["max_position_embeddings"])[None]
        named = {f"text_model.{name}": tensor for name, tensor in plain.items()}
        return named | {"text_model.embeddings.position_ids": positions}
    width = encoder.config["hidden_size"]
    named = {
        "positional_embedding": plain["embeddings.position_embedding.weight"],
        "token_embedding.weight": plain["embeddings.token_embedding.weight"],
        "ln_final.weight": plain["final_layer_norm.weight"],
        "ln_final.bias": plain["final_layer_norm.bias"],
        "logit_scale": torch.tensor(4.6052),
    }
    device = named["positional_embedding"].device
    projection = plain.get("text_projection.weight")
    named["text_projection"] = (torch.eye(width, device=device) if projection is None else projection.T).contiguous()
    layers = encoder.config["num_hidden_layers"]
    for layer in range(layers + unused_layer):
        source = f"encoder.layers.{min(layer, layers - 1)}."
        target = f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [plain[f"{source}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            named[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
            for old, new in OPEN_CLIP.items():
                named[f"{target}{new}.{kind}"] = plain[f"{source}{old}.{kind}"].clone()
    return named


def published(
    architecture: Architecture, unet: Any, vae: Any, text_encoders: tuple[Any, ...], dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """All tensors of a model by their published names."""
    named = {f"{data.UNET}{k}": v for k, v in published_unet(unet.state_dict(), unet.config).items()}
    named |= {f"{data.VAE}{k}": v for k, v in published_vae(vae.state_dict(), vae.config).items()}
    for encoder, model in zip(architecture.text_encoders, text_encoders, strict=True):
        unused = any("resblocks" in name for name in architecture.optional)
        named |= {f"{encoder.prefix}{k}": v for k, v in published_encoder(model.state_dict(), encoder, unused).items()}
    if dtype is not None:
        named = {k: v.to(dtype) if v.is_floating_point() else v for k, v in named.items()}
    return named


def empty_models(architecture: Architecture) -> tuple[Any, Any, tuple[Any, ...]]:
    """UNet, VAE and text encoders of the published sizes, without storage."""
    import transformers
    from diffusers import AutoencoderKL, UNet2DConditionModel

    with torch.device("meta"):
        encoders = tuple(
            getattr(transformers, encoder.model_class)(transformers.CLIPTextConfig(**encoder.config))
            for encoder in architecture.text_encoders
        )
        unet = UNet2DConditionModel.from_config(dict(architecture.unet))
        return unet, AutoencoderKL.from_config(dict(architecture.vae)), encoders


def derived_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The list of a model's tensors, from its configurations alone."""
    return {name: tuple(tensor.shape) for name, tensor in published(architecture, *empty_models(architecture)).items()}


def tiny_architecture(components: Components, like: str) -> Architecture:
    """The architecture of a tiny model, as if it had been published like `like` (sd1, sd2, sdxl)."""
    known = data.architectures()[like]
    encoders = tuple(
        replace(encoder, config=model.config.to_dict(), pad_token=tokenizer.pad_token)
        for encoder, model, tokenizer in zip(
            known.text_encoders, components.text_encoders, components.tokenizers, strict=True
        )
    )
    unused = encoders[0].config["num_hidden_layers"]
    tiny = replace(
        known,
        title=f"tiny {known.title}",
        unet=dict(components.unet.config),
        vae=dict(components.vae.config),
        text_encoders=encoders,
        optional=tuple(re.sub(r"resblocks\.\d+", f"resblocks.{unused}", name) for name in known.optional),
    )
    named = published(tiny, components.unet, components.vae, components.text_encoders)
    return replace(tiny, tensors={name: tuple(tensor.shape) for name, tensor in named.items()})


def write_tiny(
    components: Components, architecture: Architecture, path: Path, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Write a tiny model as a single file; returns its tensors."""
    named = published(architecture, components.unet, components.vae, components.text_encoders, dtype)
    named = {name: tensor.contiguous() for name, tensor in named.items()}
    save_file(named, path)
    return named


def write_single_file(kind: str, path: Path, dtype: torch.dtype = torch.float16, seed: int = 0) -> Path:
    """Write a random model of the published size ("sd1", "sd2" or "sdxl"; "sd1-inpainting" …), one tensor at a time.

    Weights have the variance 1 / fan-in, norms are the identity: activations stay finite, also in half precision.
    """
    name, _, inpainting = kind.partition("-")
    shapes = dict(data.architectures()[name].tensors)
    if inpainting:
        shapes[data.CONV_IN] = (shapes[data.CONV_IN][0], 9, *shapes[data.CONV_IN][2:])
    header: dict[str, Any] = {}
    end = 0
    for tensor_name, shape in shapes.items():
        counted = tensor_name.endswith("position_ids")
        start, end = end, end + math.prod(shape) * (8 if counted else dtype.itemsize)
        kept = "I64" if counted else DTYPES[dtype]
        header[tensor_name] = {"dtype": kept, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in _random_tensors(shapes, dtype, seed):
            file.write(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return path


def _random_tensors(shapes: data.Shapes, dtype: torch.dtype, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for name, shape in shapes.items():
        if name.endswith("position_ids"):
            yield torch.arange(shape[-1])[None]
        elif len(shape) > 1:
            scale = 0.02 if name.endswith(EMBEDDINGS) else 1 / math.sqrt(math.prod(shape[1:]))
            yield (scale * torch.randn(shape, generator=generator)).to(dtype)
        else:  # norms have a weight of one dimension, everything else a bias
            yield (torch.ones if name.endswith(".weight") else torch.zeros)(shape, dtype=dtype)


def main() -> None:
    """Write the list of the published tensors."""
    lists = {}
    for name in data.NAMES:
        described = json.loads((TENSORS.parent / f"{name}.json").read_text(encoding="utf-8"))
        lists[name] = dict(sorted(derived_shapes(data.read_architecture(described, {})).items()))
    text = json.dumps(lists, separators=(",", ":"))
    TENSORS.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    for name, tensors in lists.items():
        print(f"{name}: {len(tensors)} tensors")


if __name__ == "__main__":
    main()
