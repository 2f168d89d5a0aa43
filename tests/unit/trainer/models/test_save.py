from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.unit.trainer.conftest import weights_digest
from trainscope.errors import ModelError
from trainscope.lora.contradictions import contradictions
from trainscope.lora.convert import convert
from trainscope.lora.file import read_lora
from trainscope.lora.kohya import dotted, kohya_name
from trainscope.lora.names import comparable
from trainscope.trainer.models.load import Components, load_components
from trainscope.trainer.models.lora import LoraPair, add_lora
from trainscope.trainer.models.quiet import quiet_libraries
from trainscope.trainer.models.save import save_kohya_lora, save_lora, save_pipeline, usage_hint
from trainscope.trainer.models.tiny import tiny_folder
from trainscope.trainer.models.vae import vae_encode
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
        PROMPT,
        negative_prompt="",  # None is not encoded in SDXL's pipeline
        num_inference_steps=steps,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        **inpainting,
    ).images[0]
    return image


def _train_a_little(components: Components) -> None:
    """Move the trained weights far enough that the image changes."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for model in components.models.values():
            for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def on_both(own_sd15: Components) -> list[LoraPair]:
    """Moved pairs on linear layers and 3×3 convolutions of the UNet and on the text encoder."""
    pairs = add_lora(own_sd15.unet, rank=4, alpha=3.0, targets=["to_q", "to_out.0", "proj_in"], conv_rank=2)
    pairs += add_lora(own_sd15.text_encoder, component="text_encoder", rank=3, alpha=1.0)
    _train_a_little(own_sd15)
    return pairs


def _save(layout: str, folder: Path, pairs: Sequence[LoraPair], **options: Any) -> Path:
    if layout == "diffusers":
        return save_lora(folder, pairs, **options)
    return save_kohya_lora(folder / "a.safetensors", pairs, **options)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("conv_alpha", [3.0, 0.5])
def test_a_lora_loads_in_diffusers_and_makes_the_same_image(
    own_sd15: Components, sd15_folder: Path, tmp_path: Path, layout: str, conv_alpha: float
) -> None:
    from diffusers import StableDiffusionPipeline

    untrained = _live(own_sd15)
    pairs = add_lora(own_sd15.unet, rank=4, alpha=3.0, conv_rank=2, conv_alpha=conv_alpha)
    pairs += add_lora(own_sd15.text_encoder, component="text_encoder", rank=3, alpha=1.0)
    _train_a_little(own_sd15)
    trained = _live(own_sd15)
    own_sd15.text_encoder.disable_adapters()
    without_text = _live(own_sd15)
    path = _save(layout, tmp_path / "lora", pairs)
    with quiet_libraries():
        pipeline = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None)
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
        assert image_distance(trained, untrained) > 0.003
        assert image_distance(trained, without_text) > 0.001
        assert image_distance(_in_diffusers(pipeline), trained) < 3e-4


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_a_lora_of_sdxl_too(tmp_path: Path, layout: str) -> None:
    """With both text encoders, and in kohya's layout with the names of Stability AI's code."""
    from diffusers import StableDiffusionXLPipeline

    sdxl = load_components("tiny:sdxl", base_dir=Path())
    untrained = _live(sdxl)
    pairs = add_lora(
        sdxl.unet, rank=4, alpha=3.0, targets=["to_q", "to_out.0", "proj_in", "time_emb_proj"], conv_rank=2
    )
    for number, encoder in enumerate(sdxl.text_encoders, 1):
        component = "text_encoder" if number == 1 else "text_encoder_2"
        pairs += add_lora(
            encoder, component=component, rank=2 + number, alpha=1.0, targets=["q_proj", "out_proj", "fc1"]
        )
    _train_a_little(sdxl)
    trained = _live(sdxl)
    options = {} if layout == "diffusers" else {"sdxl": True, "layers": sdxl.unet.config.layers_per_block}
    path = _save(layout, tmp_path / "lora", pairs, **options)
    sdxl.text_encoders[1].disable_adapters()
    without_second = _live(sdxl)
    with quiet_libraries():
        pipeline = StableDiffusionXLPipeline.from_pretrained(tiny_folder("sdxl"), add_watermarker=False)
        pipeline.load_lora_weights(path.parent, weight_name=path.name)
        assert min(image_distance(trained, other) for other in (untrained, without_second)) > 0.001
        assert image_distance(_in_diffusers(pipeline), trained) < 3e-4
    if layout == "kohya":
        names = {name.split(".")[0] for name in read_lora(path).tensors.tensors}
        assert {name.split("_text_model")[0] for name in names if "text_model" in name} == {"lora_te1", "lora_te2"}
        assert "lora_unet_middle_block_1_proj_in" in names
        assert not any("resnets" in name for name in names)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_lora_file_has_the_weights_to_the_bit(
    on_both: list[LoraPair], own_sd15: Components, tmp_path: Path, layout: str, dtype: torch.dtype
) -> None:
    before = [weights_digest(model) for model in own_sd15.models.values()]
    file = read_lora(_save(layout, tmp_path, on_both, dtype=dtype))
    assert [weights_digest(model) for model in own_sd15.models.values()] == before
    assert file.layout == layout
    assert len(file.pairs) == len(on_both)
    found = {(pair.component, pair.place): pair for pair in file.pairs}
    for pair in on_both:
        stored = found[(pair.component, comparable("diffusers", pair.component, pair.path))]
        assert (stored.rank, stored.alpha, stored.scale) == (pair.rank, pair.alpha, pair.scale)
        assert torch.equal(torch.from_numpy(stored.down), pair.a.detach().to(dtype).float())
        assert torch.equal(torch.from_numpy(stored.up), pair.b.detach().to(dtype).float())
    assert not contradictions(file)


def test_a_lora_file_says_what_it_is(on_both: list[LoraPair], tmp_path: Path) -> None:
    path = save_lora(tmp_path, on_both, dtype=torch.float16, metadata={"trainscope.step": "7"})
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        assert len(file.keys()) == 2 * len(on_both)
        assert all(file.get_tensor(name).dtype == torch.float16 for name in file.keys())  # noqa: SIM118 - no mapping
        assert "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight" in file.keys()  # noqa: SIM118
    assert header["trainscope.step"] == "7"
    adapter = json.loads(header["lora_adapter_metadata"])
    assert (adapter["unet.r"], adapter["unet.lora_alpha"]) == (2, 3)  # most pairs are on convolutions
    assert set(adapter["unet.rank_pattern"].values()) == {4}
    assert (adapter["text_encoder.r"], adapter["text_encoder.lora_alpha"]) == (3, 1)
    assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRGRP  # readable for the group, as any other file
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_kohya_file_says_what_it_is(on_both: list[LoraPair], tmp_path: Path) -> None:
    path = save_kohya_lora(tmp_path / "a.safetensors", on_both, metadata={"ss_steps": "7"})
    with safe_open(path, framework="pt") as file:
        header, names = file.metadata(), set(file.keys())
    for stem in (
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_unet_down_blocks_0_downsamplers_0_conv",
        "lora_te_text_model_encoder_layers_1_self_attn_q_proj",
    ):
        assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight", f"{stem}.alpha"} <= names
    assert len(names) == 3 * len(on_both)
    assert (header["ss_steps"], header["ss_network_module"]) == ("7", "networks.lora")
    assert header["ss_network_dim"] == header["ss_network_alpha"] == "Dynamic"  # the text encoder has its own
    assert json.loads(header["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "3"}
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert header["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_the_layouts_are_what_lora_convert_makes_of_each_other(on_both: list[LoraPair], tmp_path: Path) -> None:
    kohya = read_lora(save_kohya_lora(tmp_path / "a.safetensors", on_both, dtype=torch.float16))
    diffusers = read_lora(save_lora(tmp_path, on_both, dtype=torch.float16))
    for one, other in ((kohya, diffusers), (diffusers, kohya)):
        made, wanted = convert(one, other.layout).tensors, other.tensors  # type: ignore[arg-type]
        assert made.keys() == wanted.tensors.keys()
        for name, tensor in made.items():
            stored = wanted.tensors[name]
            assert (tensor.dtype, tensor.shape) == (stored.dtype, stored.shape)
            assert tensor.content == wanted.raw(name)


def test_every_module_of_sdxl_has_the_name_that_diffusers_maps_back() -> None:
    """Against diffusers' own conversion, on the architecture of SDXL's UNet without its weights."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.lora_conversion_utils import (
        _convert_non_diffusers_lora_to_diffusers,
        _maybe_map_sgm_blocks_to_diffusers,
    )
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10), cross_attention_dim=2048, attention_head_dim=(5, 10, 20),
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )  # fmt: skip
    paths = [name for name, module in unet.named_modules() if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)]
    stems = {name: kohya_name("unet", name, sdxl=True) for name in paths}
    tensors = {f"{stem}.{half}.weight": torch.zeros(1) for stem in stems.values() for half in ("lora_down", "lora_up")}
    mapped = _convert_non_diffusers_lora_to_diffusers(_maybe_map_sgm_blocks_to_diffusers(tensors, unet.config))[0]
    mapped = convert_unet_state_dict_to_peft({name.removeprefix("unet."): half for name, half in mapped.items()})
    assert {name.partition(".lora_")[0] for name in mapped} == set(paths)
    for path, stem in stems.items():
        assert stem is not None
        assert dotted(stem.removeprefix("lora_unet_")) == path
        assert dotted(path.replace(".", "_")) == path


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


def test_a_trained_text_encoder_is_saved_too(own_sd15: Components, tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline

    own_sd15.text_encoder.requires_grad_(True)
    untrained = _live(own_sd15)
    _train_a_little(own_sd15)
    folder = save_pipeline(tmp_path / "half", own_sd15, dtype=torch.float16, trained={"text_encoder"})
    with quiet_libraries():
        half = StableDiffusionPipeline.from_pretrained(folder)
    # "the others keep their format" is read from the files: from_pretrained loads everything as float32.
    for part, stem, dtype in (
        ("text_encoder", "model", torch.float16),
        ("unet", "diffusion_pytorch_model", torch.float32),
    ):
        with safe_open(folder / part / f"{stem}.safetensors", framework="pt") as file:
            assert {file.get_tensor(name).dtype for name in file.keys()} == {dtype}  # noqa: SIM118 - no mapping
    name = "encoder.layers.1.mlp.fc2.weight"
    live = own_sd15.text_encoder.state_dict()[name]
    assert torch.equal(half.text_encoder.state_dict()[name].float(), live.half().float())
    folder = save_pipeline(tmp_path / "full", own_sd15, trained={"text_encoder"})
    with quiet_libraries():
        pipeline = StableDiffusionPipeline.from_pretrained(folder)
        assert image_distance(_live(own_sd15), untrained) > 0.003
        assert image_digest(_in_diffusers(pipeline)) == image_digest(_live(own_sd15))
    again = load_components("full", base_dir=tmp_path)
    assert weights_digest(again.text_encoder) == weights_digest(own_sd15.text_encoder)


def test_both_text_encoders_of_sdxl_too(tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    sdxl = load_components("tiny:sdxl", base_dir=Path())
    for model in sdxl.models.values():
        model.requires_grad_(True)
    _train_a_little(sdxl)
    folder = save_pipeline(tmp_path / "model", sdxl, trained=sdxl.models.keys())
    with quiet_libraries():
        pipeline = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
        # diffusers encodes the prompts one by one, which moves the last bits.
        assert image_distance(_in_diffusers(pipeline), _live(sdxl)) < 3e-4
    for name, model in sdxl.models.items():
        assert weights_digest(getattr(pipeline, name)) == weights_digest(model)


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
        assert weights_digest(pipeline.unet) == weights_digest(own_inpainting.unet)
        # diffusers draws the masked picture's latents; in training they are the mean.
        kept = pipeline.image_processor.preprocess(picture) * (pipeline.mask_processor.preprocess(mask) < 0.5)
        painted = {"image": picture, "mask_image": mask, "masked_image_latents": vae_encode(pipeline.vae, kept)}
        assert image_digest(_in_diffusers(pipeline, **painted)) == image_digest(live)


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
        save_lora(tmp_path, [])
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
