from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.trainer.conftest import weights_digest
from tests.unit.trainer.models.conftest import LIKE, Single
from trainscope.errors import ModelError
from trainscope.trainer.models.load import load_components
from trainscope.trainer.models.text import encode_text
from trainscope.trainer.models.tiny import tiny_folder

MakeSingle = Callable[[str], Single]


@pytest.mark.parametrize("name", LIKE)
@torch.no_grad()
def test_a_single_file_is_the_same_model_as_the_folder(single: MakeSingle, name: str) -> None:
    written = single(name)
    folder, file = written.components, written.load()
    for component, model in {**folder.models, "vae": folder.vae}.items():
        loaded = {**file.models, "vae": file.vae}[component]
        assert weights_digest(loaded) == weights_digest(model), component
        assert not loaded.training
        assert all(not p.requires_grad and p.dtype == torch.float32 and not p.is_meta for p in loaded.parameters())
    captions = ["a red circle! on a white background", ""]
    ours, theirs = (
        encode_text(file, captions, clip_skip=2 - file.sdxl),
        encode_text(folder, captions, clip_skip=2 - file.sdxl),
    )
    assert torch.equal(ours.hidden, theirs.hidden)
    if theirs.pooled is not None:
        assert ours.pooled is not None
        assert torch.equal(ours.pooled, theirs.pooled)
    for key in ("prediction_type", "beta_schedule", "beta_start", "beta_end", "clip_sample"):
        assert file.noise_scheduler.config[key] == folder.noise_scheduler.config[key]
    assert file.vae.config.scaling_factor == folder.vae.config.scaling_factor
    assert (file.inpainting, file.sdxl) == (folder.inpainting, folder.sdxl)
    assert file.location == written.path
    assert file.source == str(written.path)


def test_half_precision_is_read_exactly(single: MakeSingle) -> None:
    written = single("sdxl")
    save_file(
        {name: tensor.half() for name, tensor in written.tensors.items() if tensor.is_floating_point()}, written.path
    )
    loaded = written.load()
    for component, model in written.components.models.items():
        halved = {name: tensor.half().float() for name, tensor in model.state_dict().items()}
        found = loaded.models[component].state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in halved.items()), component


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_parts_are_loaded_in_the_formats_asked_for(single: MakeSingle, kind: str) -> None:
    """Rounded once, as a cast of what is in the file."""
    written = single("sdxl")
    dtypes = {"unet": torch.bfloat16, "vae": torch.float16, "text_encoder_2": torch.bfloat16}
    loaded = (
        written.load(dtypes=dtypes) if kind == "file" else load_components("tiny:sdxl", base_dir=Path(), dtypes=dtypes)  # type: ignore[arg-type]
    )
    for part, model in {**written.components.models, "vae": written.components.vae}.items():
        dtype = dtypes.get(part, torch.float32)
        found = {**loaded.models, "vae": loaded.vae}[part].state_dict()
        assert all(torch.equal(found[name], tensor.to(dtype)) for name, tensor in model.state_dict().items()), part
        assert {tensor.dtype for tensor in found.values()} == {dtype}


def test_the_loaded_weights_are_copies(single: MakeSingle) -> None:
    """The file may be replaced while it is trained on, and training never writes into it."""
    written = single("sd15")
    before = written.path.read_bytes()
    loaded = written.load()
    digest = weights_digest(loaded.unet)
    written.path.write_bytes(b"")
    assert weights_digest(loaded.unet) == digest
    written.path.write_bytes(before)
    with torch.no_grad():
        next(loaded.unet.parameters()).add_(1)
    assert written.path.read_bytes() == before


def test_attention_of_the_vae_saved_as_matrices(
    single: MakeSingle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tiny VAE has no attention; a real one does, and diffusers' conversion takes both forms."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = {"down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"]}
    square = {"first_stage_model.encoder.mid.attn_1.q.weight": torch.ones(4, 4, 1, 1)}
    flat = {name: tensor[:, :, 0, 0] for name, tensor in square.items()}
    found = [convert_ldm_vae_checkpoint(tensors, config) for tensors in (square, flat)]
    assert all(part["encoder.mid_block.attentions.0.to_q.weight"].shape == (4, 4) for part in found)


def test_what_stable_diffusion_2_predicts_cannot_be_told(single: MakeSingle) -> None:
    said: list[str] = []
    loaded = single("sd2-v").load(warn=said.append)
    assert loaded.noise_scheduler.config.prediction_type == "v_prediction"
    assert len(said) == 1
    assert 'model.prediction_type = "epsilon"' in said[0]


@pytest.mark.parametrize("asked", ["epsilon", "v_prediction"])
def test_what_is_asked_for_is_predicted(single: MakeSingle, asked: str) -> None:
    said: list[str] = []
    loaded = single("sd2-v").load(prediction_type=asked, warn=said.append)
    assert loaded.noise_scheduler.config.prediction_type == asked
    assert loaded.unet.config.sample_size == (64 if asked == "epsilon" else 8)  # what the tiny one says of itself
    assert not said


@pytest.mark.parametrize("name", ["sd2-v", "sd15"])
def test_marks_in_the_file_are_followed(single: MakeSingle, name: str) -> None:
    written = single(name)
    said: list[str] = []
    save_file({**written.tensors, "v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, written.path)
    scheduler = written.load(warn=said.append).noise_scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) == 0
    save_file(dict(written.tensors), written.path, metadata={"modelspec.prediction_type": "epsilon"})
    assert written.load(warn=said.append).noise_scheduler.config.prediction_type == "epsilon"
    assert not said


def test_damaged_tensors_are_refused_before_the_tokenizer_is_looked_for(single: MakeSingle) -> None:
    written = single("sd15")
    tensors = {name: tensor for name, tensor in written.tensors.items() if not name.endswith("out.2.weight")}
    save_file(tensors, written.path)
    with pytest.raises(ModelError, match=r"1 missing \(model.diffusion_model.out.2.weight\)"):
        written.load(tokenizer="nowhere")


def test_a_file_without_a_vae_loads_with_another(single: MakeSingle) -> None:
    written = single("sd15")
    save_file({k: t for k, t in written.tensors.items() if not k.startswith("first_stage_model.")}, written.path)
    with pytest.raises(ModelError, match="has no VAE in it"):
        written.load()
    loaded = written.load(vae=str(tiny_folder("sd15") / "vae"))
    assert weights_digest(loaded.vae) == weights_digest(written.components.vae)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".CKPT"])
def test_pickled_checkpoints_are_refused_with_the_way_to_convert_them(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelError, match="unpickling runs code") as caught:
        load_components(path.name, base_dir=tmp_path)
    assert caught.value.hint is not None
    code = caught.value.hint.partition('python -c "')[2].removesuffix('"')
    compile(code, "hint", "exec")
    torch.save({"state_dict": {"a": torch.ones(2), "step": 3}}, path)
    exec(code)
    assert list(load_file(path.with_suffix(".safetensors"))) == ["a"]


def test_another_file_than_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(ModelError, match=r"is a file, and no \.safetensors"):
        load_components("notes.txt", base_dir=tmp_path)
    shutil.copy(tiny_folder("sd15") / "unet" / "diffusion_pytorch_model.safetensors", tmp_path / "unet.safetensors")
    with pytest.raises(ModelError, match="is one part of a diffusers folder") as caught:
        load_components("unet.safetensors", base_dir=tmp_path)
    assert "model_index.json" in str(caught.value.hint)
