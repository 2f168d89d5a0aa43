"""LoRA files and pipeline folders → the tensors that a training has names for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainscope.errors import ConfigError
from trainscope.trainer.checkpoints.weights import start_from_lora, weights_for_use
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.lora import LoraPair, add_lora, trained_parameters
from trainscope.trainer.models.save import save_kohya_lora, save_lora, save_pipeline


def pairs_on(
    components: Components, *, seed: int, conv_rank: int | None = 2, conv_alpha: float = 1.0, text: bool = True
) -> list[LoraPair]:
    """Moved pairs on the UNet's linear layers and 3×3 convolutions, and on the text encoder."""
    pairs = add_lora(components.unet, rank=3, alpha=2.0, conv_rank=conv_rank, conv_alpha=conv_alpha, seed=seed)
    if text:
        pairs += add_lora(components.text_encoder, component="text_encoder", rank=3, alpha=2.0, seed=seed)
    with torch.no_grad():
        for pair in pairs:
            pair.b.normal_(generator=torch.Generator().manual_seed(seed))
    return pairs


def written(layout: str, folder: Path, pairs: Sequence[LoraPair], **options: int) -> Path:
    if layout == "diffusers":
        return save_lora(folder, pairs)
    return save_kohya_lora(folder / "a.safetensors", pairs, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", ["diffusers", "kohya", "kohya-sdxl"])
def test_a_lora_to_start_from(sd15: Components, own_sd15: Components, tmp_path: Path, layout: str) -> None:
    """Its names are SDXL's in the third; the modules of the tiny model are among them."""
    # The tiny model has more convolutions than linear layers: kohya's file would have their alpha in its weights.
    conv_alpha = 1.0 if layout == "diffusers" else 2.0
    source = pairs_on(copy.deepcopy(sd15), seed=1, conv_alpha=conv_alpha)
    path = written(
        layout.partition("-")[0], tmp_path, source, **({"sdxl": True, "layers": 1} if "sdxl" in layout else {})
    )
    pairs = pairs_on(own_sd15, seed=2, conv_alpha=conv_alpha)
    assert len(pairs) == len(source) > 30
    start_from_lora(pairs, path)
    for pair, own in zip(pairs, source, strict=True):
        assert torch.equal(pair.a, own.a)
        assert torch.equal(pair.b, own.b)


def test_what_does_not_fit_is_told_with_the_key_that_is_to_blame(
    sd15: Components, own_sd15: Components, tmp_path: Path
) -> None:
    whole = written("diffusers", tmp_path / "a", pairs_on(copy.deepcopy(sd15), seed=1))
    linear = written("diffusers", tmp_path / "b", pairs_on(copy.deepcopy(sd15), seed=1, conv_rank=None, text=False))
    other = written("diffusers", tmp_path / "c", pairs_on(copy.deepcopy(sd15), seed=1, conv_rank=4))
    pairs = pairs_on(own_sd15, seed=2)
    unet = [pair for pair in pairs if pair.component == "unet"]
    text = [pair for pair in pairs if pair.component == "text_encoder"]
    flat = [pair for pair in pairs if not pair.kernel]
    for taken, path, says in (
        (unet, whole, "text_encoder.text_model.encoder.layers.0.self_attn.k_proj: the file adapts it, and train.parts"),
        (text, whole, "to_q: the file adapts it, and train.parts does not"),
        (flat, whole, "conv1: the file adapts it, and lora.conv_rank does not"),
        ([*unet, *text[1:]], whole, "the file adapts it, and lora.text_encoder_targets does not"),
        (pairs, linear, "unet.down_blocks.0.resnets.0.conv1: is not in the file"),
        (pairs, other, "conv1: rank 4, and lora.conv_rank asks for 2"),
    ):
        before = [pair.b.detach().clone() for pair in pairs]
        with pytest.raises(ConfigError) as error:
            start_from_lora(taken, path)
        assert says in "\n".join(error.value.problems)
        assert all(torch.equal(pair.b, old) for pair, old in zip(pairs, before, strict=True))


def test_the_lora_of_a_checkpoint_without_state(own_sd15: Components, tmp_path: Path) -> None:
    pairs = pairs_on(own_sd15, seed=1)
    save_lora(tmp_path / "weights", pairs)
    params = trained_parameters(own_sd15.models)
    found = weights_for_use(tmp_path, params, pairs)
    assert found.keys() == params.keys()
    assert all(torch.equal(found[name], param) for name, param in params.items())


@pytest.mark.parametrize("nested", [False, True])
def test_the_models_of_a_checkpoint_without_state(own_sd15: Components, tmp_path: Path, nested: bool) -> None:
    """`nested`: the text encoder's file has the `text_model.` that transformers before 5 wrote."""
    own_sd15.unet.requires_grad_(True)
    own_sd15.text_encoder.requires_grad_(True)
    folder = save_pipeline(tmp_path / "weights", own_sd15, trained={"unet", "text_encoder"})
    if nested:
        path = folder / "text_encoder" / "model.safetensors"
        save_file({f"text_model.{name}": tensor for name, tensor in load_file(path).items()}, path)
    params = trained_parameters(own_sd15.models)
    assert {name.partition(".")[0] for name in params} == {"unet", "text_encoder"}
    found = weights_for_use(tmp_path, params, [])
    assert params.keys() <= found.keys()
    assert all(torch.equal(found[name], param) for name, param in params.items())
    text = {name: param for name, param in params.items() if name.startswith("text_encoder.")}
    assert not any(name.startswith("unet.") for name in weights_for_use(tmp_path, text, []))
