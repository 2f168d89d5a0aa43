from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainscope.errors import ModelError
from trainscope.trainer.models.folder import ONE
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.tiny import tiny_folder


@pytest.fixture
def model(sd15_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to damage."""
    return Path(shutil.copytree(sd15_folder, tmp_path / "model"))


def _refusal(folder: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        load_components(folder.name, base_dir=folder.parent)
    return caught.value


def test_parts_come_frozen_in_eval_mode_and_float32(sd15: Components) -> None:
    for part in (sd15.unet, sd15.vae, sd15.text_encoder):
        assert not part.training
        assert all(not p.requires_grad and p.dtype == torch.float32 for p in part.parameters())
    assert type(sd15.noise_scheduler).__name__ == "DDPMScheduler"
    assert sd15.noise_scheduler.config.beta_schedule == "scaled_linear"
    assert sd15.noise_scheduler.config.prediction_type == "epsilon"
    assert not sd15.inpainting
    assert sd15.source == "tiny:sd15"


def test_nine_channels_mean_inpainting(inpainting: Components) -> None:
    assert inpainting.inpainting


def test_a_folder_is_relative_to_the_base_folder(model: Path, sd15: Components) -> None:
    loaded = load_components(model.name, base_dir=model.parent)
    assert loaded.source == str(model)
    for name, tensor in sd15.unet.state_dict().items():
        assert torch.equal(tensor, loaded.unet.state_dict()[name])


def test_loading_says_nothing(model: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    load_components(str(model), base_dir=Path("/"))
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_quiet_restores_the_warnings(model: Path) -> None:
    load_components(str(model), base_dir=Path("/"))
    with pytest.warns(UserWarning, match="still heard"):
        warnings.warn("still heard", stacklevel=1)


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("tiny:sd51", "did you mean tiny:sd15"),
        ("no/such/folder", "there is no folder"),
        ("./owner/name", "there is no folder"),
        ("weights.safetensors", "there is no file"),
    ],
)
def test_bases_that_cannot_be_meant(base: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        load_components(base, base_dir=tmp_path)
    assert caught.value.hint


def test_a_folder_that_is_no_pipeline_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    message = str(_refusal(tmp_path / "photos"))
    assert "model_index.json" in message
    assert "unet/config.json" in message


def test_a_missing_part_is_named(model: Path) -> None:
    shutil.rmtree(model / "vae")
    message = str(_refusal(model))
    assert "vae/config.json" in message
    assert "unet" not in message.removeprefix(str(model))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "text"])
def test_damaged_weights_are_named(model: Path, part: str, damage: str) -> None:
    path = next((model / part).glob("*.safetensors"))
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"<html>not found</html>"}[damage])
    error = _refusal(model)
    assert f"{part}/{path.name} is damaged or incomplete" in str(error)
    assert "\n" not in str(error)
    assert error.hint


def test_missing_tensors_are_not_replaced_by_random_ones(model: Path) -> None:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_out.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    assert "lacks 1 tensors, the first is conv_out.weight" in str(_refusal(model))


def test_tensors_of_the_wrong_shape_are_one_line(model: Path) -> None:
    path = model / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.weight"] = tensors["conv_out.weight"][:, :8].contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    message = str(_refusal(model))
    assert "the unet of" in message
    assert "\n" not in message


def test_pickled_weights_are_refused_with_the_way_to_convert_them(model: Path) -> None:
    (model / "unet" / "diffusion_pytorch_model.safetensors").rename(model / "unet" / "diffusion_pytorch_model.bin")
    error = _refusal(model)
    assert "unpickling runs code" in str(error)
    assert error.hint is not None
    assert "use_safetensors=False" in error.hint
    assert "save_pretrained" in error.hint


def test_a_half_precision_variant_is_loaded_as_float32(model: Path) -> None:
    for part, stem in ONE.weights.items():
        path = model / part / f"{stem}.safetensors"
        half = {name: tensor.half() for name, tensor in load_file(path).items()}
        save_file(half, model / part / f"{stem}.fp16.safetensors", metadata={"format": "pt"})
        path.unlink()
    loaded = load_components(str(model), base_dir=Path())
    assert loaded.unet.dtype == loaded.vae.dtype == loaded.text_encoder.dtype == torch.float32


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        ("unet/config.json", {"in_channels": 8}, "8 input channels"),
        ("unet/config.json", {"cross_attention_dim": 64}, "the unet of"),
        ("model_index.json", {"_class_name": "StableDiffusion3Pipeline"}, "is a StableDiffusion3Pipeline; trainscope"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "is a FluxPipeline; trainscope"),
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "lacks tokenizer_2/tokenizer_config.json"),
    ],
)
def test_models_of_another_kind(model: Path, file: str, change: dict[str, Any], says: str) -> None:
    path = model / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if "in_channels" in change:
        weights = model / "unet" / "diffusion_pytorch_model.safetensors"
        tensors = load_file(weights)
        tensors["conv_in.weight"] = tensors["conv_in.weight"].repeat(1, 2, 1, 1)
        save_file(tensors, weights, metadata={"format": "pt"})
    assert says in str(_refusal(model))


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_damaged_configuration_is_a_model_error(model: Path, file: str) -> None:
    (model / file).write_text("{")
    assert _refusal(model)


def test_stable_diffusion_xl_has_two_text_encoders(sdxl: Components) -> None:
    assert sdxl.sdxl
    assert list(sdxl.models) == ["unet", "text_encoder", "text_encoder_2"]
    assert [type(encoder).__name__ for encoder in sdxl.text_encoders] == [
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
    ]
    assert all(not p.requires_grad and p.dtype == torch.float32 for m in sdxl.models.values() for p in m.parameters())
    assert not sdxl.inpainting


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_class_name": "StableDiffusionXLImg2ImgPipeline", "text_encoder": [None, None]}, "is the refiner of SDXL"),
        (
            {"_class_name": "StableDiffusionPipeline"},
            "attends to embeddings of width 80, and the text encoder gives width 32",
        ),
    ],
)
def test_xl_folders_that_are_something_else(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert says in str(_refusal(folder))


@pytest.mark.parametrize("part", ["text_encoder_2", "tokenizer_2"])
def test_a_missing_second_part_is_named(part: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))
    shutil.rmtree(folder / part)
    assert f"it lacks {part}/" in str(_refusal(folder))


def test_nine_channels_of_xl_are_inpainting_too(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder("sdxl"), tmp_path / "model"))
    weights, config = folder / "unet" / "diffusion_pytorch_model.safetensors", folder / "unet" / "config.json"
    tensors = load_file(weights)
    tensors["conv_in.weight"] = torch.cat([tensors["conv_in.weight"], torch.zeros(32, 5, 3, 3)], dim=1)
    save_file(tensors, weights, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"in_channels": 9}))
    loaded = load_components(str(folder), base_dir=Path())
    assert loaded.inpainting
    assert loaded.sdxl


def test_paths_are_relative_to_the_base_folder(model: Path) -> None:
    shutil.copytree(model / "vae", model.parent / "other")
    shutil.copytree(model / "tokenizer", model.parent / "clip")
    loaded = load_components("model", base_dir=model.parent, vae="other", tokenizer="clip")
    assert loaded.tokenizer.name_or_path == str(model.parent / "clip")
