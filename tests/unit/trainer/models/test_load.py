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
from trainscope.trainer.models import hub
from trainscope.trainer.models.load import WEIGHTS, Components, load_components


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
        ("weights.safetensors", "single file"),
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
    for part, stem in WEIGHTS.items():
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
        ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "is a StableDiffusionXLPipeline"),
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


def test_a_hub_id_offline_fails_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set") as caught:
        load_components("nobody/no-such-model", base_dir=tmp_path)
    assert caught.value.hint is not None
    assert "hf download" in caught.value.hint


def test_a_hub_that_does_not_answer_is_one_message(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # read from the environment at its import
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", refuse)
    with pytest.raises(ModelError, match="the hub does not answer"):
        load_components("nobody/no-such-model", base_dir=tmp_path)


def test_of_a_repository_only_what_is_needed_is_downloaded() -> None:
    files = [
        "README.md", "model_index.json", "v1-5.ckpt", "v1-5.safetensors", "tokenizer/merges.txt", "unet/config.json",
        "unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.non_ema.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors", "safety_checker/model.safetensors",
    ]  # fmt: skip
    assert set(hub.choose_files(files, WEIGHTS, (None, "fp16"))) == {
        "model_index.json", "tokenizer/merges.txt", "unet/config.json", "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors", "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model-00002-of-00002.safetensors",
    }  # fmt: skip
