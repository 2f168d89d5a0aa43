"""Reads what a LoRA tensor's name says: which half of which pair, of which module, in which layout.

Layouts: kohya (`lora_unet_<path_with_underscores>.lora_down.weight`), diffusers (`unet.<path>.lora_A.weight`, and the
older `.lora.down`, `_lora.down`, `.lora_linear_layer.down`) and peft (`base_model.model.<path>.lora_A.weight`). Knows
nothing of tensors, models or files; `kohya` knows its names of modules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from trainscope.lora.kohya import LAYERS, dotted, is_sgm

Layout = Literal["kohya", "diffusers", "peft"]
Half = Literal["down", "up"]

PEFT_PREFIX = "base_model.model."

_HALF = re.compile(
    r"(?P<stem>.+?)(?P<style>\.lora_down|\.lora_up|\.lora_A|\.lora_B|[._]lora\.down|[._]lora\.up"
    r"|\.lora_linear_layer\.down|\.lora_linear_layer\.up)(?P<end>(?:\.[^.]+)?\.weight)"
)
_OTHER_HALF = {"lora_A": "lora_B", "lora_B": "lora_A", "down": "up", "up": "down"}

_KOHYA_COMPONENTS = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "lora_te3_": "text_encoder_3",
    "lora_transformer_": "transformer",
}
_COMPONENT = re.compile(r"(unet|text_encoder(?:_\d)?|transformer(?:_\d)?|prior|decoder)\.(.+)")

_OLD_UNET = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
"""What the attention processors of diffusers before 0.22 called the layers that have other names now."""

_BLOCK = re.compile(r"(\w*?blocks?)(?:[._](\d+))?(?:[._]|$)")


@dataclass(frozen=True)
class TensorName:
    """One half of a pair.

    `stem` is what both halves and `.alpha` share; `partner` is the other half's name. `prefix` is what precedes the
    module's path in diffusers' metadata: "unet." or, where the file names no component, "".
    """

    half: Half
    stem: str
    partner: str
    layout: Layout
    component: str
    module: str
    prefix: str


def parse_name(name: str) -> TensorName | None:
    """What a tensor's name says, or None if it names no half of a pair."""
    found = _HALF.fullmatch(name)
    if not found:
        return None
    stem, style, end = found.group("stem", "style", "end")
    word = next(word for word in _OTHER_HALF if style.endswith(word))
    half: Half = "down" if word in ("lora_A", "down") else "up"
    partner = f"{stem}{style.removesuffix(word)}{_OTHER_HALF[word]}{end}"
    layout = _layout(stem, style)
    component, module, prefix = _KIND[layout](stem)
    if style.startswith("_lora"):
        module = _modern(module, component)
    return TensorName(half, stem, partner, layout, component, module.replace(".processor.", "."), prefix)


def block_of(component: str, module: str) -> str:
    """The part of the model that a module is counted with: down_blocks.0, mid_block, conv_in, text_encoder …"""
    if component not in ("unet", "transformer"):
        return component
    found = _BLOCK.match(module)
    if found:
        return found.group(1) + (f".{found.group(2)}" if found.group(2) else "")
    return module.partition(".")[0]


def comparable(layout: Layout, component: str, module: str, *, layers: int = LAYERS) -> str:
    """A module's name in a form that is the same for every layout, and for the model's own name (as in diffusers').

    kohya has underscores for dots, and for SDXL the paths of another code; transformers 5 dropped `text_model.`.
    `layers` is the UNet's `layers_per_block`.
    """
    if layout == "kohya" and component == "unet" and is_sgm(module):
        module = dotted(module, layers=layers) or module
    name = module.replace(".", "_")
    if component.startswith("text_encoder") and not name.startswith(("text_model_", "text_projection")):
        name = f"text_model_{name}"
    return name


def _layout(stem: str, style: str) -> Layout:
    if "." not in stem and style in (".lora_down", ".lora_up"):
        return "kohya"
    return "peft" if stem.startswith(PEFT_PREFIX) else "diffusers"


def _kohya(stem: str) -> tuple[str, str, str]:
    for prefix, component in _KOHYA_COMPONENTS.items():
        if stem.startswith(prefix):
            return component, stem.removeprefix(prefix), f"{component}."
    return "other", stem, ""


def _diffusers(stem: str) -> tuple[str, str, str]:
    found = _COMPONENT.fullmatch(stem)
    if found:
        return found.group(1), found.group(2), f"{found.group(1)}."
    return _guessed(stem), stem, ""


def _peft(stem: str) -> tuple[str, str, str]:
    module = stem.removeprefix(PEFT_PREFIX)
    return _guessed(module), module, ""


def _guessed(module: str) -> str:
    """The component that a path without one belongs to: CLIP's attentions have names of their own."""
    return "text_encoder" if module.startswith("text_model.") or ".self_attn." in module else "unet"


_KIND = {"kohya": _kohya, "diffusers": _diffusers, "peft": _peft}


def _modern(module: str, component: str) -> str:
    """`…attn1.processor.to_out` → `…attn1.to_out.0`; in a text encoder `…self_attn.to_q` → `…self_attn.q_proj`."""
    path, _, layer = module.removeprefix("processor.").rpartition(".")
    names = _OLD_TEXT if component.startswith("text_encoder") else _OLD_UNET
    return f"{path.removesuffix('.processor')}.{names.get(layer, layer)}"
