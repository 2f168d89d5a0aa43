from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.published import published_vae
from tests.unit.trainer.conftest import weights_digest
from tests.unit.trainer.models.conftest import Single
from trainscope.errors import ModelError
from trainscope.trainer.models import hub
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.tiny import tiny_folder

FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def vae_folder(tmp_path: Path) -> Path:
    """The tiny SDXL's VAE: other weights and another scaling factor than SD 1.5's."""
    return Path(shutil.copytree(tiny_folder("sdxl") / "vae", tmp_path / "vae"))


def _load(name: str, base_dir: Path) -> Components:
    return load_components("tiny:sd15", base_dir=base_dir, vae=name)


@pytest.mark.parametrize("name", ["vae", ".", "pipeline"])
def test_a_folder_brings_its_scaling_factor(name: str, vae_folder: Path, sdxl: Components, sd15: Components) -> None:
    """A VAE's own folder, one that holds it, or a pipeline's."""
    shutil.copytree(tiny_folder("sdxl"), vae_folder.parent / "pipeline")
    loaded = _load(name, vae_folder.parent)
    assert weights_digest(loaded.vae) == weights_digest(sdxl.vae) != weights_digest(sd15.vae)
    assert loaded.vae.config.scaling_factor == 0.13025
    assert weights_digest(loaded.unet) == weights_digest(sd15.unet)
    assert not any(parameter.requires_grad for parameter in loaded.vae.parameters())


def test_a_hub_id(monkeypatch: pytest.MonkeyPatch, vae_folder: Path, sdxl: Components) -> None:
    monkeypatch.setattr(hub, "download_vae", lambda name: vae_folder)
    assert weights_digest(_load("somebody/a-vae", vae_folder.parent).vae) == weights_digest(sdxl.vae)


@pytest.mark.parametrize("naming", ["diffusers", "bare", "whole"])
@pytest.mark.usefixtures("single")
def test_a_file_takes_the_scaling_factor_of_the_vae_in_its_place(
    naming: str,
    sdxl: Components,
    sd15: Components,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    published_tiny: object,
) -> None:
    state = sdxl.vae.state_dict()
    if naming != "diffusers":
        state = published_vae(state, sdxl.vae.config)
        state = {("first_stage_model." if naming == "whole" else "") + name: tensor for name, tensor in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "vae.safetensors")
    loaded = _load("vae.safetensors", tmp_path).vae
    assert weights_digest(loaded) == weights_digest(sdxl.vae)
    assert loaded.config.scaling_factor == sd15.vae.config.scaling_factor


def test_a_single_file_model_takes_another_vae(single: object, vae_folder: Path, sdxl: Components) -> None:
    written: Single = single("sd15")  # type: ignore[operator]
    loaded = written.load(vae=str(vae_folder / FILE))
    assert weights_digest(loaded.vae) == weights_digest(sdxl.vae)
    assert loaded.vae.config.scaling_factor == 0.18215


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere", "there is no folder"),
        ("nowhere.safetensors", "there is no file"),
        ("vae.ckpt", "unpickling runs code"),
        ("empty", r"neither config\.json nor vae/config\.json"),
        ("vae.safetensors", "damaged, incomplete"),
    ],
)
def test_what_is_no_vae_is_refused(name: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "vae.safetensors").write_text("<html>")
    with pytest.raises(ModelError, match=says) as caught:
        _load(name, tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("damage", ["truncated", "pickled", "missing tensor", "config"])
def test_a_damaged_folder_is_refused(damage: str, vae_folder: Path) -> None:
    weights = vae_folder / FILE
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:100])
    elif damage == "pickled":
        weights.rename(vae_folder / "diffusion_pytorch_model.bin")
    elif damage == "missing tensor":
        tensors = load_file(weights)
        del tensors["decoder.conv_out.weight"]
        save_file(tensors, weights)
    else:
        (vae_folder / "config.json").write_text("{")
    with pytest.raises(ModelError) as caught:
        _load("vae", vae_folder.parent)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_latents_of_other_channels_are_refused(vae_folder: Path) -> None:
    from diffusers import AutoencoderKL

    config = json.loads((vae_folder / "config.json").read_text())
    with torch.device("cpu"):
        AutoencoderKL.from_config({**config, "latent_channels": 16}).save_pretrained(vae_folder)
    with pytest.raises(ModelError, match=r"latents have 16 channels, and the UNet of tiny:sd15 denoises 4"):
        _load("vae", vae_folder.parent)


def test_a_file_of_another_vae_is_one_line(tmp_path: Path, vae_folder: Path) -> None:
    tensors = load_file(vae_folder / FILE)
    tensors["decoder.conv_in.weight"] = tensors["decoder.conv_in.weight"][:, :2].contiguous()
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match=r"does not fit AutoencoderKL: .*decoder\.conv_in\.weight") as caught:
        _load("other.safetensors", tmp_path)
    assert "\n" not in str(caught.value)
