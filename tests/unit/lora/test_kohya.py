"""Names as published kohya files have them, and the modules of diffusers that they are of."""

from __future__ import annotations

import pytest

from trainscope.lora.kohya import canonical, dotted, is_sgm, kohya_name

XL = {
    "lora_unet_input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "lora_unet_input_blocks_8_1_transformer_blocks_9_attn2_to_out_0": (
        "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_out.0"
    ),
    "lora_unet_middle_block_1_transformer_blocks_3_ff_net_0_proj": (
        "mid_block.attentions.0.transformer_blocks.3.ff.net.0.proj"
    ),
    "lora_unet_output_blocks_0_1_transformer_blocks_0_attn1_to_q": (
        "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    ),
    "lora_unet_output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
    "lora_unet_input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "lora_unet_input_blocks_6_0_op": "down_blocks.1.downsamplers.0.conv",
    "lora_unet_output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "lora_unet_output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
    "lora_unet_input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "lora_unet_middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "lora_unet_middle_block_0_emb_layers_1": "mid_block.resnets.0.time_emb_proj",
    "lora_unet_input_blocks_0_0": "conv_in",
    "lora_unet_out_2": "conv_out",
    "lora_unet_time_embed_2": "time_embedding.linear_2",
    "lora_unet_label_emb_0_0": "add_embedding.linear_1",
}
TEXT = "text_model.encoder.layers.11.mlp.fc1"


@pytest.mark.parametrize(("name", "path"), XL.items())
def test_sdxl(name: str, path: str) -> None:
    assert kohya_name("unet", path, sdxl=True) == name
    assert dotted(name.removeprefix("lora_unet_")) == path


@pytest.mark.parametrize("path", XL.values())
def test_the_others_have_diffusers_own_paths(path: str) -> None:
    name = kohya_name("unet", path, sdxl=False)
    assert name == "lora_unet_" + path.replace(".", "_")
    assert dotted(name.removeprefix("lora_unet_")) == path


@pytest.mark.parametrize("path", ["down_blocks.0.resnets.0.conv1", "up_blocks.1.attentions.1.proj_in"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_blocks_of_another_depth(path: str, layers: int) -> None:
    name = kohya_name("unet", path, sdxl=True, layers=layers)
    assert name is not None
    assert dotted(name.removeprefix("lora_unet_"), layers=layers) == path


def test_sd1_in_stability_ais_names() -> None:
    """Its first level up has no attention, so the upsampler comes right behind the resnet."""
    assert dotted("output_blocks_2_1_conv") == "up_blocks.0.upsamplers.0.conv"


@pytest.mark.parametrize("path", [TEXT, TEXT.removeprefix("text_model.")])
def test_text_encoders(path: str) -> None:
    """Transformers 5 dropped `text_model.` from the modules' names; files keep it."""
    assert kohya_name("text_encoder", path, sdxl=False) == "lora_te_text_model_encoder_layers_11_mlp_fc1"
    assert kohya_name("text_encoder", path, sdxl=True) == "lora_te1_text_model_encoder_layers_11_mlp_fc1"
    assert kohya_name("text_encoder_2", path, sdxl=True) == "lora_te2_text_model_encoder_layers_11_mlp_fc1"
    assert canonical("text_encoder", path) == TEXT
    assert dotted("text_model_encoder_layers_11_mlp_fc1") == TEXT


def test_what_kohya_has_no_name_for() -> None:
    assert kohya_name("text_encoder_2", TEXT, sdxl=False) is None
    assert kohya_name("transformer", "x", sdxl=True) is None
    assert kohya_name("unet", "something.new", sdxl=True) is None
    assert kohya_name("text_encoder_2", "text_projection", sdxl=True) == "lora_te2_text_projection"


@pytest.mark.parametrize("name", ["double_blocks_0_img_attn_proj", "x", "down_blocks_0_resnet", "input_blocks_4_3_op"])
def test_what_is_not_known_has_no_path(name: str) -> None:
    assert dotted(name) is None


@pytest.mark.parametrize("name", XL)
def test_stability_ais_names_are_known(name: str) -> None:
    assert is_sgm(name.removeprefix("lora_unet_")) == (name != "lora_unet_out_2")


def test_diffusers_names_are_not_taken_for_them() -> None:
    assert not any(is_sgm(path.replace(".", "_")) for path in XL.values())
