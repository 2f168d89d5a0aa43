"""Names of tensors in the layouts that are about, and the modules that they mean."""

from __future__ import annotations

import pytest

from trainscope.lora.names import block_of, parse_name, same_module

Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
TEXT = "text_model.encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("down", "up", "layout", "component", "module"),
    [
        (f"unet.{Q}.lora_A.weight", f"unet.{Q}.lora_B.weight", "diffusers", "unet", Q),
        (f"unet.{Q}.lora.down.weight", f"unet.{Q}.lora.up.weight", "diffusers", "unet", Q),
        (f"{Q}.lora_A.weight", f"{Q}.lora_B.weight", "diffusers", "unet", Q),
        (f"transformer.{Q}.lora_A.weight", f"transformer.{Q}.lora_B.weight", "diffusers", "transformer", Q),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.down.weight",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight",
            "diffusers", "unet", OUT,
        ),
        (
            f"text_encoder_2.{TEXT}.lora_linear_layer.down.weight",
            f"text_encoder_2.{TEXT}.lora_linear_layer.up.weight",
            "diffusers", "text_encoder_2", TEXT,
        ),
        (
            f"text_encoder.{TEXT.removesuffix('q_proj')}to_q_lora.down.weight",
            f"text_encoder.{TEXT.removesuffix('q_proj')}to_q_lora.up.weight",
            "diffusers", "text_encoder", TEXT,
        ),
        (f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight", "peft", "unet", Q),
        (
            f"base_model.model.{TEXT}.lora_A.default.weight",
            f"base_model.model.{TEXT}.lora_B.default.weight",
            "peft", "text_encoder", TEXT,
        ),
        (
            f"lora_unet_{Q.replace('.', '_')}.lora_down.weight",
            f"lora_unet_{Q.replace('.', '_')}.lora_up.weight",
            "kohya", "unet", Q.replace(".", "_"),
        ),
        ("lora_te2_x_fc1.lora_down.weight", "lora_te2_x_fc1.lora_up.weight", "kohya", "text_encoder_2", "x_fc1"),
        ("lora_te_x_fc1.lora_down.weight", "lora_te_x_fc1.lora_up.weight", "kohya", "text_encoder", "x_fc1"),
    ],
)  # fmt: skip
def test_both_halves_name_each_other(down: str, up: str, layout: str, component: str, module: str) -> None:
    lower, upper = parse_name(down), parse_name(up)
    assert lower is not None
    assert upper is not None
    assert (lower.half, lower.partner) == ("down", up)
    assert (upper.half, upper.partner) == ("up", down)
    for name in (lower, upper):
        assert (name.layout, name.component, name.module) == (layout, component, module)
    assert lower.stem == upper.stem


@pytest.mark.parametrize(
    "name",
    ["conv_in.weight", "lora_unet_x.alpha", "lora_unet_x.lora_mid.weight", "unet.x.lora_B.bias", "x.lora_down", ""],
)
def test_other_names_are_no_halves(name: str) -> None:
    assert parse_name(name) is None


@pytest.mark.parametrize(
    ("component", "module", "block"),
    [
        ("unet", Q, "down_blocks.0"),
        ("unet", Q.replace(".", "_"), "down_blocks.0"),
        ("unet", OUT, "mid_block"),
        ("unet", OUT.replace(".", "_"), "mid_block"),
        ("unet", "input_blocks_4_1_transformer_blocks_0_attn1_to_q", "input_blocks.4"),
        ("unet", "conv_in", "conv_in"),
        ("unet", "time_embedding.linear_1", "time_embedding"),
        ("text_encoder", TEXT, "text_encoder"),
        ("transformer", "transformer_blocks.7.attn.to_q", "transformer_blocks.7"),
    ],
)
def test_blocks(component: str, module: str, block: str) -> None:
    assert block_of(component, module) == block


def test_kohya_has_underscores_for_dots() -> None:
    assert same_module("kohya", OUT.replace(".", "_"), OUT)
    assert not same_module("kohya", OUT.replace(".", "_"), Q)
    assert same_module("diffusers", OUT, OUT)
    assert not same_module("diffusers", OUT, f"x.{OUT}")
