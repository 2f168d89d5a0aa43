from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.unit.trainer.conftest import weights_digest
from trainscope.errors import ModelError
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.lora import add_lora
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.save import save_lora, save_pipeline, usage_hint
from trainscope.trainer.sample import image_digest, image_distance, sample_images

PROMPT = "a red circle on a white background"


def _live(components: Components, steps: int = 4) -> Image.Image:
    return sample_images(
        components, components.unet, prompts=[PROMPT], sampler="ddim", steps=steps, guidance=3.0, width=64, height=64
    )[0]


def _in_diffusers(pipeline: Any, steps: int = 4, **inpainting: Any) -> Image.Image:
    """The same image by diffusers alone, as a user would make it."""
    from diffusers import DDIMScheduler

    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=False, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    image: Image.Image = pipeline(
        PROMPT, num_inference_steps=steps, guidance_scale=3.0, generator=torch.Generator().manual_seed(0), **inpainting
    ).images[0]
    return image


def _train_a_little(components: Components) -> None:
    """Move the trained weights far enough that the image changes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in components.unet.parameters():
            if parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("alpha", [4.0, 1.0])
def test_a_lora_loads_in_diffusers_and_makes_the_same_image(
    own_sd15: Components, sd15_folder: Path, tmp_path: Path, alpha: float
) -> None:
    from diffusers import StableDiffusionPipeline

    untrained = _live(own_sd15)
    add_lora(own_sd15.unet, rank=4, alpha=alpha)
    _train_a_little(own_sd15)
    trained = _live(own_sd15)
    path = save_lora(tmp_path / "lora", own_sd15.unet, dtype=torch.float32, metadata={"trainscope.step": "7"})
    with quiet_libraries():
        pipeline = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
        pipeline.load_lora_weights(path.parent)
        assert image_distance(trained, untrained) > 0.003
        assert image_distance(_in_diffusers(pipeline), trained) < 3e-4


def test_a_lora_file_says_what_it_is(own_sd15: Components, tmp_path: Path) -> None:
    pairs = add_lora(own_sd15.unet, rank=4, alpha=1.5)
    before = weights_digest(own_sd15.unet)
    path = save_lora(tmp_path, own_sd15.unet, dtype=torch.float16, metadata={"trainscope.step": "7"})
    assert weights_digest(own_sd15.unet) == before
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        assert len(file.keys()) == 2 * len(pairs)
        assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())  # noqa: SIM118 - no mapping
    assert header["trainscope.step"] == "7"
    adapter = json.loads(header["lora_adapter_metadata"])
    assert (adapter["unet.r"], adapter["unet.lora_alpha"]) == (4, 1.5)
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRGRP  # readable for the group, as any other file
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_fine_tune_loads_in_diffusers_and_makes_the_same_image(own_sd15: Components, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    own_sd15.unet.requires_grad_(True)
    _train_a_little(own_sd15)
    folder = save_pipeline(tmp_path / "model", own_sd15, dtype=torch.float32)
    with quiet_libraries():
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        assert image_digest(_in_diffusers(pipeline)) == image_digest(_live(own_sd15))
    again = load_components("model", base_dir=tmp_path)
    assert weights_digest(again.unet) == weights_digest(own_sd15.unet)
    assert image_digest(_live(again)) == image_digest(_live(own_sd15))


def test_an_inpainting_fine_tune_too(own_inpainting: Components, tmp_path: Path) -> None:
    from diffusers import StableDiffusionInpaintPipeline

    own_inpainting.unet.requires_grad_(True)
    _train_a_little(own_inpainting)
    picture, mask = Image.new("RGB", (64, 64), (200, 30, 30)), Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    live = sample_images(
        own_inpainting, own_inpainting.unet, prompts=[PROMPT], sampler="ddim", steps=4, guidance=3.0,
        width=64, height=64, inpaint_image=picture, inpaint_mask=mask,
    )[0]  # fmt: skip
    folder = save_pipeline(tmp_path / "model", own_inpainting)
    with quiet_libraries():
        pipeline = StableDiffusionInpaintPipeline.from_pretrained(folder)
        assert image_digest(_in_diffusers(pipeline, image=picture, mask_image=mask)) == image_digest(live)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_saving_in_another_dtype_leaves_the_live_model_alone(
    own_sd15: Components, tmp_path: Path, dtype: torch.dtype, capfd: pytest.CaptureFixture[str]
) -> None:
    before, state = weights_digest(own_sd15.unet), torch.get_rng_state()
    parameters = [id(parameter) for parameter in own_sd15.unet.parameters()]
    save_pipeline(tmp_path / "model", own_sd15, dtype=dtype)
    assert weights_digest(own_sd15.unet) == before
    assert [id(parameter) for parameter in own_sd15.unet.parameters()] == parameters
    assert torch.equal(torch.get_rng_state(), state)
    assert capfd.readouterr() == ("", "")
    with safe_open(tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118 - no mapping


def test_a_folder_that_is_there_is_replaced_as_a_whole(own_sd15: Components, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_pipeline(folder, own_sd15)
    (folder / "stale.txt").write_text("of before")
    save_pipeline(folder, own_sd15)
    assert not (folder / "stale.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_save_that_fails_leaves_the_old_weights(
    own_sd15: Components, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pipeline(tmp_path / "model", own_sd15)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("diffusers.StableDiffusionPipeline.save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        save_pipeline(folder, own_sd15)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_each_kind_is_saved_its_own_way(own_sd15: Components, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no LoRA"):
        save_lora(tmp_path, own_sd15.unet)
    add_lora(own_sd15.unet, rank=2, alpha=2.0)
    with pytest.raises(ModelError, match="save_lora"):
        save_pipeline(tmp_path / "model", own_sd15)


@pytest.mark.parametrize("kind", ["lora", "finetune"])
@pytest.mark.parametrize("inpainting", [False, True])
def test_the_hint_is_short_python(kind: Any, inpainting: bool) -> None:
    hint = usage_hint(kind, Path("runs/a/weights/pytorch_lora_weights.safetensors"), inpainting)
    compile(hint, "hint", "exec")
    assert 3 <= len(hint.splitlines()) <= 6
    assert "runs/a/weights" in hint
    assert ("Inpaint" in hint) == inpainting
