from __future__ import annotations

import pytest
import torch

from trainscope.trainer.models.load import Components
from trainscope.trainer.noise import add_noise, derive_seed, generator, noise_like, spread_timesteps, timesteps


def test_each_sample_has_a_stream_of_its_own() -> None:
    whole = noise_like((4, 8, 8), seed=1, step=5, samples=[3, 1, 7])
    assert whole.shape == (3, 4, 8, 8)
    assert torch.equal(noise_like((4, 8, 8), seed=1, step=5, samples=[7]), whole[2:])
    steps = timesteps(seed=1, step=5, samples=[3, 1, 7])
    assert torch.equal(timesteps(seed=1, step=5, samples=[1, 3]), steps[[1, 0]])


def test_every_part_of_the_key_matters() -> None:
    keys: list[tuple[int | str, ...]] = [("noise", 1, 2), ("mask", 1, 2), ("noise", 2, 1), ("noise", 12), ("1", 1)]
    seeds = {derive_seed(seed, *key) for key in keys for seed in (0, 1)}
    assert len(seeds) == 2 * len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, 1) != derive_seed(0, "1")
    assert derive_seed(0, "a", "bc") != derive_seed(0, "ab", "c")


def test_draws_are_the_same_everywhere() -> None:
    """A change of these numbers changes what every seed means: a resumed run would go on with other draws."""
    assert derive_seed(0, "noise", 1, 2) == 2318091653208384812
    assert timesteps(seed=0, step=0, samples=range(4)).tolist() == [575, 585, 650, 513]


def test_the_global_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    first = noise_like((2,), seed=0, step=0, samples=[0])
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(noise_like((2,), seed=0, step=0, samples=[0]), first)
    generator(0, "anything").seed()
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_is_standard_normal_and_streams_are_uncorrelated() -> None:
    noise = noise_like((4, 8, 8), seed=0, step=0, samples=range(400)).flatten(1).double()
    assert abs(float(noise.mean())) < 0.01
    assert abs(float(noise.var()) - 1) < 0.02
    correlation = (noise @ noise.T / noise.shape[1]).fill_diagonal_(0)
    assert float(correlation.square().mean()) == pytest.approx(1 / noise.shape[1], rel=0.05)


def test_timesteps_are_uniform_in_their_range() -> None:
    drawn = timesteps(seed=0, step=0, samples=range(3000), low=100, high=200)
    assert drawn.dtype == torch.int64
    assert (int(drawn.min()), int(drawn.max())) == (100, 199)
    assert abs(float(drawn.double().mean()) - 149.5) < 2
    with pytest.raises(ValueError, match="low < high"):
        timesteps(seed=0, step=0, samples=[0], low=5, high=5)


def test_spread_timesteps_cover_the_range_evenly() -> None:
    assert spread_timesteps(4).tolist() == [125, 375, 625, 875]
    assert spread_timesteps(2, low=100, high=200).tolist() == [125, 175]
    assert int(spread_timesteps(1000).max()) == 999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adding_noise_is_the_forward_process(sd15: Components, dtype: torch.dtype) -> None:
    clean = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    noise = noise_like((4, 8, 8), seed=0, step=0, samples=range(3))
    steps = torch.tensor([0, 500, 999])
    noisy = add_noise(sd15.noise_scheduler, clean, noise, steps)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)[steps].view(-1, 1, 1, 1)
    expected = kept.sqrt() * clean.double() + (1 - kept).sqrt() * noise.double()
    assert noisy.dtype == torch.float32
    assert torch.allclose(noisy.double(), expected, atol=1e-5)
