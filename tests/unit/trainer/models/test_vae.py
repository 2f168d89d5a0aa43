from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.unit.trainer.conftest import weights_digest
from trainscope.errors import ModelError
from trainscope.trainer.models.load import Components
from trainscope.trainer.models.vae import on_overflow, vae_decode, vae_encode

PIXELS = torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


@pytest.fixture
def half(sd15: Components) -> Any:
    return copy.deepcopy(sd15.vae).half()


def _overflow(module: torch.nn.Module, rows: list[int]) -> None:
    """Let the output of `module` overflow in float16, for some rows of what is encoded or decoded two at a time."""

    def hook(_: object, __: object, output: torch.Tensor) -> torch.Tensor:
        if output.dtype == torch.float32:
            return output
        output = output.clone()
        output[rows] = float("inf")
        return output

    module.register_forward_hook(hook)


def test_float32_is_the_mean_times_the_scaling_factor(sd15: Components) -> None:
    with torch.no_grad():
        mean = sd15.vae.encode(PIXELS).latent_dist.mean
        pixels = sd15.vae.decode(mean).sample
    latents = vae_encode(sd15.vae, PIXELS)
    assert torch.equal(latents, mean * sd15.vae.config.scaling_factor)
    assert torch.allclose(vae_decode(sd15.vae, latents), pixels, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_it(sd15: Components, dtype: torch.dtype) -> None:
    vae = copy.deepcopy(sd15.vae).to(dtype)
    said: list[str] = []
    on_overflow(vae, said.append)
    with torch.no_grad():
        mean = vae.encode(PIXELS.to(dtype)).latent_dist.mean.float()
    latents = vae_encode(vae, PIXELS)
    assert latents.dtype == torch.float32
    assert torch.equal(latents, mean * vae.config.scaling_factor)
    assert not torch.equal(latents, vae_encode(sd15.vae, PIXELS))
    assert vae_decode(vae, latents).dtype == torch.float32
    assert not said


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_what_overflows_is_computed_in_float32(half: Any, direction: str) -> None:
    """Row 1 overflows and takes float32, row 0 does not and keeps its half precision; once is enough to be told."""
    latents = vae_encode(half, PIXELS)
    inputs = PIXELS if direction == "encode" else latents
    compute, module = (
        (vae_encode, half.encoder.conv_in) if direction == "encode" else (vae_decode, half.decoder.conv_in)
    )
    in_float32 = [compute(copy.deepcopy(half).float(), inputs[row : row + 1])[0] for row in (0, 1)]
    before = weights_digest(half)
    said: list[str] = []
    on_overflow(half, said.append)
    _overflow(module, [1])
    found = compute(half, inputs)
    assert torch.isfinite(found).all()
    assert torch.equal(found[1], in_float32[1])
    assert not torch.equal(found[0], in_float32[0])
    assert torch.allclose(found[0], in_float32[0], atol=0.1)
    assert weights_digest(half) == before
    compute(half, inputs)
    assert said == ["the VAE overflows in float16: such pictures take it in float32"]


def test_a_listener_that_comes_late_is_told(half: Any) -> None:
    _overflow(half.encoder.conv_in, [0, 1])
    vae_encode(half, PIXELS)
    said: list[str] = []
    on_overflow(half, said.append)
    assert len(said) == 1


def test_the_fallback_is_taken_inside_autocast_too(half: Any) -> None:
    """Autocast would put the float32 computation back into the format that overflowed."""
    _overflow(half.encoder.conv_in, [0, 1])
    outside = vae_encode(half, PIXELS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(vae_encode(half, PIXELS), outside)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_latents_that_stay_non_finite_are_refused(sd15: Components, dtype: torch.dtype) -> None:
    vae = copy.deepcopy(sd15.vae).to(dtype)
    with torch.no_grad():
        vae.quant_conv.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="non-finite latents, in float32 too"):
        vae_encode(vae, PIXELS)


def test_non_finite_latents_are_not_the_vaes_fault(half: Any) -> None:
    said: list[str] = []
    on_overflow(half, said.append)
    pixels = vae_decode(half, torch.full((1, 4, 4, 4), float("nan")))
    assert not torch.isfinite(pixels).any()
    assert not said
