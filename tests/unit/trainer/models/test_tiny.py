from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.conftest import SHAPES
from trainscope.config.places import tiny_place
from trainscope.errors import ModelError
from trainscope.trainer.data.framing import centre_frame
from trainscope.trainer.data.images import find_samples, load_image
from trainscope.trainer.models import tiny
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.vae import vae_encode


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_building_twice_gives_the_same_bytes_whatever_the_global_state(tmp_path: Path, sd15_folder: Path) -> None:
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    tiny.build_tiny("sd15", tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert _files(tmp_path / "again") == _files(sd15_folder)


@pytest.mark.parametrize("name", ["sd2-v", "sdxl"])
def test_the_others_are_built_the_same_twice_too(name: str, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    tiny.build_tiny(name, tmp_path / "again")
    assert torch.equal(torch.get_rng_state(), before)
    assert _files(tmp_path / "again") == _files(tiny.tiny_folder(name))


def test_stable_diffusion_2_is_told_from_1_by_what_a_trainer_meets(sd2: Components, sd15: Components) -> None:
    assert sd2.noise_scheduler.config.prediction_type == "v_prediction"
    assert sd2.unet.config.use_linear_projection
    assert sd2.unet.config.attention_head_dim == [2, 4]
    assert sd2.unet.down_blocks[0].attentions[0].proj_in.weight.ndim == 2
    assert sd15.unet.down_blocks[0].attentions[0].proj_in.weight.ndim == 4
    assert (sd2.text_encoder.config.hidden_act, sd15.text_encoder.config.hidden_act) == ("gelu", "quick_gelu")
    assert sd2.tokenizer.pad_token == "!"


def test_xl_has_what_makes_it_xl(sdxl: Components) -> None:
    widths = [encoder.config.hidden_size for encoder in sdxl.text_encoders]
    assert widths == [32, 48]
    config = sdxl.unet.config
    assert config.cross_attention_dim == sum(widths)
    assert config.addition_embed_type == "text_time"
    assert config.projection_class_embeddings_input_dim == 6 * config.addition_time_embed_dim + widths[1]
    depths = [len(block.attentions[0].transformer_blocks) for block in sdxl.unet.down_blocks]
    assert depths == [1, 2]
    assert [tokenizer.pad_token for tokenizer in sdxl.tokenizers] == ["<|endoftext|>", "!"]
    assert sdxl.vae.config.scaling_factor == 0.13025


def test_inpainting_shares_everything_but_the_unet(sd15: Components, inpainting: Components) -> None:
    assert inpainting.unet.config.in_channels == 9
    assert sd15.unet.config.in_channels == 4
    for part in ("vae", "text_encoder"):
        states = getattr(sd15, part).state_dict(), getattr(inpainting, part).state_dict()
        assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_unet_has_the_parts_of_a_real_one(sd15: Components) -> None:
    names = [name for name, _ in sd15.unet.named_parameters()]
    for part in ("conv_in", "time_embedding", "resnets", "attn1", "attn2", "mid_block", "up_blocks.1", "conv_out"):
        assert any(part in name for name in names), part
    assert sd15.unet.config.cross_attention_dim == sd15.text_encoder.config.hidden_size == 32


@pytest.mark.parametrize("fixture", ["sd15", "sd2", "sdxl"])
def test_no_tensor_of_the_unet_is_zero(fixture: str, request: pytest.FixtureRequest) -> None:
    """As in a trained model: what is zero can make steps of any size, in any precision."""
    unet = request.getfixturevalue(fixture).unet
    assert all(float(parameter.abs().median()) > 1e-3 for parameter in unet.parameters())


@pytest.mark.parametrize("fixture", ["sd15", "sdxl"])
def test_the_vae_keeps_the_picture(fixture: str, request: pytest.FixtureRequest) -> None:
    model: Components = request.getfixturevalue(fixture)
    samples = find_samples(SHAPES)
    frames = [centre_frame((sample.width, sample.height), (64, 64)) for sample in samples]
    pictures = torch.stack([load_image(sample, frame) for sample, frame in zip(samples, frames, strict=True)])
    latents = vae_encode(model.vae, pictures)
    assert latents.shape == (28, 4, 8, 8)
    assert 0.7 < float(latents.std()) < 1.4
    with torch.no_grad():
        decoded = model.vae.decode(latents / model.vae.config.scaling_factor).sample
    error = float((decoded - pictures).square().mean())
    of_the_mean = float((pictures - pictures.mean(dim=(2, 3), keepdim=True)).square().mean())
    assert error < of_the_mean / 4


@pytest.mark.parametrize("caption", ["a red circle on a white background", "Ünïcode: 紅い円! 12 <b>", ""])
def test_the_tokenizer_covers_any_text(sd15: Components, caption: str) -> None:
    ids = sd15.tokenizer(caption).input_ids
    assert sd15.tokenizer.unk_token_id == ids[-1]
    assert sd15.tokenizer.unk_token_id not in ids[1:-1]
    text = sd15.tokenizer.decode(ids, skip_special_tokens=True)
    assert text.replace(" ", "") == caption.lower().replace(" ", "")


def test_the_words_of_the_examples_are_single_tokens(sd15: Components) -> None:
    caption = "a red circle on a white background"
    assert len(sd15.tokenizer(caption).input_ids) == len(caption.split()) + 2


def test_the_tokenizer_survives_saving(sd15: Components, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    caption = "a Purple hexagon, 3 cats & a naïve fox"
    sd15.tokenizer.save_pretrained(tmp_path)
    assert CLIPTokenizer.from_pretrained(tmp_path)(caption).input_ids == sd15.tokenizer(caption).input_ids


def test_vocab_json_and_merges_give_the_same_tokens(sd15: Components, sd15_folder: Path) -> None:
    """Readers of the older layout (kohya's trainers, transformers 4) do not look at tokenizer.json."""
    import json

    from transformers import CLIPTokenizer

    folder = sd15_folder / "tokenizer"
    merges = [tuple(line.split(" ")) for line in (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]]
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    read = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    assert read("a grey star, 12").input_ids == sd15.tokenizer("a grey star, 12").input_ids


def test_different_captions_have_different_embeddings(sd15: Components) -> None:
    ids = sd15.tokenizer(["a red circle", "a blue circle"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        red, blue = sd15.text_encoder(ids)[0]
    assert float((red - blue).square().mean().sqrt()) > 0.05


def test_an_unknown_name_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"did you mean tiny:sd15-inpainting\?") as caught:
        tiny.build_tiny("sd15-inpaint", tmp_path)
    assert caught.value.hint is not None
    assert "tiny:sd15," in caught.value.hint


def test_the_folder_is_built_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(name: str, folder: Path) -> None:
        built.append(name)
        (folder / "model_index.json").write_text("{}")

    monkeypatch.setattr(tiny, "build_tiny", build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fresh: Any = tiny.tiny_folder.__wrapped__
    assert fresh("sd15") == fresh("sd15")
    assert built == ["sd15"]
    root = tmp_path / "trainscope" / "tiny"
    assert [path.name for path in root.iterdir()] == [tiny_place("sd15").name]


def test_the_loser_of_a_race_takes_the_winners_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "trainscope" / "tiny"
    winner = root / tiny_place("sd15").name

    def build(name: str, folder: Path) -> None:
        (folder / "model_index.json").write_text("loser")
        winner.mkdir(parents=True)
        (winner / "model_index.json").write_text("winner")

    monkeypatch.setattr(tiny, "build_tiny", build)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tiny.tiny_folder.__wrapped__("sd15") == winner
    assert (winner / "model_index.json").read_text() == "winner"
    assert list(root.iterdir()) == [winner]


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("a file in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tiny, "build_tiny", lambda name, folder: folder.mkdir())
    folder = tiny.tiny_folder.__wrapped__("sd15")
    assert folder.is_dir()
    assert tmp_path not in folder.parents


def test_importing_the_module_is_quick_and_quiet() -> None:
    """diffusers and transformers take seconds; the command line's start must not pay for them."""
    code = (
        "import sys, trainscope.trainer.models.load; print('diffusers' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    assert done.stderr == ""
