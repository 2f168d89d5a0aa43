"""Names of tensors in the layouts that are about, and the modules that they mean."""

from __future__ import annotations

import pytest

from trainscope.lora.names import Layout, block_of, comparable, parse_name

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


@pytest.mark.parametrize(
    ("layout", "component", "module", "name"),
    [
        ("kohya", "unet", OUT.replace(".", "_"), OUT),
        ("diffusers", "unet", OUT, OUT),
        ("kohya", "unet", "input_blocks_4_1_transformer_blocks_0_attn1_to_q", Q.replace("blocks.0", "blocks.1", 1)),
        ("kohya", "unet", "input_blocks_3_0_op", "down_blocks.0.downsamplers.0.conv"),
        ("kohya", "unet", "output_blocks_2_2_conv", "up_blocks.0.upsamplers.0.conv"),
        ("kohya", "text_encoder", TEXT.replace(".", "_"), TEXT.removeprefix("text_model.")),
        ("kohya", "text_encoder_2", TEXT.replace(".", "_"), TEXT),
        ("diffusers", "text_encoder", TEXT, TEXT.removeprefix("text_model.")),
        ("diffusers", "text_encoder", TEXT.removeprefix("text_model."), TEXT),
        ("kohya", "text_encoder_2", "text_projection", "text_projection"),
        ("kohya", "unet", "something_else", "something.else"),
    ],
)
def test_the_same_module_in_every_layout(layout: Layout, component: str, module: str, name: str) -> None:
    assert comparable(layout, component, module) == comparable("diffusers", component, name)


def test_other_modules_are_others() -> None:
    assert comparable("kohya", "unet", OUT.replace(".", "_")) != comparable("diffusers", "unet", Q)
    assert comparable("diffusers", "unet", OUT) != comparable("diffusers", "unet", f"x.{OUT}")
    assert comparable("diffusers", "unet", "text_model.x") != comparable("diffusers", "unet", "x")
