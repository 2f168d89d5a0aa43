from __future__ import annotations

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from tests.integration.published import derived_shapes, empty_models
from trainscope.trainer.models.architectures import CONV_IN, NAMES, UNET, VAE, architectures


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_list_is_that_of_the_configurations(name: str) -> None:
    architecture = architectures()[name]
    assert derived_shapes(architecture) == dict(architecture.tensors)


@pytest.mark.parametrize(("name", "count"), [("sd1", 1131), ("sd2", 1228), ("sdxl", 2515)])
def test_the_lists_have_as_many_tensors_as_the_published_files(name: str, count: int) -> None:
    """SD 1.5 pruned, SD 2.1 pruned and SDXL base 1.0, without averages and constants of the schedule."""
    assert len(architectures()[name].tensors) == count


@pytest.mark.parametrize("name", NAMES)
def test_the_published_tensors_fill_every_place_of_the_models(name: str) -> None:
    """diffusers' conversion of the list gives what its models, built from the configurations, have."""
    architecture = architectures()[name]
    tensors = {name: torch.empty(shape, device="meta") for name, shape in architecture.tensors.items()}
    unet, vae, encoders = empty_models(architecture)

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    converted = [
        convert_ldm_unet_checkpoint(part(UNET), dict(architecture.unet)),
        convert_ldm_vae_checkpoint(part(VAE), dict(architecture.vae)),
    ]
    for encoder, model in zip(architecture.text_encoders, encoders, strict=True):
        own = part(encoder.prefix)
        found = (
            convert_ldm_clip_checkpoint(own)
            if encoder.layout == "clip"
            else convert_open_clip_checkpoint(model, own, prefix=encoder.prefix)
        )
        found.pop("text_model.embeddings.position_ids", None)
        plain = not hasattr(model, "text_model")
        converted.append({name.removeprefix("text_model.") if plain else name: t for name, t in found.items()})
    for model, found in zip((unet, vae, *encoders), converted, strict=True):
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == wanted


def test_variants_differ_where_the_published_ones_do() -> None:
    sd2 = architectures()["sd2"]
    assert sd2.configured("scheduler")["prediction_type"] == "v_prediction"
    assert sd2.configured("scheduler", "epsilon")["prediction_type"] == "epsilon"
    assert (sd2.configured("unet")["sample_size"], sd2.configured("unet", "epsilon")["sample_size"]) == (96, 64)
    for architecture in architectures().values():
        assert architecture.tensors[CONV_IN] == (320, 4, 3, 3)
        assert architecture.configured("unet", "inpainting")["in_channels"] == 9
