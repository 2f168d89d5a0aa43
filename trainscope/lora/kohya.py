"""kohya's names of modules and the paths that diffusers has for them, both ways.

kohya (sd-scripts) writes a module's path with underscores for dots. For Stable Diffusion 1.x and 2.x that is diffusers'
path; SDXL's UNet has the path that it has in Stability AI's own code: input_blocks, middle_block, output_blocks. Knows
nothing of tensors or files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

LAYERS = 2
"""Resnets in a block of Stable Diffusion's UNets on the way down; on the way up there is one more."""

LAYERS_KEY = "trainscope_layers_per_block"
"""Where a file says that its UNet has another number."""

COMPONENTS = {"unet": "lora_unet_", "text_encoder": "lora_te_"}
SDXL_COMPONENTS = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
"""What kohya's names begin with, by component."""

_WORDS = (
    *("down_blocks", "mid_block", "up_blocks", "input_blocks", "middle_block", "output_blocks", "transformer_blocks"),
    *("to_q", "to_k", "to_v", "to_out", "proj_in", "proj_out", "conv_in", "conv_out", "conv_shortcut"),
    *("time_emb_proj", "time_embedding", "add_embedding", "linear_1", "linear_2"),
    *("in_layers", "out_layers", "emb_layers", "skip_connection", "time_embed", "label_emb"),
    *("text_model", "text_projection", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
)
"""The names in paths that have underscores of their own."""
_PLAIN = re.compile(
    r"\d+|resnets|attentions|downsamplers|upsamplers|conv[12]?|attn[12]|ff|net|proj|op|out|encoder|layers|mlp|fc[12]"
)
"""The others."""
_DOTTED_WORD = re.compile(
    r"(?<![^.])(?:"
    + "|".join(word.replace("_", r"\.") for word in sorted(_WORDS, key=len, reverse=True))
    + r")(?![^.])"
)

_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
"""Names in diffusers → in Stability AI's code (diffusers, scripts/convert_diffusers_to_original_sdxl.py)."""
_RESNET_BACK = {other: own for own, other in _RESNET.items()}
_SINGLE_BACK = {other: own for own, other in _SINGLE.items()}

_DOWN = re.compile(r"down_blocks\.(\d+)\.(resnets|attentions|downsamplers)\.(\d+)\.(.+)")
_MID = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_UP = re.compile(r"up_blocks\.(\d+)\.(resnets|attentions|upsamplers)\.(\d+)\.(.+)")
_INPUT = re.compile(r"input_blocks\.(\d+)\.(\d+)\.(.+)")
_INPUT_OP = re.compile(r"input_blocks\.(\d+)\.0\.op")
_MIDDLE = re.compile(r"middle_block\.(\d+)\.(.+)")
_OUTPUT = re.compile(r"output_blocks\.(\d+)\.(\d+)\.(.+)")


def kohya_name(component: str, module: str, *, sdxl: bool, layers: int = LAYERS) -> str | None:
    """The name that kohya gives a module, by its path in diffusers; None for a component or a place that it lacks.

    `layers` is the UNet's `layers_per_block`. The text encoders' modules lie in `text_model`, whether the path says so
    or not: transformers dropped it in version 5.
    """
    prefix = (SDXL_COMPONENTS if sdxl else COMPONENTS).get(component)
    if prefix is None:
        return None
    path: str | None = canonical(component, module)
    if component == "unet" and sdxl:
        path = _to_sgm(module, layers)
    return prefix + path.replace(".", "_") if path else None


def dotted(module: str, *, layers: int = LAYERS) -> str | None:
    """The path in diffusers by kohya's name without its prefix; None if a part of it is not known."""
    path = _DOTTED_WORD.sub(lambda found: found[0].replace(".", "_"), module.replace("_", "."))
    if not all(part in _WORDS or _PLAIN.fullmatch(part) for part in path.split(".")):
        return None
    return from_sgm(path, layers)


def layers_of(metadata: Mapping[str, str]) -> int:
    """The UNet's `layers_per_block`, by a file's metadata."""
    said = metadata.get(LAYERS_KEY, "")
    return int(said) if re.fullmatch(r"[1-9]", said) else LAYERS


def canonical(component: str, module: str) -> str:
    """A text encoder's module with the `text_model.` that recent versions of transformers dropped; others as they are.

    Files are written with it: old versions need it, and diffusers takes it off for new ones.
    """
    if component.startswith("text_encoder") and not module.startswith(("text_model.", "text_projection")):
        return f"text_model.{module}"
    return module


def is_sgm(name: str) -> bool:
    """Whether a name is one of Stability AI's code."""
    return re.search(r"(?:^|_)(?:input_blocks_|middle_block_|output_blocks_|label_emb_|time_embed_)", name) is not None


def _to_sgm(path: str, layers: int) -> str | None:
    if path in _SINGLE:
        return _SINGLE[path]
    if found := _DOWN.fullmatch(path):
        block, kind, number, rest = int(found[1]), found[2], int(found[3]), found[4]
        if kind == "downsamplers":
            return f"input_blocks.{(layers + 1) * (block + 1)}.0.op" if rest == "conv" else None
        place = f"input_blocks.{(layers + 1) * block + number + 1}"
    elif found := _MID.fullmatch(path):
        kind, number, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{1 if kind == 'attentions' else 2 * number}.{_inside(kind, rest)}"
    elif found := _UP.fullmatch(path):
        block, kind, number, rest = int(found[1]), found[2], int(found[3]), found[4]
        if kind == "upsamplers":  # behind the attention, which every level that is enlarged has in SDXL
            return f"output_blocks.{(layers + 1) * block + layers}.2.{rest}"
        place = f"output_blocks.{(layers + 1) * block + number}"
    else:
        return None
    return f"{place}.{1 if kind == 'attentions' else 0}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest


def from_sgm(path: str, layers: int) -> str | None:
    """The path in diffusers by that in Stability AI's code; a path of another code is left as it is."""
    if path in _SINGLE_BACK:
        return _SINGLE_BACK[path]
    if found := _INPUT_OP.fullmatch(path):
        return f"down_blocks.{(int(found[1]) - 1) // (layers + 1)}.downsamplers.0.conv"
    if found := _INPUT.fullmatch(path):
        block, number = divmod(int(found[1]) - 1, layers + 1)
        return _under(f"down_blocks.{block}", found[2], number, found[3])
    if found := _MIDDLE.fullmatch(path):
        place = int(found[1])
        return _under("mid_block", "1" if place == 1 else "0", 0 if place == 1 else place // 2, found[2])
    if found := _OUTPUT.fullmatch(path):
        block, number = divmod(int(found[1]), layers + 1)
        if found[3] == "conv":
            return f"up_blocks.{block}.upsamplers.0.conv"
        return _under(f"up_blocks.{block}", found[2], number, found[3])
    return path


def _under(block: str, inner: str, number: int, rest: str) -> str | None:
    if inner == "0":
        return f"{block}.resnets.{number}.{_RESNET_BACK.get(rest, rest)}"
    return f"{block}.attentions.{number}.{rest}" if inner == "1" else None
