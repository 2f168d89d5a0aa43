from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from trainscope.errors import ModelError
from trainscope.trainer.models.architectures import CONV_IN, NAMES, Shapes, architectures
from trainscope.trainer.models.recognise import Header, read_header, recognise, recognise_vae


def _header(shapes: Shapes, **metadata: str) -> Header:
    return Header(shapes, {f"modelspec.{name}": value for name, value in metadata.items()}, "model.safetensors")


def _refusal(shapes: Shapes) -> ModelError:
    with pytest.raises(ModelError) as caught:
        recognise(_header(shapes))
    assert "model.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", NAMES)
def test_the_published_files_are_recognised(name: str) -> None:
    known = recognise(_header(architectures()[name].tensors))
    assert known.architecture is architectures()[name]
    assert not known.inpainting


@pytest.mark.parametrize("name", NAMES)
def test_nine_input_channels_mean_inpainting(name: str) -> None:
    tensors = {**architectures()[name].tensors, CONV_IN: (320, 9, 3, 3)}
    assert recognise(_header(tensors)).inpainting


@pytest.mark.parametrize(
    "name",
    [
        "model_ema.diffusion_modelinput_blocks00weight", "model_ema.decay", "alphas_cumprod", "betas",
        "sqrt_one_minus_alphas_cumprod", "posterior_variance", "logvar", "denoiser.sigmas",
        "cond_stage_model.logit_scale", "cond_stage_model.transformer.text_projection.weight",
        "first_stage_model.loss.discriminator.main.0.weight", "v_pred", "ztsnr",
    ],
)  # fmt: skip
def test_what_published_files_have_besides_is_passed_over(name: str) -> None:
    recognise(_header({**architectures()["sd1"].tensors, name: (1,)}))


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("sd1", "cond_stage_model.transformer.text_model.embeddings.position_ids"),
        ("sd2", "cond_stage_model.model.logit_scale"),
        ("sd2", "cond_stage_model.model.text_projection"),
        ("sd2", "cond_stage_model.model.transformer.resblocks.23."),
        ("sdxl", "conditioner.embedders.1.model.logit_scale"),
    ],
)
def test_what_is_not_used_need_not_be_there(name: str, lacking: str) -> None:
    tensors = architectures()[name].tensors
    assert any(key.startswith(lacking) for key in tensors)
    recognise(_header({key: shape for key, shape in tensors.items() if not key.startswith(lacking)}))


def test_the_projection_of_sdxl_is_used() -> None:
    tensors = dict(architectures()["sdxl"].tensors)
    del tensors["conditioner.embedders.1.model.text_projection"]
    assert "1 missing (conditioner.embedders.1.model.text_projection)" in str(_refusal(tensors))


def test_attention_of_the_vae_may_be_matrices() -> None:
    tensors = dict(architectures()["sd1"].tensors)
    for letter in "qkv":
        tensors[f"first_stage_model.decoder.mid.attn_1.{letter}.weight"] = (512, 512)
    recognise(_header(tensors))


def test_all_that_is_wrong_is_one_message() -> None:
    tensors = dict(architectures()["sd1"].tensors)
    for number in range(4):
        del tensors[
            f"model.diffusion_model.input_blocks.{number + 1 if number < 2 else number + 2}.0.in_layers.2.weight"
        ]
    tensors["model.diffusion_model.out.2.weight"] = (8, 320, 3, 3)
    tensors["model.diffusion_model.extra.weight"] = (1,)
    message = str(_refusal(tensors))
    assert "a checkpoint of Stable Diffusion 1," in message
    assert "4 missing (model.diffusion_model.input_blocks.1.0.in_layers.2.weight, " in message
    assert ", …); 1 of another shape (model.diffusion_model.out.2.weight is 8x320x3x3, not 4x320x3x3)" in message
    assert "; 1 unexpected (model.diffusion_model.extra.weight)" in message


def test_without_its_vae_a_file_needs_another() -> None:
    tensors = {
        name: s for name, s in architectures()["sd1"].tensors.items() if not name.startswith("first_stage_model.")
    }
    assert str(_refusal(tensors)).endswith("a checkpoint of Stable Diffusion 1, has no VAE in it")
    recognise(_header(tensors), vae=False)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.diffusion_model.joint_blocks.0.context_block.adaLN_modulation.1.bias", "Stable Diffusion 3"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "Flux"),
        ("conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias", "the refiner of SDXL"),
        ("control_model.time_embed.0.weight", "a ControlNet"),
        ("controlnet_cond_embedding.conv_in.weight", "a ControlNet"),
        ("edm_mean", "Playground v2.5"),
        ("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias", "AnimateDiff"),
        ("clip_txt_mapper.weight", "Stable Cascade"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "a LoRA"),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", "a LoRA"),
        ("down_blocks.0.resnets.0.conv1.weight", "one part of a diffusers folder"),
        ("text_model.encoder.layers.0.mlp.fc1.weight", "a text encoder"),
        ("encoder.conv_in.weight", "a VAE"),
        ("emb_params", "a textual inversion"),
        ("something.else", "no checkpoint of Stable Diffusion 1, 2 or XL"),
    ],
)
def test_other_kinds_are_refused_by_name(name: str, says: str) -> None:
    assert says in str(_refusal({name: (1, 1)}))


def test_a_refiner_is_refused_though_most_of_its_names_are_sdxls() -> None:
    tensors = {name.replace("embedders.1", "embedders.0"): s for name, s in architectures()["sdxl"].tensors.items()}
    assert "the refiner of SDXL" in str(_refusal(tensors))


@pytest.mark.parametrize("channels", [5, 7, 8])
def test_other_input_channels_are_refused(channels: int) -> None:
    tensors = {**architectures()["sd2"].tensors, CONV_IN: (320, channels, 3, 3)}
    assert f"takes {channels} input channels; allowed are 4" in str(_refusal(tensors))


def test_a_merge_of_two_kinds_is_refused() -> None:
    sd1, sd2 = (architectures()[name].tensors for name in ("sd1", "sd2"))
    text = {name: shape for name, shape in sd2.items() if name.startswith("cond_stage_model.")}
    unet = {name: shape for name, shape in sd1.items() if not name.startswith("cond_stage_model.")}
    assert "64 of another shape" in str(_refusal({**unet, **text}))


@pytest.mark.parametrize(
    ("tensors", "metadata", "prediction"),
    [
        ({}, {}, None),
        ({"v_pred": (0,)}, {}, "v_prediction"),
        ({}, {"prediction_type": "v"}, "v_prediction"),
        ({}, {"predict_key": "epsilon"}, "epsilon"),
        ({}, {"architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ({}, {"architecture": "stable-diffusion-v2-512"}, "epsilon"),
        ({}, {"architecture": "stable-diffusion-v1"}, None),
    ],
)
def test_marks_say_what_is_predicted(
    tensors: dict[str, tuple[int, ...]], metadata: dict[str, str], prediction: str | None
) -> None:
    assert recognise(_header({**architectures()["sd2"].tensors, **tensors}, **metadata)).prediction == prediction


@pytest.mark.parametrize("name", NAMES)
def test_a_header_is_read_and_checked_in_no_time(name: str, tmp_path: Path) -> None:
    """From a file of the published size that takes no room on the disk."""
    path = tmp_path / "sparse.safetensors"
    header, end = {}, 0
    for key, shape in architectures()[name].tensors.items():
        size = 2
        for side in shape:
            size *= side
        header[key] = {"dtype": "F16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    architectures()
    began = time.perf_counter()
    recognise(read_header(path))
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_files_are_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(
        {"truncated": (9999).to_bytes(8, "little") + b'{"a"', "empty": b"", "text": b"<html></html>"}[damage]
    )
    with pytest.raises(ModelError, match="damaged, incomplete or no safetensors") as caught:
        read_header(path)
    assert caught.value.hint


def test_a_vae_is_known_by_its_three_namings() -> None:
    whole = architectures()["sd1"].tensors
    bare = {name.removeprefix("first_stage_model."): s for name, s in whole.items() if name.startswith("first_stage")}
    assert recognise_vae(_header(whole)) == "whole"
    assert recognise_vae(_header({**bare, "loss.logvar": (), "model_ema.decay": ()})) == "bare"
    assert recognise_vae(_header({"encoder.down_blocks.0.resnets.0.conv1.weight": (1,)})) == "diffusers"
    with pytest.raises(ModelError, match=r"the VAE of model.safetensors .* 1 missing \(decoder.conv_in.bias\)"):
        recognise_vae(_header({name: shape for name, shape in bare.items() if name != "decoder.conv_in.bias"}))
    with pytest.raises(ModelError, match="has no VAE in it"):
        recognise_vae(_header({"something.else": (1,)}))
    with pytest.raises(ModelError, match="is a text encoder"):
        recognise_vae(_header({"text_model.final_layer_norm.weight": (1,)}))
